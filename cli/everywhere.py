"""Options that every command takes: `-h`, `--quiet`, `--verbose` and `--log-file`.

They change what becomes of stderr, where all remarks, notes and progress go; results are on stdout and stay as they
are.
"""

from __future__ import annotations

import difflib
import io
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial, partialmethod
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from tqdm import tqdm

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted

HELP = ("-h", "--help")
UsageError: Any = typer.BadParameter.__mro__[1]
"""What typer raises for wrong usage; it has no public name."""


class Remarks(io.TextIOBase):
    """stderr with what these options make of it: shown or counted, stamped or not, and kept in a file or not.

    Whole lines are looked at; what a progress bar draws over and over (it has carriage returns) is passed on as it is,
    and is in no file.
    """

    def __init__(self, shown: TextIO) -> None:
        self._shown = shown
        self._started = time.monotonic()
        self._line = ""
        self._log: TextIO | None = None
        self.quiet = self.verbose = False
        self.hidden = 0

    def log_to(self, path: Path) -> None:
        """Append what follows to a file; raises `CaeavError` where that is impossible."""
        try:
            path.expanduser().parent.mkdir(parents=True, exist_ok=True)
            self._log = path.expanduser().open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise CaeavError(
                f"--log-file {path}: {error.strerror or error}",
                hint="name a file in a folder you may write to",
            ) from None
        at = datetime.now().astimezone().isoformat(timespec="seconds")
        self._log.write(f"\n{at}  caeav {version('caeav')}  {shlex.join(sys.argv[1:])}\n")

    def write(self, text: str) -> int:
        """Take some characters."""
        for piece in re.findall("[^\n]*\n|[^\n]+", text):
            self._take(piece)
        return len(text)

    def _take(self, piece: str) -> None:
        if "\r" in piece or "\x1b" in piece:  # a bar, or where the cursor goes
            if not self.quiet:
                self._shown.write(piece)
            return
        begun, self._line = self._line, self._line + piece
        if not self.quiet:
            stamp = f"[{time.monotonic() - self._started:7.1f} s] " if self.verbose and not begun else ""
            self._shown.write(stamp + piece)
        if self._line.endswith("\n"):
            whole, self._line = self._line.rstrip("\n"), ""
            self.hidden += bool(whole.strip()) and self.quiet
            if self._log is not None and whole.strip():
                self._log.write(f"[{time.monotonic() - self._started:9.1f} s] {whole}\n")
                self._log.flush()

    def flush(self) -> None:
        """Flush both."""
        self._shown.flush()
        if self._log is not None:
            self._log.flush()

    def isatty(self) -> bool:
        """Whether a person reads it: nobody does when it is quiet."""
        return not self.quiet and self._shown.isatty()

    def fileno(self) -> int:
        """That of stderr."""
        return self._shown.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of stderr."""
        return self._shown.encoding

    def end(self) -> None:
        """From now on everything is shown again; says how much was not."""
        was_quiet, self.quiet = self.quiet, False
        if was_quiet and self.hidden:
            where = f"; all of it is in {self._log.name}" if self._log is not None else ""
            hidden, self._line = self.hidden, ""
            self._shown.write(f"{counted(hidden, 'remark')} not shown (--quiet){where}\n")


def end(error: BaseException | None = None) -> None:
    """Nothing is hidden from here on, least of all what ended the command; verbose also says where it arose."""
    if isinstance(sys.stderr, Remarks):
        if error is not None and sys.stderr.verbose:
            sys.stderr.write("".join(traceback.format_exception(error)))
        sys.stderr.end()


def remarks() -> Remarks:
    """What stands in for stderr; put there when first asked for."""
    if not isinstance(sys.stderr, Remarks):
        sys.stderr = Remarks(sys.stderr)
    return sys.stderr


def _quiet(asked: bool) -> None:
    if asked:
        remarks().quiet = True
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # type: ignore[method-assign,assignment]


def _verbose(asked: bool) -> None:
    if asked:
        remarks().verbose = True


def _log_file(path: Path | None) -> None:
    if path is not None:
        remarks().log_to(path)


def common_options() -> list[Any]:
    """The options as typer makes them; all commands can share them, since options keep no state."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command()
    def any_command(
        quiet: Annotated[
            bool,
            typer.Option(
                "--quiet",
                "-q",
                callback=_quiet,
                help="Results and errors only; the end says how many remarks were not shown.",
            ),
        ] = False,
        verbose: Annotated[
            bool,
            typer.Option(
                "--verbose",
                "-v",
                callback=_verbose,
                help="The time before each remark, and where in the program an error arose.",
            ),
        ] = False,
        log_file: Annotated[
            Path | None,
            typer.Option(
                "--log-file",
                callback=_log_file,
                metavar="FILE",
                help="Append everything printed to stderr to this file, too.",
                show_default=False,
            ),
        ] = None,
    ) -> None:
        pass

    options = typer.main.get_command(app).params
    for option in options:
        option.expose_value = False  # the callbacks have done all there is to do
    return list(options)


