"""Interrupts at any moment; several processes at one store: one writes, others wait, readers see whole shards."""

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
"""How often each signal interrupts a run; by default a few times."""


Process = subprocess.Popen[str] | ForkedCommand


def arguments(small: Any, home: Path, backend: str = "webdataset", shard: int = 1) -> list[str]:
    line = ["extract", "--dataset", "synthetic", "--root", str(small.media), "--home", str(home)]
    return [*line, "--workers", "1", "--shard-clips", str(shard), "--backend", backend]


def start(small: Any, home: Path, **how: Any) -> subprocess.Popen[str]:
    """Start `caeav extract` in a new interpreter."""
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
    """The files of an undisturbed command."""
    return undisturbed(small, tmp_path_factory.mktemp("calm"), contents)


@pytest.fixture(scope="module")
def few_shards(small: Any, tmp_path_factory: pytest.TempPathFactory, contents: Any) -> dict[str, str]:
    """The same with several clips per shard, which are kept in journals until the shard is written."""
    return undisturbed(small, tmp_path_factory.mktemp("few"), contents, shard=5)


EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


@pytest.mark.parametrize("what", EXIT_STATUS)
def test_interrupted_at_any_step_the_next_run_continues(
    what: signal.Signals,
    small: Any,
    few_shards: dict[str, str],
    contents: Any,
    assert_sound: Any,
    tmp_path: Path,
) -> None:
    """Each run continues where the last one stopped, or starts in a new home when that one had finished."""
    rng = random.Random(int(what))
    times = TIMES or 5
    home, interrupted, finished = tmp_path / "0", 0, 0
    for _ in range(times):
        stop = ("failing_steps:signal_at", {"step": rng.randrange(1, 40), "number": what})
        status, error = end(ForkedCommand(arguments(small, home, shard=5), stop))
        if status == 0:
            assert contents(home) == few_shards
            finished += 1
            home = tmp_path / str(finished)
            continue
        assert status == EXIT_STATUS[what], error
        if what != signal.SIGKILL:
            assert "Traceback" not in error and error.endswith("interrupted; what is finished is kept\n")
        interrupted += 1
        assert assert_sound(home) <= 1  # the store may have been complete already
    print(f"{times} times {what.name}: {interrupted} runs interrupted, {finished} finished before")
    assert interrupted >= times / 2, "a run has more than forty steps"
    assert end(ForkedCommand(arguments(small, home, shard=5)))[0] == 0
    assert contents(home) == few_shards


@pytest.mark.parametrize("what", EXIT_STATUS)
def test_a_signal_to_all_processes_leaves_none_running_and_quarantines_no_clip(
    what: signal.Signals, small: Any, few_shards: dict[str, str], contents: Any, tmp_path: Path
) -> None:
    """A batch system signals every process of a job: decode processes must not die of it before their parent knows."""
    process = start(small, tmp_path, shard=5)
    root = psutil.Process(process.pid)
    wait_for(lambda: any(tmp_path.glob("stores/*/*/journal/*.log")), process)
    children = root.children(recursive=True)
    assert children
    for each in (*children, root) if what != signal.SIGKILL else (root,):
        each.send_signal(what)
    status, error = end(process)
    assert status == EXIT_STATUS[what], error
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not any(path.stat().st_size for path in tmp_path.glob("stores/*/*/quarantine.jsonl"))
    assert end(ForkedCommand(arguments(small, tmp_path, shard=5)))[0] == 0
    assert contents(tmp_path) == few_shards


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_program_loads_ends_it_cleanly(
    what: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("caeav.cli.app.build", lambda: os.kill(os.getpid(), what))
    try:
        with pytest.raises(SystemExit) as leaving:
            main()
        if what == signal.SIGTERM:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, (
                "a second signal must interrupt nothing"
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert leaving.value.code == EXIT_STATUS[what]
    assert capsys.readouterr().err == "interrupted; what is finished is kept\n"


def test_a_command_started_with_sigterm_ignored_keeps_ignoring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setattr("caeav.cli.app.run", lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as leaving:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert leaving.value.code == 0


def lock_store(home: Path, calm: dict[str, str]) -> WriterLock:
    """Take the lock of the store that the command will write, in a new home."""
    (store,) = {Path(name).parent for name in calm if name.endswith("/recipe.json")}
    (home / store).mkdir(parents=True)
    return WriterLock(home / store / ".lock")


def test_one_of_several_processes_writes_and_the_others_wait(
    small: Any, calm: dict[str, str], contents: Any, tmp_path: Path
) -> None:
    processes = [ForkedCommand(arguments(small, tmp_path)) for _ in range(3)]
    ended = [end(process) for process in processes]
    assert [status for status, _ in ended] == [0, 0, 0], ended
    waited = [error for _, error in ended if "is being written by the process with pid" in error]
    assert waited and all("waiting until it is done" in error for error in waited)
    assert contents(tmp_path) == calm


def test_a_waiting_process_continues_when_the_writer_stopped_early(
    small: Any, calm: dict[str, str], contents: Any, tmp_path: Path
) -> None:
    lock = lock_store(tmp_path, calm)
    process = start(small, tmp_path)
    assert process.stderr
    message = next(line for line in process.stderr if "is being written" in line)
    assert f"pid {os.getpid()};" in message
    assert indexes(tmp_path) == 0
    lock.release()
    status, error = end(process)
    assert status == 0, error
    assert contents(tmp_path) == calm


def test_ctrl_c_ends_the_wait(small: Any, calm: dict[str, str], tmp_path: Path) -> None:
    lock = lock_store(tmp_path, calm)
    process = start(small, tmp_path)
    assert process.stderr
    next(line for line in process.stderr if "is being written" in line)
    process.send_signal(signal.SIGINT)
    status, error = end(process)
    assert status == 130 and "Traceback" not in error
    assert indexes(tmp_path) == 0
    lock.release()


@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
def test_a_reader_of_a_store_being_written_sees_whole_shards_only(
    backend: str, small: Any, tmp_path: Path
) -> None:
    """The writer waits after each shard until the reader has looked."""
    counter = tmp_path / "seen"
    counter.write_text("")
    pace = ("failing_steps:publish_in_step", {"counter": str(counter)})
    process = ForkedCommand(arguments(small, tmp_path, backend), pace)
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
            counter.write_text(str(len(keys)))
            try:
                StoreReader.open(recipe.parent)
            except IncompleteStore:
                refused += 1
            else:
                assert len(keys) == 12 or (recipe.parent / "complete.json").exists()
        time.sleep(0.002)
    assert end(process)[0] == 0
    assert seen == sorted(seen), "what has been seen must stay"
    assert set(range(1, 12)) < {*seen} and refused
