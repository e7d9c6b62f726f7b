"""Which tasks a data set is labelled for, by the official layout it has. Light: what trains nothing may ask too."""

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
"""Task -> the layouts that have its labels."""


def task_for(dataset: str) -> str:
    """The task that `dataset` was made for; empty for a data set that nobody knows."""
    layout = _layout(dataset)
    fitting = [task for task, layouts in LAYOUTS.items() if layout in layouts]
    return layout if layout in fitting else next(iter(fitting), "")


def task_labelled(manifest: Manifest) -> str:
    """The task that a manifest's labels are of, whatever it is called; empty where it has none."""
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


def suited(task: str, dataset: str) -> str:
    """What to type where `task` can do nothing with `dataset`; empty where they should suit, or one is not known."""
    layout = _layout(dataset)
    own = LAYOUTS.get(task, ())
    if not layout or not own or layout in own:
        return ""
    sets = [name for official in own for name in (official, SYNTHETIC[official])]
    return (
        f"caeav train --task {task_for(dataset)} --dataset {dataset}, which is labelled for it; task {task} is for "
        f"{', '.join(sets)} and sets labelled alike"
    )


def _layout(dataset: str) -> str:
    return next((official for official, made in SYNTHETIC.items() if dataset in (official, made)), "")
