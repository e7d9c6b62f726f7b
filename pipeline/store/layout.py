"""Where the files of a store lie, and reading and writing its recipe and its seal.

`<stores>/<dataset>/<kind>-<name>-<fingerprint12>/` holds `recipe.json`, `manifest.jsonl`, `quarantine.jsonl`, the
shards (`shards/000000.tar` ... or `shards.zarr`), `index/000000.idx` ... with a copy of each in `spare/`, `.lock`
(empty while nobody writes), and `complete.json`, the seal: counts and the sha256 of every other small file, written
last and removed before any change. `journal/` is there only while the store is being made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caeav.manifests.key_index import Keys
from caeav.pipeline.store.errors import DamagedStore, StoreError
from caeav.pipeline.store.recipe import SCHEMA_VERSION, Recipe

DEFAULT_SHARD_CLIPS = 64
MAX_SHARD_CLIPS = 1 << 20
MAX_FILE_BYTES = 256 << 20
FOLDER_PATTERN = re.compile(r"(tokens|captions)-(.+)-([0-9a-f]{12})")
_SEALED = re.compile(
    r"manifest\.jsonl|quarantine\.jsonl|index/\d{6,9}\.idx|shards\.zarr/([A-Za-z0-9_.+-]{1,200}/)?zarr\.json"
)
_NUMBERED = re.compile(r"(\d{6,9})\.idx")


def read_capped(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a small file; refuses what is larger than `limit` or no plain file before reading it."""
    if not path.is_file():
        if not path.is_symlink():
            path.stat()  # raises FileNotFoundError
        raise DamagedStore(f"{path} is no plain file", hint="this is not a store's file")
    size = path.stat().st_size
    if size > limit:
        raise DamagedStore(
            f"{path} has {size} bytes; at most {limit} are read", hint="this is not a store's file"
        )
    return path.read_bytes()


@dataclass(frozen=True)
class StoreFolder:
    """Paths inside one store."""

    path: Path

    @property
    def recipe(self) -> Path:
        """What decides the store's bytes."""
        return self.path / "recipe.json"

    @property
    def manifest(self) -> Path:
        """The clips of this store, in order, with the labels last seen; without `media_root`."""
        return self.path / "manifest.jsonl"

    @property
    def quarantine(self) -> Path:
        """The clips that could not be processed."""
        return self.path / "quarantine.jsonl"

    @property
    def seal(self) -> Path:
        """Present exactly when the store is finished."""
        return self.path / "complete.json"

    @property
    def journal(self) -> Path:
        """Folder of records that are finished but in no shard yet; only while the store is being made."""
        return self.path / "journal"

    @property
    def lock(self) -> Path:
        """Locked by the process that writes, whose pid is in it meanwhile."""
        return self.path / ".lock"

    def index(self, number: int) -> Path:
        """The index of a shard."""
        return self.path / "index" / f"{number:06d}.idx"

    def spare(self, number: int) -> Path:
        """The copy of a shard's index, see `spare.py`."""
        return self.path / "spare" / f"{number:06d}.idx"

    @staticmethod
    def index_name(number: int) -> str:
        """The `name_of` a shard's index."""
        return f"index/{number:06d}.idx"

    def name_of(self, path: Path) -> str:
        """A path relative to the store, as messages and the seal name it."""
        return path.relative_to(self.path).as_posix()

    def published(self) -> list[int]:
        """Numbers of the shards that have an index, ascending."""
        return numbered(self.path / "index")


def numbered(folder: Path) -> list[int]:
    """Numbers of the shards that have an index in this folder, ascending."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    found = map(_NUMBERED.fullmatch, names)
    return sorted(int(match[1]) for match in found if match)


def shard_clips(recipe: Recipe) -> int:
    """How many clips are planned per shard: the recipe's `shard_clips`, or 64."""
    value = recipe.fields.get("shard_clips", DEFAULT_SHARD_CLIPS)
    if type(value) is not int or not 1 <= value <= MAX_SHARD_CLIPS:
        raise StoreError(f"shard_clips is {value!r}", hint=f"use a whole number from 1 to {MAX_SHARD_CLIPS}")
    return value


def cut(keys: Keys, size: int) -> list[Keys]:
    """The planned keys of each shard: `size` per shard, in manifest order."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def render_recipe(recipe: Recipe) -> bytes:
    """The bytes of `recipe.json`, indented for people; the same recipe gives the same bytes."""
    return (json.dumps(recipe.as_json(), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_recipe(data: bytes, where: Path) -> Recipe:
    """The bytes of a `recipe.json` -> recipe; raises `DamagedStore` for anything but what was written."""
    value = _json(data, where)
    schema = value.get("schema")
    if schema != SCHEMA_VERSION:
        raise DamagedStore(
            f"{where}: schema {schema!r}; this program reads {SCHEMA_VERSION}",
            hint="use the program that made it",
        )
    kind, name, fields = value.get("kind"), value.get("name"), value.get("fields")
    if kind in ("tokens", "captions") and isinstance(name, str) and isinstance(fields, dict):
        recipe = Recipe(kind, name, fields)
        try:
            if render_recipe(recipe) == data:
                return recipe
        except ValueError:  # a number such as 1e999, which this program never writes
            pass
    raise DamagedStore(
        f"{where}: not a recipe as this program writes it", hint=f"remove {where} and extract again"
    )


@dataclass(frozen=True)
class Seal:
    """What a finished store holds; `sha256` has the digest of every file but the shards, which their indexes digest."""

    fingerprint: str
    expected: int
    stored: int
    quarantined: int
    shards: int
    shard_bytes: int
    sha256: Mapping[str, str]

    def render(self) -> bytes:
        """The bytes of `complete.json`, a function of the content."""
        return (json.dumps({"format": 1, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()


def parse_seal(data: bytes, where: Path) -> Seal:
    """The bytes of a `complete.json` -> seal; raises `DamagedStore` for anything but what was written."""
    value = _json(data, where)
    if value.pop("format", None) == 1 and set(value) == set(Seal.__dataclass_fields__):
        counts = (value[name] for name in ("expected", "stored", "quarantined", "shards", "shard_bytes"))
        sealed = value["sha256"] if isinstance(value["sha256"], dict) else {"": ""}
        if all(type(n) is int and n >= 0 for n in counts) and all(map(_SEALED.fullmatch, sealed)):
            seal = Seal(**value)
            if seal.render() == data:
                return seal
    raise DamagedStore(
        f"{where}: not a seal as this program writes it",
        hint=f"remove {where} and extract again to write it anew",
    )


def _json(data: bytes, where: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DamagedStore(f"{where}: not a JSON object", hint=f"remove {where} and extract again")
    return value
