"""How the command prints: results to stdout, progress and remarks to stderr, JSON when asked for.

Text that comes from media, manifests or captions is untrusted: control characters are replaced before it
reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from caeav.manifests.core.errors import CaeavError

UNCUT = 240
"""Columns of characters where stdout is not a terminal."""
GAP = 2
FOLDED = 20
"""The least room for text that is folded in the last column."""


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


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    *,
    drop: Sequence[str] = (),
    wide: bool = False,
) -> None:
    """A plain table on stdout; numbers are aligned right, and no name is broken, so that each can be pasted.

    On a terminal too narrow for it, columns of `drop` are left out, the first of them first, and named on stderr,
    unless `wide`. What still does not fit is folded in the last column if that is text, else it sticks out.
    """
    kept = [list(row) for row in rows]
    body = [[printable(f"{x:.4g}" if isinstance(x, float) else x) for x in row] for row in kept]
    numeric = [
        bool(body) and all(isinstance(row[i], int | float) for row in kept) for i in range(len(columns))
    ]
    widths = [
        max(cell_len(text) for text in (name, *(row[i] for row in body))) for i, name in enumerate(columns)
    ]
    room = Console(width=None).width if sys.stdout.isatty() else UNCUT
    shown = list(range(len(columns)))
    left_out: list[str] = []
    for name in () if wide else drop:
        if _width(widths, shown) <= room:
            break
        shown.remove(columns.index(name))
        left_out.append(name)
    fixed = _width(widths, shown[:-1]) + GAP + FOLDED
    console = Console(width=max(room, _width(widths, shown) if numeric[shown[-1]] or drop else fixed))
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i in shown:
        justify: Literal["left", "right"] = "right" if numeric[i] else "left"
        table.add_column(escape(columns[i]), justify=justify, overflow="fold", no_wrap=i != shown[-1])
    for row in body:
        table.add_row(*(escape(row[i]) for i in shown))
    if sys.stdout.isatty():
        console.print(table, soft_wrap=console.width > room)
    else:
        with console.capture() as captured:
            console.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    if left_out:
        say(f"not shown for lack of room: {', '.join(left_out)}; --wide shows all")


def _width(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + GAP * max(0, len(shown) - 1)
