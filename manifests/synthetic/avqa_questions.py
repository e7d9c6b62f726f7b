"""Which questions are asked about a clip: of different types in turn, with even answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from caeav.manifests.synthetic.avqa_facts import Facts
from caeav.manifests.synthetic.questions import TEMPLATES, Template
from caeav.manifests.synthetic.scenario import Scenario

Pairs = list[tuple[tuple[str, ...], str]]
"""Slot values and the answer they lead to."""
TYPES = len({template.type for template in TEMPLATES})


@dataclass(frozen=True)
class Asked:
    """A question chosen for a clip."""

    type: tuple[str, str]
    text: str
    values: tuple[str, ...]
    answer: str


def ask(scenario: Scenario, names: Sequence[str], most: int, rng: Generator) -> list[Asked]:
    """Up to `most` questions, none twice, of a type at most one for every nine of `most`.

    Types come in random order, each once before any again; of a type first a template, then an answer, then the slots
    are drawn evenly, so that no answer is frequent merely because many slots lead to it.
    """
    facts = Facts(scenario, names)
    left: dict[tuple[str, str], list[tuple[Template, Pairs]]] = {}
    for template in TEMPLATES:
        pairs = list(template.answers(facts))
        if pairs:
            left.setdefault(template.type, []).append((template, pairs))
    asked: list[Asked] = []
    for _ in range(-(-most // TYPES)):
        types = [kind for kind, templates in left.items() if templates]
        for i in rng.permutation(len(types))[: most - len(asked)]:
            asked.append(_draw(left[types[i]], rng))
    return asked


def _draw(templates: list[tuple[Template, Pairs]], rng: Generator) -> Asked:
    """One question, which is taken out of what may be asked."""
    place = int(rng.integers(len(templates)))
    template, pairs = templates[place]
    answers = sorted({answer for _, answer in pairs})
    answer = answers[int(rng.integers(len(answers)))]
    values = [slots for slots, said in pairs if said == answer]
    slots = values[int(rng.integers(len(values)))]
    pairs.remove((slots, answer))
    if not pairs:
        del templates[place]
    return Asked(template.type, template.text, slots, answer)
