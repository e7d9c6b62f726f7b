"""How the command prints: results to stdout, progress and remarks to stderr, JSON when asked for.

Text that comes from media, manifests or captions is untrusted: control characters are replaced before it
reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from caeav.manifests.core.errors import CaeavError


def printable(text: object) -> str:
    """`text` on one line, with control characters (terminal escapes among them) shown instead of obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


_silent = False


def be_silent(silent: bool) -> None:
    """Whether `say` says nothing from here on: in a process that works for another one."""
    global _silent
    _silent = silent


def say(text: str) -> None:
    """Lines for the reader (stderr), so that stdout stays a clean result; nothing in them steers a terminal."""
    if _silent:
        return
    print("\n".join(map(printable, text.split("\n"))), file=sys.stderr)


def is_terminal() -> bool:
    """Whether a person can answer questions: stdin and stderr are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirmed(question: str, yes: bool) -> bool:
    """Ask on the terminal unless `yes`; raises `CaeavError` where there is no terminal."""
    if yes:
        return True
    if not is_terminal():
        raise CaeavError(f"{question} There is no terminal to answer on", hint="add --yes")
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_json(value: Any) -> None:
    """Print JSON; escaped to ASCII where stdout cannot encode it or where it holds control characters."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
        harmless = text.replace("\n", "").isprintable()
    except UnicodeEncodeError:
        harmless = False
    print(text if harmless else json.dumps(value, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A plain table on stdout; numbers are aligned right, and nothing is cut when stdout is not a terminal."""
    console = Console(width=None if sys.stdout.isatty() else 240)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    body = [list(row) for row in rows]
    for i, name in enumerate(columns):
        numeric = bool(body) and all(isinstance(row[i], int | float) for row in body)
        table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in body:
        table.add_row(*(escape(printable(f"{x:.4g}" if isinstance(x, float) else x)) for x in row))
    if sys.stdout.isatty():
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
