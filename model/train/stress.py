"""Damage to cached tokens as a batch is read: to score a run under stress, or to augment its training.

What happens to a clip is a function of the seed, the clip's key and the kind of damage, in training also of the epoch.
Each clip has a fixed number in 0..1 for each kind and is hit where that lies below the strength, so the clips hit by a
small share are among those hit by a larger one. All samples of a clip (its questions) are hit alike. Removed arrays
become zeros with flags and masks False, as the presets `audio` and `visual` remove a modality.
Shapes: `B` samples, `T` segments.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
"""In the order of application. The index seeds the draws, so new kinds go to the end."""

CAPTION_KINDS = tuple(kind for kind in KINDS if kind.startswith("caption_"))
NEED_DONOR = ("cut", "swap", "caption_swap")
MOTION = "motion."
"""Taps of this name belong to neither modality, but are computed from frames."""

Arrays = dict[str, Tensor]
PLACE_SEEN, PLACE_HEARD = "place.visual", "place.audio"
SEEN, HEARD = "label.visual", "label.audio"
"""Arrays of our own that are damaged like a modality's: where each second comes from, and what labels say of it."""


class Stress:
    """A `BatchTransform` that damages batches for scoring; labels stay, or `follow` what it does to either modality."""

    def __init__(self, strengths: StressConfig, seed: int = 0, follow: Followed | None = None) -> None:
        self._strengths, self._seed, self._follow = strengths, seed, follow

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """Leaves training batches as they are."""
        if epoch is not None:
            return batch
        source = _Source((self._seed,), varied=False)
        return _stressed(batch, rows, data, self._strengths, source, self._follow)


class Augment:
    """A `BatchTransform` that damages training batches anew every epoch; shifts go up to `shift` in both directions."""

    def __init__(self, strengths: StressConfig) -> None:
        self._strengths = strengths

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """Leaves batches for scoring as they are."""
        if epoch is None:
            return batch
        return _stressed(batch, rows, data, self._strengths, _Source(tuple(epoch), varied=True))


def active(strengths: StressConfig) -> dict[str, float]:
    """The kinds with a strength other than 0."""
    return {kind: value for kind in KINDS if (value := getattr(strengths, kind))}


def stress_text(strengths: StressConfig) -> str:
    """Strengths as on the command line: `shift=2,swap=0.3`."""
    return ",".join(f"{kind}={value:g}" for kind, value in active(strengths).items()) or "none"


def parse_stress(text: str) -> StressConfig:
    """The strengths in a text such as `shift=2,swap=0.3`; raises `CaeavError` with all its faults."""
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
    """Raise `CaeavError` for kinds of stress that a run's inputs do not allow."""
    if abs(shift) >= spec.segments:
        raise CaeavError(
            f"shift={shift}: a clip has {spec.segments} segments",
            hint=f"shift by {spec.segments - 1} segments at most",
        )
    of_captions = [kind for kind in kinds if kind in CAPTION_KINDS]
    if of_captions and not captions:
        raise CaeavError(
            f"{', '.join(of_captions)}: this run reads no captions",
            hint="leave it out, or use a run that does: --recipe full or case",
        )


class _Source(NamedTuple):
    """Random generators per clip and kind; `varied`: the size of shifts is drawn too."""

    seeds: tuple[int, ...]
    varied: bool

    def draw(self, key: str, kind: str) -> np.random.Generator:
        return np.random.default_rng([*self.seeds, zlib.crc32(key.encode()), KINDS.index(kind)])


@dataclass(frozen=True)
class _Hits:
    """The clips that a kind hits: their places in the batch, and a donor clip and a segment for each."""

    places: list[int]
    donors: list[int]
    segments: list[int]


def _stressed(
    batch: TokenBatch,
    rows: Sequence[int],
    data: ClipData,
    strengths: StressConfig,
    source: _Source,
    follow: Followed | None = None,
) -> TokenBatch:
    wanted = active(strengths)
    if not wanted:
        return batch
    clips = data.clips_of(rows)
    segments = batch.frames_ok.shape[1]
    companions = _Companions(data, segments, follow)
    arrays = _flat(batch) | companions.own_arrays(clips)
    captions = [name for name in CAPTION_ARRAYS if name in arrays]
    names = {
        "visual": ["frames_ok", *batch.visual, *_motion(batch), PLACE_SEEN, *((SEEN,) if follow else ())],
        "audio": ["audio_ok", *batch.audio, PLACE_HEARD, *((HEARD,) if follow else ())],
        "captions": captions,
        "caption_tokens": [name for name in captions if not name.endswith("_mask")],
    }
    for kind, value in wanted.items():
        if kind == "shift":
            _shift(arrays, names["audio"], [_steps(data.clips[clip], int(value), source) for clip in clips])
            continue
        hits = _hits(kind, value, clips, data, source, segments)
        if hits.places:
            target, damage = DAMAGE[kind]
            damage(arrays, names[target], hits, companions)
    damaged = _unflat(batch, arrays)
    damaged.sound_from = _sound_from(arrays[PLACE_SEEN], arrays[PLACE_HEARD], segments)
    if follow is not None:
        damaged.targets = follow.targets(batch.targets, arrays[SEEN], arrays[HEARD])
    return damaged


