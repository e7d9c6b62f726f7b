"""How far perfect perception of one modality would get on a set: a bound for unimodal models.

An oracle knows without error which classes are present in its modality in every second, and guesses the events by a
rule. Every rule of a small family is tried and the best one reported, chosen on the very clips it is scored on, which
favours the oracle. The score is AVE's: the share of seconds that get the right one of K classes or background.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.synthetic.scenario import Scenario

Mask = NDArray[np.bool_]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Score:
    """`accuracy` in [0, 1] of what `knows` says, reached by `rule`."""

    knows: str
    accuracy: float
    rule: str


def scores(scenarios: Sequence[Scenario], classes: int) -> tuple[Score, ...]:
    """Majority, best visual-only, best audio-only, and both modalities together, in this order."""
    truth = labels(scenarios, classes)
    seen, heard = (presence(scenarios, classes, track) for track in ("seen", "heard"))
    counts = np.bincount(truth.ravel(), minlength=classes + 1)
    most = int(counts.argmax())
    return (
        Score(
            "nothing",
            float(counts[most] / truth.size),
            "always background" if most == classes else "one class",
        ),
        best_unimodal("visual alone", seen, truth),
        best_unimodal("audio alone", heard, truth),
        Score("audio and visual", _accuracy(_single_labels(seen & heard), truth), "seen and heard"),
    )


def labels(scenarios: Sequence[Scenario], classes: int) -> Labels:
    """The true label of every second, `classes` for background: int64 [N, T]."""
    truth = np.full((len(scenarios), len(scenarios[0].seen)), classes, dtype=np.int64)
    for row, s in zip(truth, scenarios, strict=True):
        row[s.start_s : s.end_s] = s.category
    return truth


def presence(scenarios: Sequence[Scenario], classes: int, track: str) -> Mask:
    """Which classes are present in each second, by `track` (`seen` or `heard`): bool [N, K, T]."""
    mask = np.zeros((len(scenarios), classes, len(scenarios[0].seen)), dtype=bool)
    for clip, s in zip(mask, scenarios, strict=True):
        for t, present in enumerate(getattr(s, track)):
            clip[list(present), t] = True
    return mask


def best_unimodal(knows: str, mask: Mask, truth: Labels) -> Score:
    """The best rule that looks only at `mask` [N, K, T]."""
    rules = itertools.product(PICKS, SPANS, (False, True))
    tried = [
        Score(
            knows, _accuracy(predict(mask, truth, pick, span, abstain), truth), _describe(pick, span, abstain)
        )
        for pick, span, abstain in rules
    ]
    return max(tried, key=lambda score: score.accuracy)


def predict(mask: Mask, truth: Labels, pick: str, span: str, abstain: bool) -> Labels:
    """Guessed labels [N, T]: one class of each clip, chosen by `pick`, in the seconds chosen by `span`.

    With `abstain`, clips in which several classes are present are called background throughout. Of `truth` only the
    median length of an event is used.
    """
    n, k, seconds = mask.shape
    typical = float(np.median((truth != k).sum(axis=1)))
    guessed = np.full((n, seconds), k, dtype=np.int64)
    for i, clip in enumerate(mask):
        present = np.flatnonzero(clip.any(axis=1))
        if not len(present) or (abstain and len(present) > 1):
            continue
        chosen = min(present, key=lambda c: PICKS[pick](clip[c], typical))
        guessed[i, SPANS[span](clip, int(chosen), typical)] = chosen
    return guessed


def _begin(track: Mask) -> float:
    return float(track.argmax())


PICKS: dict[str, Callable[[Mask, float], float]] = {
    "the longest": lambda track, typical: -float(track.sum()),
    "the shortest": lambda track, typical: float(track.sum()),
    "the longest not throughout": lambda track, typical: float(track.all()) * track.size - float(track.sum()),
    "the one nearest to a usual event": lambda track, typical: abs(float(track.sum()) - typical),
    "the first": lambda track, typical: _begin(track),
    "the last": lambda track, typical: -_begin(track),
}
"""How the clip's class is guessed: the one with the smallest value."""


def _first_of(track: Mask, n: float) -> Mask:
    return np.asarray(track & (np.cumsum(track) <= n))


SPANS: dict[str, Callable[[Mask, int, float], Mask]] = {
    "whenever it is present": lambda clip, c, typical: clip[c],
    "while it is alone": lambda clip, c, typical: clip[c] & (clip.sum(axis=0) == 1),
    "for the usual length from its start": lambda clip, c, typical: _first_of(clip[c], typical),
    "for the usual length to its end": lambda clip, c, typical: _first_of(clip[c][::-1], typical)[::-1],
}
"""In which of the chosen class's seconds the event is said to be."""


def _describe(pick: str, span: str, abstain: bool) -> str:
    return f"{pick} class, {span}" + (", nothing where several are" if abstain else "")


def _single_labels(mask: Mask) -> Labels:
    return np.asarray(np.where(mask.any(axis=1), mask.argmax(axis=1), mask.shape[1]), dtype=np.int64)


def _accuracy(guessed: Labels, truth: Labels) -> float:
    return float((guessed == truth).mean())
