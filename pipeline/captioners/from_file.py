"""Captions made elsewhere: a csv table with the columns key, visual, audio, or JSON lines with these fields.

One row per clip; an empty text (or null) says that the clip lacks the modality. One column may be absent when only the
other is used; other columns are ignored. Texts are kept character by character. A recipe knows the file by its digest,
as it knows weights; `caeav caption export` writes such files.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted, some_of
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.find import find_weights
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store.recipe import MODALITIES, Modality

MAX_BYTES = 1 << 29
_SHOWN = 5


class CaptionFileError(CaeavError):
    """A file of captions that cannot be taken as it is."""


@dataclass(frozen=True)
class Captions:
    """The texts of a file: key -> text, for each modality in it."""

    source: str
    texts: Mapping[Modality, Mapping[str, str]]

    @property
    def keys(self) -> frozenset[str]:
        """All keys that have a row."""
        return frozenset(key for modality in self.texts.values() for key in modality)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` without a row."""
        return [key for key in keys if key not in self.keys]

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """Rows whose key is none of `keys`, in the file's order."""
        known = set(keys)
        return [key for key in next(iter(self.texts.values())) if key not in known]


class FileCaptioner:
    """Looks a clip's caption up by its key; reads no media. `weights` of the choice is the file."""

    runs_in: Literal["worker", "device"] = "device"
    rate_hz: int | None = None

    def __init__(self, choice: ModelChoice, modality: Modality) -> None:
        self.name, self.modality = choice.name, modality
        choice.resolve({})
        if not choice.weights:
            raise CaptionFileError(
                f"the captioner {choice.name!r} needs a file of captions",
                hint=f"--{modality}-weights FILE, a .csv or .jsonl with the fields key, visual, audio",
            )
        self.weights = find_weights(choice, default="", wants=("captions.csv", "captions.jsonl"))
        if len(self.weights.files) != 1:
            raise CaptionFileError(f"{choice.weights!r} is no file", hint="give a .csv or .jsonl file")
        self.captions = _read_once(self.weights.files[0], self.weights.digest)
        if modality not in self.captions.texts:
            raise CaptionFileError(
                f"{self.weights.source} has no {modality!r} field; it has key and {', '.join(self.captions.texts)}",
                hint=f"add one, or choose another captioner by --{modality}",
            )

    def describe(self) -> Mapping[str, Any]:
        """The file's name and digest."""
        return {"settings": {}, "weights": self.weights.describe()}

    def text(self, key: str) -> str:
        """The caption of a clip; raises `CaptionFileError` for a clip without a row."""
        try:
            return self.captions.texts[self.modality][key]
        except KeyError as error:
            raise CaptionFileError(
                f"no row for {key!r} in {self.weights.source}",
                hint="add one, with an empty text if the clip lacks the modality",
            ) from error

    def compare_keys(self, dataset: str, keys: Sequence[str], allowed: int) -> str:
        """What to say of clips without a row and of rows without a clip; empty where the file fits the data set.

        Raises `CaptionFileError` when more than `allowed` clips have no row.
        """
        missing, unknown = self.captions.missing(keys), self.captions.unknown(keys)
        name, clips = f"{self.weights.source} ({self.modality})", counted(len(keys), "clip")
        unused = f"{_some(unknown)} {'row names' if len(unknown) == 1 else 'rows name'} no clip of"
        others = f"; {unused} it" if unknown else ""
        if len(missing) > allowed:
            raise CaptionFileError(
                f"{name} has no row for {_some(missing)} of {clips} of {dataset}{others}",
                hint="give one row per clip, with its key as `caeav manifest show` has it; an empty text where the "
                "clip lacks the modality; or allow more quarantined clips by --max-failed",
            )
        if missing:
            return f"{name} has no row for {_some(missing)} of {clips}, to be quarantined{others}"
        return f"{name}: {unused} {dataset} and will not be used" if unknown else ""

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """The caption of each clip's key; empty for an empty place of a batch."""
        return [self.text(clip.key) if clip.key else "" for clip in clips]


def visual_file(choice: ModelChoice) -> FileCaptioner:
    """The captioner `file` for visual captions."""
    return FileCaptioner(choice, "visual")


