"""Which questions are asked about a clip: a few of different types, with even answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from caeav.manifests.synthetic.avqa_facts import Facts
from caeav.manifests.synthetic.avqa_templates import TEMPLATES, Template
from caeav.manifests.synthetic.scenario import Scenario


@dataclass(frozen=True)
class Asked:
    """A question chosen for a clip."""

    type: tuple[str, str]
    text: str
    values: tuple[str, ...]
    answer: str


def ask(scenario: Scenario, names: Sequence[str], most: int, rng: Generator) -> list[Asked]:
    """Up to `most` questions of different types: first a type, then a template, then an answer, then the slots, each
    drawn evenly, so that no answer is frequent merely because many slots lead to it."""
    facts = Facts(scenario, names)
    found: dict[tuple[str, str], list[tuple[Template, list[tuple[tuple[str, ...], str]]]]] = {}
    for template in TEMPLATES:
        pairs = list(template.answers(facts))
        if pairs:
            found.setdefault(template.type, []).append((template, pairs))
    types = list(found)
    asked = []
    for i in rng.permutation(len(types))[:most]:
        of_type = found[types[i]]
        template, pairs = of_type[int(rng.integers(len(of_type)))]
        answers = sorted({answer for _, answer in pairs})
        answer = answers[int(rng.integers(len(answers)))]
        values = [slots for slots, said in pairs if said == answer]
        asked.append(Asked(template.type, template.text, values[int(rng.integers(len(values)))], answer))
    return asked
