"""The world in MUSIC-AVQA's layout: videos, and questions about them that are split by question.

    video/<8 digits>.mp4                              media
    json/avqa-train.json, avqa-val.json, avqa-test.json   questions in the official form: JSON in strings, `anser`
    json/ans_vocab.txt                                all answers there can be, one a line
    dataset.json, truth.jsonl                         as in AVE's layout, with each clip's things and questions

A video's questions are all in one split but for every `SHARED_EVERY`th, whose questions are in two: the real set's
leak, small enough that scores still mean something.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.clip import SPLITS
from caeav.manifests.synthetic import avqa_scene, oracle
from caeav.manifests.synthetic.layouts import ave as layout
from caeav.manifests.synthetic.avqa_questions import Asked, ask
from caeav.manifests.synthetic.questions import LANES, NUMBERS
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, generator
from caeav.manifests.synthetic.classes import plain

SHARED_EVERY = 10


class _MusicAvqa:
    measure = "share of questions answered rightly"

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        return avqa_scene.plan(options, index)

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        return root / "video" / f"{video_id(scenario)}.mp4"

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        layout.write_mp4(self.last_file(root, scenario, split), options, scenario)

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        names = plain(options.classes)
        items: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        truth = []
        for scenario, split in zip(scenarios, splits, strict=True):
            mine = []
            for number, asked in enumerate(questions(options, scenario)):
                item = official_item(scenario, scenario.index * options.questions + number, asked)
                items[_split_of(scenario, number, split)].append(item)
                mine.append(item["question_id"])
            truth.append(json.dumps(truth_row(scenario, split, names, mine)))
        for split in SPLITS:
            layout.write_lines(root / "json" / f"avqa-{split}.json", [json.dumps(items[split])])
        layout.write_lines(root / "json" / "ans_vocab.txt", ["yes", "no", *NUMBERS, *LANES, *names])
        layout.write_lines(root / layout.TRUTH_FILE, truth)

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        asked = [question for scenario in scenarios for question in questions(options, scenario)]
        usual = Counter(question.answer for question in asked).most_common(1)
        by_text: dict[str, Counter[str]] = {}
        for question in asked:
            by_text.setdefault(question.text, Counter())[question.answer] += 1
        blind = {text: answers.most_common(1)[0][0] for text, answers in by_text.items()}

        def score(knows: str, sense: str, rule: str) -> oracle.Score:
            right = [q.type[0] == sense or blind[q.text] == q.answer for q in asked]
            return oracle.Score(knows, sum(right) / max(1, len(right)), rule)

        return (
            oracle.Score(
                "nothing", sum(n for _, n in usual) / max(1, len(asked)), "the most frequent answer"
            ),
            score("the question alone", "", "the most frequent answer to its template"),
            score("sight alone", "Visual", "visual questions, else as by the question alone"),
            score("sound alone", "Audio", "audio questions, else as by the question alone"),
            oracle.Score("sight and sound", 1.0, "all that is asked"),
        )


def video_id(scenario: Scenario) -> str:
    """Eight digits, as the real set's videos of performances."""
    return f"{scenario.index + 1:08d}"


def questions(options: SyntheticOptions, scenario: Scenario) -> list[Asked]:
    """What is asked about a clip."""
    rng = generator(options, "timeline", scenario.index, 1)
    return ask(scenario, plain(options.classes), options.questions, rng)


def official_item(scenario: Scenario, question_id: int, asked: Asked) -> dict[str, Any]:
    """A question as the official files hold it."""
    return {
        "video_id": video_id(scenario),
        "question_id": question_id,
        "type": json.dumps(asked.type),
        "question_content": asked.text,
        "templ_values": json.dumps(asked.values),
        "question_deleted": 0,
        "anser": asked.answer,
    }


def _split_of(scenario: Scenario, number: int, split: str) -> str:
    shared = scenario.index % SHARED_EVERY == SHARED_EVERY - 1 and number % 2
    return SPLITS[(SPLITS.index(split) + 1) % len(SPLITS)] if shared else split


def truth_row(scenario: Scenario, split: str, names: Sequence[str], asked: Sequence[int]) -> dict[str, Any]:
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
        "questions": list(asked),
    }


LAYOUT = _MusicAvqa()
