"""Text from files in Markdown is shown as text and does nothing else."""

from __future__ import annotations

import pytest

from caeav.model.train.markdown import literal, markdown_table


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<script>&", "&lt;script>&amp;"),
        ("[a](javascript:b)", "\\[a\\](javascript:b)"),
        ("![](http://x/y.png)", "!\\[\\](http://x/y.png)"),
        ("\\[a](b)", "\\\\\\[a\\](b)"),
        ("a|b\\|c", "a\\|b\\\\\\|c"),
        ("`code`\nand\x1b[2J", "'code' and \\[2J"),
        (12.345, "12.35"),
        (7, "7"),
    ],
)
def test_markdown_in_text_is_escaped(given: object, shown: str) -> None:
    assert literal(given) == shown


def test_a_table_has_one_line_per_row() -> None:
    rows = [["a", literal("x|y")], ["**b**", "2"]]
    assert markdown_table(["one", "two"], rows).splitlines() == [
        "| one | two |",
        "| --- | --- |",
        "| a | x\\|y |",
        "| **b** | 2 |",
    ]
