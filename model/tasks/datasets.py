"""Which data sets carry the labels of which task, by name and by what a manifest's rows hold.

Imports no torch, so that commands that train nothing can ask too.
"""

from __future__ import annotations

from collections.abc import Mapping

from caeav.manifests.clip import Manifest
from caeav.manifests.readers import SYNTHETIC

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "ave": ("ave",),
    "ave-weak": ("ave",),
    "avvp": ("llp",),
    "avs-s4": ("avs-s4", "avs-ms3"),
    "avs-ms3": ("avs-s4", "avs-ms3"),
    "avqa": ("music-avqa",),
}
"""Task -> official data sets whose layout has its labels."""


def task_for_dataset(dataset: str) -> str:
    """The task that `dataset` was made for; empty if the data set is not known."""
    layout = _layout(dataset)
    fitting = [task for task, layouts in LAYOUTS.items() if layout in layouts]
    return layout if layout in fitting else next(iter(fitting), "")


def task_from_labels(manifest: Manifest) -> str:
    """The task that the labels of `manifest` belong to, whatever its name; empty if it has none."""
    found = ""
    for clip in manifest.clips:
        if clip.extra.get("questions"):
            return "avqa"
        if any(mask is not None for mask in clip.extra.get("masks", ())):
            return "avs-s4" if clip.extra.get("category") else "avs-ms3"
        if any(event.modality for event in clip.events):
            return "avvp"
        if clip.events:
            found = "ave"
        elif clip.labels():
            found = found or "ave-weak"
    return found


def mismatch_hint(task: str, dataset: str) -> str:
    """What to type instead if `dataset` lacks the labels of `task`; empty if it has them or either is not known."""
    layout = _layout(dataset)
    own = LAYOUTS.get(task, ())
    if not layout or not own or layout in own:
        return ""
    sets = [name for official in own for name in (official, SYNTHETIC[official])]
    return (
        f"caeav train --task {task_for_dataset(dataset)} --dataset {dataset}, which is labelled for it; task {task} "
        f"is for {', '.join(sets)} and sets labelled alike"
    )


def _layout(dataset: str) -> str:
    """The official data set whose layout `dataset` has; empty if it is not known."""
    return next((official for official, made in SYNTHETIC.items() if dataset in (official, made)), "")
