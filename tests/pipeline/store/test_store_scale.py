"""Stores of many clips: readers keep few bytes per clip, and stores with lazy manifest rows behave like others."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest
from module_files import load_module

from caeav.manifests.core.home import Home
from caeav.manifests.lazy_clips import LazyClips
from caeav.manifests.manifest import read_manifest
from caeav.pipeline.store import DamagedShard, StoreError, StoreReader, open_for_writing, verify

CLIPS = 20_000


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    """The benchmark that makes stores of many clips without writing their records."""
    module: ModuleType = load_module("scale", Path(__file__).parents[3] / "benchmarks" / "scale.py")
    return module


def test_an_open_store_keeps_less_than_80_bytes_per_clip(
    scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    home = Home(tmp_path)
    scale.make(home, "tokens", scale.TAPS, CLIPS)
    path = scale.tokens(home)
    StoreReader.open(path)  # imports and caches count for no clip
    tracemalloc.start()
    reader = StoreReader.open(path)
    record = reader.read(reader.keys[CLIPS // 2])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert record.key == reader.keys[CLIPS // 2] and set(record.arrays) == set(scale.TAPS)
    assert kept / CLIPS < 80
    assert len(reader) == CLIPS and reader.held().all() and "nothing" not in reader


def test_stores_with_lazy_rows_are_read_pickled_resumed_and_verified(toys, monkeypatch, contents):
    toys.write(toys.manifest(30), failing=["clip002"])
    there = contents(toys.folder)
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    reader = StoreReader.open(toys.folder)
    assert isinstance(reader.manifest.clips, LazyClips)
    assert reader.keys == tuple(clip.key for clip in reader.manifest.clips if clip.key != "clip002")
    assert [key for key, held in zip(reader.manifest.keys, reader.held(), strict=True) if not held] == [
        "clip002"
    ]
    assert all(toys.same(record) for record in pickle.loads(pickle.dumps(reader)))
    with pytest.raises(StoreError, match="is quarantined"):
        reader.read("clip002")
    (toys.folder / "complete.json").unlink()
    for folder in ("index", "spare"):
        (toys.folder / folder / "000003.idx").unlink()
    manifest = read_manifest(toys.folder / "manifest.jsonl")
    with open_for_writing(toys.folder.parent, reader.recipe, manifest) as writer:
        assert [plan.number for plan in writer.plan()] == [3]
        assert writer.plan()[0].missing == reader.manifest.keys[12:16]
    toys.write(manifest, failing=["clip002"])
    assert {k: v for k, v in contents(toys.folder).items() if k != ".lock"} == {
        k: v for k, v in there.items() if k != ".lock"
    }
    assert verify(toys.folder).sound


def test_an_index_that_changes_behind_an_open_reader_is_an_error(toys):
    toys.write()
    reader = StoreReader.open(toys.folder)
    index = toys.folder / "index" / "000001.idx"
    index.write_bytes((toys.folder / "index" / "000000.idx").read_bytes())
    with pytest.raises(DamagedShard, match="not the index that was there when the store was opened"):
        reader.read(reader.keys[5])
    index.unlink()
    with pytest.raises(DamagedShard, match="vanished"):
        reader.read(reader.keys[5])
    assert toys.same(reader.read(reader.keys[0]))
