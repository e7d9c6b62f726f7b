"""The `caeav` command in a child forked from this process: as `python -m caeav.cli`, but nothing is loaded anew.

For tests that run the command many times. The child shares open files with this process, locks on them included: a
test that holds a lock which the command is to wait for starts a fresh interpreter instead.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from caeav.cli import main


class ForkedCommand:
    """As much of `subprocess.Popen` as tests need; in a session of its own."""

    def __init__(self, arguments: Sequence[str], before: Callable[[], object] = lambda: None) -> None:
        """`before` is called in the child, just before the command."""
        self._folder = TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(["caeav", *arguments], before, self._out, self._err)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the command runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What was printed to both streams, when the command has ended; it is killed when it takes too long."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"the command did not end within {timeout} s")
            time.sleep(0.01)
        printed = self._out.read_text(), self._err.read_text()
        self._folder.cleanup()
        return printed


def _become(line: list[str], before: Callable[[], object], out: Path, err: Path) -> NoReturn:
    """Run the command in the child; never comes back to pytest."""
    status: int | str | None = 1
    try:
        os.setsid()
        gc.disable()  # a collection would copy the pages of all that was loaded
        for number, path in ((0, Path(os.devnull)), (1, out), (2, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        sys.stdin = os.fdopen(0)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb", 0), write_through=True) for number in (1, 2)
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = line
        before()
        main()
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
    os._exit(status if isinstance(status, int) else int(status is not None))
