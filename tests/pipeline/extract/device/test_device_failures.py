"""Failures on a device affect no more than they must, and are reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extraction import first, quiet
from torch import Tensor
from waiting import wait_until

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones import visual_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract import local
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.device.batches import Batch, Unit
from caeav.pipeline.extract.device.devices import choose_devices
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.device.runner import Runner
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.progress import Meter, Progress, StageSummary
from caeav.pipeline.extract.tokens import extract, extract_all
from caeav.pipeline.media.workers.pool import WorkerPool
from caeav.pipeline.store import StoreReader

Digests = Callable[[Path], dict[str, str]]
OPTIONS = TokenOptions("tiny", "none", shard_clips=6, compute=ComputeOptions(batch=4))
ONE = RunOptions(workers=1, devices=("cpu",))


def run(manifest: Manifest, home: Path, options: TokenOptions = OPTIONS, **more: Any) -> StageSummary:
    return extract(RunContext(manifest, Home(home), ONE, quiet, **more), options)


def arrays(summary: StageSummary) -> dict[str, np.ndarray]:
    reader = StoreReader.open(summary.path)
    return {key: reader.read(key).arrays["visual.stage1"] for key in reader.keys}


def spy(tiny: Any, wanted: int) -> list[Tensor]:
    """Collect the rows of the first passes, by which a clip is recognised later."""
    rows: list[Tensor] = []
    tiny.hook = lambda batch: rows.extend(batch.clone()) if len(rows) < wanted else None
    return rows


@pytest.mark.parametrize("bad", [0, 2, 5])
def test_a_clip_that_makes_the_backbone_fail_is_quarantined_alone(
    small_manifest: Manifest, tmp_path: Path, tiny: Any, bad: int
) -> None:
    manifest = first(small_manifest, 6)
    rows = spy(tiny, 8)
    sound = arrays(run(manifest, tmp_path / "sound"))
    culprit = rows[bad].clone()

    def fail(batch: Tensor) -> None:
        if any(torch.equal(row, culprit) for row in batch):
            raise ValueError("this one\nis impossible")

    tiny.hook = fail
    summary = run(manifest, tmp_path / "failing")
    [entry] = summary.quarantined
    assert (entry.key, entry.stage) == (manifest.clips[bad].key, "compute")
    assert entry.reason == "ValueError: this one is impossible"
    left = arrays(summary)
    assert set(left) == set(sound) - {entry.key}
    assert all(np.array_equal(left[key], sound[key]) for key in left)


def test_non_finite_tokens_quarantine_their_clip_alone(
    small_manifest: Manifest, tmp_path: Path, tiny: Any
) -> None:
    manifest = first(small_manifest, 5)
    seen: list[Tensor] = []

    def spoil(batch: Tensor) -> None:
        seen.append(batch)
        batch[1] *= torch.nan

    tiny.hook = spoil
    summary = run(manifest, tmp_path)
    assert len(seen) == 2
    [entry] = summary.quarantined  # row 1 of the second batch is empty
    assert (entry.key, entry.stage) == (manifest.clips[1].key, "values")
    assert "values not finite in float16" in entry.reason


def test_a_clip_that_cannot_be_prepared_is_quarantined_alone(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caeav.pipeline.backbones import visual_backbones

    backbone: Any = visual_backbones["tiny"]
    prepare, calls = backbone.prepare, []

    def failing(self: Any, clip: np.ndarray) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("too dark")
        return prepare(self, clip)[:, :, :8] if len(calls) == 4 else prepare(self, clip)

    monkeypatch.setattr(backbone, "prepare", failing)
    summary = run(first(small_manifest, 6), tmp_path)
    assert summary.stored == 4
    reasons = sorted(entry.reason for entry in summary.quarantined)
    assert reasons[0] == "RuntimeError: too dark"
    assert "prepared [4, 3, 8, 16] for this clip, [4, 3, 16, 16] for others" in reasons[1]


def test_the_batch_is_halved_when_memory_is_short_and_that_is_reported(
    small_manifest: Manifest, tmp_path: Path, tiny: Any
) -> None:
    manifest = first(small_manifest, 6)
    plenty = arrays(run(manifest, tmp_path / "plenty"))
    sizes: list[int] = []

    def scarce(batch: Tensor) -> None:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    tiny.hook = scarce
    said: list[str] = []
    summary = run(manifest, tmp_path / "scarce", remark=said.append)
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1]
    halved = [text for text in said if "out of memory" in text]
    assert [text.split(";")[0] for text in halved] == [
        "tiny: out of memory with 4 clips at a time, going on with 2",
        "tiny: out of memory with 2 clips at a time, going on with 1",
    ]
    assert set(halved) <= set(summary.remarks)
    left = arrays(summary)
    for key, array in plenty.items():
        np.testing.assert_allclose(left[key], array, atol=1e-3)
    assert StoreReader.open(summary.path).read(manifest.clips[5].key).info["facts"]["device"]["rows"] == 1


def test_a_model_that_does_not_fit_at_all_ends_the_run_with_the_next_step(
    small_manifest: Manifest, tmp_path: Path, tiny: Any, digests: Digests
) -> None:
    def full(batch: Tensor) -> None:
        raise torch.OutOfMemoryError("no")

    tiny.hook = full
    with pytest.raises(CaeavError, match="does not fit the device with a single clip") as caught:
        run(first(small_manifest, 3), tmp_path)
    assert "--precision bf16" in str(caught.value)
    tiny.hook = None
    after = run(first(small_manifest, 3), tmp_path)
    assert digests(after.path) == digests(run(first(small_manifest, 3), tmp_path / "fresh").path)


def test_a_network_that_cannot_be_compiled_ends_the_run_and_blames_no_clip(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("no working C++ compiler found")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend=no_compiler))
    wanted = replace(OPTIONS, compute=ComputeOptions(batch=4, compile=True))
    with pytest.raises(CaeavError, match=r"cannot compile the network: [^|]*leave out --compile"):
        run(first(small_manifest, 3), tmp_path, wanted)


def test_a_broken_gpu_ends_the_run_and_blames_no_clip(
    small_manifest: Manifest, tmp_path: Path, tiny: Any
) -> None:
    def broken(batch: Tensor) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tiny.hook = broken
    with pytest.raises(CaeavError, match="the device failed: CUDA error"):
        run(first(small_manifest, 3), tmp_path)
    tiny.hook = None
    assert run(first(small_manifest, 3), tmp_path).quarantined == ()


def test_a_backbone_with_other_taps_than_declared_is_an_error(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caeav.pipeline.backbones import visual_backbones

    monkeypatch.setattr(visual_backbones["tiny"], "taps_of", lambda self, x: {"visual.stage1": x[:, :, :1]})
    with pytest.raises(CaeavError, match="it declares"):
        run(first(small_manifest, 3), tmp_path)


def test_an_error_while_writing_reaches_the_caller(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caeav.pipeline.store import StoreWriter

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoreWriter, "publish", no_space)
    with pytest.raises(OSError, match="No space left"):
        run(small_manifest, tmp_path)


def test_failures_in_one_store_do_not_affect_others(
    small_manifest: Manifest, tmp_path: Path, tiny: Any, digests: Digests
) -> None:
    def fail(batch: Tensor) -> None:
        raise ValueError("always")

    tiny.hook = fail
    manifest = first(small_manifest, 4)
    bad, good = extract_all(RunContext(manifest, Home(tmp_path / "a"), ONE, quiet), [OPTIONS, TokenOptions()])
    assert (len(bad.quarantined), bad.too_many_failed) == (4, True)
    own = extract(RunContext(manifest, Home(tmp_path / "b"), ONE, quiet), TokenOptions())
    assert digests(good.path) == digests(own.path)


def test_the_number_of_clips_under_way_is_bounded_with_a_slow_device(
    small_manifest: Manifest, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.hook = lambda batch: time.sleep(0.3)
    asked, done, peak, lock = 0, 0, 0, threading.Lock()

    class Counting(WorkerPool):
        def map(self, requests: Any) -> Any:
            def counted() -> Any:
                nonlocal asked, peak
                for request in requests:
                    if request is not None:
                        with lock:
                            asked += 1
                            peak = max(peak, asked - done)
                    yield request

            return super().map(counted())

    def report(progress: Progress) -> None:
        nonlocal done
        with lock:
            done = progress.done

    monkeypatch.setattr(local, "WorkerPool", Counting)
    options = replace(OPTIONS, compute=ComputeOptions(batch=2))
    summary = extract(RunContext(small_manifest, Home(tmp_path), ONE, report), options)
    assert summary.stored == asked == 24
    assert 2 <= peak <= 4 * 1 + 3 * 2  # four per process, two batches per device worker and one more
    assert summary.limit.startswith("backbone")


def test_the_last_thread_to_finish_reports_that_nothing_is_under_way() -> None:
    """Helpers may finish before the device worker counts its batch; incomplete batches must not wait forever."""

    class AtOnce:
        def submit(self, work: Callable[..., None], *arguments: object) -> None:
            work(*arguments)

        def shutdown(self, **_: object) -> None:
            """No threads."""

    told: list[bool] = []
    settled: list[object] = []
    part = visual_backbones["tiny"](ModelChoice("tiny"))
    unit = Unit(0, 0, "visual", part, lambda: part, ComputeOptions(batch=2), "float16", 6)
    runner = Runner(
        [unit],
        ("cpu",),
        lambda *made: settled.append(made),
        settled.append,
        settled.append,
        Meter(Runner.resources(("cpu",))),
        lambda: told.append(runner.idle),
    )
    runner._helpers = AtOnce()  # type: ignore[assignment]
    runner._launch(Batch(unit, {0: "a", 1: "b"}, torch.zeros(2, 3, 3, 16, 16)))
    wait_until(lambda: runner.idle)
    runner.close()
    assert [key for _, key, *_ in settled] == ["a", "b"]  # type: ignore[misc]
    assert told[-1]


def test_captions_of_devices_come_in_batches_of_one_size(
    small_manifest: Manifest, tmp_path: Path, tiny_captioner: Any, tiny_text: Any
) -> None:
    options = CaptionOptions("tiny", "tiny", "tiny", "tiny", shard_clips=6, compute=ComputeOptions(batch=4))
    manifest = first(small_manifest, 8)
    [summary] = extract_all(RunContext(manifest, Home(tmp_path), ONE, quiet), [options])
    assert set(tiny_captioner.sizes) == set(tiny_text.sizes) == {4}
    reader = StoreReader.open(summary.path)
    record = reader.read(manifest.clips[7].key)
    assert record.info["texts"]["visual"].startswith("About ")
    assert record.info["texts"]["audio"].startswith("About ")
    assert record.arrays["visual_caption"].shape == (4, 6)
    tokens, mask = tiny_text(None).encode([record.info["texts"]["audio"]])
    np.testing.assert_allclose(record.arrays["audio_caption"], tokens[0], atol=1e-2)
    np.testing.assert_array_equal(record.arrays["audio_caption_mask"].astype(bool), mask[0])


@pytest.mark.parametrize("names", [("tpu",), ("99",), ("cuda:x",), ("cpu", "0"), ()])
def test_missing_devices_are_refused_before_any_work(names: tuple[str, ...]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(CaeavError, match="device"):
        choose_devices(names)


def test_weights_that_cannot_be_loaded_leave_no_empty_store(
    small_manifest: Manifest, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: Any) -> None:
        raise CaeavError("weights.safetensors is damaged")

    monkeypatch.setattr(tiny, "module", damaged)
    with pytest.raises(CaeavError, match="is damaged"):
        run(small_manifest, tmp_path)
    assert not (tmp_path / "stores").exists()


def test_invalid_options_are_refused(small_manifest: Manifest, tmp_path: Path) -> None:
    for options, words in (
        (replace(OPTIONS, compute=ComputeOptions(batch=0)), "a batch of 0 clips"),
        (replace(OPTIONS, compute=ComputeOptions(precision="fp8")), "unknown precision 'fp8'"),
        (TokenOptions("none", "none"), "without visual and without audio"),
    ):
        with pytest.raises(CaeavError, match=words):
            run(small_manifest, tmp_path, options)
    with pytest.raises(CaeavError, match="asked for twice"):
        extract_all(RunContext(small_manifest, Home(tmp_path), ONE, quiet), [OPTIONS, OPTIONS])
    assert not (tmp_path / "stores").exists()
