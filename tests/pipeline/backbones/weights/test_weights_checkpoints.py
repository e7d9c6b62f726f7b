"""Checkpoints of training programs: read if only bookkeeping lies beside the weights, otherwise converted."""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib
import pathlib
import random
import shutil
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights import WeightsError, find_weights, pickled
from caeav.pipeline.backbones.weights.convert import convert
from caeav.pipeline.backbones.weights.inspect import find_parts, unreadable_names
from caeav.pipeline.backbones.weights.load import read_tensors, read_weights, strip_prefixes


def state(value: float = 1.0) -> dict[str, Tensor]:
    """A small state dict of tensors that share memory, are transposed, empty, scalar and of several dtypes."""
    whole = torch.arange(24.0).reshape(4, 6) + value
    return {
        "a.weight": whole,
        "a.turned": whole.T,
        "a.row": whole[1],
        "b.half": torch.full((3,), value, dtype=torch.float16),
        "b.brain": torch.full((2, 2), value, dtype=torch.bfloat16),
        "b.steps": torch.tensor(7),
        "b.mask": torch.tensor([True, False]),
        "b.none": torch.zeros(0, 3),
        "c.parameter": nn.Parameter(torch.ones(2) * value),
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == x.dtype and torch.equal(found[name], x) for name, x in wanted.items()
    )


@pytest.fixture
def strange() -> Iterator[Callable[..., type]]:
    """`strange("pkg.mod.Class", base)`: a class in a module that exists only during the test."""
    made: list[str] = []

    def make(path: str, base: type = object) -> type:
        module, _, name = path.rpartition(".")
        parts = module.split(".")
        for i in range(len(parts)):
            whole = ".".join(parts[: i + 1])
            if whole not in sys.modules:
                sys.modules[whole] = types.ModuleType(whole)
                made.append(whole)
        kind = type(name, (base,), {"__module__": module})
        setattr(sys.modules[module], name, kind)
        return kind

    yield make
    for name in made:
        del sys.modules[name]


