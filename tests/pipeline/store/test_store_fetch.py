"""Records fetched ahead are in memory, and errors of fetching are raised where the record is used."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caeav.pipeline.store import DamagedShard, StoreReader
from caeav.pipeline.store.backend import FileFacts
from caeav.pipeline.store.formats.common import MappedFile
from caeav.pipeline.store.reader import Fetcher

MIB = 1 << 20


def fetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "caeav-fetcher"]


def resident_bytes(path: Path) -> int:
    """How many bytes of a mapped file are in this process's memory."""
    lines: Iterator[str] = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(rest.split()[1]) * 1024 for rest in lines if rest.startswith("Rss:"))
    return 0


def test_fetched_bytes_are_in_memory_and_others_are_not(tmp_path: Path):
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (5, 14):
        pytest.skip("this kernel has no MADV_POPULATE_READ")
    (tmp_path / "file").write_bytes(bytes(8 * MIB))
    file = MappedFile(tmp_path, FileFacts("file", 8 * MIB, ""), 0)
    assert resident_bytes(tmp_path / "file") == 0
    file.fetch(5 * MIB + 7, 6 * MIB)
    assert MIB <= resident_bytes(tmp_path / "file") <= 2 * MIB
    file.fetch(6 * MIB, 8 * MIB)
    assert resident_bytes(tmp_path / "file") >= 3 * MIB


def test_fetching_from_a_truncated_mapped_file_does_not_kill_the_process(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(4 * MIB))
    file = MappedFile(tmp_path, FileFacts("file", 4 * MIB, ""), 0)
    os.truncate(tmp_path / "file", MIB)
    file.fetch(2 * MIB, 4 * MIB)
    assert not file.bytes[:MIB].any()


def test_a_missing_shard_is_an_error_at_its_first_record(toys):
    toys.write()
    reader = StoreReader.open(toys.folder)
    for file in reader._indexes[1].files:
        (toys.folder / file.name).unlink()
    read = []
    with pytest.raises(DamagedShard, match="the file is missing"):
        for record in reader:
            read.append(record.key)
    assert read == list(reader.keys[:4])
    assert not fetchers()


def test_leaving_a_loop_ends_its_fetcher_thread(toys):
    toys.write()
    records = iter(StoreReader.open(toys.folder))
    assert toys.same(next(records)) and len(fetchers()) == 1
    records.close()
    assert not fetchers()


def test_a_process_forked_within_a_loop_can_continue_it(toys):
    toys.write()
    records = iter(StoreReader.open(toys.folder))
    next(records)
    if (child := os.fork()) == 0:
        done = 1
        try:
            done = 0 if all(map(toys.same, records)) else 2
        finally:
            os._exit(done)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sum(map(toys.same, records)) == 9


def test_a_process_forked_while_a_file_is_opened_can_open_it_too(toys, monkeypatch: pytest.MonkeyPatch):
    toys.write()
    opening, go_on = threading.Event(), threading.Event()
    real = MappedFile.__init__

    def slow(self: MappedFile, *args: Any) -> None:
        if threading.current_thread().name == "caeav-fetcher":
            opening.set()
            go_on.wait()
        real(self, *args)

    monkeypatch.setattr(MappedFile, "__init__", slow)
    shard = StoreReader.open(toys.folder)._shard(0)
    fetcher = Fetcher()
    fetcher.ask(shard, 0)
    opening.wait()
    if (child := os.fork()) == 0:
        signal.alarm(20)
        done = 1
        try:
            done = 0 if toys.same(shard.record(0)) else 2
        finally:
            os._exit(done)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go_on.set()
    fetcher.close()
    assert status == 0


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), DamagedShard("a file is missing")])
def test_a_failed_fetch_does_not_end_the_fetcher_thread(error: Exception):
    fetched = threading.Event()

    class Rows:
        def prefetch(self, row: int) -> None:
            raise error

        def fetch(self, row: int) -> None:
            if row == 5:
                raise error
            fetched.set()

    fetcher = Fetcher()
    for row in (5, 7):
        fetcher.ask(Rows(), row)
    assert fetched.wait(20)
    fetcher.close()
