"""The inside of a killable child process: set up one job, then serve one request at a time until the socket closes.

It is started as `python -P -c "...child.main(fd)"`, never by fork, so it inherits no threads and no locks. It ends with
its parent in two ways: when the socket closes, and (Linux) by the parent-death signal when it hangs in a library.
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
"""One request -> arrays and JSON values. Raises `CaeavError` (`DecodeError`) for a failure with a known reason."""


def die_with_parent(parent: int) -> None:
    """End with the process `parent`, which started this one, however it ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _limit_memory(limit_bytes: int | None) -> None:
    """Limit allocations, not address space: libraries, above all CUDA, reserve far more than they use."""
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _quiet() -> None:
    """Silence what libraries print; it is a lot for damaged files."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _load(path: str) -> Callable[[Mapping[str, Any]], Job]:
    module, _, name = path.partition(":")
    found: Callable[[Mapping[str, Any]], Job] = getattr(importlib.import_module(module), name)
    return found


def _serve_one(sock: socket.socket, job: Job, request: wire.Message, limit_bytes: int | None) -> bool:
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
    except Exception as error:  # noqa: BLE001 - a bug in a job costs one clip, and is reported in full
        reason = f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()
        wire.send(sock, "failure", {"id": name, "reason": reason, "stage": None, "trace": trace})
    return True


def main(fd: int) -> None:
    """Serve the parent at the other end of socket `fd` until it closes."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # for the parent to handle; schedulers signal every process
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    start = wire.receive(sock, REQUEST_BYTES).data
    die_with_parent(start["parent"])
    sys.path[:] = start["path"]
    try:
        _limit_memory(start["memory_bytes"])
        job = _load(start["setup"])(start["settings"])
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear why there is no worker
        reason = str(error) if isinstance(error, CaeavError) else f"{type(error).__name__}: {error}"
        wire.send(sock, "no_setup", {"reason": reason, "trace": traceback.format_exc()})
        return
    _quiet()
    wire.send(sock, "ready", {})
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while _serve_one(sock, job, wire.receive(sock, REQUEST_BYTES), start["memory_bytes"]):
            pass
