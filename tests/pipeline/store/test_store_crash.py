"""Killed at any sync, rename, removal or record, a store is never wrong, and resuming gives the undisturbed bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fork_server
import pytest
from store_files import due_clips
from store_work import FAILING, KILLED, fresh, grown_and_retried, merged, no_links, repaired

from caeav.manifests.core import atomic as publish
from caeav.pipeline.store import StoreError, StoreReader, verify
from caeav.pipeline.store.testing_data import Toy

Work = Callable[..., object]
STEPS = ("sync_file", "sync_folder", "rename", "remove", "make_folder")
WRITES = (*STEPS, "write_bytes")
LINKS = (*STEPS, "link_file")


def run_killed_at(
    work: Work, toy: Toy, step: int, steps: tuple[str, ...] = STEPS, log: Path | None = None, **how: Any
) -> bool:
    """Do the work in a child that dies, as by SIGKILL, just before its `step`-th step; False when it finished first.

    The file `log` gets the keys of kept records, one per line.
    """
    arguments = {"stores": str(toy.stores), "backend": toy.backend, "step": step, "steps": steps, **how}
    code = fork_server.run(
        "store_work:killed_at", work=work.__name__, log=None if log is None else str(log), **arguments
    )
    assert code in (0, KILLED)
    return code == KILLED


def no_damage(folder):
    return None


def damage_files(folder):
    """Remove the file of a shard, truncate the index of another, tear a quarantine line."""
    (folder / "shards" / "000000.tar").unlink()
    index = folder / "index" / "000001.idx"
    index.write_bytes(index.read_bytes()[:50])
    with (folder / "quarantine.jsonl").open("ab") as out:
        out.write(b'{"key": "cli')


def zero_a_shard(folder):
    """Damage every record of a shard."""
    path = folder / "shards" / "000001.tar"
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("toys", "begin", "damage", "work", "steps", "stride"),
    [
        ("webdataset", None, no_damage, fresh, STEPS, 3),
        ("webdataset", None, no_damage, fresh, WRITES, 7),
        ("webdataset", fresh, no_damage, grown_and_retried, STEPS, 3),
        ("webdataset", fresh, damage_files, fresh, STEPS, 2),
        ("webdataset", fresh, zero_a_shard, repaired, STEPS, 2),
        ("zarr", None, no_damage, fresh, WRITES, 11),
        ("zarr", fresh, no_damage, grown_and_retried, STEPS, 9),
    ],
    ids=["fresh", "fresh-writes", "growth-and-retry", "mend", "repair", "zarr-writes", "zarr-growth"],
    indirect=["toys"],
)
def test_killed_at_any_step_a_store_is_never_wrong_and_resumes(
    toys, contents, begin, damage, work, steps, stride, memory
):
    """At every step with `CAEAV_EVERY_STEP`; otherwise at some."""
    toy, stride = toys, 1 if os.environ.get("CAEAV_EVERY_STEP") else stride
    start = toy.at(toy.stores.parent / "start")
    start.dataset.mkdir(parents=True)
    if begin:
        begin(start)
        damage(start.folder)
    calm = toy.at(toy.stores.parent / "calm")
    shutil.copytree(start.stores, calm.stores)
    work(calm)
    wanted = contents(calm.folder)
    killed = toy.at(toy.stores.parent / "killed")
    step = 1 - stride
    while True:
        step += stride
        shutil.copytree(start.stores, killed.stores)
        log = memory / f"kept{step}"
        if not run_killed_at(work, killed, step, steps, log):
            break
        assert_never_wrong(killed, damage is not no_damage)
        due: set[str] = set()
        work(killed, seen=lambda writer, due=due: due.update(due_clips(writer)))
        finished = log.read_text().split() if log.exists() else ()
        assert not due.intersection(finished), f"killed at step {step}: kept clips are made again"
        assert contents(killed.folder) == wanted, f"killed at step {step}"
        shutil.rmtree(killed.stores)
    assert contents(killed.folder) == wanted
    assert step > 30


def assert_never_wrong(toy, damaged: bool) -> None:
    """Right after the kill a reader is refused or gets right records, never a wrong one."""
    if not (toy.folder / "manifest.jsonl").exists():
        return
    verified = verify(toy.folder)
    if verified.problems:  # only of what was damaged before the run
        assert damaged and {problem.shard for problem in verified.problems} <= {0, 1, None}
        for key in ("clip003", "clip004", "clip007"):  # damaged records are never returned
            with suppress(StoreError):
                assert toy.same(StoreReader.open(toy.folder, allow_partial=True).read(key))
    else:
        assert verified.sound == (toy.folder / "complete.json").exists()
        for record in StoreReader.open(toy.folder, allow_partial=True):
            assert toy.same(record)


def test_a_killed_run_can_be_killed_again_and_again(toy, contents):
    calm = toy.at(toy.stores.parent / "calm")
    fresh(calm)
    for step in (25, 20, 15, 12, 9, 14, 18, 7, 30):
        run_killed_at(fresh, toy, step)
    fresh(toy)
    assert contents(toy.folder) == contents(calm.folder)


@pytest.mark.parametrize(
    ("toys", "steps", "stride", "links"),
    [
        ("webdataset", LINKS, 1, True),
        ("webdataset", (*LINKS, "write_bytes"), 2, False),
        ("zarr", LINKS, 3, True),
        ("zarr", (*LINKS, "write_bytes"), 7, False),
    ],
    ids=["links", "copies", "zarr-links", "zarr-copies"],
    indirect=["toys"],
)
def test_a_merge_killed_at_any_step_continues(
    toys, steps: tuple[str, ...], stride: int, links: bool, contents, monkeypatch
) -> None:
    """At every step with `CAEAV_EVERY_STEP`; otherwise at some."""
    stride = 1 if os.environ.get("CAEAV_EVERY_STEP") else stride
    whole = toys.at(toys.stores.parent / "whole")
    whole.write(toys.manifest(18), failing=FAILING)
    wanted = contents(whole.folder)
    slices = toys.write_slices(2, toys.manifest(18), FAILING)
    before = [contents(path) for path in slices]
    if not links:
        monkeypatch.setattr(publish, "link_file", no_links)
    step = 1 - stride
    while True:
        step += stride
        if not run_killed_at(merged, toys, step, steps, links=links):
            break
        if (toys.folder / "manifest.jsonl").exists():
            verified = verify(toys.folder)
            assert not verified.problems, f"killed at step {step}"
            assert verified.sound == (toys.folder / "complete.json").exists()
            assert all(map(toys.same, StoreReader.open(toys.folder, allow_partial=True)))
        merged(toys)
        assert contents(toys.folder) == wanted, f"killed at step {step}"
        assert [contents(path) for path in slices] == before, f"killed at step {step}"
        shutil.rmtree(toys.folder)
    assert contents(toys.folder) == wanted and step > 30


def test_a_single_run_continues_a_killed_merge(toys, contents) -> None:
    """Making shards again whose files are shared but lack an index must not write into the slices."""
    whole = toys.at(toys.stores.parent / "whole")
    whole.write(toys.manifest(18), failing=FAILING)
    wanted = contents(whole.folder)
    slices = toys.write_slices(2, toys.manifest(18), FAILING)
    before = [contents(path) for path in slices]
    for step in range(1, 200, 5):
        if not run_killed_at(merged, toys, step, LINKS):
            break
        toys.write(toys.manifest(18), failing=FAILING)
        assert contents(toys.folder) == wanted, f"killed at step {step}"
        assert [contents(path) for path in slices] == before, f"killed at step {step}"
        shutil.rmtree(toys.folder)
    assert step > 30
