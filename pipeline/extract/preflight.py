"""Before a run begins: check that its stores fit together, remark on what may not be meant, and load weights."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.jobs import Job
from caeav.pipeline.extract.progress import Remark
from caeav.pipeline.store import Recipe, find_other_recipes

MEDIA_ROOT = "media_root"
"""File beside a data set's stores: where its media was read last. The stores themselves do not know."""


def check_compatible(recipes: Sequence[Recipe]) -> None:
    """Raises `CaeavError` unless one decoding serves all recipes, or when one comes twice."""
    names = [recipe.folder_name for recipe in recipes]
    if len(set(names)) < len(names):
        raise CaeavError(f"the same store is asked for twice: {', '.join(names)}", hint="name each once")
    shared = {
        (r.fields["decoder"]["name"], r.fields["sampling"]["segments"], r.fields["sampling"]["segment_s"])
        for r in recipes
    }
    if len(shared) > 1:
        raise CaeavError(
            "stores made together must share decoder and segments", hint="run the command once for each"
        )


def other_recipes(context: RunContext, recipe: Recipe) -> list[str]:
    """Remarks on stores of other recipes when a new store is begun, which is easily not what was meant."""
    if any(context.folder.glob(f"{recipe.folder_name}*")):  # its slices too
        return []
    return [
        f"a new store is made; {other.path.name} was made by another recipe: {'; '.join(other.differences)}"
        for other in find_other_recipes(context.home.stores, context.manifest.dataset, recipe)
        if not any(text.startswith(("fields.visual: ", "fields.audio: ")) for text in other.differences)
    ]  # a store of another modality is another thing, not another recipe for the same


def moved_media(note: Path, root: str, same: bool) -> list[str]:
    """A remark when the media lay elsewhere the last time; `same`: all that is recorded of them is the same there."""
    before, now = note.read_bytes() if note.is_file() else b"", os.fsencode(root)
    if before == now:
        return []
    with suppress(FileNotFoundError):  # the other stage, begun at the same moment, has just written it
        publish_bytes(note, now)
    if not before:
        return []
    alike = "; what is recorded of it is the same there" if same else ""
    return [f"the media was in {os.fsdecode(before)} before, it is now in {root}{alike}"]


def why_no_file(path: Path) -> str:
    """In a few words why there is no media file at `path`; empty when there is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "file not found"
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return f"file cannot be looked at ({error.strerror})"
    return "" if stat.S_ISREG(mode) else "not a regular file"


class Loader:
    """Loads what computes on devices, each component once, and says so first, since it may take minutes."""

    def __init__(self, remark: Remark) -> None:
        self._remark = remark
        self._loaded: list[object] = []

    def __call__(self, job: Job) -> None:
        """Load all components of a job; raises `CaeavError` for weights that cannot be used."""
        for part in job.components:
            if hasattr(part, "module") and not any(part is loaded for loaded in self._loaded):
                self._remark(f"loading {part.name}")
                part.module()
                self._loaded.append(part)
