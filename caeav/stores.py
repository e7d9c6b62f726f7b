"""A store for reading from Python: what `caeav.open_store` returns.

Shapes: `T` segments, `L` tokens per segment, `C` channels, `W` caption tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLITS, Clip
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import some_of
from caeav.manifests.key_index import KeyIndex
from caeav.pipeline.store import Record, StoreReader, find_store
from caeav.pipeline.store.recipe import StoreKind

KINDS: tuple[StoreKind, ...] = ("tokens", "captions")


@dataclass(frozen=True)
class StoredClip:
    """One clip of a store.

    `arrays`: name -> read-only array; tokens are `[T, L, C]` (`visual.stage1`, `audio.stage1`, ...), captions `[W, C]`
    with a mask `[W]`. `info`: what was noticed about the media, as JSON values: `frames_ok` and `audio_ok` say for each
    segment whether it holds real media, `notes` what was odd, `facts` how long the media are, `texts` the captions.
    `clip`: its row of the manifest: file, times, split, events.
    """

    key: str
    arrays: Mapping[str, NDArray[np.generic]]
    info: Mapping[str, Any]
    clip: Clip

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self.arrays[name]


class Store(Mapping[str, StoredClip]):
    """An open store: a mapping from the keys of its clips to `StoredClip`, in the order of the manifest.

    Every array is checked against its checksum when it is first read. Opening raises `CaeavError` for a store that is
    unfinished or damaged, reading for a damaged shard and for a clip in quarantine, with the reason.
    """

    def __init__(self, reader: StoreReader) -> None:
        self._reader = reader

    @classmethod
    def open(
        cls,
        dataset: str | os.PathLike[str],
        name: str | None,
        *,
        kind: str,
        home: str | os.PathLike[str] | None,
    ) -> Store:
        """See `caeav.open_store`."""
        fitting = [known for known in KINDS if known == kind]
        if not fitting:
            raise CaeavError(f"no kind of store is called {kind!r}", hint=f"give {' or '.join(KINDS)}")
        if (Path(dataset) / "recipe.json").is_file():
            return cls(StoreReader.open(Path(dataset)))
        by = "open_store(DATASET, NAME)"
        return cls(
            StoreReader.open(find_store(Home.find(home).stores, str(dataset), fitting[0], name, by=by))
        )

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._reader.path

    @property
    def recipe(self) -> dict[str, Any]:
        """What its bytes were made with, as in `recipe.json`: backbones or captioners, decoder, sampling."""
        return self._reader.recipe.as_json()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the data set's classes; empty without labels."""
        return self._reader.manifest.classes

    @property
    def quarantined(self) -> dict[str, str]:
        """The clips that could not be processed: key -> reason."""
        return {entry.key: f"{entry.stage}: {entry.reason}" for entry in self._reader.quarantined}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Array name -> shape per clip."""
        return {name: tuple(spec.shape) for name, spec in self._reader.array_specs().items()}

    def split(self, name: str) -> list[str]:
        """The keys of the stored clips of a split (`train`, `val`, `test`)."""
        if name not in SPLITS:
            raise CaeavError(f"no split is called {name!r}", hint=f"the splits are {some_of(SPLITS)}")
        return [clip.key for clip in self._reader.manifest.clips if clip.split == name and clip.key in self]

    def __len__(self) -> int:
        return len(self._reader)

    def __contains__(self, key: object) -> bool:
        return key in self._reader

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.keys)

    def __getitem__(self, key: str) -> StoredClip:
        return self._clip(self._reader.read(key))

    def clips(self, keys: Iterable[str] | None = None) -> Iterator[StoredClip]:
        """The clips of `keys`, of the whole store by default, while the next ones are read from the disk.

        Clearly faster than one `store[key]` after the other where they are not in memory yet.
        """
        return map(self._clip, self._reader.read_each(self._reader.keys if keys is None else list(keys)))

    def _clip(self, record: Record) -> StoredClip:
        row = self._rows.get(record.key)
        assert row is not None  # a store holds clips of its manifest only
        return StoredClip(record.key, record.arrays, record.info, self._reader.manifest.clips[row])

    @cached_property
    def _rows(self) -> KeyIndex:
        return KeyIndex(self._reader.manifest.keys)

    def __repr__(self) -> str:
        return f"<Store {self.path.name}: {len(self)} clips, {len(self._reader.quarantined)} in quarantine>"
