"""Starting a training in several processes of this machine, one a device, and ending them together.

Each process runs the same command with the environment that torchrun would give it. What happens to one happens to all:
a signal is passed on, and when one fails the others get `GRACE_S` to say so and end before they are ended. Imports no
torch; several machines are torchrun's business.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from caeav.manifests.core.errors import CaeavError

GRACE_S = 20.0
POLL_S = 0.1
HOST = "127.0.0.1"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def environments(gpus: Sequence[int | None], outer: dict[str, str]) -> list[dict[str, str]]:
    """The environment of each process, from the number of its GPU, None for a CPU; `outer`: the caller's.

    Where the caller sees some GPUs only, numbers count among those.
    """
    seen = [name for name in outer.get(VISIBLE, "").split(",") if name]
    wanted = [number for number in gpus if number is not None]
    if seen and wanted and max(wanted) >= len(seen):
        raise CaeavError(
            f"GPU {max(wanted)}, but {VISIBLE}={outer[VISIBLE]} shows {len(seen)}, numbered from 0",
            hint="name one of these",
        )
    visible = ",".join(seen[number] if seen else str(number) for number in wanted)
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    common = {
        **outer,
        VISIBLE: visible,
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(gpus)),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(gpus))]


def launch(
    command: Sequence[str], gpus: Sequence[int | None], outer: dict[str, str], say: Callable[[str], None]
) -> int:
    """Run `command` once for each device and wait; the exit status of the first process that failed, else 0.

    `KeyboardInterrupt` is passed on to all, and raised again when all have ended. `outer`: the environment.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        for env in environments(gpus, outer):
            # A group of its own: a terminal's Ctrl-C comes from here, once, like any other signal.
            running.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, process_group=0))
        failed = _wait(running)
        if failed is None:
            return 0
        status = running[failed].returncode
        if status < 0:
            say(f"process {failed} was ended by {signal.Signals(-status).name}")
            status = 128 - status
        _end(running)
        return status
    except KeyboardInterrupt:
        _signal(running, signal.SIGTERM)
        raise
    finally:
        _end(running)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Until all have succeeded (None) or one has failed: which."""
    while True:
        statuses = [process.poll() for process in running]
        failed = [rank for rank, status in enumerate(statuses) if status]
        if failed:  # one that a signal ended is why the others stopped
            return min(failed, key=lambda rank: (running[rank].returncode > 0, rank))
        if all(status == 0 for status in statuses):
            return None
        time.sleep(POLL_S)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for all to end by themselves, then ask them to, then end them."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            _signal(running, number)
        until = time.monotonic() + GRACE_S
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            time.sleep(POLL_S)


def _signal(running: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in running:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
