"""Closing a store: documents for other programs brought up to date, then the seal, which is written last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.atomic import publish_bytes
from caeav.pipeline.store.backend import ShardIndex, backend_of
from caeav.pipeline.store.layout import Seal, StoreFolder, file_digest
from caeav.pipeline.store.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished store in numbers; `expected == stored + quarantined`, `bytes` are those of the shards."""

    stored: int
    quarantined: int
    expected: int
    shards: int
    bytes: int


def seal_store(
    folder: StoreFolder, recipe: Recipe, summary: Summary, indexes: Mapping[int, ShardIndex], clips: int
) -> None:
    """Seal a store of which everything else is in its place; `clips` are those of its manifest."""
    documents = _publish_documents(folder, recipe, indexes, clips)
    files = [folder.manifest, folder.quarantine, *map(folder.index, sorted(indexes)), *documents]
    seal = Seal(
        fingerprint=recipe.fingerprint,
        expected=summary.expected,
        stored=summary.stored,
        quarantined=summary.quarantined,
        shards=summary.shards,
        shard_bytes=summary.bytes,
        sha256={folder.name_of(path): file_digest(path) for path in files},
    )
    publish_bytes(folder.seal, seal.render())


def _publish_documents(
    folder: StoreFolder, recipe: Recipe, indexes: Mapping[int, ShardIndex], clips: int
) -> list[Path]:
    """Write what is not as it should be of the documents for other programs; gives the places of all."""
    if not indexes:
        return []
    layout = next(iter(indexes.values())).layout
    documents = backend_of(recipe).metadata(folder, recipe, layout, clips)
    for path, data in documents.items():
        if not path.is_file() or path.read_bytes() != data:
            publish_bytes(path, data)
    return list(documents)
