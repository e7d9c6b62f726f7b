"""Clips worth a look before a number is trusted: doubtful labels, near-duplicates, audio and frames apart.

All three rest on one vector per clip and modality (`summary.py`). A linear classifier, fitted to the clips' labels,
predicts the class of each clip without having seen it: clips of one video are always judged together, by a
classifier that saw none of them. Shapes: `N` clips, `D` of a pooled vector, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIMENSIONS = 96
"""Principal components of the pooled vectors that the classifier sees."""
FOLDS = 5
RIDGE = 0.1
AT_ONCE = 512
"""Rows of the matrix of similarities in memory."""


@dataclass(frozen=True)
class Suspect:
    """A clip, how much it stands out (the larger the more), and why, in words."""

    key: str
    amount: float
    why: str


class Pair(NamedTuple):
    """Two clips of different splits and the cosine of their vectors."""

    a: str
    b: str
    similarity: float


def standardised(x: NDArray[np.float32]) -> Floats:
    """Columns of `[N, D]` with mean 0 and deviation 1, divided by sqrt(D), so that modalities weigh the same."""
    wide = x.astype(np.float64)
    scaled = (wide - wide.mean(axis=0)) / np.maximum(wide.std(axis=0), 1e-6)
    return np.asarray(scaled / np.sqrt(x.shape[1]))


def joined(pooled: Mapping[str, NDArray[np.float32]]) -> Floats:
    """All modalities side by side `[N, D]`."""
    return np.concatenate([standardised(x) for x in pooled.values()], axis=1)


def near_duplicates(
    keys: Sequence[str], vectors: Floats, groups: Sequence[str], most: int = 100
) -> list[Pair]:
    """The most similar pairs of clips whose `groups` (splits) differ, each clip with its nearest in another group."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    code = np.unique(np.array(groups), return_inverse=True)[1]
    found: dict[tuple[int, int], float] = {}
    for first in range(0, len(keys), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        likeness = unit[rows] @ unit.T  # [AT_ONCE, N]
        likeness[code[rows, None] == code[None]] = -np.inf
        best = likeness.argmax(axis=1)
        for i, j in enumerate(best.tolist()):
            value = float(likeness[i, j])
            if np.isfinite(value):
                found[min(first + i, j), max(first + i, j)] = value
    ordered = sorted(found.items(), key=lambda item: -item[1])[:most]
    return [Pair(keys[i], keys[j], value) for (i, j), value in ordered]


def held_out_probabilities(vectors: Floats, labels: Floats, videos: Sequence[str]) -> Floats:
    """`[N, K]`: class probabilities of each clip, from a linear classifier that saw no clip of the same video.

    labels: `[N, K]` in 0/1; clips without any are judged and not learned from.
    """
    x = principal(vectors, DIMENSIONS)
    fold = _folds(videos)
    target = labels / np.maximum(labels.sum(axis=1, keepdims=True), 1)
    known = labels.any(axis=1)
    found = np.full(labels.shape, 1 / labels.shape[1])
    for number in range(FOLDS):
        held, seen = fold == number, (fold != number) & known
        if held.any() and seen.any():
            found[held] = _softmax(_with_ones(x[held]) @ _fit(x[seen], target[seen]))
    return found


def principal(vectors: Floats, dimensions: int) -> Floats:
    """The first principal components `[N, dimensions or fewer]`, the first of them with length sqrt(N)."""
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(dimensions, int((s > 1e-9 * max(float(s[0]), 1e-30)).sum()))
    return np.asarray((u * s)[:, :kept] / max(float(s[0]), 1e-30) * np.sqrt(len(vectors)))


def doubtful_labels(
    keys: Sequence[str], probabilities: Floats, labels: Floats, classes: Sequence[str]
) -> list[Suspect]:
    """Labelled clips, the most doubtful first: another class is that much likelier than the least likely label."""
    own = np.where(labels > 0, probabilities, np.inf).min(axis=1)
    other = np.where(labels > 0, -np.inf, probabilities).max(axis=1)
    rival = np.where(labels > 0, -np.inf, probabilities).argmax(axis=1)
    found = []
    for i, key in enumerate(keys):
        if labels[i].any() and not labels[i].all():
            named = ", ".join(classes[k] for k in np.flatnonzero(labels[i]).tolist())
            why = f"labelled {named} ({own[i]:.2f}), looks and sounds like {classes[int(rival[i])]} ({other[i]:.2f})"
            found.append(Suspect(key, float(other[i] - own[i]), why))
    return sorted(found, key=lambda suspect: -suspect.amount)


def apart(keys: Sequence[str], seen: Floats, heard: Floats, classes: Sequence[str]) -> list[Suspect]:
    """Clips whose visual and audio tokens are predicted as different classes, the surest first.

    seen, heard: `[N, K]`, predictions from either modality alone.
    """
    together = (seen * heard).sum(axis=1)
    sure = np.minimum(seen.max(axis=1), heard.max(axis=1))
    differ = seen.argmax(axis=1) != heard.argmax(axis=1)
    amount = (1 - together) * np.where(differ, 1 + sure, sure)
    found = []
    for i, key in enumerate(keys):
        a, b = int(seen[i].argmax()), int(heard[i].argmax())
        why = f"looks like {classes[a]} ({seen[i, a]:.2f}), sounds like {classes[b]} ({heard[i, b]:.2f})"
        found.append(Suspect(key, float(amount[i]), why))
    return sorted(found, key=lambda suspect: -suspect.amount)


def _folds(videos: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each clip; clips of one video share it."""
    names, of = np.unique(np.array(videos), return_inverse=True)
    return np.asarray((np.random.default_rng(0).permutation(len(names)) % FOLDS)[of])


def _fit(x: Floats, target: Floats) -> Floats:
    """Weights `[D + 1, K]` of a softmax classifier, the last row its bias."""
    inputs, wanted = torch.from_numpy(_with_ones(x)), torch.from_numpy(target)
    weights = torch.zeros(inputs.shape[1], target.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ weights, wanted)
        loss = loss + RIDGE * weights[:-1].square().sum() / len(inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(weights.detach().numpy())


def _with_ones(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
