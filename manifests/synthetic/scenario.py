"""What is seen and heard in each second of a clip: its timeline, drawn from (seed, index) and nothing else.

A clip is therefore the same whatever the number of clips or of processes. The promises every scenario keeps:
its class is seen and heard together in exactly the seconds of one event, and no other class is ever both
seen and heard in the same second.

Why distractors: a misalignment spoils one sense and leaves the other exact (while the sound goes on, the
object is visible in the event alone). In the sense left exact another class therefore shows the same kind of
timeline, and only its lack of a partner in the other sense tells it from the event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence

from caeav.manifests.synthetic.options import SyntheticOptions

ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
ID_LENGTH = 11
DASH_EVERY = 8  # about the share of ids in the real set that begin with "-" and so look like an option

SEEN, HEARD = 0, 1
PARTS = ("classes", "shares", "id", "timeline", "picture", "sound")
"""Each part of a clip has random numbers of its own, so a change in one leaves the others as they are."""

THROUGHOUT = 0.15  # share of distractors that stay for the whole clip
SECOND_IN_EXACT = 0.6  # share of distracted clips with two distractors in the sense left exact
ONE_IN_SPOILT = 0.8  # share of distracted clips in which the spoilt sense has a distractor too


@dataclass(frozen=True, slots=True)
class Thing:
    """One object where a clip may hold several of a class: its class, the third of the picture it stays in (0 left,
    1 middle, 2 right; None: it is never seen), and how loud it sounds (root mean square of full scale)."""

    cls: int
    lane: int | None
    level: float


@dataclass(frozen=True)
class Scenario:
    """One clip's timeline. Classes are numbers; `seen[t]` and `heard[t]` are those of second `t`, ascending.

    The event is the seconds `start_s <= t < end_s` of class `category`; `cut_s` is where the camera cuts. Where there
    are `things`, `seen` and `heard` hold their numbers instead of classes.
    """

    index: int
    clip_id: str
    category: int
    kind: str
    start_s: int
    end_s: int
    cut_s: int | None
    seen: tuple[tuple[int, ...], ...]
    heard: tuple[tuple[int, ...], ...]
    things: tuple[Thing, ...] = ()

    def cls(self, number: int) -> int:
        """The class of an entry of `seen` or `heard`."""
        return self.things[number].cls if self.things else number


def generator(options: SyntheticOptions, part: str, *path: int) -> Generator:
    """Random numbers of one part of the set, e.g. `("picture", index)`."""
    return np.random.default_rng(SeedSequence(options.seed, spawn_key=(PARTS.index(part), *path)))


def plan(options: SyntheticOptions, index: int) -> Scenario:
    """The scenario of clip `index`."""
    category, kind = category_and_kind(options, index)
    timeline = Timeline(options, category, generator(options, "timeline", index))
    getattr(timeline, kind)()
    if timeline.spoilt is not None and timeline.rng.random() < options.distractors:
        timeline.distract()
    return timeline.scenario(index, clip_id(options, index), kind)


def category_and_kind(options: SyntheticOptions, index: int) -> tuple[int, str]:
    """The class clip `index` is about, and how sight and sound disagree in it: both in the asked shares."""
    turn, place = divmod(index, options.classes)
    category = int(generator(options, "classes", turn).permutation(options.classes)[place])
    return category, _kind(options, category, turn)


def _kind(options: SyntheticOptions, category: int, turn: int) -> str:
    """Kinds in a golden-ratio sequence within each class: every stretch of clips has the asked shares."""
    offset = generator(options, "shares", category).random()
    u = (offset + turn * 0.6180339887498949) % 1.0
    kinds, shares = zip(*options.kind_shares().items(), strict=True)
    return str(kinds[min(int(np.searchsorted(np.cumsum(shares), u, side="right")), len(kinds) - 1)])


def clip_id(options: SyntheticOptions, index: int) -> str:
    """Eleven letters like a YouTube id; some begin with `-`."""
    letters = generator(options, "id", index).integers(0, len(ID_LETTERS), ID_LENGTH)
    text = "".join(ID_LETTERS[i] for i in letters)
    return f"-{text[1:]}" if index % DASH_EVERY == DASH_EVERY - 1 else text


class Timeline:
    """Builds one clip's timeline; a method a kind. `present` is bool [2 senses, K classes, T seconds]."""

    def __init__(self, options: SyntheticOptions, category: int, rng: Generator) -> None:
        self.rng = rng
        self.category = category
        self.seconds = options.seconds
        self.present = np.zeros((2, options.classes, options.seconds), dtype=bool)
        others = [c for c in range(options.classes) if c != category]
        self.others = [int(c) for c in rng.permutation(others)]
        self.event = (0, 0)
        self.cut_s: int | None = None
        self.spoilt: int | None = None

    def scenario(self, index: int, name: str, kind: str) -> Scenario:
        """What has been built."""
        seen, heard = (
            tuple(tuple(int(c) for c in np.flatnonzero(second)) for second in sense.T)
            for sense in self.present
        )
        start, end = self.event
        return Scenario(index, name, self.category, kind, start, end, self.cut_s, seen, heard)

    def between(self, low: int, high: int) -> int:
        """A random whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def some_event(self, longest: int) -> tuple[int, int]:
        """A random stretch of three tenths of the clip up to `longest` seconds."""
        length = self.between(max(1, round(0.3 * self.seconds)), longest)
        start = self.between(0, self.seconds - length)
        return start, start + length

    def fill(self, sense: int, cls: int, start: int, end: int) -> None:
        """`cls` is there in `sense` from second `start` to `end`."""
        self.present[sense, cls, start:end] = True

    def happen(self, start: int, end: int) -> None:
        """The event: the class seen and heard from second `start` to `end`."""
        self.event = (start, end)
        self.fill(SEEN, self.category, start, end)
        self.fill(HEARD, self.category, start, end)

    def _longer_side(self) -> tuple[int, int]:
        """A stretch beside the event, on its longer side and touching it, at least half of what is free."""
        start, end = self.event
        after = self.seconds - end
        length = self.between(-(-max(start, after) // 2), max(start, after))
        return (end, end + length) if after >= start else (start - length, start)

    def _outlast(self, sense: int) -> None:
        """In `sense` the class lasts beyond the event: for the whole clip, or on the longer side of it."""
        whole = self.rng.random() < 0.6
        self.fill(sense, self.category, *((0, self.seconds) if whole else self._longer_side()))
        self.spoilt = sense

    def aligned(self) -> None:
        """Seen and heard together, a fifth of the clips from beginning to end."""
        whole = self.rng.random() < 0.2
        self.happen(*((0, self.seconds) if whole else self.some_event(self.seconds - 1)))

    def offscreen(self) -> None:
        """The sound begins before the object is there or goes on after it is gone."""
        self.happen(*self.some_event(self.seconds - 2))
        self._outlast(HEARD)

    def silent(self) -> None:
        """The object is there before it sounds or after it has stopped."""
        self.happen(*self.some_event(self.seconds - 2))
        self._outlast(SEEN)

    def wrong_sound(self) -> None:
        """Beside the event the object is there with another class's sound, whose own object is not."""
        self.happen(*self.some_event(self.seconds - 2))
        beside = self._longer_side()
        self.fill(SEEN, self.category, *beside)
        self.fill(HEARD, self.others.pop(), *beside)
        self.spoilt = SEEN

    def cut(self) -> None:
        """The event ends or begins at a camera cut; beyond it only the object or only the sound is there."""
        third = max(1, round(0.3 * self.seconds))
        cut = self.cut_s = self.between(third, self.seconds - third)
        self.spoilt = self.between(SEEN, HEARD)
        if self.rng.random() < 0.5:
            self.happen(cut - self.between(-(-cut // 2), cut), cut)
            rest = self.seconds - cut
            self.fill(self.spoilt, self.category, cut, cut + self.between(-(-rest // 2), rest))
        else:
            rest = self.seconds - cut
            self.happen(cut, cut + self.between(-(-rest // 2), rest))
            self.fill(self.spoilt, self.category, cut - self.between(-(-cut // 2), cut), cut)

    def distract(self) -> None:
        """One or two other classes in the sense left exact, mostly one in the spoilt sense; none in both."""
        exact, spoilt = (HEARD, SEEN) if self.spoilt == SEEN else (SEEN, HEARD)
        senses = [exact]
        if self.rng.random() < SECOND_IN_EXACT:
            senses.append(exact)
        if self.rng.random() < ONE_IN_SPOILT:
            senses.append(spoilt)
        for sense in senses:
            whole = self.rng.random() < THROUGHOUT
            span = (0, self.seconds) if whole else self.some_event(self.seconds - 2)
            self.fill(sense, self.others.pop(), *span)
