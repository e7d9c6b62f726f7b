"""Writing one shard of a Zarr store: a file of chunks an array, one of facts, one of keys, all put there together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from caeav.manifests.key_index import Keys
from caeav.manifests.core.atomic import Staging
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.payload import encode_info, little_endian
from caeav.pipeline.store.record import Record
from caeav.pipeline.store.zarr.chunks import ChunkWriter, text_chunk
from caeav.pipeline.store.zarr.index import ROW, ZarrIndex
from caeav.pipeline.store.formats.zarr_format import INFO, KEY, Layout, UnfitArray, file_name, layout_of


def write_shard(
    store: Path,
    staged: Staging,
    number: int,
    fingerprint: str,
    slots: int,
    planned: Sequence[str],
    records: Iterable[Record],
    layout: Layout | None,
) -> ZarrIndex:
    """Write the files of shard `number` beside their places, and give its index.

    The first record decides the layout where none is given; raises `StoreError` for a record that differs.
    """
    places = {key: slot for slot, key in enumerate(planned)}
    writers: list[ChunkWriter] = []
    keys: list[str] = []
    infos: list[int] = []
    for record in records:
        layout = _fitting(record, layout)
        if not writers:
            names = [(array.name, len(array.shape)) for array in layout] + [(INFO, 0), (KEY, 0)]
            writers = [ChunkWriter(staged.file(store / file_name(name, number, n))) for name, n in names]
        for writer, array in zip(writers[:-2], layout, strict=True):
            writer.add(little_endian(array.name, record.arrays[array.name]).reshape(-1).view(np.uint8))
        info = encode_info(record.info)
        infos.append(len(info))
        writers[-2].add(text_chunk(info))
        writers[-1].add(text_chunk(record.key.encode("ascii")))
        keys.append(record.key)
    if layout is None or not keys:
        raise ValueError("a shard holds at least one record")
    taken = [places[key] for key in keys]
    digests = tuple(writer.finish(taken, slots) for writer in writers)
    rows = np.zeros(len(keys), ROW)
    rows["slot"], rows["info_bytes"], rows["info_crc32c"] = taken, infos, writers[-2].sums
    sums = np.array([writer.sums for writer in writers[:-2]], np.uint32).T.reshape(len(keys), len(layout))
    return ZarrIndex(number, fingerprint, slots, layout, Keys.of(keys), rows, sums, digests)


def _fitting(record: Record, layout: Layout | None) -> Layout:
    try:
        own = layout_of(record.arrays)
    except UnfitArray as error:
        raise StoreError(
            f"clip {record.key!r}: {error}", hint="make the store with --backend webdataset"
        ) from error
    if layout is not None and own != layout:
        other, wanted = sorted({*own} - {*layout}, key=str), sorted({*layout} - {*own}, key=str)
        raise StoreError(
            f"clip {record.key!r} has {', '.join(map(str, other)) or 'fewer arrays'}; the clips before it have "
            f"{', '.join(map(str, wanted)) or 'fewer arrays'}, and a Zarr array has one shape for all clips",
            hint="make the store with --backend webdataset, which keeps arrays of any shape",
        )
    return own
