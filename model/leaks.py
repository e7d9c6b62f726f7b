"""Leaving out clips whose video is in another split too, and telling what that does to a score.

Such clips leave every split they are in. Where questions are split instead of videos, all questions about a video that
is asked about in several splits go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from caeav.manifests.findings import leaked_keys
from caeav.model.train.join import Joined
from caeav.model.join_remarks import DROP_LEAKS
from caeav.model.tasks.sample import Sample


def without_leaks(joined: Joined) -> Joined:
    """The same with those samples gone from all splits, and a remark that says how many."""
    leaked = leaked_keys(joined.manifest)
    kept = {
        split: tuple(sample for sample in samples if sample.clip.key not in leaked)
        for split, samples in joined.splits.items()
    }
    counts = dropped(joined.splits, kept)
    said = ", ".join(f"{count} of {len(joined.splits[split])} of {split}" for split, count in counts.items())
    remarks = [remark.removesuffix(DROP_LEAKS) for remark in joined.remarks]
    remarks.append(f"left out, their video being in another split too: {said}")
    return replace(joined, splits=kept, remarks=tuple(remarks))


def dropped(whole: Mapping[str, Sequence[Sample]], kept: Mapping[str, Sequence[Sample]]) -> dict[str, int]:
    """Split -> how many samples are gone."""
    return {split: len(samples) - len(kept[split]) for split, samples in whole.items()}
