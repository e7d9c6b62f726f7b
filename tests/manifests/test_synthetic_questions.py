"""Questions about the generated clips: MUSIC-AVQA's templates, with answers another program finds again."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from synthetic_names import simple_names

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.findings import leaked_keys
from caeav.manifests.readers import SYNTHETIC
from caeav.manifests.readers.common import ReadLog
from caeav.manifests.readers.music_avqa import TYPES, read_questions
from caeav.manifests.synthetic import synthesise
from caeav.manifests.synthetic.layouts.music_avqa import official_item, plan, questions, truth_row
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.questions import TEMPLATES

LAYOUT = "music-avqa"
MANY = 300


def options(**other: Any) -> SyntheticOptions:
    small = {"clips": 11, "size_px": 64, "fps": 4, "misaligned": 0.7}
    return SyntheticOptions.for_layout(LAYOUT, **{**small, **other})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Home(tmp_path_factory.mktemp("questions")).data(SYNTHETIC[LAYOUT])
    synthesise(root, options(), workers=1)
    return root


@pytest.fixture(scope="module")
def made(root: Path) -> Manifest:
    return load_dataset(SYNTHETIC[LAYOUT], root, Home(root.parent.parent))


class Reader:
    """Answers questions from the truth file alone: another program than the one that asked."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.things = row["things"]
        self.shown = sorted(
            (t for t in self.things if any(t["seen"])),
            key=lambda t: ("left", "middle", "right").index(t["lane"]),
        )
        self.heard = sorted((t for t in self.things if any(t["heard"])), key=lambda t: t["heard"].index(True))
        self.loud = [t for t in self.heard if t in self.shown]

    def named(self, name: str, among: list[Any]) -> Any:
        return next((t for t in among if t["class"] == name), None)

    def at(self, lane: str) -> Any:
        return next(t for t in self.shown if t["lane"] == lane)

    def edge(self, which: str) -> Any:
        return self.heard[0 if which == "first" else -1]

    def answer(self, text: str) -> str:
        for pattern, reply in RULES:
            match = re.fullmatch(pattern, text)
            if match:
                said = reply(self, *match.groups())
                return {True: "yes", False: "no"}.get(said, said) if isinstance(said, bool) else str(said)
        raise AssertionError(f"no rule for {text!r}")


def number(n: int) -> str:
    return ("zero", "one", "two", "three", "four")[n]


def rhythmic(thing: Any) -> bool:
    """The first, third, fifth, ... class of the world: chirps, bursts, beeps and clicks pause, the others do not."""
    return simple_names(8).index(thing["class"]) % 2 == 0


def neighbour(r: Reader, side: str, thing: Any) -> str:
    at = r.shown.index(thing)
    [other] = r.shown[:at] if side == "left" else r.shown[at + 1 :]
    return str(other["class"])


def both(r: Reader, a: str, b: str, among: list[Any]) -> bool:
    return bool(r.named(a, among) and r.named(b, among))


RULES: list[tuple[str, Any]] = [
    (r"Is there a voiceover\?", lambda r: any(t["lane"] is None for t in r.heard)),
    (r"Is there a (\S+) sound\?", lambda r, a: r.named(a, r.heard) is not None),
    (r"Are there (\S+) and (\S+) sound\?", lambda r, a, b: both(r, a, b, r.heard)),
    (r"How many musical instruments were heard .*", lambda r: number(len(r.heard))),
    (
        r"Is the (\S+) louder than the (\S+)\?",
        lambda r, a, b: r.named(a, r.heard)["level"] > r.named(b, r.heard)["level"],
    ),
    (r"Is the (\S+) more rhythmic than the (\S+)\?", lambda r, a, b: rhythmic(r.named(a, r.heard))),
    (
        r"Is the (\S+) playing longer than the (\S+)\?",
        lambda r, a, b: sum(r.named(a, r.heard)["heard"]) > sum(r.named(b, r.heard)["heard"]),
    ),
    (r"Is there a (\S+) in the entire video\?", lambda r, a: r.named(a, r.shown) is not None),
    (r"Are there (\S+) and (\S+) instruments in the video\?", lambda r, a, b: both(r, a, b, r.shown)),
    (r"How many types .* appeared .*", lambda r: number(len({t["class"] for t in r.shown}))),
    (r"How many types .* sound in the video\?", lambda r: number(len({t["class"] for t in r.loud}))),
    (r"How many (\S+) are in the entire video\?", lambda r, a: number(sum(t["class"] == a for t in r.shown))),
    (r"How many instruments are sounding in the video\?", lambda r: number(len(r.loud))),
    (
        r"How many instruments .* did not sound .*",
        lambda r: number(sum(not any(t["heard"]) for t in r.shown)),
    ),
    (
        r"How many sounding (\S+) in the video\uff1f",
        lambda r, a: number(sum(t["class"] == a for t in r.loud)),
    ),
    (r"What kind of musical instrument is it\?", lambda r: r.shown[0]["class"]),
    (
        r"What kind of instrument is the (left|right)est .*",
        lambda r, s: r.shown[0 if s == "left" else -1]["class"],
    ),
    (r"What is the instrument on the (\S+) of (\S+)\?", lambda r, s, a: neighbour(r, s, r.named(a, r.shown))),
    (r"Is the (\S+) in the video always playing\?", lambda r, a: all(r.named(a, r.shown)["heard"])),
    (r"Is this sound from the instrument .*", lambda r: any(r.shown[0]["heard"])),
    (r"Where is the loudest instrument\?", lambda r: max(r.loud, key=lambda t: t["level"])["lane"]),
    (r"Where is the lowest instrument\?", lambda r: min(r.loud, key=lambda t: t["level"])["lane"]),
    (r"Is the (first|last) sound coming from the (\S+) .*", lambda r, w, s: r.edge(w)["lane"] == s),
    (
        r"Which is .* at the same time as the (\S+)\?",
        lambda r, a: next(t["class"] for t in r.heard if t["class"] != a),
    ),
    (r"What is the (\S+) instrument of the (\S+) sounding .*", lambda r, s, w: neighbour(r, s, r.edge(w))),
    (
        r"Is the (\S+) on the (\S+) (louder|more rhythmic) than the (\S+) on the (\S+)\?",
        lambda r, a, x, how, b, y: compare(r.at(x), r.at(y), how),
    ),
    (
        r"What is the (\S+) instrument that comes in\?",
        lambda r, n: r.heard[("first", "second", "third").index(n)]["class"],
    ),
    (r"Where is the (first|last) sounding instrument\?", lambda r, w: r.edge(w)["lane"]),
    (
        r"Which instrument makes sounds (before|after) the (\S+)\?",
        lambda r, w, a: next(t["class"] for t in r.heard if t["class"] != a),
    ),
]


