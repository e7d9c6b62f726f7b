"""What is seen and heard in each second of a clip: its timeline, drawn from (seed, index) alone.

So a clip is the same whatever the number of clips or processes. In every scenario the clip's class is seen and heard
together in exactly the seconds of one event, and no other class is ever seen and heard in the same second.

Why there are distractors: a misalignment spoils one modality and leaves the other exact (while the sound goes on, the
object is visible only during the event). So in the exact modality another class has a timeline of the same kind, and
only the other modality tells it from the event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence

from caeav.manifests.synthetic.options import SyntheticOptions

ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
ID_LENGTH = 11
DASH_EVERY = 8  # about as many ids as in the real set begin with "-" and so look like an option

VISUAL, AUDIO = 0, 1
PARTS = ("classes", "shares", "id", "timeline", "frames", "audio", "material")
"""Each part of a clip has its own random numbers, numbered by this order: a change in one leaves the others alone."""

THROUGHOUT = 0.15  # share of distractors that stay for the whole clip
SECOND_IN_EXACT = 0.6  # share of distracted clips with two distractors in the exact modality
ONE_IN_SPOILT = 0.8  # share of distracted clips with a distractor in the spoilt modality, too


@dataclass(frozen=True, slots=True)
class Thing:
    """One object, where a clip may hold several of a class: its class, the third of the frame it stays in (0 left,
    1 middle, 2 right; None: never seen), and its loudness (root mean square, full scale 1)."""

    cls: int
    lane: int | None
    level: float


@dataclass(frozen=True)
class Scenario:
    """One clip's timeline. Classes are numbers; `seen[t]` and `heard[t]` are those of second `t`, in ascending order.

    The event is the seconds `start_s <= t < end_s` of class `category`; the camera cuts at `cut_s`. If there are
    `things`, `seen` and `heard` hold their numbers instead of classes.
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
    category_name: str = ""
    """Where classes are not the generated world's: the name of `category` in file names."""

    def cls(self, number: int) -> int:
        """The class of an entry of `seen` or `heard`."""
        return self.things[number].cls if self.things else number


def generator(options: SyntheticOptions, part: str, *path: int) -> Generator:
    """Random numbers of one part of the set, e.g. `("frames", index)`."""
    return np.random.default_rng(SeedSequence(options.seed, spawn_key=(PARTS.index(part), *path)))


def plan(options: SyntheticOptions, index: int) -> Scenario:
    """The scenario of clip `index`."""
    timeline, kind = begin(options, index)
    timeline.play(kind, options.distractors)
    return timeline.scenario(index, clip_id(options, index), kind)


def begin(options: SyntheticOptions, index: int) -> tuple[Timeline, str]:
    """An empty timeline for clip `index`, and the kind of misalignment it is to have."""
    category, kind = category_and_kind(options, index)
    return Timeline(options, category, generator(options, "timeline", index)), kind


def category_and_kind(options: SyntheticOptions, index: int) -> tuple[int, str]:
    """The class of clip `index`, and how its modalities disagree: both in the wanted shares."""
    turn, place = divmod(index, options.classes)
    category = int(generator(options, "classes", turn).permutation(options.classes)[place])
    return category, _kind(options, category, turn)


