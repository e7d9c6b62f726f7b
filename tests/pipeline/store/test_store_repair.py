"""What `repair` removes, and in which order."""

from __future__ import annotations

import shutil

import pytest

from caeav.pipeline.store import DamagedStore, StoreReader, repair, verify
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.state import inspect


@pytest.fixture
def removed(monkeypatch):
    """The names of the files that repair unpublishes, in order."""
    import sys

    module = sys.modules["caeav.pipeline.store.verify"]
    names = []
    real = module.unpublish
    monkeypatch.setattr(module, "unpublish", lambda path: (names.append(path.name), real(path)))
    return names


def test_repair_removes_the_seal_before_a_damaged_manifest(toys, removed):
    """A store that looks finished but has no manifest could not be mended."""
    toys.write()
    path = toys.folder / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    done = repair(toys.folder)
    assert removed == ["complete.json", "manifest.jsonl"]
    assert not StoreFolder(toys.folder).seal.exists() and not path.exists()
    assert not done.finished and "manifest.jsonl" in done.said[0]
    toys.write()
    assert verify(toys.folder).sound


def test_repair_removes_the_seal_before_a_damaged_quarantine(toys, removed):
    toys.write(failing=["clip002"])
    path = toys.folder / "quarantine.jsonl"
    path.write_bytes(path.read_bytes().replace(b"clip002", b"clip\xff02"))
    done = repair(toys.folder)
    assert removed == ["complete.json", "quarantine.jsonl"]
    assert done.due == ("clip002",) and any("its clips are tried again" in text for text in done.said)


def test_repair_cuts_off_bytes_appended_to_a_shard(toys):
    toys.write()
    before = inspect(toys.folder).indexes[1].files
    for facts in before:
        with (toys.folder / facts.name).open("ab") as out:
            out.write(b"more")
    done = repair(toys.folder)
    assert [(toys.folder / facts.name).stat().st_size for facts in before] == [
        facts.bytes for facts in before
    ]
    for facts in before:
        assert any(
            f"{facts.name}: {facts.bytes + 4} bytes, its index says {facts.bytes}" in s for s in done.said
        )


def test_repair_drops_a_shard_that_the_manifest_does_not_plan(toy):
    """As when a larger store was copied over a smaller one."""
    toy.write()
    larger = toy.folder.with_name("larger")
    toy.folder.rename(larger)
    fewer = toy.manifest(8)
    toy.write(fewer)
    for name in ("index/000002.idx", "spare/000002.idx", "shards/000002.tar"):
        shutil.copy(larger / name, toy.folder / name)
    (toy.folder / "complete.json").unlink()
    with pytest.raises(DamagedStore, match=r"000002\.idx"):
        StoreReader.open(toy.folder, allow_partial=True)
    done = repair(toy.folder)
    assert any("index/000002.idx" in text and "the shard is dropped" in text for text in done.said)
    assert not list(toy.folder.glob("*/000002.*")) and done.finished
    assert verify(toy.folder).sound and len(StoreReader.open(toy.folder)) == 8