def compare(one: Any, other: Any, how: str) -> bool:
    return bool(one["level"] > other["level"]) if how == "louder" else rhythmic(one)


def test_every_answer_is_found_again_from_the_truth_alone(root: Path, made: Manifest) -> None:
    lines = (root / "truth.jsonl").read_text().splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    asked = [(clip, q) for clip in made.clips for q in clip.extra["questions"]]
    assert len(asked) > 50
    for clip, question in asked:
        assert Reader(rows[clip.key]).answer(question["text"]) == question["answer"], (clip.key, question)


def test_all_31_templates_and_nine_types_get_right_answers_over_many_clips(tmp_path: Path) -> None:
    o = options(clips=MANY)
    templates: Counter[str] = Counter()
    types: Counter[tuple[str, str]] = Counter()
    answers: dict[str, Counter[str]] = {}
    for i in range(MANY):
        scenario = plan(o, i)
        reader = Reader(truth_row(scenario, "train", simple_names(o.classes), []))
        asked = questions(o, scenario)
        items = [official_item(scenario, n, question) for n, question in enumerate(asked)]
        (tmp_path / "q.json").write_text(json.dumps(items))
        for question in read_questions(tmp_path / "q.json", tmp_path, ReadLog()):
            assert reader.answer(question.text()) == question.answer, (i, question)
            templates[question.template] += 1
            types[question.type] += 1
            answers.setdefault(question.template, Counter())[question.answer] += 1
    assert len(templates) == 31 and set(types) == set(TYPES)
    assert min(types.values()) > 0.04 * sum(types.values())
    for template, said in answers.items():
        if set(said) <= {"yes", "no"}:
            assert 0.2 < said["yes"] / said.total() < 0.8, (template, said)


def test_official_templates_are_word_for_word_those_of_the_real_set(shared: Path) -> None:
    path = shared / "data/annotations/music_avqa/json_update/avqa-test.json"
    real = {(tuple(json.loads(q["type"])), q["question_content"]) for q in json.loads(path.read_text())}
    mine = {(template.type, template.text) for template in TEMPLATES}
    assert mine < real
    assert {text for _, text in real - mine} == {
        "Where is the performance?",
        "Which <Object> makes the sound <FL>?",
    }


def test_questions_of_every_tenth_video_are_in_two_splits(made: Manifest) -> None:
    leaked = leaked_keys(made)
    assert list(leaked) == ["00000010"] and len(leaked["00000010"]) == 2
    counts = Counter(q["split"] for clip in made.clips for q in clip.extra["questions"])
    assert set(counts) == {"train", "val", "test"}


def test_more_questions_are_distinct_and_spread_over_the_nine_types(tmp_path: Path) -> None:
    few, many = options(clips=MANY), options(clips=MANY, questions=14)
    counts = Counter[int]()
    for i in range(MANY):
        scenario = plan(many, i)
        reader = Reader(truth_row(scenario, "train", simple_names(many.classes), []))
        asked = questions(many, scenario)
        texts = [(question.text, question.values) for question in asked]
        assert len(set(texts)) == len(asked) <= 14
        assert max(Counter(question.type for question in asked).values()) <= 2
        first = questions(few, plan(few, i))
        assert len({question.type for question in first}) == len(first) <= 6
        (tmp_path / "q.json").write_text(
            json.dumps([official_item(scenario, n, question) for n, question in enumerate(asked)])
        )
        for question in read_questions(tmp_path / "q.json", tmp_path, ReadLog()):
            assert reader.answer(question.text()) == question.answer
        counts[len(asked)] += 1
    assert counts.total() == MANY and counts[14] > MANY / 3


def test_a_set_with_more_questions_is_another_set_and_ids_are_unique(tmp_path: Path) -> None:
    more = options(clips=3, questions=12)
    synthesise(tmp_path / "set", more, workers=1)
    files = (tmp_path / "set" / "json").glob("avqa-*.json")
    ids = [item["question_id"] for path in files for item in json.loads(path.read_text())]
    assert len(ids) > 20 and len(set(ids)) == len(ids)
    with pytest.raises(CaeavError, match="questions: 12 in the folder, None asked for"):
        synthesise(tmp_path / "set", options(clips=3), workers=1)


def test_only_music_avqa_has_questions() -> None:
    with pytest.raises(CaeavError, match="questions is 9, and layout llp has none; music-avqa has"):
        SyntheticOptions.for_layout("llp", questions=9)
    with pytest.raises(CaeavError, match="questions is 0; allowed are whole numbers from 1 to 40"):
        options(questions=0)
