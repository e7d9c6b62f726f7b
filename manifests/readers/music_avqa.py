"""MUSIC-AVQA as distributed (Li et al., CVPR 2022): questions about videos of a minute, split by question.

    json_update/ or json/   avqa-train.json, avqa-val.json, avqa-test.json: a JSON list each, whose items hold lists as
                            JSON in strings and call the answer `anser`; the first folder is preferred, since it holds
                            corrected questions
    ans_vocab.txt           the answers in their order; optional
    video/<id>.mp4          the media

A clip is a video: ten segments of six seconds, of which the official code takes one frame each and all of the sound.
Its questions are in its row, each with its split; a video has no split, since most videos with test questions have
train questions too. Clips come in the order in which train, val and test first name them. The words of a question are
cut exactly as the official code cuts them, since its vocabulary and scores depend on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caeav.manifests.clip import SPLITS, Clip, Finding, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted
from caeav.manifests.findings import finding, shared_videos
from caeav.manifests.keys import KeyRequest, assign_keys
from caeav.manifests.readers import ReadOptions
from caeav.manifests.readers.common import (
    ReadLog,
    excerpt,
    first_file,
    how_to_get,
    is_name,
    media_by_stem,
    order_classes,
    read_names,
    read_shape,
    refuse_options,
)

SEGMENTS, SEGMENT_S = 10, 6.0
SPLIT_FILES = {"train": "avqa-train.json", "val": "avqa-val.json", "test": "avqa-test.json"}
ANSWERS = "ans_vocab.txt"
PLACES = ("json_update/", "data/json_update/", "json/", "data/json/", "", "data/")
MEDIA_FOLDERS = (
    "video",
    "data/video",
    "videos",
    "MUSIC-AVQA-videos-Real",
    "MUSIC-AVQA-videos-Synthetic",
    "MUCIS-AVQA-videos-Real",
    "MUCIS-AVQA-videos-Synthetic",
    "video/MUSIC-AVQA-videos-Real",
    "video/MUSIC-AVQA-videos-Synthetic",
    ".",
)
"""Where the videos may lie; the archives themselves are called MUCIS."""

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
        """The template with its slots filled, without blanks around it."""
        values = iter(self.values)
        return _SLOT.sub(lambda _: next(values), self.template).strip()

    def words(self) -> list[str]:
        """As the official code cuts them: split at blanks, the very last character dropped, and each word that holds
        a `<` replaced whole by the next value."""
        words = self.template.rstrip().split(" ")
        words[-1] = words[-1][:-1]
        values = iter(self.values)
        return [next(values) if "<" in word else word for word in words]


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the question files in `root`; raises `CaeavError` when there is none or one is unreadable."""
    refuse_options(options)
    names = ", ".join(SPLIT_FILES.values())
    help_text = how_to_get(
        options.dataset,
        root,
        official=f"{names} (in json_update/ or json/) and the videos video/<id>.mp4",
        authors="MUSIC-AVQA's authors (github.com/GeWu-Lab/MUSIC-AVQA)",
        generated="json/ and video/",
    )
    paths = {
        split: first_file(root, [place + name for place in PLACES]) for split, name in SPLIT_FILES.items()
    }
    if not any(paths.values()):
        raise CaeavError(f"{root}: none of {names} found", hint=help_text)
    log = ReadLog()
    segments, segment_s = read_shape(root, log, SEGMENTS, SEGMENT_S)
    questions: dict[str, list[Question]] = {}
    for split, path in paths.items():
        if path is None:
            log.add("no_split_file", SPLIT_FILES[split], f"no question is in {split}")
        questions[split] = read_questions(path, root, log) if path else []
    if not any(questions.values()):
        raise CaeavError(f"{root}: no question in its files", hint=help_text)
    classes = _classes(root, questions, log)
    for split in SPLITS:
        questions[split] = _unique(questions[split], log)
        _report_marks(questions[split], SPLIT_FILES[split], log)
    _report_unseen_words(questions, log)

    of_video: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        for question in questions[split]:
            of_video.setdefault(question.video, []).append(_row(question, split))
    media = media_by_stem(root, MEDIA_FOLDERS, log)
    keys = assign_keys([KeyRequest(video, video) for video in of_video])
    clips = tuple(
        Clip(
            key=key,
            media=media.get(video, f"{MEDIA_FOLDERS[0]}/{video}.mp4"),
            start_s=0.0,
            seconds=segments * segment_s,
            extra={"id": video, "questions": rows},
        )
        for key, (video, rows) in zip(keys, of_video.items(), strict=True)
    )
    log.findings += shared_videos(clips)
    return log.manifest(root, options.dataset, segments, segment_s, classes, clips)


