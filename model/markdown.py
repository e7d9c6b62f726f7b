"""Tables in Markdown, and text of unknown origin in them: names of classes, data sets and runs come from files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_HARMLESS = str.maketrans(
    {"&": "&amp;", "<": "&lt;", "`": "'", "\\": "\\\\", "|": "\\|", "[": "\\[", "]": "\\]"}
)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already: what comes from files goes through `literal` first."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def literal(value: object) -> str:
    """A value as one line of harmless text: no HTML, no link or picture, no end of a cell; floats with two digits."""
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else " " for c in text).translate(_HARMLESS)
