"""Registries: what is found, what is refused, and that a lazy entry is imported once and only when asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.registry import Registry


def test_a_name_is_what_was_registered_and_names_are_sorted() -> None:
    table: Registry[int] = Registry("thing")
    assert table.register("second")(2) == 2
    table.register("first")(1)
    assert (table["first"], table["second"]) == (1, 2)
    assert table.names() == list(table) == ["first", "second"]
    assert "first" in table and "third" not in table and 3 not in table


def test_registering_a_name_twice_is_a_value_error() -> None:
    table: Registry[int] = Registry("thing")
    table.register("one")(1)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        table.register("one")(2)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        table.register_lazily("one", "math:pi")
    assert table["one"] == 1


def test_a_family_serves_every_name_behind_its_colon_and_is_no_name_itself() -> None:
    table: Registry[int] = Registry("model")
    table.register("timm:")(1)
    table.register("plain")(2)
    assert table["timm:resnet18"] == table["timm:other"] == 1
    assert "timm:resnet18" in table and "timm:" not in table and "timm" not in table
    assert "plain:x" not in table
    for name in ("timm:", "timm", "plain:x"):
        with pytest.raises(
            CaeavError, match=rf"unknown model '{name}'.*\n.*choose one of: plain, timm:<name>"
        ):
            table[name]


def test_a_lazy_entry_is_imported_when_asked_for_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lazily_told.py").write_text("THING = object()\n")
    table: Registry[object] = Registry("thing")
    table.register_lazily("late", "lazily_told:THING")
    assert "late" in table and table.names() == ["late"] and "lazily_told" not in sys.modules
    found = table["late"]
    assert found is sys.modules["lazily_told"].THING
    monkeypatch.delitem(sys.modules, "lazily_told")
    assert table["late"] is found and "lazily_told" not in sys.modules
