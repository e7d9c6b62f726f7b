"""Device workers and their runner on a CPU, without a run: what is settled, what ends a run, what is reported."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.extract.device import runner
from caeav.pipeline.extract.device.batches import Batch, Unit
from caeav.pipeline.extract.device.isolate import BatchSizes
from caeav.pipeline.extract.device.network import CaptionNetwork, TokenNetwork
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.device.runner import Runner
from caeav.pipeline.extract.device.streams import DeviceWorker, networks
from caeav.pipeline.extract.progress import Meter
from caeav.pipeline.extract.records import ComputeFailed
from caeav.pipeline.media.clip import DecodedClip, Sampling
from caeav.pipeline.store.record import Tap

CPU = torch.device("cpu")
WAIT_S = 30.0


class Backbone(TorchBackbone):
    """Twice the mean of each frame; a frame of 9s cannot be prepared, one of 8s not computed."""

    name, modality = "b", "visual"

    def __init__(self) -> None:
        self.net = nn.Linear(1, 1)
        self.sizes: list[int] = []

    def taps(self) -> tuple[Tap, ...]:
        return (Tap("x", 1, 1),)

    def describe(self) -> dict[str, Any]:
        return {}

    def module(self) -> nn.Module:
        return self.net

    def prepare(self, frames: Any) -> Tensor:
        assert torch.is_inference_mode_enabled()
        if frames.max() == 9:
            raise ValueError("cannot be prepared")
        return torch.from_numpy(frames.reshape(len(frames), -1).mean(axis=1, keepdims=True)).float()

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        if (batch == 8).any():
            raise ValueError("cannot be computed")
        return {"x": 2 * batch.unsqueeze(2)}


class Captioner:
    name, runs_in = "c", "device"

    def caption(self, clips: Any) -> list[str]:
        return [f"about {clip.frames.max()}" if clip.frames is not None else "" for clip in clips]


def unit(part: Any, number: int = 0, batch: int = 2, load_copy: Any = None) -> Unit:
    compute = ComputeOptions(batch)
    return Unit(number, 0, "visual", part, load_copy or (lambda: part), compute, "float16", 8)


def clip(value: int) -> DecodedClip:
    frames = np.full((2, 1, 1, 3), value, np.uint8)
    return DecodedClip(frames, None, (True, True), (False, False), key=str(value))


class Recorder:
    def __init__(self, *units: Unit, devices: tuple[str, ...] = ("cpu",)) -> None:
        self.settled: dict[tuple[int, str], tuple[Any, Any]] = {}
        self.failed: list[BaseException] = []
        self.nudged = threading.Semaphore(0)
        self.quiet_when_nudged: list[bool] = []
        self.meter = Meter({"device": 1, "helpers": 2})
        self.runner = Runner(units, devices, self.settle, self.failed.append, print, self.meter, self.nudge)

    def settle(self, unit: Unit, key: str, result: Any, facts: Any) -> None:
        self.settled[unit.number, key] = (result, dict(facts))

    def nudge(self) -> None:
        self.nudged.release()

    def wait(self) -> None:
        while not self.runner.idle:
            assert self.nudged.acquire(timeout=WAIT_S)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    made: list[Recorder] = []

    def begin(*units: Unit, **options: Any) -> Recorder:
        made.append(Recorder(*units, **options))
        return made[-1]

    yield begin
    for each in made:
        each.runner.close()
        assert not any(worker.thread.is_alive() for worker in each.runner._workers)


SAMPLING = Sampling(2, 1.0, 16_000)


def test_clips_are_prepared_batched_computed_and_converted_to_the_stores_dtype(record: Any) -> None:
    sight, words = unit(Backbone(), 0), unit(Captioner(), 1)
    found = record(sight, words)
    for each in (sight, words):
        found.runner.expect(each, [(0, n) for n in range(3)])
    for place, value in enumerate((3, 4, 5)):
        for each in (sight, words):
            found.runner.submit(each, 0, place, f"k{value}", clip(value), SAMPLING)
    found.wait()
    assert set(found.settled) == {(n, f"k{value}") for n in (0, 1) for value in (3, 4, 5)}
    for value in (3, 4, 5):
        taps, facts = found.settled[0, f"k{value}"]
        assert taps["x"].dtype == np.float16 and taps["x"].tolist() == [[[2 * value]]] * 2
        assert found.settled[1, f"k{value}"][0] == f"about {value}"
        assert facts == {"name": "cpu", "torch": torch.__version__.partition("+")[0]}
    assert found.failed == [] and sight.part.sizes == [2, 2]
    assert found.meter.seconds()["prepare"] > 0 and found.meter.seconds()["backbone"] > 0


def test_a_clip_that_cannot_be_prepared_or_computed_fails_alone(record: Any) -> None:
    sight = unit(Backbone())
    found = record(sight)
    found.runner.expect(sight, [(0, n) for n in range(4)])
    for place, value in enumerate((9, 3, 8, 4)):
        found.runner.submit(sight, 0, place, f"k{value}", clip(value), SAMPLING)
    found.wait()
    assert {key: type(result) for (_, key), (result, _) in found.settled.items()} == {
        "k9": ValueError,
        "k8": ComputeFailed,
        "k3": dict,
        "k4": dict,
    }
    assert str(found.settled[0, "k9"][0]) == "cannot be prepared"
    assert str(found.settled[0, "k8"][0]) == "ValueError: cannot be computed"
    assert found.failed == []


def test_incomplete_batches_wait_for_a_flush(record: Any) -> None:
    sight = unit(Backbone(), batch=4)
    found = record(sight)
    found.runner.expect(sight, [(0, 0), (0, 1), (0, 2)])
    found.runner.submit(sight, 0, 0, "a", clip(3), SAMPLING)
    found.wait()
    assert found.settled == {} and found.runner.flush()
    found.wait()
    assert set(found.settled) == {(0, "a")} and not found.runner.flush()
    found.runner.miss(sight, 0, 1)
    found.runner.submit(sight, 0, 2, "c", clip(4), SAMPLING)
    found.wait()
    assert set(found.settled) == {(0, "a"), (0, "c")}


def test_a_reduced_batch_size_is_recorded(record: Any) -> None:
    sight = unit(Backbone(), batch=4)
    found = record(sight)
    found.runner._sizes._rows[0] = 2
    found.runner.expect(sight, [(0, 0)])
    found.runner.submit(sight, 0, 0, "a", clip(3), SAMPLING)
    found.wait()
    assert found.settled[0, "a"][1]["rows"] == 2 and sight.part.sizes == [2]


def test_tokens_are_quantised_for_int8_stores(record: Any) -> None:
    sight = replace(unit(Backbone(), batch=1), dtype="int8")
    found = record(sight)
    found.runner.expect(sight, [(0, 0)])
    found.runner.submit(sight, 0, 0, "a", clip(3), SAMPLING)
    found.wait()
    taps, _ = found.settled[0, "a"]
    assert len(taps) == 2 and taps["x"].dtype == np.int8 and taps["x"].all()


def test_an_error_while_settling_ends_the_run(record: Any) -> None:
    words = unit(Captioner(), batch=1)
    found = record(words)
    error = OSError("disk full")

    def fails(*_: Any) -> None:
        raise error

    found.runner._settle = fails
    found.runner.expect(words, [(0, 0)])
    found.runner.submit(words, 0, 0, "a", clip(3), SAMPLING)
    found.wait()
    assert found.failed == [error]


def test_closing_a_runner_restores_torchs_threads(record: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = record(unit(Captioner()), devices=("cpu", "cpu"))
        assert torch.get_num_threads() == 1 and len(found.runner._workers) == 2
        assert Runner.resources(("cpu", "cpu"))["device"] == 2
        found.runner.close()
        assert torch.get_num_threads() == 3
        assert not any(worker.thread.is_alive() for worker in found.runner._workers)
    finally:
        torch.set_num_threads(before)


def test_the_number_of_helpers_follows_from_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, helpers in ((1, 2), (2, 2), (5, 5), (8, 8), (64, 8)):
        monkeypatch.setattr(runner, "usable_cores", lambda cores=cores: cores)
        assert runner._helpers() == Runner.resources(("cpu",))["helpers"] == helpers


def test_the_first_device_uses_the_parts_and_others_copies() -> None:
    one, other = Backbone(), Backbone()
    both = [unit(one, 3, load_copy=lambda: other), unit(Captioner(), 5)]
    mine, theirs = networks(both, CPU, first=True), networks(both, CPU, first=False)
    assert set(mine) == set(theirs) == {3, 5}
    assert isinstance(mine[3], TokenNetwork) and isinstance(mine[5], CaptionNetwork)
    for nets, part in ((mine, one), (theirs, other)):
        nets[3](torch.ones(1, 2, 1))  # type: ignore[arg-type]
        assert part.sizes == [1]


def test_a_worker_ends_with_none_and_reports_an_error_that_ends_it() -> None:
    part = Backbone()
    mine = unit(part)
    ready: queue.Queue[Batch | None] = queue.Queue()
    results: list[Any] = []
    ended: list[BaseException] = []
    meter = Meter({"device": 1})

    def worker(finished: Any) -> DeviceWorker:
        return DeviceWorker(
            CPU, networks([mine], CPU, True), ready, BatchSizes(print), finished, ended.append, meter
        )

    host = torch.tensor([[[3.0], [4.0]], [[5.0], [6.0]]])
    for _ in range(3):
        ready.put(Batch(mine, {0: "a", 1: "b"}, host))
    ready.put(None)
    first = worker(lambda batch, made, failed: results.append((dict(made), dict(failed))))
    first.thread.join(WAIT_S)
    assert len(results) == 3 and ended == [] and meter.seconds()["backbone"] > 0
    made, failed = results[0]
    assert failed == {} and made[0]["x"].tolist() == [[[6.0]], [[8.0]]] and made[1]["x"][1].item() == 12.0
    ready.put(SimpleNamespace(unit=SimpleNamespace(number=7)))  # type: ignore[arg-type]
    second = worker(results.append)
    second.thread.join(WAIT_S)
    assert not second.thread.is_alive() and isinstance(ended[0], KeyError)
