"""The Zarr backend: one sharded array a tap in `shards.zarr`, with a binary index a shard beside it.

Neither writing nor reading needs the zarr package; whatever reads Zarr v3 reads what is written.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import staging, unpublish
from caeav.pipeline.store.backend import Shard, ShardIndex
from caeav.pipeline.store.layout import StoreFolder, shard_clips
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Record
from caeav.pipeline.store.spare import publish_index, withdraw_index
from caeav.pipeline.store.zarr.index import ZarrIndex, decode_index
from caeav.pipeline.store.formats.zarr_format import GROUP, documents
from caeav.pipeline.store.zarr.shard import ZarrShard
from caeav.pipeline.store.zarr.writing import write_shard

_NUMBERED = re.compile(r"c\.(\d{1,9})(?:\.0)*")


class Zarr:
    """A `Backend`; see there."""

    name = "zarr"

    def write(
        self,
        folder: StoreFolder,
        number: int,
        recipe: Recipe,
        planned: Sequence[str],
        records: Iterable[Record],
        layout: tuple[Any, ...] | None,
    ) -> ShardIndex:
        """See `Backend.write`. Stopped before the old index goes, the old shard stands; after, there is none."""
        old = self.files(folder).get(number, ())
        with staging() as staged:
            index = write_shard(
                folder.path, staged, number, recipe.fingerprint, shard_clips(recipe), planned, records, layout
            )
            staged.sync()  # a full disk must show before the old index goes
            withdraw_index(folder, number)
            for stray in {*old} - {folder.path / facts.name for facts in index.files}:
                unpublish(stray)
            staged.put()
        publish_index(folder, index)
        return index

    def decode_index(self, data: bytes) -> ShardIndex:
        """See `Backend.decode_index`."""
        return decode_index(data)

    def open(self, folder: StoreFolder, index: ShardIndex) -> Shard:
        """See `Backend.open`."""
        if not isinstance(index, ZarrIndex):
            raise TypeError(f"{type(index).__name__} is no index of a Zarr shard")
        return ZarrShard(folder.path, index)

    def files(self, folder: StoreFolder) -> Mapping[int, Sequence[Path]]:
        """See `Backend.files`."""
        found: defaultdict[int, list[Path]] = defaultdict(list)
        for path in sorted((folder.path / GROUP).glob("*/c.*")):
            if match := _NUMBERED.fullmatch(path.name):
                found[int(match[1])].append(path)
        return found

    def places(self, folder: StoreFolder) -> Sequence[Path]:
        """See `Backend.places`."""
        group = folder.path / GROUP
        return [group, *sorted(path for path in group.glob("*") if path.is_dir())]

    def metadata(
        self, folder: StoreFolder, recipe: Recipe, layout: tuple[Any, ...], clips: int
    ) -> Mapping[Path, bytes]:
        """See `Backend.metadata`."""
        return {
            folder.path / name: data for name, data in documents(layout, clips, shard_clips(recipe)).items()
        }


ZARR = Zarr()