def audio_file(choice: ModelChoice) -> FileCaptioner:
    """The captioner `file` for audio captions."""
    return FileCaptioner(choice, "audio")


@lru_cache(maxsize=2)
def _read_once(path: Path, digest: str) -> Captions:
    """Read the same version of a file once for both modalities."""
    return read_captions(path)


def read_captions(path: Path) -> Captions:
    """Read and check a whole file.

    Raises `CaptionFileError` for text that is not UTF-8, and, with the line, for missing columns, a key that comes
    twice, and a value that is not a text.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CaptionFileError(f"{path.name} has {size} bytes, allowed are {MAX_BYTES}", hint="split it")
    rows = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    texts: dict[Modality, dict[str, str]] = {}
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in rows(file, path.name):
                _take(line, row, texts, seen, path.name)
    except UnicodeDecodeError as error:
        raise CaptionFileError(
            f"{path.name} is not UTF-8: {error.reason}", hint="save it as UTF-8"
        ) from error
    if not seen:
        raise CaptionFileError(f"{path.name} has no rows", hint="give one row per clip: key, visual, audio")
    uneven = [modality for modality in texts if len(texts[modality]) != len(seen)]
    if uneven:
        key = next(key for key in seen if key not in texts[uneven[0]])
        raise CaptionFileError(
            f"{path.name}, line {seen[key]}: no {uneven[0]!r} for {key!r}, which other rows have",
            hint="write an empty text for a clip that lacks the modality",
        )
    return Captions(path.name, texts)


def _take(
    line: int, row: Mapping[str, Any], texts: dict[Modality, dict[str, str]], seen: dict[str, int], name: str
) -> None:
    key = row.get("key")
    if not isinstance(key, str) or not key:
        raise CaptionFileError(f"{name}, line {line}: the key is {key!r}", hint="a clip's key, as text")
    if key in seen:
        raise CaptionFileError(
            f"{name}, line {line}: {key!r} again, first in line {seen[key]}", hint="give one row per clip"
        )
    seen[key] = line
    given = [modality for modality in MODALITIES if modality in row]
    if not given:
        raise CaptionFileError(
            f"{name}, line {line}: neither 'visual' nor 'audio'; there is {_quoted(row)}",
            hint="the fields are key, visual, audio",
        )
    for modality in given:
        texts.setdefault(modality, {})[key] = _text(line, modality, row[modality], name)


def _text(line: int, modality: Modality, value: Any, name: str) -> str:
    text = "" if value is None else value
    if not isinstance(text, str):
        raise CaptionFileError(
            f"{name}, line {line}: {modality} is {value!r}", hint="a text, or null for none"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CaptionFileError(
            f"{name}, line {line}: {modality} holds half a character ({error.reason})", hint="write it anew"
        ) from error
    return text if text.strip() else ""


def _csv_rows(file: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(file, strict=True)
    try:
        columns = next(reader, [])
        if "key" not in columns or not set(columns) & set(MODALITIES) or len(set(columns)) != len(columns):
            raise CaptionFileError(
                f"{name}: the first line names the columns {_quoted(columns) or '(none)'}",
                hint="it must name key and visual or audio, each once",
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(columns):
                raise CaptionFileError(
                    f"{name}, line {reader.line_num}: {len(cells)} cells instead of {len(columns)}",
                    hint="put texts with commas between double quotes",
                )
            yield reader.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise CaptionFileError(f"{name}, line {reader.line_num}: {error}", hint="fix the line") from error


def _json_rows(file: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CaptionFileError(
                f"{name}, line {line}: not JSON",
                hint='one object per line: {"key": ..., "visual": ..., "audio": ...}',
            ) from error
        if not isinstance(row, dict):
            raise CaptionFileError(f"{name}, line {line}: {type(row).__name__}, not an object", hint="fix it")
        yield line, row


def _some(keys: Sequence[str]) -> str:
    """`3 ('a', 'b', 'c')`, cut after a few."""
    return f"{len(keys)} ({some_of(map(repr, keys), _SHOWN)})"


def _quoted(names: Iterable[str]) -> str:
    """Names from a file, control characters escaped."""
    return ", ".join(repr(name) for name in names)
