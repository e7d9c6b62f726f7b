"""The WebDataset backend: one plain tar a shard, `shards/000000.tar`, with a binary index beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import staging
from caeav.pipeline.store.backend import Shard, ShardIndex
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Record
from caeav.pipeline.store.spare import publish_index, withdraw_index
from caeav.pipeline.store.webdataset.index import TarIndex, decode_index, tar_name
from caeav.pipeline.store.webdataset.shard import TarShard
from caeav.pipeline.store.webdataset.tar import write_shard

_NUMBERED = re.compile(r"(\d{6,9})\.tar")


class WebDataset:
    """A `Backend`; see there."""

    name = "webdataset"

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
        with staging() as staged:
            out = staged.file(folder.path / tar_name(number))
            index = write_shard(out, records, number, recipe.fingerprint)
            staged.sync()  # a full disk must show before the old index goes
            withdraw_index(folder, number)
            staged.put()
        publish_index(folder, index)
        return index

    def decode_index(self, data: bytes) -> ShardIndex:
        """See `Backend.decode_index`."""
        return decode_index(data)

    def open(self, folder: StoreFolder, index: ShardIndex) -> Shard:
        """See `Backend.open`."""
        if not isinstance(index, TarIndex):
            raise TypeError(f"{type(index).__name__} is no index of a tar")
        return TarShard(folder.path, index)

    def files(self, folder: StoreFolder) -> Mapping[int, Sequence[Path]]:
        """See `Backend.files`."""
        found = sorted((folder.path / "shards").glob("*.tar"))
        return {int(match[1]): [path] for path in found if (match := _NUMBERED.fullmatch(path.name))}

    def places(self, folder: StoreFolder) -> Sequence[Path]:
        """See `Backend.places`."""
        return [folder.path / "shards"]

    def metadata(
        self, folder: StoreFolder, recipe: Recipe, layout: tuple[Any, ...], clips: int
    ) -> Mapping[Path, bytes]:
        """A tar needs none."""
        return {}


WEBDATASET = WebDataset()
