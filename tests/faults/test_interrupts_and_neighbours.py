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

from caeav.cli import main
from caeav.pipeline.store import DamagedStore, IncompleteStore, StoreReader
from caeav.pipeline.store.lock import WriterLock

TIMES = int(os.environ.get("CAEAV_TIMES", "0"))
"""How often a run is broken off by each signal; by default a few times."""


def start(small: Any, home: Path, backend: str = "webdataset") -> subprocess.Popen[str]:
    line = [
        sys.executable,
        "-m",
        "caeav.cli",
        "extract",
        "--dataset",
        "synthetic",
        "--root",
        str(small.media),
    ]
    line += ["--home", str(home), "--workers", "1", "--shard-clips", "1", "--backend", backend]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    error = process.communicate(timeout=240)[1]
    return process.returncode, error


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not true():
        time.sleep(0.005)


def indexes(home: Path) -> int:
    return len(list(home.glob("stores/*/*/index/[0-9]*.idx")))


@pytest.fixture(scope="module")
def calm(small: Any, tmp_path_factory: pytest.TempPathFactory, contents: Any) -> tuple[dict[str, str], float]:
    """What an undisturbed command leaves, and how long it took."""
    home = tmp_path_factory.mktemp("calm")
    began = time.monotonic()
    status, error = end(start(small, home))
    assert status == 0, error
    return contents(home), time.monotonic() - began


@pytest.mark.parametrize(("what", "times"), [(signal.SIGINT, 10), (signal.SIGKILL, 4)])
def test_broken_off_at_any_moment(
    what: signal.Signals,
    times: int,
    small: Any,
    calm: tuple[dict[str, str], float],
    contents: Any,
    sound_so_far: Any,
    tmp_path: Path,
) -> None:
    """Each run goes on where the last one was stopped, or begins anew when all was done."""
    rng = random.Random(6)
    wanted, took_s = calm
    times = TIMES or times
    home, hit, rounds = tmp_path / "0", 0, 0
    for number in range(times):
        process = start(small, home)
        root = psutil.Process(process.pid)
        if number % 3:  # at work, or just before
            before = indexes(home)
            wait_for(lambda: bool(root.children()), process)  # noqa: B023
            more = rng.choice((0, 0, 1, 2))
            wait_for(lambda: indexes(home) >= before + more, process)  # noqa: B023
            time.sleep(rng.random() * 0.05)
        else:  # anywhere, while the program is still being loaded too
            time.sleep(rng.random() * took_s)
        try:
            children = root.children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        process.send_signal(what)
        status, error = end(process)
        if status == 0:
            assert contents(home) == wanted
            rounds += 1
            home = tmp_path / str(rounds)
            continue
        if what == signal.SIGINT and status == 1 and error.startswith("Fatal Python error: init_"):
            continue  # Python itself was still starting
        assert status in (130, -what), error
        if status == 130:
            assert "Traceback" not in error and "interrupted; what is finished is kept" in error
        elif what == signal.SIGINT:
            assert "in main" not in error, "only Python itself may still have been starting"
            continue
        hit += 1
        assert sound_so_far(home) <= 1  # it may have been done already
        assert not psutil.wait_procs(children, timeout=10)[1], "no decoding process is left behind"
    print(f"{times} times {what.name}: {hit} hit the program, {rounds} came too late, the others too early")
    assert hit > times / 3
    assert end(start(small, home))[0] == 0
    assert contents(home) == wanted


def test_an_interrupt_while_the_program_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("caeav.cli.app.build", interrupted)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 130
    assert "interrupted; what is finished is kept" in capsys.readouterr().err


def lock_of(home: Path, calm: dict[str, str]) -> WriterLock:
    """The lock of the store that the command will make, in a home where nothing was made yet."""
    (store,) = {Path(name).parent for name in calm if name.endswith("/recipe.json")}
    (home / store).mkdir(parents=True)
    return WriterLock(home / store / ".lock")


def test_of_several_processes_one_writes_and_the_others_wait_for_it(
    small: Any, calm: tuple[dict[str, str], float], contents: Any, tmp_path: Path
) -> None:
    processes = [start(small, tmp_path) for _ in range(3)]
    ended = [end(process) for process in processes]
    assert [status for status, _ in ended] == [0, 0, 0], ended
    waited = [error for _, error in ended if "is being written by the process with pid" in error]
    assert waited and all("waiting until it is done" in error for error in waited)
    assert contents(tmp_path) == calm[0]


def test_who_waits_goes_on_when_the_other_was_stopped_too_early(
    small: Any, calm: tuple[dict[str, str], float], contents: Any, tmp_path: Path
) -> None:
    lock = lock_of(tmp_path, calm[0])
    process = start(small, tmp_path)
    assert process.stderr
    said = next(line for line in process.stderr if "is being written" in line)
    assert f"pid {os.getpid()};" in said
    assert indexes(tmp_path) == 0
    lock.release()
    status, error = end(process)
    assert status == 0, error
    assert contents(tmp_path) == calm[0]


def test_ctrl_c_ends_the_wait(small: Any, calm: tuple[dict[str, str], float], tmp_path: Path) -> None:
    lock = lock_of(tmp_path, calm[0])
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
    process = start(small, tmp_path, backend)
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
