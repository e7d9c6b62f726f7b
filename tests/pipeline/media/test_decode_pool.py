"""The pool with real child processes that hang, crash, exit, leak or send nonsense: each loses only its own clip."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.workers.pool import Outcome, WorkerPool
from caeav.pipeline.media.workers.wire import WireError, unpack

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def jobs_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let children import `pool_jobs`."""
    monkeypatch.syspath_prepend(str(HERE))


def _pool(**options: Any) -> WorkerPool:
    options = {"workers": 1, "deadline_s": 30.0, **options}
    return WorkerPool("pool_jobs:setup", options.pop("settings", {}), **options)


def _all(pool: WorkerPool, requests: list[dict[str, Any]]) -> dict[str, Outcome]:
    with pool:
        outcomes = list(pool.map(requests))
    assert sorted(o.id for o in outcomes) == sorted(r["id"] for r in requests)  # one each, none lost
    return {outcome.id: outcome for outcome in outcomes}


def _ends(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process ends, or is a zombie, within a generous time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_arrays_and_facts_are_returned_unchanged() -> None:
    [outcome] = _all(_pool(), [{"id": "a", "say": "grüße", "n": 5}]).values()
    assert outcome.failure is None and outcome.info["said"] == "grüße" and outcome.info["threads"] == "1"
    assert np.array_equal(outcome.arrays["f"], np.arange(5, dtype=np.float32)[None])
    assert {name: (a.dtype.name, a.shape) for name, a in outcome.arrays.items()} == {
        "f": ("float32", (1, 5)),
        "u": ("uint8", (2, 5)),
        "b": ("bool", (3,)),
        "empty": ("int64", (0, 4)),
        "one": ("float64", ()),
    }
    outcome.arrays["f"][0, 0] = 9.0  # writable: torch can take it without a copy
    assert outcome.arrays["f"].flags.aligned


def test_several_children_share_requests_and_map_can_be_called_again() -> None:
    with _pool(workers=2) as pool:
        first = {o.id: o for o in pool.map({"id": str(n), "do": "big", "value": n} for n in range(12))}
        second = list(pool.map([{"id": "again"}]))
    assert len(first) == 12
    assert all((o.arrays["frames"] == int(name)).all() for name, o in first.items())
    assert [o.id for o in second] == ["again"]


def test_a_hanging_job_is_killed_and_costs_only_its_own_clip() -> None:
    requests = [{"id": "hang", "do": "sleep"}, *({"id": str(n)} for n in range(4))]
    found = _all(_pool(deadline_s=0.5), requests)
    failure = found.pop("hang").failure
    assert failure is not None
    assert (failure.stage, failure.reason, failure.attempts) == (
        "decode",
        "no answer within 0.5 s (2 attempts)",
        2,
    )
    assert all(outcome.failure is None for outcome in found.values())


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("abort", "decode process died with SIGABRT (2 attempts)"),
        ("killed", "decode process died with SIGKILL (often: out of memory) (2 attempts)"),
        ("leave", "decode process exited with status 3 (2 attempts)"),
    ],
)
def test_a_dying_child_is_replaced_and_the_reason_is_named(do: str, reason: str) -> None:
    found = _all(_pool(), [{"id": "bad", "do": do}, {"id": "good"}])
    assert found["bad"].failure is not None and found["bad"].failure.reason == reason
    assert found["good"].failure is None


def test_a_crash_that_does_not_recur_is_retried(tmp_path: Path) -> None:
    [outcome] = _all(_pool(), [{"id": "a", "do": "once", "marker": str(tmp_path / "crashed")}]).values()
    assert outcome.failure is None and (tmp_path / "crashed").exists()


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("refuse", "the file has no video and no audio stream"),
        ("mistake", "KeyError: 'lost'"),
        ("pickled", "TypeError: array 'x' has dtype object, which cannot be sent"),
    ],
)
def test_reported_failures_are_not_retried(do: str, reason: str) -> None:
    found = _all(_pool(), [{"id": "bad", "do": do}, {"id": "good"}])
    failure = found["bad"].failure
    assert failure is not None and (failure.reason, failure.attempts) == (reason, 1)
    assert found["good"].failure is None


def test_exceeding_the_memory_limit_fails_only_that_clip() -> None:
    found = _all(_pool(memory_bytes=4 * 2**30), [{"id": "bad", "do": "hungry"}, {"id": "good"}])
    failure = found["bad"].failure
    assert failure is not None and "emory" in failure.reason
    assert found["good"].failure is None


def _message(header: bytes, length: int | None = None) -> str:
    size = len(header) if length is None else length
    return (struct.pack("<QI", size, len(header)) + header).hex()


@pytest.mark.parametrize(
    "sent",
    [
        "00" * 40,
        _message(b"{}", 2**62),
        _message(b"not json at all, but long enough to be read"),
        _message(b'{"kind":"result","data":{"id":"other","info":{}},"arrays":[]}'),
        _message(b'{"kind":"result","data":{"id":"bad","info":{}},"arrays":[["x","object",[1]]]}'),
        _message(b'{"kind":"result","data":{"id":"bad","info":{}},"arrays":[["x","uint8",[1000000000]]]}'),
        _message(b'{"kind":"result","data":{"id":"bad","info":{}},"arrays":[["x","uint8",[-1]]]}'),
    ],
)
def test_a_child_that_sends_invalid_messages_is_killed(sent: str) -> None:
    found = _all(_pool(deadline_s=20.0), [{"id": "bad", "do": "nonsense", "hex": sent}, {"id": "good"}])
    failure = found["bad"].failure
    assert failure is not None and "message" in failure.reason and failure.attempts == 2
    assert found["good"].failure is None


