"""Questions about a scenario: 31 of MUSIC-AVQA's 33 templates, of all nine types and in its own words, what a scenario
answers to each, and the choice of questions for a clip.

Each template is a function that gives all pairs of slot values and answer that are certain in the scenario; where there
are none, the question is not asked. "First" and "last" go by when a voice begins. Left out are the template that asks
for a place (indoor or outdoor) and the one about which of two equal instruments sounds, which no such clip has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from numpy.random import Generator

from caeav.manifests.synthetic.audio import RHYTHMIC
from caeav.manifests.synthetic.classes import CLASSES
from caeav.manifests.synthetic.scenario import Scenario

GENERATED_RHYTHMIC = frozenset(i for i, each in enumerate(CLASSES) if each.voice in RHYTHMIC)


class Facts:
    """A scenario as questions see it, by the names of classes.

    lanes, row: which object is in which third of the frame. count: objects of each class. voices: in the order in which
    they begin, each with a `span` of seconds and a `level`. sounding: the voices whose object is seen.
    `rhythmic` are the numbers of classes whose voices pause between pulses; where nothing is known of that, there are
    none, and which of two voices is more rhythmic is not asked.
    """

    def __init__(
        self, scenario: Scenario, names: Sequence[str], rhythmic: Collection[int] = GENERATED_RHYTHMIC
    ) -> None:
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
        self.rhythmic = {name for i, name in enumerate(self.names) if i in rhythmic}

    def begins_alone(self, which: str) -> str:
        """The voice that begins `first` (or `last`), if it is the only one; else empty."""
        begin = {name: span[0] for name, span in self.span.items()}
        edge = (min if which == "first" else max)(begin.values())
        found = [name for name, at in begin.items() if at == edge]
        return found[0] if len(found) == 1 else ""

    def beside(self, name: str, side: str) -> str:
        """The only object `left` or `right` of the only object of class `name`; empty if either is not alone."""
        if self.count[name] != 1:
            return ""
        lane = self.lanes[name]
        found = [other for at, other in self.row.items() if (at < lane if side == "left" else at > lane)]
        return found[0] if len(found) == 1 else ""


NUMBERS = ("zero", "one", "two", "three", "four")
LANES = ("left", "middle", "right")
ORDINALS = ("first", "second", "third", "fourth")
CLEARLY_LONGER_S = 2

Answers = Iterator[tuple[tuple[str, ...], str]]
"""Pairs of slot values and answer."""


@dataclass(frozen=True)
class Template:
    """One of the official templates: its type, its text with slots, and the answers of a scenario."""

    type: tuple[str, str]
    text: str
    answers: Callable[[Facts], Answers]


TEMPLATES: list[Template] = []


def _template(
    modality: str, kind: str, text: str
) -> Callable[[Callable[[Facts], Answers]], Callable[[Facts], Answers]]:
    def add(answers: Callable[[Facts], Answers]) -> Callable[[Facts], Answers]:
        TEMPLATES.append(Template((modality, kind), text, answers))
        return answers

    return add


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


@_template("Audio", "Counting", "Is there a <Object> sound?")
def _is_heard(f: Facts) -> Answers:
    yield from (((name,), _yes(name in f.span)) for name in f.names)


@_template("Audio", "Counting", "Are there <Object> and <Object> sound? ")
def _are_heard(f: Facts) -> Answers:
    for a, b in permutations(f.names, 2):
        if a in f.span or b in f.span:
            yield (a, b), _yes(a in f.span and b in f.span)


@_template("Audio", "Counting", "How many musical instruments were heard throughout the video?")
def _number_heard(f: Facts) -> Answers:
    yield (), NUMBERS[len(f.span)]


@_template("Audio", "Comparative", "Is the <Object> louder than the <Object>?")
def _louder(f: Facts) -> Answers:
    yield from (((a, b), _yes(f.level[a] > f.level[b])) for a, b in permutations(f.voices, 2))


@_template("Audio", "Comparative", "Is the <Object> more rhythmic than the <Object>?")
def _more_rhythmic(f: Facts) -> Answers:
    for a, b in permutations(f.voices, 2):
        if (a in f.rhythmic) != (b in f.rhythmic):
            yield (a, b), _yes(a in f.rhythmic)


@_template("Audio", "Comparative", "Is the <Object> playing longer than the <Object>?")
def _longer(f: Facts) -> Answers:
    length = {name: end - begin for name, (begin, end) in f.span.items()}
    for a, b in permutations(f.voices, 2):
        if abs(length[a] - length[b]) >= CLEARLY_LONGER_S:
            yield (a, b), _yes(length[a] > length[b])


@_template("Visual", "Counting", "Is there a <Object> in the entire video?")
def _is_seen(f: Facts) -> Answers:
    yield from (((name,), _yes(name in f.count)) for name in f.names)


@_template("Visual", "Counting", "Are there <Object> and <Object> instruments in the video?")
def _are_seen(f: Facts) -> Answers:
    for a, b in permutations(f.names, 2):
        if a in f.count or b in f.count:
            yield (a, b), _yes(a in f.count and b in f.count)


@_template("Visual", "Counting", "How many <Object> are in the entire video?")
def _number_of(f: Facts) -> Answers:
    yield from (((name,), NUMBERS[f.count[name]]) for name in f.names)


@_template("Visual", "Counting", "How many types of musical instruments appeared in the entire video?")
def _types_seen(f: Facts) -> Answers:
    yield (), NUMBERS[len(f.count)]


@_template("Visual", "Location", "What kind of musical instrument is it?")
def _what_kind(f: Facts) -> Answers:
    if f.count.total() == 1:
        yield (), next(iter(f.count))


@_template("Visual", "Location", "What kind of instrument is the <LRer> instrument? ")
def _outermost(f: Facts) -> Answers:
    if f.count.total() > 1:
        yield ("leftest",), f.row[min(f.row)]
        yield ("rightest",), f.row[max(f.row)]


@_template("Visual", "Location", "What is the instrument on the <LR> of <Object>?")
def _beside_object(f: Facts) -> Answers:
    for name in f.count:
        for side in ("left", "right"):
            other = f.beside(name, side)
            if other:
                yield (side, name), other


@_template("Audio-Visual", "Existential", "Is the <Object> in the video always playing?")
def _always(f: Facts) -> Answers:
    yield from (((name,), _yes(f.span[name] == (0, f.seconds))) for name in f.sounding)


@_template("Audio-Visual", "Existential", "Is there a voiceover?")
def _voiceover(f: Facts) -> Answers:
    yield (), _yes(any(name not in f.count for name in f.voices))


@_template("Audio-Visual", "Existential", "Is this sound from the instrument in the video?")
def _from_it(f: Facts) -> Answers:
    if f.count.total() == 1 == len(f.voices):
        yield (), _yes(f.voices == list(f.count))


@_template("Audio-Visual", "Counting", "How many instruments are sounding in the video?")
def _number_sounding(f: Facts) -> Answers:
    yield (), NUMBERS[len(f.sounding)]


@_template("Audio-Visual", "Counting", "How many types of musical instruments sound in the video?")
def _types_sounding(f: Facts) -> Answers:
    yield (), NUMBERS[len(f.sounding)]


@_template(
    "Audio-Visual", "Counting", "How many instruments in the video did not sound from beginning to end?"
)
def _number_silent(f: Facts) -> Answers:
    yield (), NUMBERS[f.count.total() - len(f.sounding)]


@_template("Audio-Visual", "Counting", "How many sounding <Object> in the video\uff1f")
def _sounding_of(f: Facts) -> Answers:
    yield from (((name,), NUMBERS[int(name in f.sounding)]) for name in dict.fromkeys([*f.count, *f.voices]))


@_template("Audio-Visual", "Location", "Where is the <LL> instrument?")
def _loudest(f: Facts) -> Answers:
    if len(f.sounding) > 1:
        ordered = sorted(f.sounding, key=lambda name: f.level[name])
        yield ("lowest",), LANES[f.lanes[ordered[0]]]
        yield ("loudest",), LANES[f.lanes[ordered[-1]]]


@_template("Audio-Visual", "Location", "Is the <FL> sound coming from the <LR> instrument?")
def _first_from(f: Facts) -> Answers:
    for which in ("first", "last"):
        name = f.begins_alone(which)
        if name in f.count and len(f.voices) > 1:
            yield from (((which, LANES[lane]), _yes(lane == f.lanes[name])) for lane in f.row)


@_template(
    "Audio-Visual",
    "Location",
    "Which is the musical instrument that sounds at the same time as the <Object>?",
)
def _together_with(f: Facts) -> Answers:
    if len(f.sounding) == len(f.voices) == 2:
        (a, b), ((begin_a, end_a), (begin_b, end_b)) = f.voices, (f.span[name] for name in f.voices)
        if min(end_a, end_b) - max(begin_a, begin_b) >= CLEARLY_LONGER_S:
            yield (a,), b
            yield (b,), a


@_template("Audio-Visual", "Location", "What is the <LR> instrument of the <FL> sounding instrument?")
def _beside_first(f: Facts) -> Answers:
    for which in ("first", "last"):
        name = f.begins_alone(which)
        for side in ("left", "right"):
            other = f.beside(name, side) if name in f.count and len(f.voices) > 1 else ""
            if other:
                yield (side, which), other


def _pairs(f: Facts) -> Iterator[tuple[str, str, str, str]]:
    for a, b in permutations(f.sounding, 2):
        yield a, LANES[f.lanes[a]], b, LANES[f.lanes[b]]


@_template("Audio-Visual", "Comparative", "Is the <Object> on the <LR> louder than the <Object> on the <LR>?")
def _louder_there(f: Facts) -> Answers:
    yield from (((a, x, b, y), _yes(f.level[a] > f.level[b])) for a, x, b, y in _pairs(f))


@_template(
    "Audio-Visual", "Comparative", "Is the instrument on the <LR> louder than the instrument on the <LR>?"
)
def _louder_lane(f: Facts) -> Answers:
    yield from (((x, y), _yes(f.level[a] > f.level[b])) for a, x, b, y in _pairs(f))


@_template(
    "Audio-Visual", "Comparative", "Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?"
)
def _rhythmic_there(f: Facts) -> Answers:
    for a, x, b, y in _pairs(f):
        if (a in f.rhythmic) != (b in f.rhythmic):
            yield (a, x, b, y), _yes(a in f.rhythmic)


@_template(
    "Audio-Visual",
    "Comparative",
    "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?",
)
def _rhythmic_lane(f: Facts) -> Answers:
    for a, x, b, y in _pairs(f):
        if (a in f.rhythmic) != (b in f.rhythmic):
            yield (x, y), _yes(a in f.rhythmic)


@_template("Audio-Visual", "Temporal", "What is the <TH> instrument that comes in?")
def _comes_in(f: Facts) -> Answers:
    if len(f.sounding) == len(f.voices) > 1 and len({begin for begin, _ in f.span.values()}) == len(f.voices):
        yield from (((ORDINALS[i],), name) for i, name in enumerate(f.voices))


@_template("Audio-Visual", "Temporal", "Where is the <FL> sounding instrument?")
def _where_first(f: Facts) -> Answers:
    for which in ("first", "last"):
        name = f.begins_alone(which)
        if name in f.count and len(f.voices) > 1:
            yield (which,), LANES[f.lanes[name]]


@_template("Audio-Visual", "Temporal", "Which instrument makes sounds <BA> the <Object>?")
def _before(f: Facts) -> Answers:
    if len(f.voices) == 2 and f.begins_alone("first"):
        first, second = f.voices
        yield ("before", second), first
        yield ("after", first), second


Pairs = list[tuple[tuple[str, ...], str]]
"""Slot values and the answer they lead to."""
QUESTION_TYPES = len({template.type for template in TEMPLATES})


@dataclass(frozen=True)
class Question:
    """A question about a clip."""

    type: tuple[str, str]
    text: str
    values: tuple[str, ...]
    answer: str


def choose_questions(
    scenario: Scenario,
    names: Sequence[str],
    most: int,
    rng: Generator,
    rhythmic: Collection[int] = GENERATED_RHYTHMIC,
) -> list[Question]:
    """Up to `most` different questions, at most one of each type for every nine of `most`.

    Types are drawn in random order, each once before any comes again. For a type a template, then an answer, then its
    slots are drawn with equal chances, so that no answer is frequent merely because many slots lead to it.
    """
    facts = Facts(scenario, names, rhythmic)
    left: dict[tuple[str, str], list[tuple[Template, Pairs]]] = {}
    for template in TEMPLATES:
        pairs = list(template.answers(facts))
        if pairs:
            left.setdefault(template.type, []).append((template, pairs))
    asked: list[Question] = []
    for _ in range(-(-most // QUESTION_TYPES)):
        types = [kind for kind, templates in left.items() if templates]
        for i in rng.permutation(len(types))[: most - len(asked)]:
            asked.append(_draw(left[types[i]], rng))
    return asked


def _draw(templates: list[tuple[Template, Pairs]], rng: Generator) -> Question:
    """Draw one question and remove it from those left."""
    place = int(rng.integers(len(templates)))
    template, pairs = templates[place]
    answers = sorted({answer for _, answer in pairs})
    answer = answers[int(rng.integers(len(answers)))]
    values = [slots for slots, said in pairs if said == answer]
    slots = values[int(rng.integers(len(values)))]
    pairs.remove((slots, answer))
    if not pairs:
        del templates[place]
    return Question(template.type, template.text, slots, answer)
