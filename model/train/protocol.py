"""The evaluation protocol of a run: our own, or that of the papers it is compared with.

`honest`, the default: the epoch is chosen on val, test is scored once. `published`: what the code of LAVISH, DG-SCT,
AVMoE and STG-CMA does for the task; for some tasks test itself chooses the epoch. Such a score is optimistic,
comparable only with scores made alike, and marked wherever it appears.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caeav.model.tasks.config import RunConfig

HONEST, PUBLISHED = "honest", "published"


@dataclass(frozen=True)
class AsPublished:
    """`rules`: the protocol in a sentence. `settings`: what it fixes in the configuration. `peaks`: each test number is
    its best over all epochs."""

    rules: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    peaks: bool = False


_AVE = AsPublished(
    "the epoch is chosen on test, and the accuracy is the mean over batches, so that a smaller last batch weighs more",
    {"select_on": "test", "metric.average": "batches"},
)
_AVS = AsPublished(
    "the epoch is chosen on test, M_J and M_F are each the best over all epochs, one clip a call",
    {"select_on": "test", "metric.clips_per_call": 1},
    peaks=True,
)
AS_PUBLISHED: Mapping[str, AsPublished] = {
    "ave": _AVE,
    "ave-weak": _AVE,
    "avvp": AsPublished("the epoch is chosen on val, as by default", {"select_on": "val"}),
    "avs-s4": _AVS,
    "avs-ms3": _AVS,
    "avqa": AsPublished("the epoch is chosen on val, as by default", {"select_on": "val"}),
}


def departures(config: RunConfig) -> list[str]:
    """Faults of a configuration that claims the published protocol but departs from it."""
    if config.protocol != PUBLISHED:
        return []
    if config.task not in AS_PUBLISHED:
        return [f"protocol: {PUBLISHED!r}; no rules are known for task {config.task!r}, allowed: {HONEST!r}"]
    if config.drop_leaks:
        return ["drop_leaks: true; the published protocol scores all clips: leave out one of the two"]
    faults = []
    values = config.model_dump()
    for path, wanted in AS_PUBLISHED[config.task].settings.items():
        found: Any = values
        for part in path.split("."):
            found = found[part]
        if found != wanted:
            faults.append(f"{path}: {found!r}; allowed with the published protocol: {wanted!r}")
    return faults


def stamp(protocol: str, select_on: str) -> str:
    """The protocol in a few words, for tables."""
    if protocol == PUBLISHED:
        return f"published, best epoch by {select_on}"
    return HONEST if select_on == "val" else "selected on test"


def sentence(task: str, protocol: str, select_on: str) -> str:
    """The protocol in full, for cards: how the weights were chosen, and what that does to the test score."""
    if protocol == PUBLISHED:
        how = AS_PUBLISHED[task].rules
        text = f"**Published protocol**: {how}. These are the rules of the papers compared with, not ours."
        return text + (" The test score is therefore optimistic." if select_on == "test" else "")
    if select_on == "test":
        return (
            "**Selected on test**: the weights are those of the epoch that did best on the test split, as in much "
            "published work. The test score is therefore optimistic; compare it only with numbers made alike."
        )
    return (
        "The weights are those of the epoch that did best on **val**; **test** was scored once, afterwards."
    )
