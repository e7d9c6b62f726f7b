"""The folder of a comparison: its table as Markdown, CSV and JSON, how it is found, and how the JSON is read again."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from caeav.manifests.core.atomic import make_folder, publish_text
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.train.comparison_table import Comparison, as_csv, markdown

FOLDER = "comparisons"
TABLE = "table.json"
FILES = ("table.md", "table.csv", TABLE)
MAX_BYTES = 16 << 20


def folder_of(home: Home, task: str, dataset: str) -> Path:
    """Where `caeav compare` writes unless it is told otherwise."""
    return home.root / FOLDER / f"{task}-{dataset}"


def publish_comparison(folder: Path, table: Comparison) -> None:
    """Write all three files of the table."""
    make_folder(folder)
    publish_text(folder / "table.md", markdown(table))
    publish_text(folder / "table.csv", as_csv(table))
    publish_text(folder / TABLE, json.dumps(table.as_json(), indent=2, allow_nan=False) + "\n")


def read_comparison(folder: Path) -> Comparison:
    """The table in the folder of a comparison; raises `CaeavError` for one that cannot be read."""
    path = folder / TABLE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
        table = TypeAdapter(Comparison).validate_json(path.read_bytes())
        json.dumps(table.as_json(), allow_nan=False)  # raises for what is no number
        if table.baseline not in [row.recipe for row in table.rows]:
            raise ValueError(f"no row of the baseline {table.baseline!r}")
        if any({len(row.runs), len(row.by_seed)} != {len(table.seeds)} for row in table.rows):
            raise ValueError("a row has not one run and one score for each seed")
        return table
    except (OSError, ValueError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CaeavError(
            f"{path} is no table of a comparison: {said}", hint="make it again: caeav compare"
        ) from error


def find_comparison(home: Home, name: str) -> Path | None:
    """The folder of a comparison, by its path or its name in `<home>/comparisons`; None where there is none."""
    for folder in (Path(name).expanduser(), home.root / FOLDER / name):
        if (folder / TABLE).is_file():
            return folder
    return None


def comparisons_of(home: Home, runs: Collection[str]) -> list[Comparison]:
    """The tables in `<home>/comparisons` that are about all these runs; tables that cannot be read are none."""
    found = []
    for path in sorted((home.root / FOLDER).glob(f"*/{TABLE}")):
        try:
            table = read_comparison(path.parent)
        except CaeavError:
            continue
        if set(runs) <= {run for row in table.rows for run in row.runs}:
            found.append(table)
    return found
