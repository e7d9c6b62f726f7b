"""The world in MUSIC-AVQA's layout: videos, and questions about them that are split by question.

    video/<8 digits>.mp4                              media
    json/avqa-train.json, avqa-val.json, avqa-test.json   questions in the official form: JSON in strings, `anser`
    json/ans_vocab.txt                                all possible answers, one per line
    truth.jsonl                                       each clip's things and questions

A clip has up to three objects, each in its own third of the frame, and up to four voices. Questions have one certain
answer: objects stay in their third, voices differ in loudness by a factor of 1.7 or more, and two objects of one class
are silent, so a sound belongs to one object or to none.

All questions about a video are in one split, except for every `SHARED_EVERY`th video, whose questions are in two: the
real set's leak, small enough for scores to mean something. In a world of material no video is in two splits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caeav.manifests.clip import SPLITS
from caeav.manifests.synthetic import oracle
from caeav.manifests.synthetic.casting import used_files
from caeav.manifests.synthetic.layouts.base import TRUTH_FILE, write_lines, write_mp4
from caeav.manifests.synthetic.options import ALIGNED, SyntheticOptions
from caeav.manifests.synthetic.questions import GENERATED_RHYTHMIC, LANES, NUMBERS, Question, choose_questions
from caeav.manifests.synthetic.scenario import Scenario, Thing, category_and_kind, clip_id, generator

LEVELS = (0.045, 0.08, 0.14, 0.24)
"""Loudness of voices: root mean square, full scale 1."""
OBJECTS = (0.2, 0.4, 0.4)
"""Shares of clips with one, two and three objects."""
TWINS = 0.2
"""Share of clips with several objects in which two are of one class and silent."""
SILENT = 0.25
"""Share of objects that never sound in clips that are not aligned."""
WHOLE = 0.6
"""Share of the voices beginning at once that sound to the end."""
SHARED_EVERY = 10


def plan(options: SyntheticOptions, index: int) -> Scenario:
    """The scenario of clip `index`; its things are objects from left to right, then perhaps a voice without object."""
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
    """When the voices begin: all at different seconds with two seconds left, the first often at once."""
    begins = [int(second) for second in rng.permutation(seconds - 1)[:count]]
    if rng.random() < 0.5:
        begins[begins.index(min(begins))] = 0
    return begins


def _by_second(present: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(number) for number in np.flatnonzero(second)) for second in present.T)


class _MusicAvqa:
    measure = "share of questions answered rightly"

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        return plan(options, index)

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        return root / "video" / f"{video_id(scenario)}.mp4"

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        write_mp4(self.last_file(root, scenario, split), options, scenario, split)

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        names = options.simple_names()
        items: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        truth = []
        for scenario, split in zip(scenarios, splits, strict=True):
            mine = []
            for number, question in enumerate(questions(options, scenario)):
                item = official_item(scenario, scenario.index * options.questions + number, question)
                where = split if options.material else _split_of(scenario, number, split)
                items[where].append(item)
                mine.append(item["question_id"])
            row = truth_row(scenario, split, names, mine)
            truth.append(json.dumps({**row, **used_files(options, scenario, split)}))
        for split in SPLITS:
            write_lines(root / "json" / f"avqa-{split}.json", [json.dumps(items[split])])
        write_lines(root / "json" / "ans_vocab.txt", ["yes", "no", *NUMBERS, *LANES, *names])
        write_lines(root / TRUTH_FILE, truth)

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        all_questions = [question for scenario in scenarios for question in questions(options, scenario)]
        most_common = Counter(question.answer for question in all_questions).most_common(1)
        by_text: dict[str, Counter[str]] = {}
        for question in all_questions:
            by_text.setdefault(question.text, Counter())[question.answer] += 1
        blind = {text: answers.most_common(1)[0][0] for text, answers in by_text.items()}

        def score(knows: str, modality: str, rule: str) -> oracle.Score:
            right = [q.type[0] == modality or blind[q.text] == q.answer for q in all_questions]
            return oracle.Score(knows, sum(right) / max(1, len(right)), rule)

        return (
            oracle.Score(
                "nothing",
                sum(n for _, n in most_common) / max(1, len(all_questions)),
                "the most frequent answer",
            ),
            score("the question alone", "", "the most frequent answer to its template"),
            score("visual alone", "Visual", "visual questions, else as by the question alone"),
            score("audio alone", "Audio", "audio questions, else as by the question alone"),
            oracle.Score("audio and visual", 1.0, "all that is asked"),
        )


def video_id(scenario: Scenario) -> str:
    """Eight digits, like the real set's videos of performances."""
    return f"{scenario.index + 1:08d}"


def questions(options: SyntheticOptions, scenario: Scenario) -> list[Question]:
    """The questions about a clip."""
    rng = generator(options, "timeline", scenario.index, 1)
    rhythmic = GENERATED_RHYTHMIC if options.material is None else ()
    return choose_questions(scenario, options.simple_names(), options.questions, rng, rhythmic)


def official_item(scenario: Scenario, question_id: int, question: Question) -> dict[str, Any]:
    """A question as the official files hold it."""
    return {
        "video_id": video_id(scenario),
        "question_id": question_id,
        "type": json.dumps(question.type),
        "question_content": question.text,
        "templ_values": json.dumps(question.values),
        "question_deleted": 0,
        "anser": question.answer,
    }


def _split_of(scenario: Scenario, number: int, split: str) -> str:
    shared = scenario.index % SHARED_EVERY == SHARED_EVERY - 1 and number % 2
    return SPLITS[(SPLITS.index(split) + 1) % len(SPLITS)] if shared else split


def truth_row(scenario: Scenario, split: str, names: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
    """The clip's line in the truth file."""
    things = [
        {
            "class": names[thing.cls],
            "lane": None if thing.lane is None else LANES[thing.lane],
            "level": thing.level,
            "seen": [number in second for second in scenario.seen],
            "heard": [number in second for second in scenario.heard],
        }
        for number, thing in enumerate(scenario.things)
    ]
    return {
        "id": video_id(scenario),
        "split": split,
        "kind": scenario.kind,
        "cut_s": scenario.cut_s,
        "things": things,
        "questions": list(ids),
    }


LAYOUT = _MusicAvqa()
