"""Clips to ask questions about: up to three objects, each in its own third of the picture, and up to four voices.

What a question may ask is made unmistakable: objects stay in their third, voices differ in loudness by a factor of
1.7 or more, and of two objects of one class neither sounds, so that a sound belongs to one object or to none.
"""

from __future__ import annotations

import numpy as np

from caeav.manifests.synthetic.options import ALIGNED, SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, Thing, category_and_kind, clip_id, generator

LEVELS = (0.045, 0.08, 0.14, 0.24)
"""Loudness of voices, root mean square of full scale."""
OBJECTS = (0.2, 0.4, 0.4)
"""Shares of clips with one, two and three objects."""
TWINS = 0.2
"""Share of clips with several objects in which two are of one class, and silent."""
SILENT = 0.25
"""Share of objects that never sound, in clips that are not aligned."""
WHOLE = 0.6
"""Share of voices that begin at once and sound to the end."""


def plan(options: SyntheticOptions, index: int) -> Scenario:
    """The scenario of clip `index`; its things are objects from left to right, then a voice without object."""
    category, kind = category_and_kind(options, index)
    rng = generator(options, "timeline", index)
    seconds = options.seconds
    others = [int(c) for c in rng.permutation(options.classes) if c != category]
    count = int(rng.choice(len(OBJECTS), p=OBJECTS)) + 1
    classes = [category, *others[: count - 1]]
    twins = count > 1 and kind != ALIGNED and rng.random() < TWINS
    if twins:
        classes[-1] = classes[-2]
    lanes = [int(lane) for lane in rng.permutation(3)[:count]]
    levels = [float(level) for level in rng.permutation(LEVELS)]
    things = [Thing(cls, lane, levels.pop()) for cls, lane in zip(classes, lanes, strict=True)]
    things.sort(key=lambda thing: thing.lane or 0)
    sounding = [
        number
        for number, thing in enumerate(things)
        if classes.count(thing.cls) == 1 and (kind == ALIGNED or rng.random() >= SILENT)
    ]
    if kind in ("offscreen", "wrong_sound") or not sounding:
        things.append(Thing(others[-1], None, levels.pop()))
        sounding.append(len(things) - 1)
    seen = np.zeros((len(things), seconds), dtype=bool)
    heard = np.zeros_like(seen)
    seen[:count] = True
    if kind == "silent":  # one object comes late or leaves early
        passing, half = int(rng.integers(count)), seconds // 2
        seen[passing] = (np.arange(seconds) < half) == (rng.random() < 0.5)
    for number, begin in zip(sounding, _begins(rng, len(sounding), seconds), strict=True):
        end = seconds if begin == 0 and rng.random() < WHOLE else int(rng.integers(begin + 2, seconds + 1))
        heard[number, begin:end] = True
    times = np.flatnonzero(heard.any(axis=0))
    return Scenario(
        index=index,
        clip_id=clip_id(options, index),
        category=category,
        kind=kind,
        start_s=int(times[0]),
        end_s=int(times[-1]) + 1,
        cut_s=seconds // 2 if kind == "cut" else None,
        seen=_by_second(seen),
        heard=_by_second(heard),
        things=tuple(things),
    )


def _begins(rng: np.random.Generator, count: int, seconds: int) -> list[int]:
    """When the voices begin: the first often at once, all at different seconds, all with two seconds left."""
    begins = [int(second) for second in rng.permutation(seconds - 1)[:count]]
    if rng.random() < 0.5:
        begins[begins.index(min(begins))] = 0
    return begins


def _by_second(present: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(number) for number in np.flatnonzero(second)) for second in present.T)
