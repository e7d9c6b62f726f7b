"""Batches, passes and networks without a run: rows, halving, what fails a clip and what ends a run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones import text_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.pickled import WeightsError
from caeav.pipeline.extract.device import devices, network
from caeav.pipeline.extract.device.batches import Batch, Batches, Unit, make_units
from caeav.pipeline.extract.device.isolate import BatchSizes, caption_pass, empty_clip, isolated, token_pass
from caeav.pipeline.extract.device.network import (
    CaptionNetwork,
    DeviceError,
    TokenNetwork,
    as_stored,
    convolves,
    place,
)
from caeav.pipeline.extract.device.options import ComputeOptions, check_devices, gpu_number
from caeav.pipeline.extract.jobs import CaptionJob, CaptionOptions, TokenOptions
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store.record import Tap

CPU = torch.device("cpu")


class Backbone:
    """`[N, T, 2]` -> its double, or what `made` returns."""

    name = "b"

    def __init__(self, made: Any = None) -> None:
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
        self.made = made

    def taps(self) -> tuple[Tap, ...]:
        return (Tap("x", 1, 2),)

    def module(self) -> nn.Module:
        return self.net

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return self.made(batch) if self.made else {"x": 2 * batch.unsqueeze(2)}


def unit(part: Any = None, batch: int = 4, shard_clips: int = 8, number: int = 0) -> Unit:
    compute = ComputeOptions(batch)
    return Unit(number, 0, "visual", part or Backbone(), lambda: part, compute, "float32", shard_clips)


def a_batch(rows: dict[int, float], size: int = 4, part: Any = None) -> Batch:
    host = torch.zeros(size, 3, 2)
    for row, value in rows.items():
        host[row] = value
    return Batch(unit(part, size), {row: f"k{row}" for row in rows}, host)


def by_row(results: Any) -> dict[int, float]:
    return {row: float(taps["x"][row].max()) for rows, taps in results for row in rows}


def run(
    batch: Batch, made: Any = None, said: list[str] | None = None
) -> tuple[dict[int, float], dict[int, str]]:
    net = TokenNetwork(Backbone(made), CPU, ComputeOptions(), "float32")  # type: ignore[arg-type]
    results, failed = token_pass(
        batch, net, BatchSizes((said if said is not None else []).append), lambda host: host
    )
    return by_row(results), failed


def test_a_batch_gives_each_row_its_tokens() -> None:
    seen: list[int] = []

    def made(x: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        return {"x": 2 * x.unsqueeze(2)}

    assert run(a_batch({0: 1.0, 2: 3.0}), made) == ({0: 2.0, 2: 6.0}, {})
    assert seen == [4]


def test_a_failing_row_is_found_by_halving_with_zeros_in_other_rows() -> None:
    seen: list[list[float]] = []

    def made(x: Tensor) -> dict[str, Tensor]:
        values = x[:, 0, 0].tolist()
        seen.append(values)
        if 3.0 in values or 7.0 in values:
            raise ValueError("too\n bad")
        return {"x": 2 * x.unsqueeze(2)}

    rows = {0: 1.0, 1: 3.0, 2: 5.0, 3: 7.0}
    assert run(a_batch(rows), made) == (
        {0: 2.0, 2: 10.0},
        {1: "ValueError: too bad", 3: "ValueError: too bad"},
    )
    assert [1.0, 0.0, 0.0, 0.0] in seen and [0.0, 0.0, 5.0, 0.0] in seen and [0.0, 0.0, 5.0, 7.0] in seen


def test_short_memory_halves_the_rows_at_a_time_permanently() -> None:
    said: list[str] = []
    seen: list[int] = []

    def made(x: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"x": 2 * x.unsqueeze(2)}

    rows = {0: 1.0, 2: 3.0, 7: 4.0}
    assert run(a_batch(rows, 8), made, said) == ({0: 2.0, 2: 6.0, 7: 8.0}, {})
    assert seen == [8, 4, 2, 2, 2]  # the two rows from 4 on are empty and not computed
    assert "out of memory with 8 clips at a time, going on with 4" in said[0]
    assert "with 4 clips at a time, going on with 2" in said[1] and len(said) == 2


def test_sizes_are_shared_and_halved_once_for_all_workers() -> None:
    said: list[str] = []
    sizes, one, other = BatchSizes(said.append), unit(batch=8), unit(number=1, batch=8)
    sizes.halve(one, 8, MemoryError())
    sizes.halve(one, 8, MemoryError())  # another worker that began earlier
    assert (sizes.rows(one), sizes.rows(other), len(said)) == (4, 8, 1)
    sizes.halve(one, 4, MemoryError())
    assert sizes.rows(one) == 2
    with pytest.raises(DeviceError, match="b does not fit the device with a single clip: no room"):
        sizes.halve(one, 1, MemoryError("no\n room"))


@pytest.mark.parametrize("error", [DeviceError("d"), WeightsError("w")])
def test_errors_of_device_and_weights_are_blamed_on_no_clip(error: Exception) -> None:
    def fails(rows: list[int]) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        isolated([0, 1], fails)
    assert raised.value is error


def test_a_broken_gpu_ends_the_run() -> None:
    accelerator = type("AcceleratorError", (RuntimeError,), {})
    for error in (RuntimeError("CUDA error: misaligned"), accelerator("gone")):

        def fails(rows: list[int], error: Exception = error) -> None:
            raise error

        with pytest.raises(DeviceError, match="the device failed"):
            isolated([0], fails)
    assert isolated([3], lambda rows: 1 / 0) == ([], {3: "ZeroDivisionError: division by zero"})
    assert isolated([3, 4], lambda rows: "x") == ([([3, 4], "x")], {})


def test_errors_of_short_memory_are_recognised() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert network.short_of_memory(error)
    assert not network.short_of_memory(RuntimeError("shape")) and not network.short_of_memory(
        ValueError("not enough memory")
    )


def clip(value: int | None) -> DecodedClip:
    frames = None if value is None else np.full((2, 1, 1, 3), value, np.uint8)
    return DecodedClip(frames, None, (True, False), (False, True), key="" if value is None else str(value))


class Captioner:
    name = "c"

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.sizes: list[int] = []
        self.fails = fails

    def caption(self, clips: Any) -> list[str]:
        self.sizes.append(len(clips))
        values = [None if each.frames is None else int(each.frames.max()) for each in clips]
        if set(values) & set(self.fails):
            raise ValueError("no words")
        return ["" if value is None else f"about {value}" for value in values]


def test_captions_come_in_batches_of_one_size_and_a_failing_clip_fails_alone() -> None:
    part = Captioner(fails=(5,))
    batch = Batch(unit(part), {0: "a", 2: "b", 3: "c"}, clips={0: clip(4), 3: clip(5), 2: clip(6)})
    net = CaptionNetwork(part, CPU, ComputeOptions())  # type: ignore[arg-type]
    results, failed = caption_pass(batch, net, BatchSizes(print))
    assert {row: made[row] for rows, made in results for row in rows} == {0: "about 4", 2: "about 6"}
    assert failed == {3: "ValueError: no words"} and set(part.sizes) == {4}
    part = Captioner()
    sizes = BatchSizes(lambda text: None)
    sizes.halve(batch.unit, 4, MemoryError())
    sizes.halve(batch.unit, 2, MemoryError())
    results, _ = caption_pass(batch, CaptionNetwork(part, CPU, ComputeOptions()), sizes)  # type: ignore[arg-type]
    assert part.sizes == [1, 1, 1] and results[0][1] == ["about 4", "", "about 6", "about 5"]
    empty = empty_clip(clip(3))
    assert (empty.frames, empty.wave, empty.frames_ok, empty.audio_ok) == (
        None,
        None,
        (False,) * 2,
        (False,) * 2,
    )
    short = SimpleNamespace(caption=lambda clips: ["one"])
    with pytest.raises(DeviceError, match="gave 1 texts for 2 clips"):
        CaptionNetwork(short, CPU, ComputeOptions())([clip(1), clip(2)])  # type: ignore[arg-type]


def launched(places: list[tuple[int, int]], **kind: Any) -> tuple[Batches, Unit, list[Batch]]:
    found: list[Batch] = []
    batches = Batches(found.append, pinned=False)
    one = unit(Captioner(), **kind)
    batches.expect(one, places)
    return batches, one, found


def test_a_row_follows_from_the_place_in_the_shard() -> None:
    assert unit(batch=4, shard_clips=8).rows == 4 and unit(batch=8, shard_clips=3).rows == 3
    batches, one, found = launched([(0, 0), (0, 3), (0, 4), (1, 1)])
    batches.add(one, 0, 4, "e", torch.full((3, 2), 4.0))
    assert [batch.keys for batch in found] == [{0: "e"}]
    batches.add(one, 1, 1, "f", torch.full((3, 2), 5.0))
    batches.add(one, 0, 3, "d", torch.full((3, 2), 3.0))
    assert len(found) == 2 and found[1].keys == {1: "f"}
    batches.add(one, 0, 0, "a", torch.full((3, 2), 1.0))
    host = found[2].host
    assert found[2].keys == {3: "d", 0: "a"} and host is not None
    assert host[:, 0, 0].tolist() == [1.0, 0.0, 0.0, 3.0]
    assert not batches.flush()


def test_missed_clips_are_not_waited_for() -> None:
    batches, one, found = launched([(0, 0), (0, 1), (0, 2), (0, 4)])
    batches.add(one, 0, 1, "b", clip(7))
    batches.miss(one, 0, 0)
    batches.miss(one, 0, 4)  # a batch without any clip
    assert found == []
    batches.miss(one, 0, 2)
    [batch] = found
    assert batch.keys == {1: "b"} and batch.clips[1].key == "7" and batch.host is None


def test_a_flush_launches_incomplete_batches_and_the_rest_keep_their_rows() -> None:
    batches, one, found = launched([(0, 0), (0, 1)])
    batches.add(one, 0, 1, "b", torch.ones(3, 2))
    assert batches.flush() and not batches.flush()
    batches.add(one, 0, 0, "a", torch.ones(3, 2))
    assert [batch.keys for batch in found] == [{1: "b"}, {0: "a"}]
    batches, one, _ = launched([(0, 0), (0, 1)])
    batches.add(one, 0, 1, "b", torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"prepared \[4, 2\] for this clip, \[3, 2\] for others"):
        batches.add(one, 0, 0, "a", torch.ones(4, 2))


def test_frames_for_convolutions_are_stored_channels_last() -> None:
    batches, one, _ = launched([(0, 0)])
    batches._layout[one.number] = True
    item = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    empty = batches._empty(one, item)
    assert empty.shape == (4, 2, 3, 4, 5) and not empty.any()
    assert empty[0].is_contiguous(memory_format=torch.channels_last)
    assert batches._empty(one, item[0]).shape == (4, 3, 4, 5)
    assert convolves(nn.Conv2d(1, 1, 2)) and not convolves(nn.Linear(2, 2))
    assert not convolves(nn.Sequential(nn.Conv2d(1, 1, 2), nn.Conv3d(1, 1, 2)))


def test_a_network_is_frozen_in_eval_mode_and_must_give_its_declared_taps() -> None:
    part = Backbone()
    part.net.train()
    module = place(part, CPU)
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    batch = torch.ones(2, 3, 2)
    for dtype, wanted in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("int8", torch.float32)):
        net = TokenNetwork(Backbone(), CPU, ComputeOptions(), dtype)  # type: ignore[arg-type]
        assert net(batch)["x"].dtype is wanted
    for made in (lambda x: {"x": x}, lambda x: {"y": x.unsqueeze(2)}, lambda x: {}):
        net = TokenNetwork(Backbone(made), CPU, ComputeOptions(), "float32")  # type: ignore[arg-type]
        with pytest.raises(DeviceError, match="it declares"):
            net(batch)


@pytest.mark.parametrize(("precision", "used"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_the_precision_is_that_of_the_arithmetic(precision: str, used: Any) -> None:
    seen: list[Any] = []

    def made(x: Tensor) -> dict[str, Tensor]:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return {"x": x.unsqueeze(2)}

    net = TokenNetwork(Backbone(made), CPU, ComputeOptions(precision=precision), "float32")  # type: ignore[arg-type]
    net(torch.ones(1, 1, 2))
    encoder = SimpleNamespace(
        module=lambda: nn.Dropout().train(), encode=lambda given: made(torch.ones(1, 1))
    )
    encode = network.text_encoder(encoder, ("cpu",), ComputeOptions(precision=precision))  # type: ignore[arg-type]
    encode(["a"])
    assert seen == [used, used]
    half = network.arithmetic(CPU, "fp16")
    assert (half.fast_dtype, half._enabled) == (torch.float16, True)  # type: ignore[attr-defined]


def test_tokens_are_copied_into_the_stores_dtype() -> None:
    x = torch.tensor([[[1.5, -2.0]]])
    found = as_stored({"a": x}, "float32")["a"]
    x.zero_()
    assert found.tolist() == [[[1.5, -2.0]]]
    half = as_stored({"a": torch.tensor([1.5]).to(torch.bfloat16)}, "bfloat16")["a"]
    assert half.view(np.uint16).tolist() == [0x3FC0]
    quantised = as_stored({"a": torch.tensor([[[1.0, -2.0]]])}, "int8")
    assert len(quantised) == 2 and quantised["a"].dtype == np.int8


def test_a_text_backbone_is_placed_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = text_backbones["tiny"](ModelChoice("tiny"))
    backbone.module().train()
    encode = network.text_encoder(backbone, ("cpu", "cpu"), ComputeOptions())
    assert not backbone.module().training
    tokens, mask = encode(["ab", ""])
    assert tokens.shape == (2, 4, 6) and mask.tolist() == [[True] * 4, [False] * 4]


def test_device_names_are_parsed_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu_number(name) for name in ("0", "1", "cuda:3", "cuda", "cpu", "auto", "cuda:", "-1")] == [
        *(0, 1, 3, 0),
        *(None,) * 4,
    ]
    for names in (("cpu", "cpu"), ("0", "cuda:1"), ("auto",)):
        check_devices(names)
    for names, said in (
        (("cpu", "0"), "do not give the same bytes"),
        ((), "(none)"),
        (("gpu",), "did you mean 0"),
        (("auto", "cpu"), "auto, cpu"),
    ):
        with pytest.raises(CaeavError) as refused:
            check_devices(names)
        assert said in str(refused.value)
    monkeypatch.setattr(devices, "usable_cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (
        devices.choose_devices(["auto"]) == [CPU] * 4 and devices.choose_devices(["cpu", "cpu"]) == [CPU] * 2
    )
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    assert devices.choose_devices(["auto"]) == [CPU] * 2
    with pytest.raises(CaeavError, match=r"device '0' is not there: torch .* sees 0 GPUs"):
        devices.choose_devices(["0"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [d.index for d in devices.choose_devices(["auto"])] == [0, 1]
    assert [d.index for d in devices.choose_devices(["1", "0", "1"])] == [1, 0, 1]
    with pytest.raises(CaeavError, match=r"device '2' is not there: torch .* sees 2 GPUs"):
        devices.choose_devices(["2"])


def test_steady_makes_torch_deterministic_and_restores_its_settings() -> None:
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with pytest.raises(ValueError, match="x"), devices.steady():
            inside = (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32)
            cudnn = torch.backends.cudnn
            flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
            raise ValueError("x")
        assert inside == (1, False) and flags == (True, False, False)
        assert (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32) == (2, True)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = tf32


@pytest.mark.parametrize(("batch", "precision"), [(0, "fp32"), (4097, "fp32"), (8, "fp8")])
def test_invalid_compute_options_are_refused(batch: int, precision: str) -> None:
    with pytest.raises(CaeavError):
        ComputeOptions(batch, precision).fields()
    assert ComputeOptions(4096, "fp16", True).fields() == {
        "batch": 4096,
        "precision": "fp16",
        "compile": True,
    }


def test_units_are_numbered_over_all_jobs_and_know_their_store() -> None:
    tiny = ModelChoice("tiny", "", {"seed": 3})
    compute = ComputeOptions(5)
    jobs = [
        TokenOptions("classic", "classic").job(4, 1.0),
        TokenOptions(tiny, "tiny", compute=compute, dtype="int8", shard_clips=3).job(4, 1.0),
        TokenOptions("classic", "tiny", compute=compute).job(4, 1.0),
    ]
    assert [job.recipe.fields["sampling"]["rate_hz"] for job in jobs] == [16_000, 8000, 8000]
    assert ["compute" in job.recipe.fields for job in jobs] == [False, True, True]
    units = make_units(jobs)
    told = [[(u.number, u.store, u.modality, u.rows, u.dtype) for u in units[n]] for n in range(3)]
    assert told == [
        [],
        [(0, 1, "visual", 3, "int8"), (1, 1, "audio", 3, "int8")],
        [(2, 2, "audio", 5, "float16")],
    ]
    again = units[1][0].load_copy()
    assert again is not units[1][0].part and again.describe() == {"settings": {"seed": 3}}


def test_each_modality_has_its_own_text_backbone() -> None:
    job = CaptionOptions(visual_text="hashed", audio_text="tiny").job(4, 1.0)
    assert (job.texts["visual"].name, job.texts["audio"].name) == ("hashed", "tiny")
    fields = job.recipe.fields
    assert (fields["visual"]["text"]["name"], fields["audio"]["text"]["name"]) == ("hashed", "tiny")
    assert "compute" in fields
    same = CaptionOptions().job(4, 1.0)
    assert same.texts["visual"] is same.texts["audio"]
    anew = CaptionJob.reembedding(same.recipe, None, ModelChoice("tiny"), "float32")
    assert anew.recipe.fields == {**fields, "dtype": "float32", "compute": ComputeOptions().fields()}
    assert (
        anew.recipe.fingerprint == replace(job.recipe, fields=anew.recipe.fields).fingerprint
        and not anew.parts
    )
    back = CaptionJob.reembedding(job.recipe, None, ModelChoice("hashed"), None)
    assert back.recipe == same.recipe
