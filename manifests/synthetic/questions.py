"""What MUSIC-AVQA's templates ask, and what a scenario answers: 31 of its 33, of all nine types, in its own words.

Each template is a function that gives every pair of slot values and answer the scenario settles; where it settles
none, the question is not asked. First and last are by when a voice begins. Left out are the one that asks for a place
(indoor or outdoor) and the one about which of two equal instruments sounds, which no such clip has.

A scenario as questions see it: what is seen where, what is heard when and how loud, by the names of classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from caeav.manifests.synthetic.audio import RHYTHMIC
from caeav.manifests.synthetic.classes import CLASSES
from caeav.manifests.synthetic.scenario import Scenario


class Facts:
    """`lanes` and `row` say which object is in which third, `count` how many of a class there are; `voices`, in the
    order in which they begin, have a `span` of seconds and a `level`; `sounding` are those whose object is seen."""

    def __init__(self, scenario: Scenario, names: Sequence[str]) -> None:
        shown = sorted(set().union(*scenario.seen))
        self.names = tuple(names)
        self.seconds = len(scenario.seen)
        self.lanes = {self.names[scenario.cls(n)]: scenario.things[n].lane or 0 for n in shown}
        self.count = Counter(self.names[scenario.cls(n)] for n in shown)
        self.row = {scenario.things[n].lane or 0: self.names[scenario.cls(n)] for n in shown}
        self.span: dict[str, tuple[int, int]] = {}
        self.level: dict[str, float] = {}
        for number in sorted(set().union(*scenario.heard)):
            times = [t for t, heard in enumerate(scenario.heard) if number in heard]
            name = self.names[scenario.cls(number)]
            self.span[name] = (times[0], times[-1] + 1)
            self.level[name] = scenario.things[number].level
        self.voices = sorted(self.span, key=lambda name: self.span[name])
        self.sounding = [name for name in self.voices if name in self.count]
        self.rhythmic = {self.names[i] for i in range(len(self.names)) if CLASSES[i].voice in RHYTHMIC}

    def begins_alone(self, which: str) -> str:
        """The voice that begins `first` (or `last`), if it does so alone; else empty."""
        begin = {name: span[0] for name, span in self.span.items()}
        edge = (min if which == "first" else max)(begin.values())
        found = [name for name, at in begin.items() if at == edge]
        return found[0] if len(found) == 1 else ""

    def beside(self, name: str, side: str) -> str:
        """The one object `left` or `right` of an object that is the only one of its class; empty where there is no
        one or several."""
        if self.count[name] != 1:
            return ""
        lane = self.lanes[name]
        found = [other for at, other in self.row.items() if (at < lane if side == "left" else at > lane)]
        return found[0] if len(found) == 1 else ""


NUMBERS = ("zero", "one", "two", "three", "four")
LANES = ("left", "middle", "right")
ORDINALS = ("first", "second", "third", "fourth")
CLEARLY_LONGER_S = 2

Found = Iterator[tuple[tuple[str, ...], str]]
"""Slot values and the answer."""


@dataclass(frozen=True)
class Template:
    """One of the official templates: its type, its text with slots, and what a scenario answers."""

    type: tuple[str, str]
    text: str
    answers: Callable[[Facts], Found]


TEMPLATES: list[Template] = []


def _asks(
    modality: str, kind: str, text: str
) -> Callable[[Callable[[Facts], Found]], Callable[[Facts], Found]]:
    def add(answers: Callable[[Facts], Found]) -> Callable[[Facts], Found]:
        TEMPLATES.append(Template((modality, kind), text, answers))
        return answers

    return add


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


@_asks("Audio", "Counting", "Is there a <Object> sound?")
def _is_heard(f: Facts) -> Found:
    yield from (((name,), _yes(name in f.span)) for name in f.names)


@_asks("Audio", "Counting", "Are there <Object> and <Object> sound? ")
def _are_heard(f: Facts) -> Found:
    for a, b in permutations(f.names, 2):
        if a in f.span or b in f.span:
            yield (a, b), _yes(a in f.span and b in f.span)


@_asks("Audio", "Counting", "How many musical instruments were heard throughout the video?")
def _number_heard(f: Facts) -> Found:
    yield (), NUMBERS[len(f.span)]


@_asks("Audio", "Comparative", "Is the <Object> louder than the <Object>?")
def _louder(f: Facts) -> Found:
    yield from (((a, b), _yes(f.level[a] > f.level[b])) for a, b in permutations(f.voices, 2))


@_asks("Audio", "Comparative", "Is the <Object> more rhythmic than the <Object>?")
def _more_rhythmic(f: Facts) -> Found:
    for a, b in permutations(f.voices, 2):
        if (a in f.rhythmic) != (b in f.rhythmic):
            yield (a, b), _yes(a in f.rhythmic)


@_asks("Audio", "Comparative", "Is the <Object> playing longer than the <Object>?")
def _longer(f: Facts) -> Found:
    length = {name: end - begin for name, (begin, end) in f.span.items()}
    for a, b in permutations(f.voices, 2):
        if abs(length[a] - length[b]) >= CLEARLY_LONGER_S:
            yield (a, b), _yes(length[a] > length[b])


@_asks("Visual", "Counting", "Is there a <Object> in the entire video?")
def _is_seen(f: Facts) -> Found:
    yield from (((name,), _yes(name in f.count)) for name in f.names)


@_asks("Visual", "Counting", "Are there <Object> and <Object> instruments in the video?")
def _are_seen(f: Facts) -> Found:
    for a, b in permutations(f.names, 2):
        if a in f.count or b in f.count:
            yield (a, b), _yes(a in f.count and b in f.count)


@_asks("Visual", "Counting", "How many <Object> are in the entire video?")
def _number_of(f: Facts) -> Found:
    yield from (((name,), NUMBERS[f.count[name]]) for name in f.names)


@_asks("Visual", "Counting", "How many types of musical instruments appeared in the entire video?")
def _types_seen(f: Facts) -> Found:
    yield (), NUMBERS[len(f.count)]


@_asks("Visual", "Location", "What kind of musical instrument is it?")
def _what_kind(f: Facts) -> Found:
    if f.count.total() == 1:
        yield (), next(iter(f.count))


@_asks("Visual", "Location", "What kind of instrument is the <LRer> instrument? ")
def _outermost(f: Facts) -> Found:
    if f.count.total() > 1:
        yield ("leftest",), f.row[min(f.row)]
        yield ("rightest",), f.row[max(f.row)]


@_asks("Visual", "Location", "What is the instrument on the <LR> of <Object>?")
def _beside_object(f: Facts) -> Found:
    for name in f.count:
        for side in ("left", "right"):
            other = f.beside(name, side)
            if other:
                yield (side, name), other


@_asks("Audio-Visual", "Existential", "Is the <Object> in the video always playing?")
def _always(f: Facts) -> Found:
    yield from (((name,), _yes(f.span[name] == (0, f.seconds))) for name in f.sounding)


@_asks("Audio-Visual", "Existential", "Is there a voiceover?")
def _voiceover(f: Facts) -> Found:
    yield (), _yes(any(name not in f.count for name in f.voices))


@_asks("Audio-Visual", "Existential", "Is this sound from the instrument in the video?")
def _from_it(f: Facts) -> Found:
    if f.count.total() == 1 == len(f.voices):
        yield (), _yes(f.voices == list(f.count))


@_asks("Audio-Visual", "Counting", "How many instruments are sounding in the video?")
def _number_sounding(f: Facts) -> Found:
    yield (), NUMBERS[len(f.sounding)]


@_asks("Audio-Visual", "Counting", "How many types of musical instruments sound in the video?")
def _types_sounding(f: Facts) -> Found:
    yield (), NUMBERS[len(f.sounding)]


@_asks("Audio-Visual", "Counting", "How many instruments in the video did not sound from beginning to end?")
def _number_silent(f: Facts) -> Found:
    yield (), NUMBERS[f.count.total() - len(f.sounding)]


@_asks("Audio-Visual", "Counting", "How many sounding <Object> in the video\uff1f")
def _sounding_of(f: Facts) -> Found:
    yield from (((name,), NUMBERS[int(name in f.sounding)]) for name in dict.fromkeys([*f.count, *f.voices]))


@_asks("Audio-Visual", "Location", "Where is the <LL> instrument?")
def _loudest(f: Facts) -> Found:
    if len(f.sounding) > 1:
        ordered = sorted(f.sounding, key=lambda name: f.level[name])
        yield ("lowest",), LANES[f.lanes[ordered[0]]]
        yield ("loudest",), LANES[f.lanes[ordered[-1]]]


@_asks("Audio-Visual", "Location", "Is the <FL> sound coming from the <LR> instrument?")
def _first_from(f: Facts) -> Found:
    for which in ("first", "last"):
        name = f.begins_alone(which)
        if name in f.count and len(f.voices) > 1:
            yield from (((which, LANES[lane]), _yes(lane == f.lanes[name])) for lane in f.row)


@_asks(
    "Audio-Visual",
    "Location",
    "Which is the musical instrument that sounds at the same time as the <Object>?",
)
def _together_with(f: Facts) -> Found:
    if len(f.sounding) == len(f.voices) == 2:
        (a, b), ((begin_a, end_a), (begin_b, end_b)) = f.voices, (f.span[name] for name in f.voices)
        if min(end_a, end_b) - max(begin_a, begin_b) >= CLEARLY_LONGER_S:
            yield (a,), b
            yield (b,), a


@_asks("Audio-Visual", "Location", "What is the <LR> instrument of the <FL> sounding instrument?")
def _beside_first(f: Facts) -> Found:
    for which in ("first", "last"):
        name = f.begins_alone(which)
        for side in ("left", "right"):
            other = f.beside(name, side) if name in f.count and len(f.voices) > 1 else ""
            if other:
                yield (side, which), other


def _pairs(f: Facts) -> Iterator[tuple[str, str, str, str]]:
    for a, b in permutations(f.sounding, 2):
        yield a, LANES[f.lanes[a]], b, LANES[f.lanes[b]]


@_asks("Audio-Visual", "Comparative", "Is the <Object> on the <LR> louder than the <Object> on the <LR>?")
def _louder_there(f: Facts) -> Found:
    yield from (((a, x, b, y), _yes(f.level[a] > f.level[b])) for a, x, b, y in _pairs(f))


@_asks("Audio-Visual", "Comparative", "Is the instrument on the <LR> louder than the instrument on the <LR>?")
def _louder_lane(f: Facts) -> Found:
    yield from (((x, y), _yes(f.level[a] > f.level[b])) for a, x, b, y in _pairs(f))


@_asks(
    "Audio-Visual", "Comparative", "Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?"
)
def _rhythmic_there(f: Facts) -> Found:
    for a, x, b, y in _pairs(f):
        if (a in f.rhythmic) != (b in f.rhythmic):
            yield (a, x, b, y), _yes(a in f.rhythmic)


@_asks(
    "Audio-Visual",
    "Comparative",
    "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?",
)
def _rhythmic_lane(f: Facts) -> Found:
    for a, x, b, y in _pairs(f):
        if (a in f.rhythmic) != (b in f.rhythmic):
            yield (x, y), _yes(a in f.rhythmic)


@_asks("Audio-Visual", "Temporal", "What is the <TH> instrument that comes in?")
def _comes_in(f: Facts) -> Found:
    if len(f.sounding) == len(f.voices) > 1 and len({begin for begin, _ in f.span.values()}) == len(f.voices):
        yield from (((ORDINALS[i],), name) for i, name in enumerate(f.voices))


@_asks("Audio-Visual", "Temporal", "Where is the <FL> sounding instrument?")
def _where_first(f: Facts) -> Found:
    for which in ("first", "last"):
        name = f.begins_alone(which)
        if name in f.count and len(f.voices) > 1:
            yield (which,), LANES[f.lanes[name]]


@_asks("Audio-Visual", "Temporal", "Which instrument makes sounds <BA> the <Object>?")
def _before(f: Facts) -> Found:
    if len(f.voices) == 2 and f.begins_alone("first"):
        first, second = f.voices
        yield ("before", second), first
        yield ("after", first), second
