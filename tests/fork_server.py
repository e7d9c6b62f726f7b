"""A small process that forks child processes on request, so that tests start them quickly.

Forking a pytest worker, which has loaded everything, takes tens of milliseconds; starting an interpreter takes
hundreds. The server has loaded only `LOADED`. A request names a function and gives its arguments as JSON, with the
child's open files. Children are killed when the server ends or the process that requested them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, BinaryIO, NoReturn

from caeav.pipeline.media.workers import process

TESTS = Path(__file__).resolve().parent
LOADED = (
    "caeav.cli.app",
    "caeav.pipeline.backbones.classic.audio",
    "caeav.pipeline.backbones.classic.visual",
    "caeav.pipeline.captioners.descriptor",
    "caeav.pipeline.extract.decode_job",
    "caeav.pipeline.extract.local",
    "caeav.pipeline.extract.tokens",
    "caeav.pipeline.media.lengths",
    "caeav.pipeline.media.pyav",
    "caeav.pipeline.media.workers.child",
    "caeav.pipeline.store.formats.webdataset",
    "caeav.pipeline.store.formats.zarr",
    "caeav.pipeline.store.testing_data",
    "numpy.random",
    "pydantic",
)
ADDRESS = "CAEAV_TEST_FORK_SERVER"
"""Environment variable with the path of the running server's socket, for children that start children."""
REQUEST_BYTES = 2**20


class Forked:
    """A child of the server, with the part of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        function: str,
        arguments: Mapping[str, Any],
        files: Sequence[int],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """`files`: stdin, stdout and stderr, then those that `function` ("module:name") gets as `files`."""
        self.returncode: int | None = None
        self._received = b""
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ.get(ADDRESS) or _start())
        request = {
            "function": function,
            "arguments": arguments,
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(folder or Path.cwd()),
        }
        socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], list(files))
        self.pid = int(self._next(None) or 0)

    def _next(self, timeout_s: float | None) -> str | None:
        """The server's next line; None after the timeout."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return None
            more = self._connection.recv(100)
            if not more:
                raise RuntimeError("the fork server of the tests has ended")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            line = self._next(timeout)
            if line is None:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(line)
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit status; None while the child runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the child has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def decode_worker(
    command: Sequence[str],
    *,
    pass_fds: tuple[int],
    stdin: int,
    stdout: int,
    stderr: BinaryIO,
    start_new_session: bool,
    env: Mapping[str, str],
) -> Forked:
    """Stand in for `subprocess.Popen` as `caeav.pipeline.media.workers.process` calls it, without a new interpreter."""
    interpreter, option, text, code = command
    assert (interpreter, option, text) == (sys.executable, "-P", "-c") and start_new_session
    assert stdin == stdout == subprocess.DEVNULL
    arguments = {"code": code, "number": pass_fds[0], "parent": os.getpid()}
    with Path(os.devnull).open("r+") as nothing:
        files = (nothing.fileno(), nothing.fileno(), stderr.fileno(), *pass_fds)
        return Forked("fork_server:run_code", arguments, files, env)


def run_code(code: str, number: int, parent: int, files: Sequence[int]) -> None:
    """Run a program that expects a file under a given descriptor, and `parent` as its parent process."""
    os.dup2(files[0], number)
    if files[0] != number:
        os.close(files[0])
    os.getppid = lambda: parent
    exec(code, {})


def fork_decode_workers() -> None:
    """Make this process start its decode workers through the server from now on."""
    replacement = SimpleNamespace(**vars(subprocess))
    replacement.Popen = decode_worker
    process.subprocess = replacement  # type: ignore[attr-defined]


def run(function: str, **arguments: Any) -> int:
    """Call `function` in a child with this process's output; returns the exit status, 1 for an exception."""
    with Path(os.devnull).open() as nothing:
        return Forked(function, arguments, (nothing.fileno(), 1, 2)).wait()


@cache
def _start() -> str:
    """Start this process's server and return its address."""
    folder = TemporaryDirectory(prefix="caeav-fork-")
    address = f"{folder.name}/socket"
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, address, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin and server.stdout

    def end() -> None:
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    assert server.stdout.readline() == b"ready\n", "the fork server of the tests did not start"
    return address


def _serve(address: str) -> None:
    """Fork on request until stdin closes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in LOADED:
        importlib.import_module(module)
    importlib.import_module("caeav.cli.app").build()  # loads every command
    gc.disable()  # a collection would copy the memory pages of everything loaded
    gc.freeze()
    print("ready", flush=True)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([0, listener, ended, *running.values()], [], [])[0]
        if ended in ready:
            os.read(ended, 4096)
            _tell_ended(running)
        if 0 in ready:
            break
        for pid in [pid for pid, line in running.items() if line in ready]:  # its requester has gone
            _kill(pid)
            running.pop(pid).close()
        if listener in ready:
            line, _ = listener.accept()
            text, files, _, _ = socket.recv_fds(line, REQUEST_BYTES, 16)
            while not text.endswith(b"\n"):
                text += line.recv(REQUEST_BYTES)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (listener, line, *running.values()):
                    other.close()
                os.close(ended)
                os.close(wake)
                request = json.loads(text)
                request["environment"][ADDRESS] = address
                _call(request, files)
            for file in files:
                os.close(file)
            running[pid] = line
            line.sendall(b"%d\n" % pid)
    for pid in running:
        _kill(pid)


def _tell_ended(running: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        line = running.pop(pid, None)
        if line is not None:
            with line, contextlib.suppress(BrokenPipeError):
                line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or has no group of its own yet
        os.kill(pid, signal.SIGKILL)


def _call(request: dict[str, Any], files: list[int]) -> NoReturn:
    """In the child: make the call as if it were a whole program."""
    status: int | str | None = 1
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
            os.close(file)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb", 0, closefd=False), write_through=True)
            for number in (1, 2)
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        module, _, name = request["function"].partition(":")
        more = {"files": files[3:]} if files[3:] else {}
        getattr(importlib.import_module(module), name)(**request["arguments"], **more)
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    sys.path[:] = sys.argv[2:]
    _serve(sys.argv[1])