def _row(question: Question, split: str) -> dict[str, Any]:
    return {
        "id": question.id,
        "split": split,
        "type": list(question.type),
        "text": question.text(),
        "words": question.words(),
        "answer": question.answer,
        "template": question.template,
    }


def read_questions(path: Path, root: Path, log: ReadLog) -> list[Question]:
    """All readable questions of a file, in order; raises `CaeavError` when it is no JSON list or none can be read."""
    try:
        items = json.loads(log.read_file(path, root))
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
            seen = excerpt(json.dumps(item).encode())
            damaged.append(finding("damaged_row", where, f"{error}: {seen}"))
    if damaged and not questions:
        raise CaeavError(
            f"{path}: none of its {len(damaged)} questions can be read; the first: {damaged[0].detail}",
            hint='a question has "video_id", "question_id", "type", "question_content", "templ_values" and "anser"',
        )
    log.findings += damaged
    return questions


def _question(item: Any, where: str) -> Question:
    """One item as a question; raises `ValueError` that says what is wrong."""
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


def _classes(root: Path, questions: Mapping[str, Iterable[Question]], log: ReadLog) -> tuple[str, ...]:
    """Answers in the order of `ans_vocab.txt` where there is one; of the official train file where its answers are
    used; else of first appearance. Answers that are in no list come last."""
    used = list(dict.fromkeys(q.answer for split in SPLITS for q in questions[split]))
    listed = first_file(root, [place + ANSWERS for place in PLACES])
    order = read_names(listed, log, root) if listed else []
    if not order and set(used) & set(OFFICIAL_ANSWERS):
        order = list(OFFICIAL_ANSWERS)
    return order_classes(used, order, SPLIT_FILES["train"], log)


def _unique(questions: Iterable[Question], log: ReadLog) -> list[Question]:
    """Each question once. One number with two answers stays twice: the official code counts both."""
    kept: list[Question] = []
    known: dict[int, Question] = {}
    for question in questions:
        first = known.setdefault(question.id, question)
        if first is not question:
            same = (first.video, first.template, first.values) == (
                question.video,
                question.template,
                question.values,
            )
            if same and first.answer == question.answer:
                log.add("duplicate_row", question.where, f"question {question.id}, as {first.where}")
                continue
            code = "contradictory_answers" if same else "repeated_number"
            detail = f"question {question.id}: {question.answer!r}, in {first.where} {first.answer!r}"
            log.add(code, question.where, detail)
        kept.append(question)
    return kept


def _report_marks(questions: Iterable[Question], name: str, log: ReadLog) -> None:
    """How questions end matters, because the official code cuts off their last character unseen."""
    blank = [q for q in questions if q.template != q.template.rstrip()]
    wide = [q for q in questions if q.template.rstrip().endswith(FULL_WIDTH_MARK)]
    none = [q for q in questions if not q.template.rstrip().endswith(("?", FULL_WIDTH_MARK))]
    for code, found in (("blank_at_end", blank), ("full_width_mark", wide), ("no_question_mark", none)):
        if found:
            first = found[0]
            log.add(
                code, name, f"{counted(len(found), 'question')}, such as {first.where}: {first.template!r}"
            )


def _report_unseen_words(questions: Mapping[str, Iterable[Question]], log: ReadLog) -> None:
    """Words of val and test that no train question has: the official code stops at the first."""
    known = {word for question in questions["train"] for word in question.words()}
    for split in ("val", "test") if known else ():
        unseen = dict.fromkeys(w for q in questions[split] for w in q.words() if w not in known)
        if unseen:
            log.add("unseen_words", SPLIT_FILES[split], ", ".join(unseen))
