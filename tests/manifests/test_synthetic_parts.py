"""The lists of the generated set, and what a run makes, keeps and counts, without rendering anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic import generate, scenario
from caeav.manifests.synthetic.classes import class_names
from caeav.manifests.synthetic.layouts.ave import LAYOUT as AVE
from caeav.manifests.synthetic.layouts.base import assign_splits, claim
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.oracle import Score
from caeav.manifests.synthetic.scenario import Scenario

OPTIONS = SyntheticOptions(clips=6, classes=5, seconds=4, misaligned=0.0)
NAMES = class_names(5)


class TextLayout:
    """A layout whose media are names of splits in text files."""

    measure = "guesses"

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        return scenario.plan(options, index)

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        return root / split / f"{scenario.index}.txt"

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        path = self.last_file(root, scenario, split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(scenario.clip_id)

    def write_lists(self, root: Path, options: Any, scenarios: Any, splits: Sequence[str]) -> None:
        (root / "list.txt").write_text(" ".join(splits))

    def scores(self, options: Any, scenarios: Sequence[Scenario]) -> tuple[Score, ...]:
        return (Score("nothing", len(scenarios) / 10, "x"),)


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "layouts", {OPTIONS.layout: TextLayout()})


def test_a_run_makes_what_is_missing_and_counts_it(tmp_path: Path) -> None:
    root, progress = tmp_path / "set", list[tuple[int, int]]()

    def run() -> generate.Summary:
        progress.clear()
        return generate.synthesise(root, OPTIONS, 1, lambda *done: progress.append(done))

    first = run()
    assert (first.written, first.kept, progress) == (6, 0, [(n, 6) for n in range(7)])
    splits = (root / "list.txt").read_text().split()
    assert {s: splits.count(s) for s in SPLITS} == first.splits and sum(first.splits.values()) == 6
    for index, split in enumerate(splits):
        assert (root / split / f"{index}.txt").read_text() == scenario.clip_id(OPTIONS, index)
    (root / splits[2] / "2.txt").unlink()
    (root / splits[4] / "4.txt").write_text("kept")
    again = run()
    assert (again.written, again.kept, progress) == (1, 5, [(5, 6), (6, 6)])
    assert (root / splits[4] / "4.txt").read_text() == "kept"
    done = run()
    assert (done.written, done.kept, progress) == (0, 6, [(6, 6)])


def test_a_summary_counts_kinds_classes_and_seconds_of_background(tmp_path: Path) -> None:
    done = generate.synthesise(tmp_path, OPTIONS, 1)
    plans = [scenario.plan(OPTIONS, i) for i in range(6)]
    assert done.kinds["aligned"] == 6 and sum(done.kinds.values()) == 6
    assert list(done.classes) == list(NAMES) and sum(done.classes.values()) == 6
    assert done.classes[NAMES[plans[5].category]] == 2
    events = sum(p.end_s - p.start_s for p in plans)
    assert done.background == pytest.approx(1 - events / 24)
    assert (done.measure, done.scores, done.root) == ("guesses", (Score("nothing", 0.6, "x"),), tmp_path)


def test_zero_workers_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="workers is 0"):
        generate.synthesise(tmp_path / "set", OPTIONS, 0)
    assert not (tmp_path / "set").exists()


def test_a_folder_belongs_to_the_options_it_was_made_with(tmp_path: Path) -> None:
    claim(tmp_path / "set", OPTIONS)
    facts = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert (facts["segments"], facts["segment_s"], facts["synthetic"]) == (4, 1.0, OPTIONS.to_json())
    assert set(facts["made_with"]) == {"av", "numpy"}
    claim(tmp_path / "set", OPTIONS)
    with pytest.raises(CaeavError) as caught:
        claim(tmp_path / "set", SyntheticOptions(clips=7, classes=5, seconds=4, misaligned=0.0, seed=3))
    assert [line.strip() for line in caught.value.problem.splitlines()[1:]] == [
        "- clips: 6 in the folder, 7 asked for",
        "- seed: 0 in the folder, 3 asked for",
    ]
    for text in ("{", "{}", '{"synthetic": 3}'):
        (tmp_path / "set" / "dataset.json").write_text(text)
        with pytest.raises(CaeavError, match="does not describe a generated set"):
            claim(tmp_path / "set", OPTIONS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(CaeavError, match=r"holds files but no dataset\.json"):
        claim(tmp_path / "other", OPTIONS)


def test_the_lists_are_sorted_by_class_and_label_every_second(tmp_path: Path) -> None:
    made = [
        Scenario(0, "a" * 11, 3, "silent", 1, 3, None, ((3,), (3,), (3,), ()), ((), (3,), (3,), (1,))),
        Scenario(1, "b" * 11, 0, "cut", 0, 2, 2, ((0,), (0,), (), ()), ((0,), (0,), (0,), ())),
        Scenario(2, "c" * 11, 3, "aligned", 0, 4, None, ((3,),) * 4, ((3,),) * 4),
    ]
    AVE.write_lists(tmp_path, OPTIONS, made, ["test", "train", "val"])
    a, b, c = (
        f"{NAMES[k]}&{n * 11}&good&{s}&{e}" for k, n, s, e in ((3, "a", 1, 3), (0, "b", 0, 2), (3, "c", 0, 4))
    )
    lines = {p.name: p.read_text().splitlines() for p in tmp_path.iterdir()}
    assert lines["Annotations.txt"] == ["Category&VideoID&Quality&StartTime&EndTime", b, a, c]
    assert (lines["trainSet.txt"], lines["valSet.txt"], lines["testSet.txt"]) == ([b], [c], [a])
    assert lines["categories.txt"] == list(NAMES)
    rows = {row["id"][0]: row for row in map(json.loads, lines["truth.jsonl"])}
    assert list(rows) == ["b", "a", "c"]
    row = rows["a"]
    assert (row["category"], row["split"], row["kind"], row["start_s"], row["end_s"]) == (
        NAMES[3], "test", "silent", 1, 3,
    )  # fmt: skip
    assert row["label"] == ["background", NAMES[3], NAMES[3], "background"]
    assert row["seen"] == [[NAMES[3]]] * 3 + [[]] and row["heard"] == [[], [NAMES[3]], [NAMES[3]], [NAMES[1]]]
    assert (rows["b"]["cut_s"], row["cut_s"]) == (2, None)


def test_each_clip_goes_to_the_split_that_is_most_behind() -> None:
    made = [scenario.plan(OPTIONS, i) for i in range(6)]
    for shares, counts in (
        ((1.0, 0.0, 0.0), [6, 0, 0]),
        ((0.5, 0.0, 0.5), [3, 0, 3]),
        ((0.0, 0.0, 1.0), [0, 0, 6]),
    ):
        options = SyntheticOptions(clips=6, classes=5, seconds=4, splits=shares)
        found = assign_splits(options, made)
        assert [found.count(split) for split in SPLITS] == counts
