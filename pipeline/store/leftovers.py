"""What an interrupted writer may have left in a store's folder: shards without index, temp files."""

from __future__ import annotations

from pathlib import Path

from caeav.manifests.core.atomic import TEMP_PREFIX
from caeav.pipeline.store.backend import Backend
from caeav.pipeline.store.layout import StoreFolder


def orphans(folder: StoreFolder, backend: Backend) -> list[Path]:
    """Files of shards without index: they do not exist, whoever wrote them was interrupted."""
    indexed = set(folder.published())
    return [
        path for number, paths in backend.files(folder).items() if number not in indexed for path in paths
    ]


def temp_files(folder: StoreFolder, backend: Backend) -> list[Path]:
    """Temp files of an interrupted writer."""
    places = [folder.path, folder.path / "index", folder.path / "spare", *backend.places(folder)]
    return sorted({path for place in places for path in place.glob(f"{TEMP_PREFIX}*") if path.is_file()})
