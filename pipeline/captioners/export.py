"""The texts of a caption store as rows, and as the files that the captioner `file` reads.

A csv cell is written as the text is, between double quotes, also where a spreadsheet would take it for a formula:
import it as text. Reading the file back gives the same texts, character by character.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store import StoreReader

Format = Literal["csv", "jsonl"]
FORMATS: tuple[Format, ...] = ("csv", "jsonl")
_UNSEEN = re.compile("[\x7f-\x9f\u2028\u2029]")
"""Control characters that JSON does not escape, but that terminals obey and some readers take for line ends."""


@dataclass(frozen=True)
class Row:
    """One clip's texts; empty where it lacks the modality."""

    key: str
    visual: str
    audio: str


def rows_of(reader: StoreReader) -> Iterator[Row]:
    """All clips of a caption store, in its order; raises `CaeavError` for a store of another kind."""
    if reader.recipe.kind != "captions":
        raise CaeavError(
            f"{reader.path} is a store of {reader.recipe.kind}, not of captions", hint="name a caption store"
        )
    for key in reader.keys:
        texts = reader.info(key)["texts"]
        yield Row(key, texts["visual"], texts["audio"])


def render(rows: Iterable[Row], form: Format) -> str:
    """The whole file as text."""
    return _csv(rows) if form == "csv" else _jsonl(rows)


def _csv(rows: Iterable[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(("key", "visual", "audio"))
    writer.writerows((row.key, row.visual, row.audio) for row in rows)
    return out.getvalue()


def _jsonl(rows: Iterable[Row]) -> str:
    return "".join(f"{_escaped(json.dumps(asdict(row), ensure_ascii=False))}\n" for row in rows)


def _escaped(text: str) -> str:
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
