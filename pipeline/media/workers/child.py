"""The inside of a killable child process: set up one job, then answer one request at a time until the pipe closes.

Started as `python -P -c "...child.main(fd)"`, never by fork, so it inherits no threads and no locks. Its life
depends on its parent twice: the pipe's end, and (Linux) the parent-death signal for when it hangs in a
library.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.workers import wire

REQUEST_BYTES = 64 * 2**20
_PR_SET_PDEATHSIG = 1

Job = Callable[[Mapping[str, Any]], tuple[wire.Arrays, Mapping[str, Any]]]
"""One request -> arrays and JSON facts. Raises `CaeavError` (`DecodeError`) for a true failure."""


def _die_with_parent(parent: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _limit_memory(limit_bytes: int | None) -> None:
    """Limit what is allocated; the whole address space also holds what libraries merely reserve, CUDA's much of it."""
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _quiet() -> None:
    """Send what libraries print to nowhere; they print a lot about damaged files."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _load(path: str) -> Callable[[Mapping[str, Any]], Job]:
    module, _, name = path.partition(":")
    found: Callable[[Mapping[str, Any]], Job] = getattr(importlib.import_module(module), name)
    return found


def _answer(sock: socket.socket, job: Job, request: wire.Message, limit_bytes: int | None) -> bool:
    """Do one request and send its result or failure; False when this process should not go on."""
    name = request.data["id"]
    try:
        arrays, info = job(request.data["request"])
        wire.send(sock, "result", {"id": name, "info": dict(info)}, arrays)
    except CaeavError as error:
        stage = getattr(error, "stage", None)
        wire.send(sock, "failure", {"id": name, "reason": str(error), "stage": stage, "trace": ""})
    except MemoryError:
        limit = f" (limit {limit_bytes} bytes)" if limit_bytes else ""
        wire.send(
            sock, "failure", {"id": name, "reason": f"out of memory{limit}", "stage": None, "trace": ""}
        )
        return False
    except Exception as error:  # noqa: BLE001 - a job's mistake costs its clip, and is reported whole
        reason = f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()
        wire.send(sock, "failure", {"id": name, "reason": reason, "stage": None, "trace": trace})
    return True


def main(fd: int) -> None:
    """Serve the parent at the other end of socket `fd` until it closes."""
    for asked in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # the parent's to handle; a scheduler tells every process of a job
        signal.signal(asked, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    start = wire.receive(sock, REQUEST_BYTES).data
    _die_with_parent(start["parent"])
    sys.path[:] = start["path"]
    try:
        _limit_memory(start["memory_bytes"])
        job = _load(start["setup"])(start["settings"])
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must be told why there is no worker
        reason = str(error) if isinstance(error, CaeavError) else f"{type(error).__name__}: {error}"
        wire.send(sock, "no_setup", {"reason": reason, "trace": traceback.format_exc()})
        return
    _quiet()
    wire.send(sock, "ready", {})
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while _answer(sock, job, wire.receive(sock, REQUEST_BYTES), start["memory_bytes"]):
            pass
