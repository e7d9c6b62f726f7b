"""Damage to inputs, made to cached tokens when a batch is read: for scores under stress, and to augment training.

What happens to a clip is a function of (seed, its key, the kind of damage) in scoring, and of the epoch besides in
training; whether, too: each clip has a fixed number in 0..1 for each kind and is hit where it lies below the share, so
the clips hit by a small share are among those hit by a greater one. All rows of a clip (questions) are hit alike.
Order: cut, blind; swap, shift, mute; captions swapped, emptied, dropped. What is removed is zeros with flags and masks
False, as the recipes `audio` and `visual` remove a modality. Shapes: `B` samples, `T` segments.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from caeav.manifests.core.errors import CaeavError, did_you_mean
from caeav.model.adapters.batch import ClipData, Epoch, InputSpec, TokenBatch
from caeav.model.tasks.config import StressConfig
from caeav.model.train.data import CAPTION_ARRAYS

KINDS = ("cut", "blind", "swap", "shift", "mute", "caption_swap", "caption_empty", "caption_drop")
"""In the order in which they are done; the place is part of what is drawn from, so new ones go to the end."""

CAPTION_KINDS = tuple(kind for kind in KINDS if kind.startswith("caption_"))
NEED_OTHERS = ("cut", "swap", "caption_swap")
PICTURE_BESIDES = "motion."
"""Taps of neither modality by name that show the picture all the same."""

Arrays = dict[str, Tensor]


class Stress:
    """A `BatchTransform` of batches that are scored."""

    def __init__(self, strengths: StressConfig, seed: int = 0) -> None:
        self._strengths, self._seed = strengths, seed

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """Training batches are left alone."""
        if epoch is not None:
            return batch
        return _stressed(batch, rows, data, self._strengths, _Source((self._seed,), varied=False))


class Augment:
    """A `BatchTransform` of training batches: drawn anew every epoch, `shift` in both directions up to its value."""

    def __init__(self, strengths: StressConfig) -> None:
        self._strengths = strengths

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """Batches that are scored are left alone."""
        if epoch is None:
            return batch
        return _stressed(batch, rows, data, self._strengths, _Source(tuple(epoch), varied=True))


def active(strengths: StressConfig) -> dict[str, float]:
    """The kinds that do anything, with their strength."""
    return {kind: value for kind in KINDS if (value := getattr(strengths, kind))}


def said(strengths: StressConfig) -> str:
    """As on the command line: `shift=2,swap=0.3`."""
    return ",".join(f"{kind}={value:g}" for kind, value in active(strengths).items()) or "none"


def parse_stress(text: str) -> StressConfig:
    """`shift=2,swap=0.3` -> strengths; raises `CaeavError` with everything that is wrong with it."""
    faults, values = [], {}
    for part in text.split(","):
        kind, _, number = (x.strip() for x in part.partition("="))
        field = StressConfig.model_fields.get(kind)
        if field is None:
            faults.append(", ".join(filter(None, (f"{kind!r} is no stress", did_you_mean(kind, KINDS)))))
        elif kind in values:
            faults.append(f"{kind} is given twice")
        else:
            values[kind] = number
    try:
        strengths = StressConfig.model_validate(values)
    except ValidationError as error:
        faults += [f"{fault['loc'][0]}={fault['input']}: {fault['msg'].lower()}" for fault in error.errors()]
    if faults:
        raise CaeavError(
            f"--stress {text!r}: {'; '.join(faults)}",
            hint=f"KIND=STRENGTH separated by commas, kinds: {', '.join(KINDS)}; shift is a whole number of segments, "
            "the others a share of clips from 0 to 1",
        )
    return strengths


def check_stress(kinds: Sequence[str], spec: InputSpec, *, captions: bool, shift: int = 0) -> None:
    """Raises `CaeavError` where a run's inputs cannot be damaged so."""
    if abs(shift) >= spec.segments:
        raise CaeavError(
            f"shift={shift}: a clip has {spec.segments} segments",
            hint=f"shift by {spec.segments - 1} segments at most",
        )
    silent = [kind for kind in kinds if kind in CAPTION_KINDS]
    if silent and not captions:
        raise CaeavError(
            f"{', '.join(silent)}: this run reads no captions",
            hint="leave it away, or take a run that does: --recipe full or case",
        )


class _Source(NamedTuple):
    """What draws come from; varied: shifts are drawn too."""

    start: tuple[int, ...]
    varied: bool

    def draw(self, key: str, kind: str) -> np.random.Generator:
        return np.random.default_rng([*self.start, zlib.crc32(key.encode()), KINDS.index(kind)])


@dataclass(frozen=True)
class _Hits:
    """The clips that a kind happens to: their places in the batch, one donor clip and one segment for each."""

    places: list[int]
    donors: list[int]
    segments: list[int]


