"""What is done before a run begins: seeing whether its stores fit together and what its user may not have meant, and
loading what computes."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.atomic import publish_bytes
from caeav.pipeline.extract.jobs import Job
from caeav.pipeline.store import Recipe, find_other_recipes
from caeav.pipeline.extract.options import Remark

MEDIA_ROOT = "media_root"
"""File beside a data set's stores: where its media was read last. Stores themselves do not know."""


def fit_together(recipes: Sequence[Recipe]) -> None:
    """One decode serves all: the same decoder, the same segments; and no store twice."""
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


def other_recipes(home: Home, dataset: str, recipe: Recipe) -> list[str]:
    """What to say about stores of other recipes when a new store is begun: it is easily not what was meant."""
    if any((home.stores / dataset).glob(f"{recipe.folder_name}*")):  # its slices too
        return []
    return [
        f"a new store is made; {other.path.name} was made by another recipe: {'; '.join(other.differences)}"
        for other in find_other_recipes(home.stores, dataset, recipe)
        if not any(text.startswith(("fields.visual: ", "fields.audio: ")) for text in other.differences)
    ]  # a store of another modality is another thing, not another recipe for the same


def moved_media(note: Path, root: str, same: bool) -> list[str]:
    """What to say when the media lay elsewhere the last time; `same`: what is recorded of them is so there, too."""
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
    """Loads what computes on devices, once each, and says so beforehand, since it may take minutes."""

    def __init__(self, remark: Remark) -> None:
        self._remark = remark
        self._done: list[object] = []

    def __call__(self, job: Job) -> None:
        """All of a job; raises `CaeavError` for weights that cannot be used."""
        for part in (*job.parts.values(), *job.texts.values()):
            if hasattr(part, "module") and not any(part is done for done in self._done):
                self._remark(f"loading {part.name}")
                part.module()
                self._done.append(part)
