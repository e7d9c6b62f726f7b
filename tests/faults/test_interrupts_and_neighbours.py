"""Ctrl-C at any moment; several processes at one store: one writes, others wait, readers see whole shards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from forked_command import ForkedCommand

from caeav.cli import main
from caeav.pipeline.store import DamagedStore, IncompleteStore, StoreReader
from caeav.pipeline.store.lock import WriterLock

TIMES = int(os.environ.get("CAEAV_TIMES", "0"))
"""How often a run is broken off by each signal; by default a few times."""


Process = subprocess.Popen[str] | ForkedCommand


def arguments(small: Any, home: Path, backend: str = "webdataset", shard: int = 1) -> list[str]:
    line = ["extract", "--dataset", "synthetic", "--root", str(small.media), "--home", str(home)]
    return [*line, "--workers", "1", "--shard-clips", str(shard), "--backend", backend]


def start(small: Any, home: Path, **how: Any) -> subprocess.Popen[str]:
    """`caeav extract` in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "caeav.cli", *arguments(small, home, **how)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: Process) -> tuple[int | None, str]:
    error = process.communicate(timeout=240)[1]
    return process.returncode, error


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not true():
        time.sleep(0.005)


def indexes(home: Path) -> int:
    return len(list(home.glob("stores/*/*/index/[0-9]*.idx")))


def undisturbed(small: Any, home: Path, contents: Any, **how: Any) -> dict[str, str]:
    status, error = end(ForkedCommand(arguments(small, home, **how)))
    assert status == 0, error
    return dict(contents(home))


@pytest.fixture(scope="module")
def calm(small: Any, tmp_path_factory: pytest.TempPathFactory, contents: Any) -> dict[str, str]:
    """What an undisturbed command leaves."""
    return undisturbed(small, tmp_path_factory.mktemp("calm"), contents)


@pytest.fixture(scope="module")
def few_shards(small: Any, tmp_path_factory: pytest.TempPathFactory, contents: Any) -> dict[str, str]:
    """The same with several clips a shard, which are kept in journals meanwhile."""
    return undisturbed(small, tmp_path_factory.mktemp("few"), contents, shard=5)


ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


@pytest.mark.parametrize("what", ENDS)
def test_broken_off_at_any_step(
    what: signal.Signals,
    small: Any,
    few_shards: dict[str, str],
    contents: Any,
    sound_so_far: Any,
    tmp_path: Path,
) -> None:
    """Each run goes on where the last one was stopped, or begins anew when all was done."""
    rng = random.Random(int(what))
    times = TIMES or 5
    home, hit, rounds = tmp_path / "0", 0, 0
    for _ in range(times):
        stop = ("failing_steps:signal_at", {"step": rng.randrange(1, 40), "number": what})
        status, error = end(ForkedCommand(arguments(small, home, shard=5), stop))
        if status == 0:
            assert contents(home) == few_shards
            rounds += 1
            home = tmp_path / str(rounds)
            continue
        assert status == ENDS[what], error
        if what != signal.SIGKILL:
            assert "Traceback" not in error and error.endswith("interrupted; what is finished is kept\n")
        hit += 1
        assert sound_so_far(home) <= 1  # it may have been done already
    print(f"{times} times {what.name}: {hit} broke off, {rounds} came when all was done")
    assert hit >= times / 2, "a run has more than forty steps"
    assert end(ForkedCommand(arguments(small, home, shard=5)))[0] == 0
    assert contents(home) == few_shards


