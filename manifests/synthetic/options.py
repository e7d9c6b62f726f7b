"""What a generated data set is made from: every option, its allowed range, and the shares derived from them.

Sets with equal options (and equal numpy, PyAV and codec versions) have identical bytes, so a folder is only continued
with the options it was begun with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic.classes import CLASSES, MIN_CLASSES, class_names, llp_name, simple_name
from caeav.manifests.synthetic.material import Material

GENERATOR_VERSION = 1
"""To be raised whenever the same options would give other clips."""

KINDS = ("offscreen", "silent", "wrong_sound", "cut")
"""Misalignments: sound without its object; object without its sound; object with another class's sound; a camera cut
at which the object or the sound begins or ends while the other goes on."""
ALIGNED = "aligned"

LAYOUTS = ("ave", "llp", "avs-s4", "avs-ms3", "music-avqa")
"""The data sets in whose official layout a set can be written."""
_LAYOUT_DEFAULTS: dict[str, dict[str, int]] = {
    name: {"seconds": 5, "size_px": 224} for name in ("avs-s4", "avs-ms3")
}

WITH_QUESTIONS = "music-avqa"
"""The only layout with questions."""
DEFAULT_QUESTIONS, MAX_QUESTIONS = 6, 40

RATES_HZ = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


@dataclass(frozen=True)
class SyntheticOptions:
    """Options of a generated set; raises `CaeavError` listing everything that is wrong at once.

    layout: the data set whose files are written. seconds: length of a clip, one segment per second. size_px: width and
    height. misaligned: share of clips with a misalignment, divided among the kinds by the weights `mix`. distractors:
    share of misaligned clips in which another class is seen but not heard, or heard but not seen, so that the modality
    which the misalignment leaves intact does not give the event away either. splits: shares of train, val and test.
    questions: how many a video has at most, in MUSIC-AVQA's layout. material: the user's pictures and sounds, of which
    the first `classes` classes are used; None draws and plays the generated shapes and voices.
    """

    clips: int = 240
    classes: int = 8
    seconds: int = 10
    size_px: int = 128
    fps: int = 10
    rate_hz: int = 16_000
    seed: int = 0
    misaligned: float = 0.6
    mix: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    distractors: float = 0.95
    splits: tuple[float, float, float] = (0.7, 0.15, 0.15)
    layout: str = "ave"
    questions: int = DEFAULT_QUESTIONS
    material: Material | None = None

    @classmethod
    def for_layout(cls, layout: str, **other: Any) -> SyntheticOptions:
        """The defaults of a layout (AVSBench has 5 s and 224 pixels) and of a material (all its classes), overridden by
        `other` options."""
        material: Material | None = other.get("material")
        known = {} if material is None else {"classes": len(material.classes)}
        return cls(**{**_LAYOUT_DEFAULTS.get(layout, {}), **known, "layout": layout, **other})

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}; allowed are whole numbers from {low} to {high}"
            for name, low, high in (
                ("clips", 1, 1_000_000),
                ("classes", MIN_CLASSES, len(self.material.classes if self.material else CLASSES)),
                ("seconds", 4, 60),
                ("size_px", 64, 512),
                ("fps", 4, 60),
                ("seed", 0, 2**63 - 1),
                ("questions", 1, MAX_QUESTIONS),
            )
            if not _is_whole(getattr(self, name), low, high)
        ]
        if _is_whole(self.size_px, 64, 512) and self.size_px % 2:
            problems.append(f"size_px is {self.size_px}; it must be even (chroma has half the resolution)")
        if self.layout not in LAYOUTS:
            problems.append(f"layout is {self.layout!r}; there are {', '.join(LAYOUTS)}")
        if self.layout != WITH_QUESTIONS and self.questions != DEFAULT_QUESTIONS:
            problems.append(
                f"questions is {self.questions!r}, and layout {self.layout} has none; {WITH_QUESTIONS} has"
            )
        if self.rate_hz not in RATES_HZ:
            problems.append(f"rate_hz is {self.rate_hz!r}; allowed are {', '.join(map(str, RATES_HZ))}")
        problems += [
            f"{name} is {getattr(self, name)!r}; allowed are shares from 0 to 1"
            for name in ("misaligned", "distractors")
            if not _is_number(getattr(self, name), 1.0)
        ]
        unknown = sorted(set(self.mix) - set(KINDS))
        if unknown:
            problems.append(f"mix names {', '.join(map(repr, unknown))}; known kinds are {', '.join(KINDS)}")
        weights = list(self.mix.values())
        if not all(_is_number(w, math.inf) for w in weights) or not 0 < sum(weights) < math.inf:
            problems.append(f"mix is {dict(self.mix)!r}; weights must be 0 or more, and one above 0")
        if (
            len(self.splits) != len(SPLITS)
            or not all(_is_number(s, 1.0) for s in self.splits)
            or abs(sum(self.splits) - 1) > 1e-6
        ):
            problems.append(f"splits is {self.splits!r}; three shares (train, val, test) must add up to 1")
        if problems:
            raise CaeavError(
                "the synthetic set cannot be made with these options:\n  - " + "\n  - ".join(problems),
                hint="correct each of the options listed",
            )

    def kind_shares(self) -> dict[str, float]:
        """The share of all clips of each kind, `aligned` first; they add up to 1."""
        total = sum(self.mix.values())
        shares = {kind: self.misaligned * self.mix.get(kind, 0.0) / total for kind in KINDS}
        return {ALIGNED: 1.0 - self.misaligned, **shares}

    def names(self) -> tuple[str, ...]:
        """The names of the classes in label order, as AVE would write them."""
        return class_names(self.classes) if self.material is None else self.material.classes[: self.classes]

    def llp_names(self) -> tuple[str, ...]:
        """The same names as LLP would write them."""
        return tuple(map(llp_name, self.names()))

    def simple_names(self) -> tuple[str, ...]:
        """The same names as AVSBench and MUSIC-AVQA would write them."""
        return tuple(map(simple_name, self.names()))

    def to_json(self) -> dict[str, Any]:
        """Every option and the generator's version as JSON values; equal if and only if the sets are equal."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["mix"] = {kind: float(self.mix.get(kind, 0.0)) for kind in KINDS}
        values["splits"] = [float(s) for s in self.splits]
        if self.layout == LAYOUTS[0]:  # sets made before there were others do not have it
            del values["layout"]
        if self.questions == DEFAULT_QUESTIONS:  # sets made when it was fixed do not have it
            del values["questions"]
        if self.material is None:  # nor do sets of generated shapes and voices
            del values["material"]
        else:
            values["material"] = self.material.to_json()
        return {"version": GENERATOR_VERSION, **values}


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= high
