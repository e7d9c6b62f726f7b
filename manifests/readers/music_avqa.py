"""MUSIC-AVQA as distributed (Li et al., CVPR 2022): questions about videos of a minute, split by question.

One clip is one video: ten segments of six seconds, the pictures the official code takes (one of every six seconds)
and all of the sound. Its questions are in its row, each with its split; videos have none, since most of those with
test questions have train questions too. `json_update/` holds the corrected val and test questions and is preferred
to `json/`. Clips come in the order in which train, val and test first name them.

MUSIC-AVQA's question files: a JSON list of items whose lists are JSON in strings and whose answer is `anser`.

Knows one file at a time; what the files say together is `music_avqa.py`. The words of a question are cut exactly as
the official code cuts them, since its vocabulary and scores depend on it.
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
from caeav.manifests.findings import finding, shared_videos
from caeav.manifests.keys import KeyRequest, assign_keys
from caeav.manifests.readers import ReadOptions
from caeav.manifests.readers.common import (
    first_there,
    is_name,
    media_by_stem,
    read_file,
    read_names,
    read_shape,
    refuse_options,
    shown,
)

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


SEGMENTS, SEGMENT_S = 10, 6.0
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


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the question files in `root`; raises `CaeavError` when there is none or one is unreadable."""
    refuse_options(options)
    paths = {
        split: first_there(root, [place + name for place in PLACES]) for split, name in SPLIT_FILES.items()
    }
    if not any(paths.values()):
        names = ", ".join(SPLIT_FILES.values())
        raise CaeavError(f"{root}: none of {names} found", hint=_how_to_get(options.dataset, root))
    sources: dict[str, str] = {}
    findings: list[Finding] = []
    segments, segment_s = read_shape(root, sources, SEGMENTS, SEGMENT_S)
    questions: dict[str, list[Question]] = {}
    for split, path in paths.items():
        if path is None:
            findings.append(finding("no_split_file", SPLIT_FILES[split], f"no question is in {split}"))
        questions[split] = read_questions(path, root, sources, findings) if path else []
    if not any(questions.values()):
        raise CaeavError(f"{root}: no question in its files", hint=_how_to_get(options.dataset, root))
    classes = _classes(root, questions, sources, findings)
    for split in SPLITS:
        questions[split] = _once(questions[split], findings)
        _report_marks(questions[split], SPLIT_FILES[split], findings)
    _report_words(questions, findings)

    of_video: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        for question in questions[split]:
            of_video.setdefault(question.video, []).append(_row(question, split))
    media = media_by_stem(root, MEDIA_FOLDERS, findings)
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
    findings += shared_videos(clips)
    return Manifest(
        dataset=options.dataset,
        segments=segments,
        segment_s=segment_s,
        classes=classes,
        clips=clips,
        media_root=str(root.absolute()),
        sources=sources,
        findings=tuple(findings),
    )


def _how_to_get(dataset: str, root: Path) -> str:
    names = ", ".join(SPLIT_FILES.values())
    if dataset != "music-avqa":
        return (
            f"make the set with: caeav synthesise --dataset music-avqa (it writes json/ and video/ to {root})"
        )
    return (
        f"put {names} (in json_update/ or json/) and the videos video/<id>.mp4 into {root}, or name their folder "
        "with --root; they come from MUSIC-AVQA's authors (github.com/GeWu-Lab/MUSIC-AVQA), not with caeav"
    )


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


def _classes(
    root: Path,
    questions: Mapping[str, Iterable[Question]],
    sources: dict[str, str],
    findings: list[Finding],
) -> tuple[str, ...]:
    """Answers in the order of `ans_vocab.txt` where there is one; of the official train file where its answers are
    used; else of first appearance. Answers that are in no list come behind."""
    used = list(dict.fromkeys(q.answer for split in SPLITS for q in questions[split]))
    listed = first_there(root, [place + ANSWERS for place in PLACES])
    order = read_names(listed, sources, root) if listed else []
    if not order and set(used) & set(OFFICIAL_ANSWERS):
        order = list(OFFICIAL_ANSWERS)
    if not order:
        return tuple(used)
    unknown = [answer for answer in used if answer not in order]
    findings += [finding("unknown_class", SPLIT_FILES["train"], repr(answer)) for answer in unknown]
    return (*order, *unknown)


def _once(questions: Iterable[Question], findings: list[Finding]) -> list[Question]:
    """The same question once. One number with two answers stays twice: the official code counts both."""
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
                findings.append(
                    finding("duplicate_row", question.where, f"question {question.id}, as {first.where}")
                )
                continue
            said = f"question {question.id}: {question.answer!r}, in {first.where} {first.answer!r}"
            findings.append(
                finding("contradictory_answers" if same else "repeated_number", question.where, said)
            )
        kept.append(question)
    return kept


def _report_marks(questions: Iterable[Question], name: str, findings: list[Finding]) -> None:
    """How questions end matters, because the official code cuts their last character off unseen."""
    blank = [q for q in questions if q.template != q.template.rstrip()]
    wide = [q for q in questions if q.template.rstrip().endswith(FULL_WIDTH_MARK)]
    none = [q for q in questions if not q.template.rstrip().endswith(("?", FULL_WIDTH_MARK))]
    for code, found in (("blank_at_end", blank), ("full_width_mark", wide), ("no_question_mark", none)):
        if found:
            said = f"{len(found)} questions, such as {found[0].where}: {found[0].template!r}"
            findings.append(finding(code, name, said))


def _report_words(questions: Mapping[str, Iterable[Question]], findings: list[Finding]) -> None:
    """Words of val and test that no train question has: the official code stops at the first."""
    known = {word for question in questions["train"] for word in question.words()}
    for split in ("val", "test") if known else ():
        unseen = dict.fromkeys(w for q in questions[split] for w in q.words() if w not in known)
        if unseen:
            findings.append(finding("unseen_words", SPLIT_FILES[split], ", ".join(unseen)))