def _kind(options: SyntheticOptions, category: int, turn: int) -> str:
    """Kinds in a golden-ratio sequence within each class, so that every run of clips has the wanted shares."""
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
    """Builds one clip's timeline, with one method per kind. `present` is bool [2 modalities, K classes, T seconds]."""

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

    def play(self, kind: str, distractors: float) -> None:
        """Build an event with a misalignment of `kind`, and in a share of `distractors` other classes beside it."""
        getattr(self, kind)()
        if self.spoilt is not None and self.rng.random() < distractors:
            self.distract()

    def scenario(self, index: int, name: str, kind: str) -> Scenario:
        """The scenario that has been built."""
        seen, heard = (
            tuple(tuple(int(c) for c in np.flatnonzero(second)) for second in modality.T)
            for modality in self.present
        )
        start, end = self.event
        return Scenario(index, name, self.category, kind, start, end, self.cut_s, seen, heard)

    def between(self, low: int, high: int) -> int:
        """A random whole number, from `low` to `high` inclusive."""
        return int(self.rng.integers(low, high + 1))

    def some_event(self, longest: int) -> tuple[int, int]:
        """A random stretch, from three tenths of the clip to `longest` seconds long."""
        length = self.between(max(1, round(0.3 * self.seconds)), longest)
        start = self.between(0, self.seconds - length)
        return start, start + length

    def fill(self, modality: int, cls: int, start: int, end: int) -> None:
        """Let `cls` be present in `modality` from second `start` to `end`."""
        self.present[modality, cls, start:end] = True

    def happen(self, start: int, end: int) -> None:
        """The event: the clip's class is seen and heard from second `start` to `end`."""
        self.event = (start, end)
        self.fill(VISUAL, self.category, start, end)
        self.fill(AUDIO, self.category, start, end)

    def _longer_side(self) -> tuple[int, int]:
        """A stretch adjacent to the event, on the side with more room, of at least half that room."""
        start, end = self.event
        after = self.seconds - end
        length = self.between(-(-max(start, after) // 2), max(start, after))
        return (end, end + length) if after >= start else (start - length, start)

    def _outlast(self, modality: int) -> None:
        """Let the class outlast the event in `modality`: for the whole clip, or on the side with more room."""
        whole = self.rng.random() < 0.6
        self.fill(modality, self.category, *((0, self.seconds) if whole else self._longer_side()))
        self.spoilt = modality

    def aligned(self) -> None:
        """Seen and heard together, in a fifth of the clips from beginning to end."""
        whole = self.rng.random() < 0.2
        self.happen(*((0, self.seconds) if whole else self.some_event(self.seconds - 1)))

    def offscreen(self) -> None:
        """The sound begins before the object appears or goes on after it is gone."""
        self.happen(*self.some_event(self.seconds - 2))
        self._outlast(AUDIO)

    def silent(self) -> None:
        """The object is visible before it sounds or after it has stopped."""
        self.happen(*self.some_event(self.seconds - 2))
        self._outlast(VISUAL)

    def wrong_sound(self) -> None:
        """Beside the event the object is visible with the sound of another class, whose own object is not."""
        self.happen(*self.some_event(self.seconds - 2))
        beside = self._longer_side()
        self.fill(VISUAL, self.category, *beside)
        self.fill(AUDIO, self.others.pop(), *beside)
        self.spoilt = VISUAL

    def cut(self) -> None:
        """The event ends or begins at a camera cut; beyond it there is only the object or only the sound."""
        third = max(1, round(0.3 * self.seconds))
        cut = self.cut_s = self.between(third, self.seconds - third)
        self.spoilt = self.between(VISUAL, AUDIO)
        if self.rng.random() < 0.5:
            self.happen(cut - self.between(-(-cut // 2), cut), cut)
            rest = self.seconds - cut
            self.fill(self.spoilt, self.category, cut, cut + self.between(-(-rest // 2), rest))
        else:
            rest = self.seconds - cut
            self.happen(cut, cut + self.between(-(-rest // 2), rest))
            self.fill(self.spoilt, self.category, cut - self.between(-(-cut // 2), cut), cut)

    def distract(self) -> None:
        """One or two other classes in the exact modality, mostly one in the spoilt modality, none in both."""
        exact, spoilt = (AUDIO, VISUAL) if self.spoilt == VISUAL else (VISUAL, AUDIO)
        modalities = [exact]
        if self.rng.random() < SECOND_IN_EXACT:
            modalities.append(exact)
        if self.rng.random() < ONE_IN_SPOILT:
            modalities.append(spoilt)
        for modality in modalities:
            whole = self.rng.random() < THROUGHOUT
            span = (0, self.seconds) if whole else self.some_event(self.seconds - 2)
            self.fill(modality, self.others.pop(), *span)
