"""Signals, exit statuses and standard streams of the process.

Ctrl-C and SIGTERM both mean "stop and lose nothing": they raise KeyboardInterrupt in the main thread, but not while it
imports a module. A closed stderr ends nothing; a closed stdout ends the command silently. Imports nothing heavy, since
it runs before the program is loaded.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as shells have it."""
UNREAD = 128 + signal.SIGPIPE
"""When stdout was closed before all was written: `caeav store ls | head -1`."""

LAUNCHER = "CAEAV_LAUNCHER"
"""Of the environment: the process that started this one as one of several, and speaks of how they end."""

LATER_S = 0.02

_ended_by = signal.SIGINT
_stdout: _Stdout | None = None
_at_once = False


def settle_in() -> None:
    """Handle SIGTERM like Ctrl-C, and make sure all three standard streams exist."""
    global _ended_by, _stdout
    _ended_by = signal.SIGINT
    for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == usual:  # a process told to ignore it keeps ignoring it
            signal.signal(number, _stop)
    _open_what_is_closed()
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = _Stderr(sys.stderr)
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = _stdout = _Stdout(sys.stdout)


def leave() -> None:
    """The command is over: signals end the process at once from here on, and raise nothing in exit handlers."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def speaks() -> bool:
    """Whether this process tells how it ended: not one that was started to share the work of another."""
    alone = os.environ.get("WORLD_SIZE", "1") in ("", "1")
    return LAUNCHER not in os.environ and (alone or os.environ.get("RANK") == "0")


def end_at_once() -> None:
    """Let `end` not wait for what other threads of this process are about."""
    global _at_once
    _at_once = True


def end(status: int | str | None) -> NoReturn:
    """Exit with `status`."""
    if _at_once and (status is None or isinstance(status, int)):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status or 0)
    sys.exit(status)


def stopped_status() -> int:
    """Exit status of a command that was stopped, by its signal."""
    return 128 + _ended_by


def finished_status(status: int | str | None) -> int | str | None:
    """Exit status of a command that ends with `status`, after flushing its results.

    Raises `OSError` where the results cannot be written.
    """
    try:
        (_stdout or sys.stdout).flush()
    except BrokenPipeError:
        _to_nobody(_stdout or sys.stdout)
    return UNREAD if _stdout is not None and _stdout.unread else status


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`; during an import a little later, since many modules swallow it there, and torch, half
    set up in C++, aborts the process."""
    global _ended_by
    if number == signal.SIGTERM:
        _ended_by = signal.SIGTERM
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt saving
    if _imports(frame):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, LATER_S)
        return
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _open_what_is_closed() -> None:
    """Open closed streams on /dev/null: else a file opened later gets their number, and libraries print into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # a stream for as long as the process lives
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


def _to_nobody(stream: TextIO) -> None:
    """Send everything written to a stream from now on to /dev/null, also by libraries and child processes."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class _Stream(io.TextIOWrapper):
    """A standard stream on the same buffer."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._first = stream  # which would close the buffer when it goes


class _Stderr(_Stream):
    """Ignores write errors: a closed pipe, a terminal that is gone, a full disk under a log end nothing."""

    def write(self, text: str) -> int:
        """Write `text`, or drop it where nobody reads."""
        try:
            return super().write(text)
        except OSError:
            _to_nobody(self)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            super().flush()
        except OSError:
            _to_nobody(self)


class _Stdout(_Stream):
    """Remembers whether its reader has gone."""

    unread = False

    def write(self, text: str) -> int:
        """As usual; raises `BrokenPipeError` when nobody reads."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self.unread = True
            raise

    def flush(self) -> None:
        """As usual; raises `BrokenPipeError` when nobody reads."""
        try:
            super().flush()
        except BrokenPipeError:
            self.unread = True
            raise
