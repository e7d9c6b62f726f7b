"""What a manifest holds and what is wrong with it: counts, missing media, leaks, baselines.

Media is looked for now, by one listing a folder; everything else is read off the rows. Nothing is opened and
nothing is fatal.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from caeav.manifests.clip import Clip, Finding, Manifest
from caeav.manifests.findings import CODES, finding, leaks, without_length

BACKGROUND = "background"
EXAMPLES = 3
"""How many findings of a kind a report quotes; the manifest holds all."""


@dataclass(frozen=True)
class Share:
    """Seconds of a split: how many, which share is an event, and what a constant answer would score."""

    seconds: float
    event_share: float
    majority_label: str
    majority_accuracy: float


@dataclass(frozen=True)
class Group:
    """All findings of one code, the first few in full."""

    code: str
    count: int
    meaning: str
    examples: tuple[Finding, ...]


@dataclass(frozen=True)
class Report:
    """The result of `check`. `classes` counts clips by class and split; `missing` are keys without media."""

    dataset: str
    media_root: str
    clips: int
    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    missing: tuple[str, ...]
    shares: dict[str, Share]
    findings: tuple[Group, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values; the clips without a split are under the empty name."""
        return asdict(self)


def segment_labels(clip: Clip, segments: int) -> tuple[frozenset[str], ...]:
    """The labels of each of the clip's `segments`: the events that cover the segment's middle.

    With AVE's whole seconds this is exactly `[start, end)`. Empty is background.
    """
    length_s = clip.seconds / segments
    middles = [(i + 0.5) * length_s for i in range(segments)]
    return tuple(
        frozenset(e.label for e in clip.events if e.start_s <= middle < e.end_s) for middle in middles
    )


def missing_media(manifest: Manifest) -> tuple[str, ...]:
    """Keys of the clips whose media file is not under `media_root` now, in order."""
    listed: dict[PurePosixPath, frozenset[str]] = {}
    missing = []
    for clip in manifest.clips:
        path = PurePosixPath(clip.media)
        if path.parent not in listed:
            listed[path.parent] = _files_in(Path(manifest.media_root) / path.parent)
        if path.name not in listed[path.parent]:
            missing.append(clip.key)
    return tuple(missing)


def check(manifest: Manifest) -> Report:
    """Count, look for the media, and group all findings, those made when the rows were read among them."""
    missing = missing_media(manifest)
    media = {clip.key: clip.media for clip in manifest.clips}
    now = [finding("missing_media", key, media[key]) for key in missing]
    now += leaks(manifest.clips) + without_length(manifest.clips)
    looked_for = {"missing_media", "id_in_two_splits", "zero_length_event"}
    findings = [*now, *(f for f in manifest.findings if f.code not in looked_for)]
    classes: dict[str, dict[str, int]] = {name: {} for name in manifest.classes}
    for clip in manifest.clips:
        for label in dict.fromkeys(event.label for event in clip.events):
            of_class = classes.setdefault(label, {})
            of_class[clip.split] = of_class.get(clip.split, 0) + 1
    return Report(
        dataset=manifest.dataset,
        media_root=manifest.media_root,
        clips=len(manifest.clips),
        splits=manifest.split_counts(),
        classes=classes,
        missing=missing,
        shares={
            split: _share([clip for clip in manifest.clips if clip.split == split], manifest)
            for split in manifest.split_counts()
        },
        findings=_groups(findings),
    )


def _files_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def _share(clips: list[Clip], manifest: Manifest) -> Share:
    counts: Counter[str] = Counter()
    for clip in clips:
        for labels in segment_labels(clip, manifest.segments):
            counts.update(labels or {BACKGROUND})
    total = len(clips) * manifest.segments
    background = counts[BACKGROUND]
    # equally frequent answers: background first, then the order of the classes
    label = max((BACKGROUND, *manifest.classes), key=lambda name: counts[name])
    return Share(
        seconds=total * manifest.segment_s,
        event_share=1 - background / total,
        majority_label=label,
        majority_accuracy=counts[label] / total,
    )


def _groups(findings: list[Finding]) -> tuple[Group, ...]:
    by_code: dict[str, list[Finding]] = {}
    for found in findings:
        by_code.setdefault(found.code, []).append(found)
    order = [*(code for code in CODES if code in by_code), *sorted(by_code.keys() - CODES.keys())]
    return tuple(
        Group(code, len(by_code[code]), CODES.get(code, ""), tuple(by_code[code][:EXAMPLES]))
        for code in order
    )
