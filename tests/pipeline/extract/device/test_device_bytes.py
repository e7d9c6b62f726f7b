"""Components on devices: tokens are those of the backbone, and only recipe and manifest decide their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extraction import first, quiet

from caeav.manifests.clip import Manifest
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones import visual_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract import local
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.device.batches import Batches
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.progress import Progress, StageSummary
from caeav.pipeline.extract.tokens import extract, extract_all
from caeav.pipeline.media.clip import Sampling
from caeav.pipeline.media.pyav import PyAVDecoder
from caeav.pipeline.media.workers.pool import WorkerPool
from caeav.pipeline.store import Slice, StoreReader
from caeav.pipeline.store.dtypes import DTYPES

Digests = Callable[[Path], dict[str, str]]
OPTIONS = TokenOptions("tiny", "tiny", shard_clips=5, compute=ComputeOptions(batch=3))
ONE = RunOptions(workers=1, devices=("cpu",))


def interrupted_at(clips: int) -> Callable[[Progress], None]:
    """A progress callback that interrupts the run after so many clips."""

    def report(progress: Progress) -> None:
        if progress.done >= min(clips, progress.total):
            raise KeyboardInterrupt

    return report


def run(
    manifest: Manifest, home: Path, options: TokenOptions = OPTIONS, how: RunOptions = ONE
) -> StageSummary:
    return extract(RunContext(manifest, Home(home), how, quiet), options)


pytestmark = pytest.mark.usefixtures("inline")
"""Decoding runs in this process, unless a test says otherwise; that changes no byte."""


def test_tokens_are_those_of_the_backbone(small_manifest: Manifest, tmp_path: Path) -> None:
    summary = run(first(small_manifest, 4), tmp_path, replace(OPTIONS, dtype="float32"))
    assert summary.path.name.startswith("tokens-tiny-")
    clip = small_manifest.clips[3]
    record = StoreReader.open(summary.path).read(clip.key)
    decoded = PyAVDecoder().decode(f"{small_manifest.media_root}/{clip.media}", 0.0, Sampling(4, 1.0, 8000))
    [visual] = visual_backbones["tiny"](ModelChoice("tiny")).tokens([decoded.frames])
    for name, array in visual.items():
        np.testing.assert_allclose(record.arrays[name], array, rtol=1e-4, atol=1e-5)
    assert record.arrays["audio.stage1"].shape == (4, 4, 10)
    assert record.info["facts"]["device"] == {"name": "cpu", "torch": torch.__version__.partition("+")[0]}
    assert summary.recipe.fields["compute"] == {"batch": 3, "precision": "fp32", "compile": False}


@pytest.mark.parametrize(
    "how",
    [
        RunOptions(workers=2, devices=("cpu",)),
        RunOptions(workers=1, devices=("cpu", "cpu")),
        RunOptions(workers=2, devices=("cpu", "cpu", "cpu")),
    ],
)
def test_neither_decoding_processes_nor_device_workers_change_a_byte(
    small_manifest: Manifest,
    tmp_path: Path,
    digests: Digests,
    how: RunOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = first(small_manifest, 13)
    alone = run(manifest, tmp_path / "one")
    monkeypatch.setattr(local, "WorkerPool", WorkerPool)
    assert digests(run(manifest, tmp_path / "more", how=how).path) == digests(alone.path)


def test_an_interrupted_and_resumed_run_leaves_the_same_bytes(
    small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    manifest = first(small_manifest, 12)
    whole = digests(run(manifest, tmp_path / "whole").path)
    done = run(first(manifest, 1), tmp_path / "parts")
    for stop in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            extract(RunContext(manifest, Home(tmp_path / "parts"), ONE, interrupted_at(stop)), OPTIONS)
        assert list(done.path.glob("journal/*.log")), "interrupted within a shard"
    done = run(manifest, tmp_path / "parts")
    assert done.due <= 12 - 1 - (1 + 2 + 3), "settled clips are not made again"
    assert digests(done.path) == whole


@pytest.mark.parametrize("part", [Slice(), Slice(1, 2)])
def test_loading_and_the_number_of_due_clips_are_reported_before_the_first_clip(
    small_manifest: Manifest, tmp_path: Path, part: Slice
) -> None:
    said: list[Progress | str] = []

    def begin(count: int) -> None:
        said.clear()
        how = replace(ONE, part=part)
        extract(
            RunContext(first(small_manifest, count), Home(tmp_path), how, said.append, said.append), OPTIONS
        )

    begin(2)
    assert said[:3] == ["loading tiny", "loading tiny", Progress(0, 0, 2)]  # visual and audio
    begin(5)  # the store exists, its backbones are not loaded yet
    assert said.index("loading tiny") < said.index(Progress(0, 0, 3))
    begin(5)
    assert said == []


def test_a_retried_clip_gets_the_bytes_of_a_run_without_failures(
    small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    manifest = first(small_manifest, 7)
    media = tmp_path / "media"
    media.mkdir()
    for clip in manifest.clips:
        (media / clip.media).parent.mkdir(parents=True, exist_ok=True)
        (media / clip.media).symlink_to(Path(manifest.media_root) / clip.media)
    moved = replace(manifest, media_root=str(media))
    lost = media / manifest.clips[1].media
    lost.unlink()
    broken = run(moved, tmp_path / "a")
    assert [q.key for q in broken.quarantined] == [manifest.clips[1].key]
    lost.symlink_to(Path(manifest.media_root) / manifest.clips[1].media)
    again = run(moved, tmp_path / "a", how=replace(ONE, retry_failed=True))
    assert digests(again.path) == digests(run(manifest, tmp_path / "b").path)


def several() -> list[TokenOptions | CaptionOptions]:
    compute = ComputeOptions(batch=3)
    return [
        OPTIONS,
        TokenOptions(shard_clips=4),
        TokenOptions("none", "tiny", shard_clips=5, compute=ComputeOptions(batch=2)),
        TokenOptions(ModelChoice("tiny", settings={"seed": 3}), "none", shard_clips=5, compute=compute),
        CaptionOptions("tiny", "descriptor", "tiny", "hashed", shard_clips=5, compute=compute),
    ]


def test_several_stores_from_one_decoding_equal_those_of_separate_runs(
    small_manifest: Manifest, tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample rates, batch sizes and shard sizes differ; one store is complete already, one begun, and one has kept
    clips of an unfinished shard."""
    manifest = first(small_manifest, 9)
    decoded: list[str] = []

    class Counting(WorkerPool):
        def map(self, requests: Any) -> Any:
            for outcome in super().map(requests):
                decoded.append(outcome.id)
                yield outcome

    alone = [
        extract_all(RunContext(manifest, Home(tmp_path / "alone"), ONE, quiet), [each])[0]
        for each in several()
    ]
    extract_all(RunContext(manifest, Home(tmp_path / "together"), ONE, quiet), several()[1:2])
    extract_all(RunContext(first(manifest, 4), Home(tmp_path / "together"), ONE, quiet), several()[2:3])
    with pytest.raises(KeyboardInterrupt):
        extract_all(RunContext(manifest, Home(tmp_path / "together"), ONE, interrupted_at(2)), several()[4:])
    monkeypatch.setattr(local, "WorkerPool", Counting)
    both = RunOptions(workers=2, devices=("cpu", "cpu"))
    together = extract_all(RunContext(manifest, Home(tmp_path / "together"), both, quiet), several())
    assert [s.due for s in together[:4]] == [9, 0, 5, 9] and 0 < together[4].due < 9
    assert sorted(decoded) == sorted(clip.key for clip in manifest.clips)
    for mine, own in zip(together, alone, strict=True):
        assert mine.path.name == own.path.name
        assert digests(mine.path) == digests(own.path)
    names = set(StoreReader.open(together[2].path).array_specs())
    assert names == {"audio.stage1"}


