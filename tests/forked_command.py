"""The `caeav` command in a child of the fork server: like `python -m caeav.cli`, without loading anything again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fork_server import Forked, fork_decode_workers


class ForkedCommand(Forked):
    """The command in its own session, with the part of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        arguments: Sequence[str],
        before: tuple[str, Mapping[str, Any]] | None = None,
        folder: Path | None = None,
    ) -> None:
        """`before`: a function ("module:name") and its arguments, called in the child just before the command."""
        self._folder = TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        line = ["caeav", *arguments]
        with Path(os.devnull).open() as nothing, self._out.open("w") as out, self._err.open("w") as err:
            files = (nothing.fileno(), out.fileno(), err.fileno())
            super().__init__("forked_command:command", {"line": line, "before": before}, files, None, folder)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the command and return its stdout and stderr; kill it after the timeout."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        printed = self._out.read_text(), self._err.read_text()
        self._folder.cleanup()
        return printed


def run_command(
    arguments: Sequence[str], folder: Path | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run` of the command, in `folder` or the current one."""
    process = ForkedCommand(arguments, folder=folder)
    out, error = process.communicate(timeout)
    return subprocess.CompletedProcess(list(arguments), process.wait(), out, error)


def command(line: list[str], before: tuple[str, Mapping[str, Any]] | None) -> None:
    """In the child: do what the program `caeav` does."""
    from caeav.cli import main

    fork_decode_workers()
    sys.argv = line
    if before is not None:
        module, _, name = before[0].partition(":")
        getattr(import_module(module), name)(**before[1])
    main()
