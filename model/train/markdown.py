"""Markdown tables, and text of unknown origin in them: names of classes, data sets and runs come from files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_HARMLESS = str.maketrans(
    {"&": "&amp;", "<": "&lt;", "`": "'", "\\": "\\\\", "|": "\\|", "[": "\\[", "]": "\\]"}
)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown; text from files must have passed `literal`."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def literal(value: object) -> str:
    """A value as one line of plain text, without HTML, links, images or cell ends; floats with two digits."""
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else " " for c in text).translate(_HARMLESS)
