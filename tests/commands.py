"""The `caeav` command in the process of a test, with no more commands than the test needs."""

from __future__ import annotations

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