def _stressed(
    batch: TokenBatch, rows: Sequence[int], data: ClipData, strengths: StressConfig, source: _Source
) -> TokenBatch:
    wanted = active(strengths)
    if not wanted:
        return batch
    arrays = _flat(batch)
    picture = [name for name in arrays if name == "frames_ok" or name in batch.visual or _shows(name)]
    sound = ["audio_ok", *batch.audio]
    captions = [name for name in CAPTION_ARRAYS if name in arrays]
    words = [name for name in captions if not name.endswith("_mask")]
    clips = data.clips_of(rows)
    for kind, value in wanted.items():
        if kind == "shift":
            _shift(arrays, sound, [_steps(data.clips[clip], int(value), source) for clip in clips])
            continue
        hits = _hits(kind, value, clips, data, source, batch.frames_ok.shape[1])
        if hits.places:
            DAMAGE[kind](arrays, {"p": picture, "s": sound, "c": captions, "w": words}, hits, data)
    return _unflat(batch, arrays)


def _hits(
    kind: str, share: float, clips: Sequence[int], data: ClipData, source: _Source, segments: int
) -> _Hits:
    others = len(data.clips) - 1
    if kind in NEED_OTHERS and not others:
        raise CaeavError(f"{kind}: the split has one clip, so there is no other", hint="take a larger split")
    found = _Hits([], [], [])
    for place, clip in enumerate(clips):
        rng = source.draw(data.clips[clip], kind)
        if rng.random() < share:
            donor = int(rng.integers(others)) if others else -1
            found.places.append(place)
            found.donors.append(donor + (donor >= clip))
            found.segments.append(int(rng.integers(1, max(segments, 2))))
    return found


def _steps(key: str, shift: int, source: _Source) -> int:
    if not source.varied:
        return shift
    return int(source.draw(key, "shift").integers(-abs(shift), abs(shift) + 1))


def _shift(arrays: Arrays, names: Sequence[str], steps: Sequence[int]) -> None:
    """Later by `steps` segments, clip by clip; what leaves at one end comes in at the other: nothing is lost."""
    for name in names:
        arrays[name] = torch.stack([x.roll(n, 0) for x, n in zip(arrays[name], steps, strict=True)])


def _remove(arrays: Arrays, names: Sequence[str], hits: _Hits) -> None:
    for name in names:
        arrays[name] = arrays[name].clone()
        arrays[name][hits.places] = 0


def _exchange(
    arrays: Arrays, names: Sequence[str], hits: _Hits, data: ClipData, *, from_segment: bool = False
) -> None:
    """Another clip's arrays instead of one's own, all of them or from the drawn segment on."""
    given = data.clip_arrays(hits.donors)
    for name in names:
        arrays[name] = arrays[name].clone()
        for i, (place, segment) in enumerate(zip(hits.places, hits.segments, strict=True)):
            first = segment if from_segment else 0
            arrays[name][place, first:] = given[name][i, first:]


Damage = Callable[[Arrays, dict[str, list[str]], _Hits, ClipData], None]

DAMAGE: dict[str, Damage] = {
    "cut": lambda x, of, hits, data: _exchange(x, of["p"], hits, data, from_segment=True),
    "blind": lambda x, of, hits, data: _remove(x, of["p"], hits),
    "swap": lambda x, of, hits, data: _exchange(x, of["s"], hits, data),
    "mute": lambda x, of, hits, data: _remove(x, of["s"], hits),
    "caption_swap": lambda x, of, hits, data: _exchange(x, of["c"], hits, data),
    "caption_empty": lambda x, of, hits, data: _remove(x, of["w"], hits),
    "caption_drop": lambda x, of, hits, data: _remove(x, of["c"], hits),
}
"""p: arrays of the picture, s: of the sound, c: of captions, w: of their words."""


def _shows(name: str) -> bool:
    return name.startswith(PICTURE_BESIDES)


def _flat(batch: TokenBatch) -> Arrays:
    """Everything that was read from stores, by name."""
    besides = {name: x for name, x in batch.extra.items() if _shows(name)}
    captions = {name: x for name in CAPTION_ARRAYS if (x := getattr(batch, name)) is not None}
    flags = {"frames_ok": batch.frames_ok, "audio_ok": batch.audio_ok}
    return {**batch.visual, **batch.audio, **besides, **captions, **flags}


def _unflat(batch: TokenBatch, arrays: Arrays) -> TokenBatch:
    return replace(
        batch,
        visual={name: arrays[name] for name in batch.visual},
        audio={name: arrays[name] for name in batch.audio},
        extra={name: arrays.get(name, x) for name, x in batch.extra.items()},
        frames_ok=arrays["frames_ok"],
        audio_ok=arrays["audio_ok"],
        visual_caption=arrays.get("visual_caption"),
        visual_caption_mask=arrays.get("visual_caption_mask"),
        audio_caption=arrays.get("audio_caption"),
        audio_caption_mask=arrays.get("audio_caption_mask"),
    )
