"""One killable child process as its parent sees it: start it, send requests, read messages, kill it, say why it died.

`child.py` is the other side. A `Worker` never waits: the pool watches its socket and the clock.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caeav.pipeline.media.workers import wire
from caeav.pipeline.media.workers.child import REQUEST_BYTES

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_SEND_S = 10.0  # a child that does not take a request within this is treated as dead


@dataclass(frozen=True)
class Work:
    """What every child of a pool is started with."""

    setup: str
    settings: Mapping[str, Any]
    memory_bytes: int | None
    max_result_bytes: int


class Worker:
    """A running child. `request` is the id it works on; `due_s` (monotonic) is when it is killed."""

    def __init__(self, work: Work, start_s: float) -> None:
        ours, theirs = socket.socketpair()
        self.sock = ours
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        code = f"from caeav.pipeline.media.workers.child import main; main({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # a process group of its own, so that whatever it starts dies with it
            env={**os.environ, **_ONE_THREAD},
        )
        theirs.close()
        self.request: str | None = None
        self.ready = False
        self.tasks = 0
        self.due_s = time.monotonic() + start_s
        self._inbox = wire.Inbox(work.max_result_bytes)
        self._send(
            "start",
            {
                "setup": work.setup,
                "settings": dict(work.settings),
                "path": sys.path,
                "parent": os.getpid(),
                "memory_bytes": work.memory_bytes,
            },
        )

    @property
    def idle(self) -> bool:
        """Ready and without a request."""
        return self.ready and self.request is None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send_request(self, name: str, request: Mapping[str, Any], deadline_s: float) -> None:
        """Send one request; raises OSError when the child is gone."""
        self.request = name
        self.tasks += 1
        self.due_s = time.monotonic() + deadline_s
        self._send("request", {"id": name, "request": request})

    def _send(self, kind: str, data: Mapping[str, Any]) -> None:
        buffers = wire.pack(kind, data)
        if sum(len(part) for part in buffers) > REQUEST_BYTES:
            raise ValueError(f"a request of more than {REQUEST_BYTES} bytes")
        self.sock.settimeout(_SEND_S)
        try:
            for part in buffers:
                self.sock.sendall(part)
        finally:
            self.sock.setblocking(False)

    def read(self) -> wire.Message | None:
        """A message if one has arrived completely; raises EOFError or OSError (the child died), `wire.WireError`."""
        return self._inbox.read(self.sock)

    def kill(self) -> str:
        """End the child and everything it started; returns how it had died if it was already dead, else ''."""
        code = self._process.poll()
        if code is None:
            try:  # its socket may close a moment before its exit status is there
                code = self._process.wait(timeout=0.5) if self._closed() else None
            except subprocess.TimeoutExpired:
                code = None
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        self.sock.close()
        death = self._death(code)
        self._errors.close()
        return death

    def _closed(self) -> bool:
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _death(self, code: int | None) -> str:
        if code is None:
            return ""
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            memory = " (often: out of memory)" if -code == signal.SIGKILL else ""
            return f"died with {name}{memory}"
        self._errors.seek(0)
        last = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        return f"exited with status {code}" + (f": {last[-1]}" if last else "")