def bookkeeping(strange: Callable[..., type]) -> dict[str, Any]:
    """What training programs write beside weights, by test id."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = strange("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    attributes = strange("lightning.fabric.utilities.data.AttributeDict", dict)(lr=1)
    nodes = strange("yacs.config.CfgNode", dict)(depth=3)
    nodes.__dict__["frozen"] = True
    config = strange("omegaconf.dictconfig.DictConfig")()
    config._metadata = strange("omegaconf.base.ContainerMetadata")()
    config._content = {"lr": strange("omegaconf.nodes.AnyNode")()}
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    by_name["x"].append(1)
    return {
        "callbacks keyed by a class": {checkpoint: {"best": "x"}},
        "a callback": checkpoint(),
        "AttributeDict": attributes,
        "CfgNode": nodes,
        "DictConfig": config,
        "Namespace": argparse.Namespace(lr=0.1, out=Path("runs")),
        "a path of the other system": pathlib.PureWindowsPath("a"),
        "numpy numbers": [np.float64(0.5), np.int64(3), np.float32(1), np.bool_(True)],
        "a numpy array": np.arange(6.0).reshape(2, 3),
        "numpy's random state": np.random.default_rng(0).bit_generator.state,
        "defaultdict": by_name,
        "OrderedDict": OrderedDict(a=1),
        "a date": datetime.datetime(2026, 1, 2),
        "partial": functools.partial(int, base=2),
        "a set": {1, 2},
        "the version": torch.torch_version.TorchVersion("2.0"),
        "optimizer states": optimizer.state_dict(),
        "an optimizer": optimizer,
        "a scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    }


KINDS = [
    "callbacks keyed by a class",
    "a callback",
    "AttributeDict",
    "CfgNode",
    "DictConfig",
    "Namespace",
    "a path of the other system",
    "numpy numbers",
    "a numpy array",
    "numpy's random state",
    "defaultdict",
    "OrderedDict",
    "a date",
    "partial",
    "a set",
    "the version",
    "optimizer states",
    "an optimizer",
    "a scheduler",
]


@pytest.mark.parametrize("kind", KINDS)
def test_bookkeeping_beside_the_weights_is_skipped(
    kind: str, strange: Callable[..., type], tmp_path: Path
) -> None:
    beside = bookkeeping(strange)
    assert [*beside] == KINDS
    torch.save({"state_dict": state(), "other": beside[kind]}, tmp_path / "w.ckpt")
    assert same(read_tensors(tmp_path / "w.ckpt"), state())
    convert(tmp_path / "w.ckpt", tmp_path / "w.safetensors")
    assert same(load_file(tmp_path / "w.safetensors"), state())


def test_every_class_that_torch_allows_is_readable() -> None:
    from torch import _weights_only_unpickler

    assert unreadable_names(_weights_only_unpickler._get_allowed_globals()) == []


LAYOUTS = {
    "zip": {},
    "before 1.6": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
    "protocol 3 before 1.6": {"pickle_protocol": 3, "_use_new_zipfile_serialization": False},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unreadable_class_is_named_with_the_convert_command(
    layout: str, strange: Callable[..., type], tmp_path: Path
) -> None:
    trainer = strange("mytrainer.engine.Trainer")()
    trainer.history = [1, 2]
    many = {f"k{i}": strange(f"mytrainer.parts.Part{i}", dict)(a=i) for i in range(12)}
    path = tmp_path / "my run.pth"
    torch.save({"model": state(), "trainer": trainer, **many}, path, **LAYOUTS[layout])
    for name in [name for name in sys.modules if name.startswith("mytrainer")]:
        sys.modules[name].__dict__.clear()
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert (
        "cannot be read as plain weights: it holds objects of mytrainer.engine.Trainer, mytrainer.parts.Part0"
        in message
    )
    assert all(f"mytrainer.parts.Part{i}" in message for i in range(12))
    assert message.replace("\n", "").isprintable()
    assert f"caeav models convert '{path}' 'my run.safetensors'" in message
    done = convert(path, tmp_path / "out.safetensors")
    assert same(load_file(done.path), state())
    assert (done.parts.taken, done.tensors) == ("model", len(state()))
    assert "trainer: an object of mytrainer.engine.Trainer" in done.dropped
    assert "mytrainer.parts.Part11" in done.classes


def test_a_harmless_file_of_another_protocol_names_the_convert_command(tmp_path: Path) -> None:
    torch.save({"model": state()}, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(
        WeightsError, match=r"(?s)plain weights: Unsupported operand 149\n.*caeav models convert"
    ):
        read_tensors(tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert same(read_tensors(tmp_path / "w.safetensors"), state())


def test_nothing_that_a_file_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n"
        "class Trap:\n    def __reduce__(self):\n        return spring, (1,)\n"
        "def spring(x):\n    raise AssertionError('sprung')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    trap = importlib.import_module("trap")
    torch.save({"model": state(), "x": trap.Trap(), "y": trap.Trap}, tmp_path / "w.pt")
    del sys.modules["trap"]
    (tmp_path / "sprung").unlink()
    with pytest.raises(WeightsError, match=r"objects of trap\.Trap, trap\.spring"):
        read_tensors(tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert not (tmp_path / "sprung").exists() and "trap" not in sys.modules


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_would_run_a_command_is_refused_by_reading_and_converting(
    layout: str, tmp_path: Path
) -> None:
    torch.save(
        {"model": state(), "x": Runs(f"touch {tmp_path / 'ran'}")}, tmp_path / "w.pt", **LAYOUTS[layout]
    )
    for read in (read_tensors, lambda path: convert(path, tmp_path / "w.safetensors")):
        with pytest.raises(WeightsError, match=r"(?s)asks to run posix\.system.*do not trust"):
            read(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "w.safetensors").exists()


def test_names_from_a_file_are_shown_escaped(tmp_path: Path) -> None:
    torch.save({"model": state(), "y": argparse.Namespace}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data.replace(b"argparse\nNamespace", b"evil\nA\x1b[1mB"))
    with pytest.raises(WeightsError) as caught:
        read_tensors(tmp_path / "evil.pt")
    assert "evil.A\\x1b[1mB" in str(caught.value) and "\x1b" not in str(caught.value)
    assert convert(tmp_path / "evil.pt", tmp_path / "w.safetensors").classes == ("evil.A\\x1b[1mB",)


def test_a_model_saved_whole_gives_its_state_dict(strange: Callable[..., type], tmp_path: Path) -> None:
    kind = strange("research.Net", nn.Module)
    net = kind()
    net.inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    net.register_buffer("scale", torch.ones(3))
    net.register_buffer("passing", torch.ones(3), persistent=False)
    wanted = {name: x.clone() for name, x in net.state_dict().items()}
    for name, held in {"whole.pt": net, "inside.pt": {"model": net, "epoch": 3}}.items():
        torch.save(held, tmp_path / name)
        with pytest.raises(WeightsError, match=r"objects of research\.Net, torch\.nn\.modules"):
            read_tensors(tmp_path / name)
        done = convert(tmp_path / name, tmp_path / f"{name}.safetensors")
        assert same(load_file(done.path), wanted)


CHOICES = {
    "plain": (state(), "", ()),
    "the usual order": ({"model": state(2), "state_dict": state()}, "state_dict", ("model",)),
    "an average is preferred": ({"model": state(2), "model_ema": state()}, "model_ema", ("model",)),
    "of two averages timm's": ({"model_ema": state(2), "state_dict_ema": state()}, "state_dict_ema", ("model_ema",)),
    "an average alone": ({"ema": state(), "epoch": 3}, "ema", ()),
    "an average in one": ({"ema": {"module": state(), "decay": 0.9}, "model": state(2)}, "ema.module", ("model",)),
    "an average inside": ({"model": {"ema": state(), "net": state(2)}}, "model.ema", ("model.net",)),
    "an average without names": ({"ema": {"shadow_params": [torch.ones(2)]}, "model": state()}, "model", ()),
    "an average of None": ({"state_dict_ema": None, "state_dict": state()}, "state_dict", ()),
    "the only one": ({"student": state(), "optimizer": {"state": {0: {"x": torch.ones(2)}}}}, "student", ()),
    "usual before others": ({"teacher": state(2), "model": state()}, "model", ("teacher",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_one_dictionary_is_chosen_by_rule_and_reported(case: str, tmp_path: Path) -> None:
    held, taken, others = CHOICES[case]
    for order in (1, -1):
        path = tmp_path / f"w{order}.pth"
        torch.save(dict(list(held.items())[::order]), path)
        assert {name: x.tolist() for name, x in read_tensors(path).items()} == {
            name: x.tolist() for name, x in state().items()
        }
        parts = find_parts(path)
        assert parts is not None and parts.taken == taken and set(parts.others) == set(others)
        assert ("moving average" in parts.in_words()) == bool("ema" in taken and others)
        done = convert(path, tmp_path / f"{order}.safetensors")
        assert done.parts == parts and same(load_file(done.path), state())


def test_ambiguous_dictionaries_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    torch.save({"student": state(2), "teacher": state(), "epoch": 1}, path)
    for read in (read_tensors, lambda path: convert(path, tmp_path / "w.safetensors")):
        with pytest.raises(
            WeightsError, match=r"(?s)tensors: student, teacher\n.*#student as weights, --take student"
        ):
            read(path)
    with pytest.raises(WeightsError, match=r"no tensors called 'generator'\n  next: it has student, teacher"):
        convert(path, tmp_path / "w.safetensors", take="generator")
    done = convert(path, tmp_path / "w.safetensors", take="teacher")
    assert same(load_file(done.path), state())
    assert "student: 9 tensors" in done.dropped and "epoch: 1" in done.dropped


def test_numbers_among_the_tensors_are_left_out_and_reported(tmp_path: Path) -> None:
    torch.save({"state_dict": {**state(), "c._extra_state": None, "c.count": 3}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no named tensors, but state_dict"):
        read_tensors(tmp_path / "w.pth")
    done = convert(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert done.dropped == ("state_dict.c._extra_state: None", "state_dict.c.count: 3")
    assert same(load_file(done.path), state())


def test_an_average_is_part_of_the_recipe_and_the_usual_names_are_not(tmp_path: Path) -> None:
    """A path means the average, a digest alone (in older recipes) the weights, and `#` names a part."""
    path = tmp_path / "both.pth"
    torch.save({"model": state(1), "model_ema": state(2), "head": state(3)}, path)

    def found(given: str) -> tuple[str | None, float]:
        weights = find_weights(ModelChoice("m", given), default="", wants=["w"])
        return weights.describe().get("part"), float(read_weights(weights)["b.half"][0])

    digest = find_weights(ModelChoice("m", str(path)), default="", wants=["w"]).digest
    assert found(str(path)) == found(f"{digest}#model_ema") == found(f"{path}#model_ema") == ("model_ema", 2)
    assert found(digest) == found(f"{path}#model") == (None, 1)
    assert found(f"{path}#head") == found(f"{digest}#head") == ("head", 3)
    with pytest.raises(
        WeightsError, match=r"no tensors called 'tail'\n  next: it has model, model_ema, head"
    ):
        found(f"{path}#tail")
    odd = path.rename(tmp_path / "a#b.pth")  # a file may have such a name
    assert found(str(odd)) == ("model_ema", 2) and found(f"{odd}#model") == (None, 1)


@pytest.mark.parametrize(
    ("names", "stripped"),
    [
        (["module.a.w", "module.b.w"], ["a.w", "b.w"]),
        (["module._orig_mod.model.a.w", "module._orig_mod.model.b.w"], ["a.w", "b.w"]),
        (["model.a.w", "criterion.w"], ["a.w", "criterion.w"]),
        (["a.w", "module.b.w"], ["a.w", "module.b.w"]),
        (["module.x.w", "module.y.w"], ["x.w", "y.w"]),
        (["encoder.x.w"], ["encoder.x.w"]),
        (["model.a.w", "a.w"], ["model.a.w", "a.w"]),
        ([], []),
    ],
)
def test_training_prefixes_are_removed_until_names_are_known(names: list[str], stripped: list[str]) -> None:
    found = strip_prefixes({name: torch.ones(1) for name in names}, lambda name: name in ("a.w", "b.w"))
    assert list(found) == stripped


def bomb(path: Path, size: int) -> None:
    """Write a checkpoint whose only tensor is stored as compressed zeros."""
    torch.save({"model": {"w": torch.zeros(4)}}, path)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in held.items():
            archive.writestr(name, bytes(size) if "/data/" in name else data)


def test_a_compression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.pt", 1 << 24)
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 16
    for read in (read_tensors, lambda path: convert(path, tmp_path / "w.safetensors")):
        with pytest.raises(WeightsError, match="claims to hold 16"):
            read(tmp_path / "bomb.pt")


def test_a_huge_expanded_tensor_is_not_materialised(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1).expand(1 << 40)}}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="claims 4398046511104 bytes of tensors"):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")


def test_the_length_of_a_pickle_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": state(), "notes": ["x" * 10 + str(i) for i in range(1000)]}, tmp_path / "w.pt")
    monkeypatch.setattr(pickled, "MAX_PICKLE", 10_000)
    with pytest.raises(WeightsError, match="more than 10000 bytes beside its tensors"):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")


def test_a_deeply_nested_key_is_not_hashed(tmp_path: Path) -> None:
    """Sixty tuples, each holding the previous one twice: hashing the last would visit 2 ** 60 values."""
    pickle = b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01}q\x02s" + b")q\x03"
    pickle += b"".join(
        b"h" + bytes([3 + i]) + b"h" + bytes([3 + i]) + b"\x86q" + bytes([4 + i]) for i in range(60)
    )
    pickle = pickle + b"0" * 61 + b"h\x00h" + bytes([63]) + b"K\x01s."
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickle)
    with pytest.raises(WeightsError):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")


@pytest.mark.parametrize("layout", ["zip", "before 1.6"])
def test_damage_is_an_error_or_changes_only_values(
    layout: str, strange: Callable[..., type], tmp_path: Path
) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"model": state(), "x": strange("pkg.Thing")()}, whole, **LAYOUTS[layout])
    data = whole.read_bytes()
    rng = random.Random(3)
    for i in range(60):
        bad = bytearray(data[: rng.randrange(len(data))] if i % 3 == 0 else data)
        for _ in range(rng.choice((1, 1, 8)) if bad else 0):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        path, out = tmp_path / "bad.pt", tmp_path / f"{i}.safetensors"
        path.write_bytes(bad)
        try:
            convert(path, out)
        except CaeavError as error:
            assert str(error).replace("\n", "").isprintable() and not out.exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    net = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(net, tmp_path / "program.pt")
    (tmp_path / "page.pt").write_text("<html>404</html>")
    (tmp_path / "empty.pt").touch()
    shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path, "page.pt")
    for name, message in {
        "program.pt": "a program",
        "page.pt": "no checkpoint of torch",
        "empty.pt": "no checkpoint of torch",
        "other.zip": "without one data.pkl",
        "absent.pt": "no file",
    }.items():
        with pytest.raises(WeightsError, match=message):
            convert(tmp_path / name, tmp_path / "w.safetensors")
    torch.save(state(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"does not end in \.safetensors"):
        convert(tmp_path / "w.pt", tmp_path / "w.bin")
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    with pytest.raises(WeightsError, match="is there already"):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="is plain already"):
        convert(tmp_path / "w.safetensors", tmp_path / "v.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == before
