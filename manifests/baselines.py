"""What constant answers score on a data set, in the measure of each: seconds, modalities, masks, questions.

Numbers that a model has to beat before it has learnt anything; `check.py` puts them into its report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caeav.manifests.clip import SPLITS, Clip, Manifest
from caeav.manifests.findings import leaked_keys
from caeav.manifests.masks import Mask, unpack_mask

BACKGROUND = "background"


@dataclass(frozen=True)
class Share:
    """Seconds of a split: how many, which share is an event, and what a constant answer would score."""

    seconds: float
    event_share: float
    majority_label: str
    majority_accuracy: float


@dataclass(frozen=True)
class ModalityShare:
    """One modality of a split: timed events, the share of segments with any, clips without one."""

    events: int
    event_share: float
    clips_without: int


@dataclass(frozen=True)
class MaskShare:
    """Masks of a split: frames, those with ground truth, those whose ground truth is empty, the mean share of pixels
    that sound, and the mean IoU (official: 1 for an empty mask left empty) of the best `constant` answer."""

    frames: int
    masks: int
    empty: int
    area: float
    constant: str
    constant_iou: float


@dataclass(frozen=True)
class QuestionShare:
    """Questions of a split or of one type in it: how many, about how many videos, and the most frequent answer."""

    questions: int
    videos: int
    majority_answer: str
    majority_accuracy: float


def segment_labels(clip: Clip, segments: int) -> tuple[frozenset[str], ...]:
    """The labels of each of the clip's `segments`: the events that cover the segment's middle.

    With whole seconds this is exactly `[start, end)`. Empty is background.
    """
    length_s = clip.seconds / segments
    middles = [(i + 0.5) * length_s for i in range(segments)]
    return tuple(
        frozenset(e.label for e in clip.events if e.start_s <= middle < e.end_s) for middle in middles
    )


def second_share(clips: Sequence[Clip], manifest: Manifest) -> Share:
    """Of the segments of `clips`, at least one."""
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


def modality_shares(clips: Sequence[Clip], segments: int) -> dict[str, ModalityShare]:
    """By modality, where the events of `clips` have one; else empty."""
    shares = {}
    for modality in sorted({event.modality for clip in clips for event in clip.events} - {""}):
        taken = [
            Clip(
                clip.key,
                clip.media,
                0.0,
                clip.seconds,
                events=tuple(e for e in clip.events if e.modality == modality),
            )
            for clip in clips
        ]
        full = sum(bool(labels) for clip in taken for labels in segment_labels(clip, segments))
        shares[modality] = ModalityShare(
            events=sum(len(clip.events) for clip in taken),
            event_share=full / (len(taken) * segments),
            clips_without=sum(not clip.events for clip in taken),
        )
    return shares


def mask_share(clips: Sequence[Clip]) -> MaskShare | None:
    """Of the masks in `clips`; None where no clip has any."""
    texts = [text for clip in clips for text in clip.extra.get("masks", ())]
    masks = [unpack_mask(text) for text in texts if text is not None]
    if not masks:
        return None
    answers: dict[str, Mask | bool] = {"nothing": False, "everything": True}
    if len({mask.shape for mask in masks}) == 1:
        mean = np.mean(masks, axis=0, dtype=np.float32)
        answers["the pixels that sound in half of the frames"] = np.asarray(mean > 0.5)
    scores = {
        name: float(np.mean([_iou(answer, mask) for mask in masks])) for name, answer in answers.items()
    }
    best = max(scores, key=lambda name: scores[name])
    return MaskShare(
        frames=len(texts),
        masks=len(masks),
        empty=sum(not mask.any() for mask in masks),
        area=float(np.mean([mask.mean() for mask in masks])),
        constant=best,
        constant_iou=scores[best],
    )


def _iou(answer: Mask | bool, mask: Mask) -> float:
    """As the official metric: for an empty mask the share of pixels rightly left out."""
    guessed = np.broadcast_to(answer, mask.shape)
    if not mask.any():
        return float(1 - guessed.mean())
    return float((guessed & mask).sum() / (guessed | mask).sum())


def question_shares(clips: Sequence[Clip]) -> dict[str, dict[str, QuestionShare]]:
    """By split, then by type (`all` first), where `clips` have questions; else empty."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for clip in clips:
        for question in clip.extra.get("questions", ()):
            of_split = found.setdefault(question["split"], {"all": []})
            answer = (clip.key, str(question["answer"]))
            of_split["all"].append(answer)
            of_split.setdefault(" ".join(question["type"]), []).append(answer)
    return {
        split: {name: _questions(answers) for name, answers in _by_name(found[split])}
        for split in SPLITS
        if split in found
    }


def _by_name(types: dict[str, list[tuple[str, str]]]) -> list[tuple[str, list[tuple[str, str]]]]:
    return sorted(types.items(), key=lambda item: (item[0] != "all", item[0]))


def _questions(answers: Sequence[tuple[str, str]]) -> QuestionShare:
    [(most, times)] = Counter(answer for _, answer in answers).most_common(1)
    return QuestionShare(len(answers), len({key for key, _ in answers}), most, times / len(answers))


def leak_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """By split, then by other split: clips (or questions) whose video is in that other split too."""
    leaked = leaked_keys(manifest)
    counts: dict[str, dict[str, int]] = {}
    for clip in manifest.clips:
        others = leaked.get(clip.key, ())
        questions: Sequence[dict[str, Any]] = clip.extra.get("questions", ())
        for split in [question["split"] for question in questions] or [clip.split]:
            for other in others:
                if other != split:
                    of_split = counts.setdefault(split, {})
                    of_split[other] = of_split.get(other, 0) + 1
    return {split: counts[split] for split in SPLITS if split in counts}


def class_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """By class and split: clips whose video-level labels name it, or questions whose answer it is."""
    counts: dict[str, dict[str, int]] = {name: {} for name in manifest.classes}

    def add(label: str, split: str) -> None:
        of_class = counts.setdefault(label, {})
        of_class[split] = of_class.get(split, 0) + 1

    for clip in manifest.clips:
        questions: Sequence[dict[str, Any]] = clip.extra.get("questions", ())
        for question in questions:
            add(question["answer"], question["split"])
        for label in () if questions else clip.labels():
            add(label, clip.split)
    return counts
