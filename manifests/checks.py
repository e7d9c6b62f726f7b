"""What a manifest holds and what is wrong with it: counts, missing media, leaks, baselines.

Media is looked for now, by one listing a folder; everything else is read off the rows. Nothing is opened and
nothing is fatal.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from caeav.manifests.baselines import (
    MaskShare,
    ModalityShare,
    QuestionShare,
    Share,
    class_counts,
    leak_counts,
    mask_share,
    modality_shares,
    question_shares,
    second_share,
)
from caeav.manifests.clip import Finding, Manifest
from caeav.manifests.findings import CODES, WARNINGS, finding, leaks, shared_videos, zero_length_events

EXAMPLES = 3
"""How many findings of a kind a report quotes; the manifest holds all."""


@dataclass(frozen=True)
class Group:
    """All findings of one code, the first few in full."""

    code: str
    count: int
    meaning: str
    examples: tuple[Finding, ...]


@dataclass(frozen=True)
class Report:
    """The result of `check`. `classes` counts clips by class and split, or questions by answer and split; `missing` are
    keys without media. `leaked` counts, by split and other split, clips or questions whose video is in both.
    `shares` is by split; `modalities` by split and modality; `questions` by split and type."""

    dataset: str
    media_root: str
    clips: int
    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    missing: tuple[str, ...]
    leaked: dict[str, dict[str, int]]
    shares: dict[str, Share]
    modalities: dict[str, dict[str, ModalityShare]]
    masks: dict[str, MaskShare]
    questions: dict[str, dict[str, QuestionShare]]
    findings: tuple[Group, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values; the clips without a split are under the empty name."""
        return asdict(self)


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
    now += leaks(manifest.clips) + shared_videos(manifest.clips) + zero_length_events(manifest.clips)
    looked_for = {"missing_media", "id_in_two_splits", "video_in_two_splits", "zero_length_event"}
    findings = [*now, *(f for f in manifest.findings if f.code not in looked_for)]
    of_split = {
        split: [clip for clip in manifest.clips if clip.split == split] for split in manifest.split_counts()
    }
    masks = {split: mask_share(clips) for split, clips in of_split.items()}
    modalities = {split: modality_shares(clips, manifest.segments) for split, clips in of_split.items()}
    return Report(
        dataset=manifest.dataset,
        media_root=manifest.media_root,
        clips=len(manifest.clips),
        splits=manifest.split_counts(),
        classes=class_counts(manifest),
        missing=missing,
        leaked=leak_counts(manifest),
        shares={split: second_share(clips, manifest) for split, clips in of_split.items()},
        modalities={split: share for split, share in modalities.items() if share},
        masks={split: share for split, share in masks.items() if share},
        questions=question_shares(manifest.clips),
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
    known = dict.fromkeys((*WARNINGS, *CODES))  # first what may make every number wrong
    order = [*(code for code in known if code in by_code), *sorted(by_code.keys() - CODES.keys())]
    return tuple(
        Group(code, len(by_code[code]), CODES.get(code, ""), tuple(by_code[code][:EXAMPLES]))
        for code in order
    )