def add_common(command: Any, options: Sequence[Any] = ()) -> Any:
    """Give `command` and all below it the common options, and an answer to options that are settings of training.

    In lists of commands each stands with the whole first sentence of its help.
    """
    options = options or common_options()
    command.context_settings = {**command.context_settings, "help_option_names": list(HELP)}
    command.short_help = first_sentence(command.help or "")
    below = getattr(command, "commands", {})
    for inner in below.values():
        add_common(inner, options)
    if not below or command.invoke_without_command:  # `caeav caption` does something by itself, too
        command.params += options
        if any(parameter.param_type_name == "argument" for parameter in command.params):
            command.parse_args = partial(_parse_or_explain, command.parse_args, _behind_dashes)
        if any("--recipe" in parameter.opts for parameter in command.params):
            command.parse_args = partial(_parse_or_explain, command.parse_args, _as_setting)
    return command


def first_sentence(text: str) -> str:
    """The beginning of a help text, without its full stop."""
    flat = " ".join(text.split("\n\n")[0].split())
    return flat.split(". ")[0].removesuffix(".")


def _parse_or_explain(
    parse: Callable[[Any, list[str]], list[str]],
    explain: Callable[[Any, Any, Sequence[str]], str],
    context: Any,
    args: list[str],
) -> Any:
    """Parse; add what `explain` makes of an unknown option, of the context and of the arguments as they were given."""
    given = list(args)
    try:
        return parse(context, args)
    except UsageError as error:
        if hasattr(error, "possibilities"):  # the one thing that only the error of an unknown option has
            error.message += explain(error, context, given)
        raise


def _behind_dashes(error: Any, context: Any, given: Sequence[str]) -> str:
    """Where an option does not exist, how a name is given that begins like one, as keys of videos do."""
    typed = _taken_for_options(error.option_name, given)
    if not typed or error.possibilities:
        return ""
    rest = shlex.join(arg for arg in given if arg != typed)
    call = " ".join(filter(None, (context.command_path, rest, "--", shlex.quote(typed))))
    return f"; a name that begins with - goes last, behind --: {call}"


def _taken_for_options(unknown: str, args: Sequence[str]) -> str:
    """The argument in which the unknown option was found, `-hello` for `-e`; empty for a single letter."""
    if unknown.startswith("--"):
        return unknown if unknown in args else ""
    letter = unknown.removeprefix("-")
    words = (arg for arg in args if re.match("-[^-].", arg))
    return next((word for word in words if letter and letter in word), "")


def _as_setting(error: Any, _context: Any, _given: Sequence[str]) -> str:
    """Where an option does not exist but a setting of training is called so, how that is set."""
    wanted = error.option_name.strip("-").replace("-", "_")
    if not wanted:
        return ""
    from caeav.model.train.settings import settings

    paths = [each.path for each in settings("ave", "full")]
    last = {path: path.rpartition(".")[2] for path in paths}
    close = difflib.get_close_matches(wanted, sorted({*last.values()}), n=1, cutoff=0.75)
    found = [path for path in paths if last[path] == wanted] or [p for p in paths if last[p] in close]
    if not found:
        return ""
    return "; it is a setting: " + " or ".join(f"--set {path}=VALUE" for path in found[:3])