@pytest.mark.parametrize("what", ENDS)
def test_no_decoding_process_is_left_behind_nor_a_clip_lost(
    what: signal.Signals, small: Any, few_shards: dict[str, str], contents: Any, tmp_path: Path
) -> None:
    """A batch system tells every process of a job: those that decode are not to die of it before the parent knows."""
    process = start(small, tmp_path, shard=5)
    root = psutil.Process(process.pid)
    wait_for(lambda: any(tmp_path.glob("stores/*/*/journal/*.log")), process)
    children = root.children(recursive=True)
    assert children
    for each in (*children, root) if what != signal.SIGKILL else (root,):
        each.send_signal(what)
    status, error = end(process)
    assert status == ENDS[what], error
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not any(path.stat().st_size for path in tmp_path.glob("stores/*/*/quarantine.jsonl"))
    assert end(ForkedCommand(arguments(small, tmp_path, shard=5)))[0] == 0
    assert contents(tmp_path) == few_shards


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_program_is_loaded(
    what: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("caeav.cli.app.build", lambda: os.kill(os.getpid(), what))
    try:
        with pytest.raises(SystemExit) as leaving:
            main()
        if what == signal.SIGTERM:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, "a second one cuts nothing short"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert leaving.value.code == ENDS[what]
    assert capsys.readouterr().err == "interrupted; what is finished is kept\n"


def test_who_is_to_ignore_sigterm_goes_on_ignoring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setattr("caeav.cli.app.run", lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as leaving:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert leaving.value.code == 0


def lock_of(home: Path, calm: dict[str, str]) -> WriterLock:
    """The lock of the store that the command will make, in a home where nothing was made yet."""
    (store,) = {Path(name).parent for name in calm if name.endswith("/recipe.json")}
    (home / store).mkdir(parents=True)
    return WriterLock(home / store / ".lock")


def test_of_several_processes_one_writes_and_the_others_wait_for_it(
    small: Any, calm: dict[str, str], contents: Any, tmp_path: Path
) -> None:
    processes = [ForkedCommand(arguments(small, tmp_path)) for _ in range(3)]
    ended = [end(process) for process in processes]
    assert [status for status, _ in ended] == [0, 0, 0], ended
    waited = [error for _, error in ended if "is being written by the process with pid" in error]
    assert waited and all("waiting until it is done" in error for error in waited)
    assert contents(tmp_path) == calm


def test_who_waits_goes_on_when_the_other_was_stopped_too_early(
    small: Any, calm: dict[str, str], contents: Any, tmp_path: Path
) -> None:
    lock = lock_of(tmp_path, calm)
    process = start(small, tmp_path)
    assert process.stderr
    said = next(line for line in process.stderr if "is being written" in line)
    assert f"pid {os.getpid()};" in said
    assert indexes(tmp_path) == 0
    lock.release()
    status, error = end(process)
    assert status == 0, error
    assert contents(tmp_path) == calm


def test_ctrl_c_ends_the_wait(small: Any, calm: dict[str, str], tmp_path: Path) -> None:
    lock = lock_of(tmp_path, calm)
    process = start(small, tmp_path)
    assert process.stderr
    next(line for line in process.stderr if "is being written" in line)
    process.send_signal(signal.SIGINT)
    status, error = end(process)
    assert status == 130 and "Traceback" not in error
    assert indexes(tmp_path) == 0
    lock.release()


@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
def test_a_reader_during_writing_sees_whole_shards_only(backend: str, small: Any, tmp_path: Path) -> None:
    process = ForkedCommand(arguments(small, tmp_path, backend))
    seen: list[int] = []
    refused = 0
    while process.poll() is None:
        for recipe in tmp_path.glob("stores/*/*/recipe.json"):
            try:
                reader = StoreReader.open(recipe.parent, allow_partial=True)
            except DamagedStore as error:  # before the manifest is there
                assert "manifest" in str(error) and not seen, error
                continue
            keys = [record.key for record in reader]
            assert keys == list(reader.keys) and set(keys).isdisjoint(reader.missing)
            seen.append(len(keys))
            try:
                StoreReader.open(recipe.parent)
            except IncompleteStore:
                refused += 1
            else:
                assert len(keys) == 12 or (recipe.parent / "complete.json").exists()
        time.sleep(0.02)
    assert end(process)[0] == 0
    assert seen == sorted(seen), "what has been seen stays"
    assert len(set(seen)) > 2 and refused
