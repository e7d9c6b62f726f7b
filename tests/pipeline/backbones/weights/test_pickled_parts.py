"""Pickles interpreted as data, instruction by instruction, and the dictionaries of tensors found in them."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caeav.pipeline.backbones.weights import WeightsError, inspect, pickled
from caeav.pipeline.backbones.weights.convert import _dropped, _in_words, _materialise
from caeav.pipeline.backbones.weights.inspect import (
    find_parts,
    mixed_tensors,
    module_tensors,
    parts_of_open,
    pure_tensors,
)
from caeav.pipeline.backbones.weights.parts import Parts
from caeav.pipeline.backbones.weights.pickled import (
    Inert,
    LazyTensor,
    Named,
    Pickled,
    Storage,
    _Machine,
    _make,
    readable,
)

ROW = Storage("0", "float32", 6)


def tensor(*shape: int, offset: int = 0, stride: tuple[int, ...] | None = None) -> LazyTensor:
    steps = stride if stride is not None else tuple(range(len(shape), 0, -1))
    return LazyTensor(ROW, "float32", offset, shape, steps)


def interpreted(value: Any, protocol: int = 2) -> tuple[Any, set[str]]:
    machine = _Machine()
    root = machine.run(io.BytesIO(pickle.dumps(value, protocol)))
    return root, machine.names


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [1.5, "x", None, True, False, 2**70, -3], "c": {"d": ()}, "e": (1, (2, 3), 4, 5)},
        OrderedDict([("b", 1), ("a", 2)]),
        Counter({"x": 3}),
        ["long " * 100, "é", {1: {2: {}}}],
    ],
)
def test_plain_values_are_read_unchanged_by_every_protocol(value: Any, protocol: int) -> None:
    found, names = interpreted(value, protocol)
    assert found == dict(value) if isinstance(value, dict) else found == value
    if type(value) in (OrderedDict, Counter):
        assert names == {f"collections.{type(value).__name__}"}


def test_shared_objects_stay_shared() -> None:
    shared = ["x"]
    root, _ = interpreted({"a": shared, "b": shared})
    assert root["a"] is root["b"]
    # kept as number 5, then another list as the same number
    assert _Machine().run(io.BytesIO(b"\x80\x02]q\x05K\x01ah\x05.")) == [1]
    assert _Machine().run(io.BytesIO(b"\x80\x02]q\x00]K\x02aq\x00h\x00\x86.")) == ([2], [2])


class Thing:
    def __init__(self) -> None:
        self.held = [1]


class Given:
    def __getnewargs_ex__(self) -> tuple[tuple[int, ...], dict[str, int]]:
        return (7, 8), {"k": 9}


class Settings(dict[str, int]):
    pass


def test_a_dict_subclass_becomes_an_inert_record_with_its_entries() -> None:
    root, _ = interpreted(Settings(a=1))
    assert isinstance(root, Inert) and root.entries == {"a": 1} == inspect.entries(root)


def test_an_object_made_with_keywords_becomes_an_inert_record() -> None:
    root, _ = interpreted(Given(), 4)
    assert isinstance(root, Inert) and root.name.endswith(".Given") and root.args == (7, 8)


def test_a_truncated_checkpoint_in_the_old_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    with pickled.open_pickled(path) as held:
        assert held.read(held.root["a"].storage) == whole[-12:]
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="ends within its tensors"), pickled.open_pickled(path):
        pass


def test_an_object_becomes_an_inert_record_of_class_arguments_state_and_entries() -> None:
    root, names = interpreted(Thing())
    assert isinstance(root, Inert) and root.name.endswith(".Thing") and root.state == {"held": [1]}
    assert any(name.endswith(".Thing") for name in names)
    kept, names = interpreted(defaultdict(list, {"k": 2}))
    assert kept == {"k": 2} and names == {"collections.defaultdict", "builtins.list"}
    assert interpreted(range(3))[1] == {"builtins.range"}  # xrange in Python 2, and so in the file
    assert interpreted(print)[0] == Named("builtins.print")
    date, _ = interpreted({"at": Path("a/b")})
    assert isinstance(date["at"], Inert) and date["at"].args == ("a", "b")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02K\x01", "ends too early|no newline|pickle exhausted"),
        (b"R.", "takes what is not there"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1 is not read"),
        (b"\x80\x02Ppersid\n.", "the instruction PERSID is not read"),
    ],
)
def test_invalid_instructions_are_refused(data: bytes, message: str) -> None:
    with pytest.raises((pickled._UnreadableError, EOFError, ValueError), match=message):
        _Machine().run(io.BytesIO(data))


def test_a_pickle_longer_than_allowed_is_refused() -> None:
    data = pickle.dumps(["x"] * 100, 2)
    assert len(_Machine().run(io.BytesIO(data), longest=len(data))) == 100
    with pytest.raises(pickled._UnreadableError, match="without end"):
        _Machine().run(io.BytesIO(data), longest=64)


def test_storages_are_recognised_by_class_and_shared_by_key() -> None:
    machine = _Machine()
    for key in (
        ("storage", Named("torch.HalfStorage"), "7", "cpu", 5),
        ("storage", Named("torch.HalfStorage"), "7", "cpu", 5, None),
        ("storage", Named("torch.HalfStorage"), "7", "cpu", 5, ("view", 0, 1)),
        ("storage", Named("torch.StrangeStorage"), "8", "cpu", 5),
        ("module", Named("torch.HalfStorage"), "9", "cpu", 5),
        ("storage",),
    ):
        machine.persistent(key)
    first, again, *others = machine._stack
    assert first is again and first == Storage("7", "float16", 5)
    assert all(isinstance(other, Inert) for other in others) and set(machine.storages) == {"7"}


@pytest.mark.parametrize(
    ("args", "made"),
    [
        ((ROW, 1, (2,), (3,)), True),
        ((ROW, 0, (), ()), True),
        ((ROW, -1, (2,), (1,)), False),
        ((ROW, 0, (2,), (-1,)), False),
        ((ROW, 0, (2, 2), (1,)), False),
        ((ROW, 0, (2.0,), (1,)), False),
        ((ROW, True, (2,), (1,)), False),
        ((Inert("x"), 0, (2,), (1,)), False),
    ],
)
def test_tensors_are_made_only_of_a_storage_and_valid_numbers(args: tuple[Any, ...], made: bool) -> None:
    found = _make(Named("torch._utils._rebuild_tensor_v2"), args)
    assert isinstance(found, LazyTensor) is made and isinstance(found, Inert) is not made
    if made:
        assert (found.storage, found.offset, found.shape, found.stride, found.dtype) == (*args, "float32")


def test_typed_tensors_parameters_and_tensor_subclasses_are_tensors() -> None:
    third = (ROW, 0, (2,), (1,), False, None)
    found = _make(Named("torch._utils._rebuild_tensor_v3"), (*third, Named("torch.int16")))
    assert (found.dtype, found.bytes, tensor(2, 3).bytes, tensor(0, 3).bytes, tensor().bytes) == (
        "int16",
        4,
        24,
        0,
        4,
    )
    assert isinstance(_make(Named("torch._utils._rebuild_tensor_v3"), (*third, Named("torch.odd"))), Inert)
    held = tensor(2)
    for name in ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"):
        assert _make(Named(name), (held, True)) is held
        assert isinstance(_make(Named(name), (3,)), Inert)
    again = (Named("torch._utils._rebuild_tensor_v2"), Named("my.Tensor"), (ROW, 0, (2,), (1,)), {})
    assert isinstance(_make(Named("torch._tensor._rebuild_from_type_v2"), again), LazyTensor)
    other = (Named("my.call"), Named("my.Tensor"), (), {})
    assert isinstance(_make(Named("torch._tensor._rebuild_from_type_v2"), other), Inert)
    plain = (Named("builtins.list"), Named("my.Tensor"), ([1],), {})
    assert isinstance(_make(Named("torch._tensor._rebuild_from_type_v2"), plain), Inert)
    assert isinstance(_make(Inert("x"), ()), Inert)
    assert _make(Named("torch.Size"), ([2, 3],)) == (2, 3) and _make(Named("builtins.set"), ()) == []


def test_control_characters_are_shown_escaped() -> None:
    assert readable("a\x1b[2J é\n") == "a\\x1b[2J é\\x0a"


def test_pure_dictionaries_hold_only_tensors_and_mixed_ones_no_nested_dictionary() -> None:
    one = tensor(2)
    assert pure_tensors({"a": one}) == {"a": one} == mixed_tensors({"a": one, "n": 3})
    assert pure_tensors(Inert("collections.MyDict", entries={"a": one})) == {"a": one}
    for value in ({}, {"a": one, "n": 3}, {1: one}, [one], 3, None, Inert("x")):
        assert pure_tensors(value) is None
    for value in ({}, {"n": 3}, {"a": one, "d": {}}, {"a": one, "l": []}, {"a": one, 2: one}, 3):
        assert mixed_tensors(value) is None


def module(modules: dict[str, Any], parameters: Any = None, **state: Any) -> Inert:
    return Inert(
        "my.Module", state={"_modules": modules, "_parameters": parameters, "_buffers": None, **state}
    )


def test_a_module_saved_whole_gives_its_parameters_and_persistent_buffers() -> None:
    one, two, three = tensor(1), tensor(2), tensor(3)
    inner = module({}, {"w": one, "b": None}, _buffers={"kept": two, "gone": three})
    inner.state["_non_persistent_buffers_set"] = ["gone"]
    outer = module({"net": inner, "none": None}, {"scale": three})
    assert module_tensors(outer) == {"scale": three, "net.w": one, "net.kept": two}
    assert pure_tensors(outer) == module_tensors(outer)
    assert module_tensors(outer, depth=1) == {"scale": three} and module_tensors(Inert("x", state=3)) == {}
    loop = module({})
    loop.state["_modules"]["me"] = loop
    assert module_tensors(loop) == {}


def test_mixed_dictionaries_count_only_where_there_is_no_pure_one() -> None:
    one = tensor(1)
    both = {"state_dict": {"a": one}, "model": {"a": one, "n": 3}}
    assert parts_of_open(Pickled(both, frozenset(), bytes), "f").taken == "state_dict"
    assert parts_of_open(Pickled({"model": {"a": one, "n": 3}}, frozenset(), bytes), "f").taken == "model"
    assert parts_of_open(Pickled({"a": one, "n": 3}, frozenset(), bytes), "f").taken == ""
    with pytest.raises(WeightsError):
        parts_of_open(Pickled({"n": 3}, frozenset(), bytes), "f")


def test_an_unclear_part_is_none_and_a_named_or_hidden_one_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = SimpleNamespace(root={"model": {"a": tensor(1)}}, names={"collections.OrderedDict"})

    @contextmanager
    def opened(path: Path) -> Any:
        yield held

    monkeypatch.setattr(inspect, "open_pickled", opened)
    found = find_parts(Path("w.pt"))
    assert found is not None and found.taken == "model"
    with pytest.raises(WeightsError):
        find_parts(Path("w.pt"), "other")
    held.root = {"n": 3}
    assert find_parts(Path("w.pt")) is None
    for name, message in (("os.system", "asks to run os.system"), ("my.Model", "holds objects of my.Model")):
        held.names = {name}
        with pytest.raises(WeightsError, match=message):
            find_parts(Path("w.pt"))


def test_tensors_get_separate_memory_and_none_reaches_past_its_storage() -> None:
    import numpy as np

    reads: list[str] = []

    def read(storage: Storage) -> bytes:
        reads.append(storage.key)
        return np.arange(6, dtype=np.float32).tobytes()

    held = Pickled(None, frozenset(), read)
    found = _materialise(
        held,
        {
            "turned": tensor(3, 2, stride=(1, 3)),
            "later": tensor(2, offset=4, stride=(1,)),
            "one": tensor(offset=5),
            "none": tensor(0, 9, offset=9, stride=(9, 9)),
        },
    )
    assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["turned"].is_contiguous()
    assert (found["later"].tolist(), found["one"].item(), found["none"].shape) == ([4, 5], 5, (0, 9))
    found["turned"].zero_()
    assert found["later"].tolist() == [4, 5] and reads == ["0"]
    for reaching in (tensor(2, offset=5, stride=(1,)), tensor(7, stride=(1,)), tensor(2, stride=(6,))):
        with pytest.raises(WeightsError, match="a reaches past its storage"):
            _materialise(held, {"a": reaching})


def test_dropped_entries_are_listed_innermost_first_and_long_lists_are_cut() -> None:
    one = tensor(2, 3)
    chosen = {"a": one, "steps": 3}
    root = {"epoch": 7, "net": {"ema": {"a": one}, "model": chosen}, "args": Inert("my.Args"), "log": [1, 2]}
    parts = Parts("net.model", ())
    assert _dropped(root, chosen, parts, {"a": one}) == [
        "net.model.steps: 3",
        "epoch: 7",
        "args: an object of my.Args",
        "log: a list of 2",
        "net.ema: 1 tensors",
    ]
    assert _dropped(chosen, chosen, Parts("", ()), {"a": one}) == ["steps: 3"]
    many = {"a": one, **{f"n{n:02}": n for n in range(21)}}
    remarks = _dropped(many, many, Parts("", ()), {"a": one})
    assert len(remarks) == 21 and remarks[-1] == "and 1 more"
    many.popitem()
    assert len(_dropped(many, many, Parts("", ()), {"a": one})) == 20
    assert _in_words(one) == "a tensor [2, 3]" and _in_words({"x": 1}) == "a dictionary of 1"
    assert _in_words("y" * 60) == "y" * 60 and _in_words("y" * 61) == "y" * 60 + "..."