def _sound_from(seen: Tensor, heard: Tensor, segments: int) -> Tensor:
    """`TokenBatch.sound_from` `[B, T]` from the places that frames and sound of each second come from."""
    of_clip = seen.div(segments, rounding_mode="floor") == heard.div(segments, rounding_mode="floor")
    return torch.where(seen == heard, 0, torch.where(of_clip, 1, 2))


@dataclass(frozen=True)
class Followed:
    """Labels that follow a damage. `seen`, `heard`: `[clips, T, K]`, what labels say of every clip of the split.
    `targets`: the batch's targets, and both as they are after the damage -> the targets that are true then."""

    seen: Tensor
    heard: Tensor
    targets: Callable[[Mapping[str, Tensor], Tensor, Tensor], dict[str, Tensor]]


class _Companions:
    """Clips' arrays with those of our own added, for the batch and for donors."""

    def __init__(self, data: ClipData, segments: int, follow: Followed | None) -> None:
        self._data, self._segments, self._follow = data, segments, follow

    def clip_arrays(self, clips: Sequence[int]) -> Arrays:
        """Everything of these clips, `[B, ...]` each."""
        return {**self._data.clip_arrays(clips), **self.own_arrays(clips)}

    def own_arrays(self, clips: Sequence[int]) -> Arrays:
        """A number for each second of the split, `[B, T]`, and, if labels follow, these."""
        index = torch.as_tensor(clips, dtype=torch.long)
        place = index.unsqueeze(1) * self._segments + torch.arange(self._segments)
        found = {PLACE_SEEN: place, PLACE_HEARD: place}
        if self._follow is not None:
            found |= {SEEN: self._follow.seen[index], HEARD: self._follow.heard[index]}
        return found


def _hits(
    kind: str, share: float, clips: Sequence[int], data: ClipData, source: _Source, segments: int
) -> _Hits:
    others = len(data.clips) - 1
    if kind in NEED_DONOR and not others:
        raise CaeavError(
            f"{kind}: the split has one clip, so there is no other", hint="choose a larger split"
        )
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
    """Roll arrays later by `steps` segments, clip by clip; what leaves at one end enters at the other."""
    for name in names:
        arrays[name] = torch.stack([x.roll(n, 0) for x, n in zip(arrays[name], steps, strict=True)])


def _remove(arrays: Arrays, names: Sequence[str], hits: _Hits, data: _Companions) -> None:
    for name in names:
        if name in (PLACE_SEEN, PLACE_HEARD):
            continue  # silence has no other place
        arrays[name] = arrays[name].clone()
        arrays[name][hits.places] = 0


def _exchange(
    arrays: Arrays, names: Sequence[str], hits: _Hits, data: _Companions, *, from_segment: bool = False
) -> None:
    """Replace a clip's arrays by its donor's, as a whole or from the drawn segment on."""
    donated = data.clip_arrays(hits.donors)
    for name in names:
        arrays[name] = arrays[name].clone()
        for i, (place, segment) in enumerate(zip(hits.places, hits.segments, strict=True)):
            first = segment if from_segment else 0
            arrays[name][place, first:] = donated[name][i, first:]


Damage = Callable[[Arrays, Sequence[str], _Hits, _Companions], None]

DAMAGE: dict[str, tuple[str, Damage]] = {
    "cut": ("visual", partial(_exchange, from_segment=True)),
    "blind": ("visual", _remove),
    "swap": ("audio", _exchange),
    "mute": ("audio", _remove),
    "caption_swap": ("captions", _exchange),
    "caption_empty": ("caption_tokens", _remove),
    "caption_drop": ("captions", _remove),
}
"""Kind -> which arrays it damages, and how."""


def _motion(batch: TokenBatch) -> list[str]:
    return [name for name in batch.extra if name.startswith(MOTION)]


def _flat(batch: TokenBatch) -> Arrays:
    """Everything in a batch that was read from stores, by name."""
    motion = {name: batch.extra[name] for name in _motion(batch)}
    captions = {name: x for name in CAPTION_ARRAYS if (x := getattr(batch, name)) is not None}
    flags = {"frames_ok": batch.frames_ok, "audio_ok": batch.audio_ok}
    return {**batch.visual, **batch.audio, **motion, **captions, **flags}


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
