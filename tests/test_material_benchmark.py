"""`benchmarks/material.py`: the settings that are committed beside it are those that it trains with."""

from __future__ import annotations

from pathlib import Path

import yaml
from module_files import load_module


def test_resolved_settings_are_those_the_rows_are_trained_with(repository: Path) -> None:
    material = load_module("material", repository / "benchmarks" / "material.py")
    kept = repository / "benchmarks" / "settings" / "material-resolved.yaml"
    assert yaml.safe_load(kept.read_text("utf-8")) == material.resolved(), (
        "defaults have changed: the tables of docs/RESULTS.md were made with other settings; make them again, "
        "then `python benchmarks/material.py --settings`"
    )
