"""The check of a manifest: counts, missing media, leaks, baselines, and all findings.

Media files are looked for at that moment, with one listing per folder; everything else follows from the rows. No
media is opened, and nothing is fatal.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from caeav.manifests.baselines import (
    MaskBaseline,
    ModalityBaseline,
    QuestionBaseline,
    SecondsBaseline,
    class_counts,
    leak_counts,
    mask_baseline,
    modality_baselines,
    question_baselines,
    seconds_baseline,
)
from caeav.manifests.clip import Finding, Manifest
from caeav.manifests.findings import CODES, WARNINGS, finding, leaks, shared_videos, zero_length_events

EXAMPLES = 3
"""How many findings of a code a check quotes; the manifest holds all."""


@dataclass(frozen=True)
class Group:
    """All findings of one code, the first few in full."""

    code: str
    count: int
    meaning: str
    examples: tuple[Finding, ...]


@dataclass(frozen=True)
class ManifestCheck:
    """The result of `check`; the fields are its JSON keys.

    classes: clips by class and split, or questions by answer and split. missing: keys without media. leaked: by split
    and other split, how many clips or questions have a video that is in both. shares, masks: baselines by split;
    modalities by split and modality, questions by split and type.
    """

    dataset: str
    media_root: str
    clips: int
    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    missing: tuple[str, ...]
    leaked: dict[str, dict[str, int]]
    shares: dict[str, SecondsBaseline]
    modalities: dict[str, dict[str, ModalityBaseline]]
    masks: dict[str, MaskBaseline]
    questions: dict[str, dict[str, QuestionBaseline]]
    findings: tuple[Group, ...]

    def as_json(self) -> dict[str, Any]:
        """As JSON values; the clips without a split are under the empty name."""
        return asdict(self)


def missing_media(manifest: Manifest) -> tuple[str, ...]:
    """Keys of the clips whose media file is not below `media_root` now, in order."""
    listed: dict[PurePosixPath, frozenset[str]] = {}
    missing = []
    for clip in manifest.clips:
        path = PurePosixPath(clip.media)
        if path.parent not in listed:
            listed[path.parent] = _files_in(Path(manifest.media_root) / path.parent)
        if path.name not in listed[path.parent]:
            missing.append(clip.key)
    return tuple(missing)


def check(manifest: Manifest) -> ManifestCheck:
    """Count, look for the media, and group all findings, including those made when the rows were read."""
    missing = missing_media(manifest)
    media = {clip.key: clip.media for clip in manifest.clips}
    now = [finding("missing_media", key, media[key]) for key in missing]
    now += leaks(manifest.clips) + shared_videos(manifest.clips) + zero_length_events(manifest.clips)
    made_now = {"missing_media", "id_in_two_splits", "video_in_two_splits", "zero_length_event"}
    findings = [*now, *(f for f in manifest.findings if f.code not in made_now)]
    of_split = {
        split: [clip for clip in manifest.clips if clip.split == split] for split in manifest.split_counts()
    }
    masks = {split: mask_baseline(clips) for split, clips in of_split.items()}
    modalities = {split: modality_baselines(clips, manifest.segments) for split, clips in of_split.items()}
    return ManifestCheck(
        dataset=manifest.dataset,
        media_root=manifest.media_root,
        clips=len(manifest.clips),
        splits=manifest.split_counts(),
        classes=class_counts(manifest),
        missing=missing,
        leaked=leak_counts(manifest),
        shares={split: seconds_baseline(clips, manifest) for split, clips in of_split.items()},
        modalities={split: found for split, found in modalities.items() if found},
        masks={split: found for split, found in masks.items() if found},
        questions=question_baselines(manifest.clips),
        findings=_groups(findings),
    )


def _files_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def _groups(findings: list[Finding]) -> tuple[Group, ...]:
    by_code: dict[str, list[Finding]] = {}
    for found in findings:
        by_code.setdefault(found.code, []).append(found)
    known = dict.fromkeys((*WARNINGS, *CODES))  # what may make every number wrong comes first
    order = [*(code for code in known if code in by_code), *sorted(by_code.keys() - CODES.keys())]
    return tuple(
        Group(code, len(by_code[code]), CODES.get(code, ""), tuple(by_code[code][:EXAMPLES]))
        for code in order
    )
