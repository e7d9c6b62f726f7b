"""The `caeav` command in the process of a test, with no more commands than the test needs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from types import ModuleType

import typer
from typer.testing import CliRunner, Result

from caeav.manifests.core.errors import CaeavError


def invoke(modules: Iterable[ModuleType], *arguments: object) -> Result:
    """The result of `caeav ARGUMENTS` where only the commands of `modules` exist."""
    app = typer.Typer()
    app.callback()(lambda: None)  # a single command needs its name, too
    for module in modules:
        module.register(app)
    return CliRunner().invoke(app, list(map(str, arguments)))


def checked(result: Result) -> Result:
    """The result, unless the command raised: then that is raised here."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refusal(result: Result) -> str:
    """The message of a command that was refused."""
    assert isinstance(result.exception, CaeavError), result.output
    return str(result.exception)


def cells(text: str) -> list[list[str]]:
    """Rows of a printed table, whose columns are at least two blanks apart."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True
