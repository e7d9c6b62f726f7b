"""The command tree. Each command module adds itself by `register(app)`; heavy imports happen inside commands."""

from __future__ import annotations

import errno
import importlib
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from caeav.cli import everywhere
from caeav.cli.console import say
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home

COMMANDS = {
    "synthesise": "synthesise",
    "manifest": "manifest",
    "models": "models",
    "extract": "extract",
    "caption": "caption",
    "import": "imports",
    "train": "train",
    "compare": "compare",
    "eval": "evaluate",
    "predict": "predict",
    "report": "report",
    "config": "config",
    "runs": "runs",
    "store": "store",
    "demo": "demo",
    "doctor": "doctor",
}
"""Command -> its module, in the order in which one uses them; the help has the same order."""

WITHOUT_HOME = ("models convert", "models ls", "config")
"""Commands that take no `--home`."""

DISK_TROUBLE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EACCES: "get permission for that path, or choose another --home",
    errno.EPERM: "get permission for that path, or choose another --home",
    errno.EROFS: "choose a --home on a writable disk",
    errno.ENOTDIR: "a file is in the way of a folder; move it, or choose another place",
    errno.EEXIST: "a file is in the way of a folder; move it, or choose another place",
    errno.EISDIR: "a folder is in the way of a file; move it, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class Root(TyperGroup):
    """`caeav`: lists commands in the order of `COMMANDS` (typer would list plain ones before groups)."""

    def invoke(self, ctx: Any) -> Any:
        """Parse and run what was named; what typer will say of wrong usage is an error, which is never hidden."""
        try:
            return super().invoke(ctx)
        except everywhere.UsageError:
            everywhere.end()
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        return sorted(super().list_commands(ctx), key=list(COMMANDS).index)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"caeav {version('caeav')}")
        raise typer.Exit


def build() -> typer.Typer:
    """The command with all sub-commands."""
    app = typer.Typer(
        cls=Root,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        show_version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
            ),
        ] = False,
    ) -> None:
        """Cache frozen audio-visual tokens once, then train adapters from them, fast."""

    for name in COMMANDS.values():
        importlib.import_module(f"caeav.cli.{name}").register(app)
    return app


def command() -> Any:
    """The command as it runs: `build`, with the options that every command takes."""
    return everywhere.add_common(typer.main.get_command(build()))


def same_home(hint: str, arguments: Sequence[str]) -> str:
    """What to add to a next step that is a command, where this command was given a `--home`: the same one."""
    if "caeav " not in hint or "--home" in hint or any(f"caeav {name}" in hint for name in WITHOUT_HOME):
        return ""
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--home":
            home = value or "".join(arguments[i + 1 : i + 2])
            found = Home.find(home).root == Home.find().root  # without being named
            return "" if found else f"; with --home {shlex.quote(home)}, as here"
    return ""


def run() -> None:
    """Run the command. Exit status: 0 done, 1 an error the user can act on, 2 wrong usage, 130 interrupted.

    `main` turns 130 into 143 after SIGTERM, and any status into 141 when nobody read the result.
    """
    try:
        command()()
    except CaeavError as error:
        everywhere.end(error)
        say(f"error: {error}{same_home(error.hint, sys.argv)}")
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        everywhere.end(error)
        say(
            f"error: {error}\n  next: {DISK_TROUBLE[error.errno]}; what is finished is kept, run the same command again"
        )
        sys.exit(1)
    finally:
        everywhere.end()