def test_stores_with_different_orders_are_filled_together(
    small_manifest: Manifest, tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of one store may hold clips far apart in the other; then it must be launched incomplete."""
    compute = ComputeOptions(batch=5)
    a = replace(OPTIONS, shard_clips=24, compute=compute)
    b = TokenOptions("none", "tiny", shard_clips=24, compute=compute)
    scattered = tuple(clip for i in range(5) for clip in small_manifest.clips[i::5])

    def at_once(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # begins the store in its own order
        extract_all(
            RunContext(replace(small_manifest, clips=scattered), Home(tmp_path / "x"), ONE, at_once), [b]
        )
    flushed: list[bool] = []
    flush = Batches.flush
    monkeypatch.setattr(Batches, "flush", lambda self: flushed.append(flush(self)) or flushed[-1])
    both = extract_all(RunContext(small_manifest, Home(tmp_path / "x"), ONE, quiet), [a, b])
    assert any(flushed)
    own_a = run(small_manifest, tmp_path / "y", a)
    own_b = run(replace(small_manifest, clips=scattered), tmp_path / "y", b)
    assert [digests(s.path) for s in both] == [digests(own_a.path), digests(own_b.path)]


def test_the_shards_of_slices_are_those_of_the_whole(
    small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    whole = digests(run(small_manifest, tmp_path / "whole").path)
    shards: dict[str, str] = {}
    for number in (1, 2, 3):
        part = run(small_manifest, tmp_path / "parts", how=replace(ONE, part=Slice(number, 3)))
        assert part.path.name.endswith(f".slice-{number}-of-3")
        assert part.stored == part.due == part.expected < 24
        shards |= {n: d for n, d in digests(part.path).items() if n.startswith(("shards/", "index/"))}
    assert shards == {n: d for n, d in whole.items() if n.startswith(("shards/", "index/"))}


ROUNDING = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.5 / 127 + 2**-11}
"""The largest rounding error of a stored value, as a share of the largest value."""


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_stored_and_read_back(small_manifest: Manifest, tmp_path: Path, dtype: str) -> None:
    manifest = first(small_manifest, 2)
    exact = StoreReader.open(run(manifest, tmp_path, replace(OPTIONS, dtype="float32")).path)
    reader = StoreReader.open(run(manifest, tmp_path, replace(OPTIONS, dtype=dtype)).path)
    for key in reader.keys:
        for name, x in exact.read(key).arrays.items():
            back = reader.read(key).arrays[name].astype(np.float64)
            np.testing.assert_allclose(back, x, rtol=0, atol=ROUNDING[dtype] * np.abs(x).max())
            assert x.dtype == np.float32 and np.any(x != x.astype(np.float16)), (
                "the exact tokens must not be rounded"
            )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_is_part_of_the_recipe_and_of_the_arithmetic(
    small_manifest: Manifest, tmp_path: Path, precision: str
) -> None:
    manifest = first(small_manifest, 2)
    coarse = replace(OPTIONS, dtype="float32", compute=ComputeOptions(3, precision))
    exact = run(manifest, tmp_path, replace(OPTIONS, dtype="float32"))
    other = run(manifest, tmp_path, coarse)
    assert other.path != exact.path
    key = manifest.clips[0].key
    a, b = (StoreReader.open(s.path).read(key).arrays["visual.stage1"] for s in (exact, other))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05)


def test_compiled_networks_give_the_tokens_and_are_another_recipe(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    eager = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or eager(f, backend="eager"))
    manifest = first(small_manifest, 3)
    plain = run(manifest, tmp_path)
    other = run(manifest, tmp_path, replace(OPTIONS, compute=ComputeOptions(3, compile=True)))
    assert len(compiled) == 2
    assert other.path != plain.path
    key = manifest.clips[0].key
    a, b = (StoreReader.open(s.path).read(key).arrays["visual.stage2"] for s in (plain, other))
    np.testing.assert_allclose(a, b, atol=1e-3)