@pytest.mark.parametrize("shape", [[2**70], [2**62, 4], [0, 2**70], [1] * 70, 5, [[1]]])
def test_impossible_array_shapes_are_wire_errors(shape: Any) -> None:
    header = json.dumps({"kind": "result", "data": {}, "arrays": [["x", "uint8", shape]]}).encode()
    with pytest.raises(WireError):
        unpack(len(header), bytearray(header))


def test_a_message_that_never_ends_is_ended_by_the_deadline() -> None:
    sent = _message(b'{"kind":"result"}', 10_000)
    found = _all(_pool(deadline_s=0.5), [{"id": "bad", "do": "nonsense", "hex": sent}])
    assert found["bad"].failure is not None and found["bad"].failure.reason.startswith(
        "no answer within 0.5 s"
    )


def test_children_are_replaced_after_a_number_of_tasks() -> None:
    found = _all(_pool(max_tasks_per_child=2), [{"id": str(n)} for n in range(5)])
    pids = [found[str(n)].info["pid"] for n in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert all(_ends(pid) for pid in pids)


@pytest.mark.parametrize(
    ("fail", "said"), [("raise", "ValueError: no such model"), ("abort", "died with SIGABRT")]
)
def test_a_setup_that_fails_is_an_error_not_an_endless_retry(fail: str, said: str) -> None:
    with (
        pytest.raises(CaeavError, match=f"could not be set up: .*{said}"),
        _pool(settings={"fail": fail}) as pool,
    ):
        list(pool.map([{"id": "a"}]))


def test_a_setup_that_does_not_exist_is_named() -> None:
    expected = pytest.raises(CaeavError, match="ModuleNotFoundError: No module named 'not_there'")
    with expected, WorkerPool("not_there:setup", {}) as pool:
        list(pool.map([{"id": "a"}]))


def test_requests_are_taken_only_as_fast_as_outcomes() -> None:
    taken = []

    def requests() -> Iterator[dict[str, Any]]:
        for n in range(100):
            taken.append(n)
            yield {"id": str(n)}

    with _pool(workers=2) as pool:
        outcomes = pool.map(requests())
        for done in range(1, 6):
            next(outcomes)
            time.sleep(0.05)
            assert len(taken) <= done + 4  # two per worker


def test_nudging_never_blocks() -> None:
    """Devices nudge for every finished clip, even after the last request, when the pool no longer reads nudges."""

    def nudge() -> None:
        for _ in range(20_000):
            pool.nudge()

    with _pool() as pool:
        list(pool.map([{"id": "a"}]))
        nudging = threading.Thread(target=nudge, daemon=True)
        nudging.start()
        nudging.join(20)
        assert not nudging.is_alive()
        assert [o.id for o in pool.map([{"id": "again"}])] == ["again"]


def test_an_exception_of_the_request_iterator_reaches_the_caller() -> None:
    def requests() -> Iterator[dict[str, Any]]:
        yield {"id": "a"}
        raise OSError("manifest gone")

    with pytest.raises(OSError, match="manifest gone"), _pool() as pool:
        list(pool.map(requests()))


def test_an_id_requested_twice_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' is given twice"), _pool() as pool:
        list(pool.map([{"id": "a"}, {"id": "a"}]))


def test_leaving_early_kills_running_children(tmp_path: Path) -> None:
    tell = tmp_path / "pids"
    with _pool(workers=2) as pool:
        outcomes = pool.map([{"id": "a"}, {"id": "b", "do": "grandchild", "tell": str(tell)}])
        next(outcomes)
        _wait_for(tell)
    assert all(_ends(int(pid)) for pid in tell.read_text().split())


def _wait_for(tell: Path) -> None:
    end = time.monotonic() + 30
    while not (tell.exists() and tell.read_text()) and time.monotonic() < end:
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_when_their_parent_dies(tmp_path: Path, end: signal.Signals) -> None:
    """Even a child that hangs inside a job ends with its parent."""
    tell = tmp_path / "pids"
    script = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from caeav.pipeline.media.workers.pool import WorkerPool
with WorkerPool("pool_jobs:setup", {{}}, deadline_s=600) as pool:
    list(pool.map([{{"id": "a", "do": "grandchild", "tell": {str(tell)!r}}}]))
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    _wait_for(tell)
    child, grandchild = (int(pid) for pid in tell.read_text().split())
    parent.send_signal(end)
    parent.wait(30)
    try:
        assert _ends(child)
    finally:
        os.kill(grandchild, signal.SIGKILL)  # started by the job; only a living parent can end its group


def test_an_interrupt_ends_the_children_and_reaches_the_caller(tmp_path: Path) -> None:
    tell = tmp_path / "pids"
    script = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from caeav.pipeline.media.workers.pool import WorkerPool
try:
    with WorkerPool("pool_jobs:setup", {{}}, deadline_s=600) as pool:
        list(pool.map([{{"id": "a", "do": "grandchild", "tell": {str(tell)!r}}}]))
except KeyboardInterrupt:
    print("interrupted")
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    _wait_for(tell)
    parent.send_signal(signal.SIGINT)
    said, _ = parent.communicate(timeout=30)
    assert said.strip() == "interrupted"
    assert all(_ends(int(pid)) for pid in tell.read_text().split())
