"""From scores of named classes over time to a sentence: what is claimed, when, and in which words.

A class is claimed in the segments whose score reaches a threshold, and nothing is claimed below it. Segments are
counted from 1, as everywhere in captions and tables. Shapes: `T` segments, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.captioners.descriptor import spans_words

VERSION = 1
"""Of the rules that make words of scores."""
MOST = 3
"""How many things a caption names at most, by default: so many fit the 32 words of the `hashed` text encoder."""
Scores = NDArray[np.float32]
THROUGHOUT = spans_words([True])

_UNCOUNTED_SOUNDS = frozenset(
    (
        *("music", "speech", "monologue", "conversation", "narration", "laughter", "applause"),
        *("chatter", "hubbub", "water", "rain", "wind", "thunder", "fire", "steam", "noise"),
        *("static", "hum", "wood", "glass", "liquid", "jazz", "disco", "opera", "techno"),
        *("dubstep", "funk", "reggae", "grunge", "ska", "electronica", "flamenco", "rock", "metal"),
        *("blues", "bluegrass", "country", "afrobeat", "patter", "timpani", "reverberation"),
        *("distortion", "cacophony", "vibration", "transport", "percussion", "cutlery", "cattle"),
    )
)
_UNCOUNTED_THINGS = frozenset(
    ("guacamole", "consomme", "cream", "broccoli", "hay", "carbonara", "dough", "espresso", "corn")
)
"""Last words of names that take no article. Plurals take none, and of sounds those in -ing and `music of ...`."""
_COUNTED = frozenset(("ping", "ding", "zing", "boing", "recording"))
"""Ending in -ing, but things that are counted."""
_AN, _A = ("hour",), ("uni", "uk", "eu", "one-", "use")


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raises `CaeavError` for a `threshold` outside 0..1 and for fewer than one of `names`."""
    if not 0 < settings["threshold"] <= 1:
        raise CaeavError(
            f"setting 'threshold' of {name} is {settings['threshold']}",
            hint="give a score above 0, at most 1",
        )
    if settings["names"] < 1:
        raise CaeavError(f"setting 'names' of {name} is {settings['names']}", hint="give 1 or more")


@dataclass(frozen=True)
class Claim:
    """A name and the segments `[T]` in which it is claimed."""

    name: str
    active: NDArray[np.bool_]


def claims(
    scores: Scores, names: Sequence[str], real: Sequence[bool], *, threshold: float, most: int, near: int = 0
) -> list[Claim]:
    """At most `most` claims in the order of time: the classes whose score `[T, K]` is highest anywhere.

    `real` `[T]`: segments of real media; of others nothing is claimed. `near`: classes at most so many places apart in
    the list, and claimed in common segments, are kinds of one thing, of which the strongest is named.
    """
    active = (scores >= threshold) & np.asarray(real, dtype=np.bool_)[:, None]  # [T, K]
    peak = np.where(active, scores, 0).max(axis=0, initial=0)  # [K]
    kept: dict[int, NDArray[np.bool_]] = {}
    for k in np.argsort(-peak, kind="stable")[: int((peak > 0).sum())].tolist():
        same = (
            j
            for j in kept
            if names[j] == names[k] or (abs(j - k) <= near and bool((kept[j] & active[:, k]).any()))
        )
        if (one := next(same, None)) is not None:
            kept[one] = kept[one] | active[:, k]
        elif len(kept) < most:
            kept[k] = active[:, k]
    found = [Claim(names[k], held) for k, held in kept.items()]
    return sorted(found, key=lambda claim: int(claim.active.argmax()))


def sentence(
    begin: str, found: Sequence[Claim], real: Sequence[bool], nothing: str, say: Callable[[str], str]
) -> str:
    """`begin` and the claims with their segments, or `nothing` without any; `say` gives a name its article.

    Where all is claimed in all real segments, none are named; claims of the same segments in a row have them
    named once. What begins after all before it have ended comes with `then`.
    """
    if not found:
        return nothing
    whole = np.asarray(real, dtype=np.bool_)
    groups: list[tuple[str, list[Claim]]] = []
    for claim in found:
        time = _when(claim.active, whole)
        if groups and groups[-1][0] == time:
            groups[-1][1].append(claim)
        else:
            groups.append((time, [claim]))
    told = any(time != THROUGHOUT for time, _ in groups)
    text, ended = "", len(whole)
    for i, (time, group) in enumerate(groups):
        held = [np.flatnonzero(claim.active) for claim in group]
        later = int(held[0][0]) > ended
        text += "" if not i else ", then " if later else " and " if i + 1 == len(groups) else ", "
        said = [say(claim.name) for claim in group]
        text += ", ".join(said[:-1]) + (" and " if said[1:] else "") + said[-1] + (f" {time}" if told else "")
        end = max(int(at[-1]) for at in held)
        ended = max(ended, end) if i else end
    return f"{begin} {text}."


def _when(active: NDArray[np.bool_], real: NDArray[np.bool_]) -> str:
    return spans_words((active | ~real).tolist() if active[real].all() else active.tolist())


def thing(name: str) -> str:
    """`a beagle`, `an accordion`; what is not counted stays as it is: `hay`, `binoculars`."""
    return name if _last(name) in _UNCOUNTED_THINGS or _plural(name) else _article(name)


def sound(name: str) -> str:
    """`a dog`, `an owl`; what is not counted stays as it is: `music`, `crying`, `bagpipes`."""
    last = _last(name)
    doing = " of " in name or (last.endswith("ing") and last not in _COUNTED)
    return name if doing or last in _UNCOUNTED_SOUNDS or _plural(name) else _article(name)


def _last(name: str) -> str:
    return name.replace("-", " ").split()[-1].casefold()


def _plural(name: str) -> bool:
    last = _last(name)
    return last.endswith("s") and not last.endswith(("ss", "us", "is", "ops", "nees", "tas", "des"))


def _article(name: str) -> str:
    start = name.casefold()
    an = start.startswith(_AN) or (start[0] in "aeiou" and not start.startswith(_A))
    return f"{'an' if an else 'a'} {name}"
