"""Baselines: what constant answers score on a data set, for seconds, modalities, masks and questions.

A model has to beat these numbers before it has learnt anything; `checks.py` puts them beside its counts.
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
class SecondsBaseline:
    """Seconds of a split: how many, the share with an event, and the accuracy of the most frequent label."""

    seconds: float
    event_share: float
    majority_label: str
    majority_accuracy: float


@dataclass(frozen=True)
class ModalityBaseline:
    """One modality of a split: its timed events, the share of segments with one, and the clips without any."""

    events: int
    event_share: float
    clips_without: int


@dataclass(frozen=True)
class MaskBaseline:
    """Masks of a split: frames, those with ground truth, those whose ground truth is empty, the mean share of sounding
    pixels, and the mean IoU of the best `constant` answer (as officially, 1 for an empty mask left empty)."""

    frames: int
    masks: int
    empty: int
    area: float
    constant: str
    constant_iou: float


@dataclass(frozen=True)
class QuestionBaseline:
    """Questions of a split, or of one type in it: how many, about how many videos, and the most frequent answer."""

    questions: int
    videos: int
    majority_answer: str
    majority_accuracy: float


def segment_labels(clip: Clip, segments: int, modality: str | None = None) -> tuple[frozenset[str], ...]:
    """The labels of each of the clip's `segments`: those of the events (of one modality) that cover its middle.

    For whole seconds this is exactly `[start, end)`. No label is background.
    """
    events = [event for event in clip.events if modality in (None, event.modality)]
    length_s = clip.seconds / segments
    middles = [(i + 0.5) * length_s for i in range(segments)]
    return tuple(frozenset(e.label for e in events if e.start_s <= middle < e.end_s) for middle in middles)


def seconds_baseline(clips: Sequence[Clip], manifest: Manifest) -> SecondsBaseline:
    """The baseline of the segments of at least one clip."""
    counts: Counter[str] = Counter()
    for clip in clips:
        for labels in segment_labels(clip, manifest.segments):
            counts.update(labels or {BACKGROUND})
    total = len(clips) * manifest.segments
    background = counts[BACKGROUND]
    # equally frequent answers: background first, then the order of the classes
    label = max((BACKGROUND, *manifest.classes), key=lambda name: counts[name])
    return SecondsBaseline(
        seconds=total * manifest.segment_s,
        event_share=1 - background / total,
        majority_label=label,
        majority_accuracy=counts[label] / total,
    )


def modality_baselines(clips: Sequence[Clip], segments: int) -> dict[str, ModalityBaseline]:
    """By modality; empty where the events of `clips` have none."""
    baselines = {}
    for modality in sorted({event.modality for clip in clips for event in clip.events} - {""}):
        events = [sum(event.modality == modality for event in clip.events) for clip in clips]
        labels = [found for clip in clips for found in segment_labels(clip, segments, modality)]
        baselines[modality] = ModalityBaseline(
            events=sum(events),
            event_share=sum(map(bool, labels)) / len(labels),
            clips_without=events.count(0),
        )
    return baselines


def mask_baseline(clips: Sequence[Clip]) -> MaskBaseline | None:
    """The baseline of the masks in `clips`; None where no clip has any."""
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
    return MaskBaseline(
        frames=len(texts),
        masks=len(masks),
        empty=sum(not mask.any() for mask in masks),
        area=float(np.mean([mask.mean() for mask in masks])),
        constant=best,
        constant_iou=scores[best],
    )


def _iou(answer: Mask | bool, mask: Mask) -> float:
    """As in the official metric: for an empty mask, the share of pixels that are rightly left out."""
    guessed = np.broadcast_to(answer, mask.shape)
    if not mask.any():
        return float(1 - guessed.mean())
    return float((guessed & mask).sum() / (guessed | mask).sum())


def question_baselines(clips: Sequence[Clip]) -> dict[str, dict[str, QuestionBaseline]]:
    """By split, then by type (`all` first); empty where `clips` have no questions."""
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


def _questions(answers: Sequence[tuple[str, str]]) -> QuestionBaseline:
    [(most, times)] = Counter(answer for _, answer in answers).most_common(1)
    return QuestionBaseline(len(answers), len({key for key, _ in answers}), most, times / len(answers))


def leak_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """By split and other split: how many clips (or questions) of the first have a video that is in the other too."""
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
    """By class and split: how many clips have it as a video-level label, or how many questions as their answer."""
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
