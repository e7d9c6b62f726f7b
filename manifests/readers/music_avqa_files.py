"""MUSIC-AVQA's question files: a JSON list of items whose lists are JSON in strings and whose answer is `anser`.

Knows one file at a time; what the files say together is `music_avqa.py`. The words of a question are cut exactly as
the official code cuts them, since its vocabulary and scores depend on it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caeav.manifests.clip import Finding
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding
from caeav.manifests.readers.common import is_name, read_file, shown

SPLIT_FILES = {"train": "avqa-train.json", "val": "avqa-val.json", "test": "avqa-test.json"}
ANSWERS = "ans_vocab.txt"
TYPES = (
    ("Audio", "Counting"),
    ("Audio", "Comparative"),
    ("Visual", "Counting"),
    ("Visual", "Location"),
    ("Audio-Visual", "Existential"),
    ("Audio-Visual", "Counting"),
    ("Audio-Visual", "Location"),
    ("Audio-Visual", "Comparative"),
    ("Audio-Visual", "Temporal"),
)
"""The nine types of question, in the order of the official tables."""

OFFICIAL_ANSWERS = (
    *("two", "cello", "congas", "zero", "no", "pipa", "six"),
    *("yes", "one", "four", "three", "seven", "five", "ukulele"),
    *("right", "piano", "left", "accordion", "clarinet", "guzheng", "more than ten"),
    *("nine", "indoor", "saxophone", "drum", "violin", "middle", "outdoor"),
    *("bagpipe", "bassoon", "acoustic_guitar", "banjo", "electric_bass", "ten", "eight"),
    *("flute", "simultaneously", "trumpet", "erhu", "xylophone", "tuba", "suona"),
)
"""The 42 answers in the order in which the official train file first gives them, which is the order of its classes."""

FULL_WIDTH_MARK = "\uff1f"
_SLOT = re.compile(r"<[^<>]*>")


@dataclass(frozen=True, slots=True)
class Question:
    """One item. `values` fill the slots `<...>` of `template` in order; `where` is `file[number]`."""

    video: str
    id: int
    type: tuple[str, str]
    template: str
    values: tuple[str, ...]
    answer: str
    where: str

    def text(self) -> str:
        """The template with its slots filled, without the blanks around it."""
        values = iter(self.values)
        return _SLOT.sub(lambda _: next(values), self.template).strip()

    def words(self) -> list[str]:
        """As the official code cuts them: at blanks, without the very last character, and each word that holds a
        `<` replaced whole by the next value."""
        words = self.template.rstrip().split(" ")
        words[-1] = words[-1][:-1]
        values = iter(self.values)
        return [next(values) if "<" in word else word for word in words]


def read_questions(
    path: Path, root: Path, sources: dict[str, str], findings: list[Finding]
) -> list[Question]:
    """All readable questions of a file, in order; raises `CaeavError` when it is no JSON list or none can be read."""
    try:
        items = json.loads(read_file(path, sources, root))
    except (ValueError, RecursionError) as error:
        raise CaeavError(
            f"{path}: not JSON ({error})", hint="take the file as its authors distribute it"
        ) from None
    if not isinstance(items, list):
        raise CaeavError(f"{path}: holds {type(items).__name__}, it must hold a list of questions")
    questions: list[Question] = []
    damaged: list[Finding] = []
    for number, item in enumerate(items):
        where = f"{path.name}[{number}]"
        try:
            questions.append(_question(item, where))
        except ValueError as error:
            seen = shown(json.dumps(item).encode())
            damaged.append(finding("damaged_row", where, f"{error}: {seen}"))
    if damaged and not questions:
        raise CaeavError(
            f"{path}: none of its {len(damaged)} questions can be read; the first: {damaged[0].detail}",
            hint='a question has "video_id", "question_id", "type", "question_content", "templ_values" and "anser"',
        )
    findings += damaged
    return questions


def _question(item: Any, where: str) -> Question:
    """Raises ValueError saying what is wrong."""
    if not isinstance(item, dict):
        raise ValueError("no object")
    video, template = item.get("video_id"), item.get("question_content")
    if not isinstance(video, str) or not is_name(video):
        raise ValueError(f"video_id {video!r} is no file name")
    number = item.get("question_id")
    if type(number) is not int:
        raise ValueError(f"question_id {number!r} is no whole number")
    if not isinstance(template, str) or not template.strip():
        raise ValueError("no question_content")
    type_ = _strings(item.get("type"), "type")
    if len(type_) != 2:
        raise ValueError(f"type {item.get('type')!r} is not a modality and a kind")
    values = _strings(item.get("templ_values"), "templ_values")
    slots = _SLOT.findall(template)
    if len(values) != len(slots):
        raise ValueError(f"{len(values)} templ_values for {len(slots)} slots")
    if sum("<" in word for word in template.split(" ")) != len(slots):
        raise ValueError("two slots in one word")
    answer = item.get("anser", item.get("answer"))
    if not isinstance(answer, str) or not answer:
        raise ValueError(f"anser is {answer!r}")
    return Question(video, number, (type_[0], type_[1]), template, values, answer, where)


def _strings(text: object, name: str) -> tuple[str, ...]:
    """A JSON list of strings in a string."""
    try:
        values = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} {text!r} is not a list of strings")
    return tuple(values)
