"""Torch components in actors: batches, text embeddings and short memory; the bytes are those of one machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from extraction import make_old
from thread_cluster import ThreadCluster, use_clusters
from torch import Tensor

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract.cluster import driver
from caeav.pipeline.extract.cluster.options import ClusterOptions
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.device import devices
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.store import StoreReader

COMPUTE = ComputeOptions(batch=3)
TOKENS = TokenOptions("tiny", "tiny", shard_clips=4, compute=COMPUTE)
CAPTIONS = CaptionOptions("tiny", "tiny", "tiny", "tiny", shard_clips=4, compute=COMPUTE)


def run(
    manifest: Manifest,
    home: Path,
    cluster: ClusterOptions | None = None,
    said: Callable[[str], object] = print,
) -> list[StageSummary]:
    options = RunOptions(workers=1, devices=("cpu",), cluster=cluster)
    return extract_all(RunContext(manifest, Home(home), options, lambda _: None, said), [TOKENS, CAPTIONS])


def test_tokens_and_embedded_captions_of_actors_are_those_of_one_machine(
    small_manifest: Manifest, tmp_path: Path, digests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(Path(small_manifest.media_root, clip.media) for clip in small_manifest.clips)
    manifest = replace(small_manifest, clips=small_manifest.clips[:10])
    run(manifest, tmp_path / "local")
    threads = torch.get_num_threads()
    used = use_clusters(monkeypatch, ThreadCluster)
    tokens, captions = run(manifest, tmp_path / "cluster", ClusterOptions(workers=1))
    assert digests(tmp_path / "cluster" / "stores") == digests(tmp_path / "local" / "stores")
    assert len(used[0].orders) == 3 and torch.get_num_threads() == threads
    assert tokens.busy_s["backbone"] > 0 and tokens.busy_s["adopt"] > 0 and tokens.limit
    assert captions.stored == 10


def test_short_memory_halves_the_batches_of_its_shard_only(
    small_manifest: Manifest, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(small_manifest, clips=small_manifest.clips[:8])
    failed: list[int] = []

    def scarce(batch: Tensor) -> None:
        if not failed:
            failed.append(len(batch))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    tiny.hook = scarce

    class One(ThreadCluster):
        CPUS = (1.0,)

    monkeypatch.setattr(driver, "AT_ONCE", 1)
    use_clusters(monkeypatch, One)
    said: list[str] = []
    tokens, _ = run(manifest, tmp_path, ClusterOptions(), said.append)
    assert [text.split(";")[0] for text in said if "memory" in text] == [
        "tiny: out of memory with 3 clips at a time, going on with 1"
    ]
    reader = StoreReader.open(tokens.path)
    rows = [reader.read(clip.key).info["facts"]["device"].get("rows") for clip in manifest.clips]
    assert rows == [1] * 4 + [None] * 4


def test_a_store_of_another_device_is_continued_only_if_allowed(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(small_manifest, clips=small_manifest.clips[:4])
    run(few, tmp_path)
    use_clusters(monkeypatch, ThreadCluster)
    monkeypatch.setattr(devices, "device_name", lambda device: "NVIDIA H900")
    more = replace(small_manifest, clips=small_manifest.clips[:6])
    with pytest.raises(CaeavError, match=r"computes on NVIDIA H900, what .* holds was computed on cpu"):
        run(more, tmp_path, ClusterOptions())
    tokens, _ = run(more, tmp_path, ClusterOptions(mixed_devices=True))
    assert tokens.stored == 6
