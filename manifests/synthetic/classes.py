"""The event classes of the generated world: how each looks, moves and sounds, as one table.

The names in the columns are those of `sprites.py` (shape, pattern, motion) and `audio.py` (voice). The first classes
are the easiest to tell apart, so that a set with fewer classes is not a harder one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventClass:
    """One class: a `shape` of colour `hue_deg` with a surface `pattern`, a `motion` and a `voice`."""

    name: str
    shape: str
    hue_deg: float
    pattern: str
    motion: str
    voice: str


CLASSES = (
    EventClass("Bouncing disc", "disc", 0, "plain", "bounce", "rising_chirps"),
    EventClass("Spinning triangle", "triangle", 125, "plain", "spin", "engine"),
    EventClass("Swinging bar", "bar", 220, "plain", "swing", "noise_bursts"),
    EventClass("Pulsing star", "star", 56, "plain", "pulse", "bell"),
    EventClass("Gliding ring", "ring", 305, "plain", "glide", "beeps"),
    EventClass("Hopping box, square", "square", 182, "checker", "hop", "trill"),
    EventClass("Circling cross (plus)", "cross", 28, "plain", "circle", "clicks"),
    EventClass("Swaying crescent", "crescent", 270, "plain", "sway", "vibrato"),
    EventClass("Shaking diamond", "diamond", 90, "stripes", "shake", "siren"),
    EventClass("Growing hexagon", "hexagon", 153, "dot", "grow", "drops"),
    EventClass("Beating heart", "heart", 335, "plain", "beat", "thumps"),
    EventClass("Fluttering moth", "ellipse", 244, "stripes", "flutter", "buzz"),
)
"""Some names have commas and brackets, as in the real set."""

BACKGROUND = "background"

MIN_CLASSES = 5
"""A clip can hold its own class, a wrong sound and three distractors."""

_UNDERSCORES = str.maketrans({" ": "_", ",": None})


def llp_name(name: str) -> str:
    """A class's name as LLP would write it: `Circling_cross_(plus)`."""
    return name.translate(_UNDERSCORES)


def simple_name(name: str) -> str:
    """A class's name as AVSBench and MUSIC-AVQA would write it: `circling_cross_plus`."""
    return llp_name(name).lower().replace("(", "").replace(")", "")


def class_names(n: int) -> tuple[str, ...]:
    """The names of the first `n` classes, in label order."""
    return tuple(c.name for c in CLASSES[:n])
