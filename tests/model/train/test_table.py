"""The table of published numbers and own runs, cell by cell, from results written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.model.train.table import (
    APART,
    BACKBONES,
    METRIC,
    PLANNED,
    Line,
    Section,
    Table,
    Value,
    _own_lines,
    _why_apart,
    build_table,
    markdown,
)

FACTS: dict[str, Any] = {"dataset": "ave", "tested": [402, 400]}


def result(**changed: Any) -> dict[str, Any]:
    made = {
        "run": "r0", "group": "g", "recipe": "full", "dataset": "ave", "seed": 0, "metric": "accuracy",
        "select_on": "val", "protocol": "honest", "scores": {"val": 1.0, "test": 70.0},
        "details": {"val": {"recall": 2.0}, "test": {"recall": 40.0}}, "clips": {"train": 9, "test": 402},
        "intervals": {"val": {"bounds": {"accuracy": [0, 2]}}, "test": {"bounds": {"recall": [35.0, 45.0]}}},
        PLANNED: [0, 1, 2], BACKBONES: "swin + clap", METRIC: [], APART: "",
    }  # fmt: skip
    return made | changed


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Value(70.0), "70.0"),
        (Value(70.25), "70.25"),
        (Value(70.256), "70.26"),
        (Value(70.0, None, (65.04, 74.96)), "70.00 (65.0 to 75.0)"),
        (Value(70.0, 1.5, (1.0, 2.0)), "70.00 ± 1.50"),
        (Value(70.0, 0.0), "70.00 ± 0.00"),
    ],
)
def test_a_value_is_shown_with_what_is_known_about_it(value: Value, shown: str) -> None:
    assert value.shown() == shown


def test_runs_of_a_group_are_one_row_with_mean_and_deviation_of_test() -> None:
    second = result(run="r1", seed=1, scores={"val": 9.0, "test": 74.0}, details={"test": {"recall": 44.0}})
    alone = result(run="r2", group="", seed=7, **{PLANNED: [7]})
    one, other = _own_lines([result(), alone, second], ["accuracy", "recall", "nothing"])
    assert (one.method, one.source, one.protocol) == ("full, seeds 0, 1 of 0, 1, 2", "g", "honest")
    assert [v and v.shown() for v in one.values] == ["72.00 ± 2.83", "42.00 ± 2.83", None]
    assert (other.method, other.source, other.tested) == ("full, seed 7", "r2", 402)
    assert [v and v.shown() for v in other.values] == ["70.0", "40.00 (35.0 to 45.0)", None]
    assert other.backbones == "swin + clap" and other.own
    half = result(details={"test": {}})  # a number that one run of a group lacks has no mean
    [line] = _own_lines([half, second], ["accuracy", "recall"])
    assert line.values[0] is not None and line.values[1] is None


def test_a_row_says_what_departs_from_the_usual() -> None:
    made = result(select_on="test", augment={"mute": 0.5, "blur": 1}, leaks={}, **{APART: "a reason"})
    again = result(run="r1", seed=1, **{APART: "another"})
    [line] = _own_lines([made, again, result(run="r2", seed=2, **{APART: "a reason"})], ["accuracy"])
    assert line.protocol == "selected on test, no leaks" and line.apart == "a reason; another"
    assert line.method == "full, seeds 0, 1, 2, augmented (mute, blur)"
    peaks = {"peaks": {"test": {"recall": 50.0}, "val": {"accuracy": 99.0}}, "group": ""}
    [best] = _own_lines([result(**peaks)], ["accuracy", "recall"])
    assert [v and v.shown() for v in best.values] == ["70.0", "50.0"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"clips": {"test": 380}}, ""),  # 95 % of the smaller one
        ({"clips": {"test": 379}, "rows": "questions"}, "379 test questions, officially 402 or 400"),
        ({"clips": {"test": 402}}, ""),
        ({"clips": {"test": 403}}, "403 test clips, officially 402 or 400"),
        ({"dataset": "mine", "clips": {"test": 9}}, "not the data set ave"),
        ({"select_on": "test"}, "selected on test, not by the published protocol"),
        ({"select_on": "test", "protocol": "published"}, ""),
        (
            {"leaks": {}, BACKBONES: "x (random values)", METRIC: ["metric.a 1"]},
            "clips are left out; random backbone; metric.a 1",
        ),
    ],
)
def test_why_a_result_stands_apart(changed: dict[str, Any], why: str) -> None:
    assert _why_apart(result(**changed), FACTS) == why


def test_the_table_in_markdown() -> None:
    peer = Line("X|Y", (Value(70.5), None), "best epoch by test", "L")
    own = Line("full, seed 0", (Value(71.0, 0.5), Value(1.0)), "honest", "g", True, "swin", 402)
    apart = Line("none, seed 1", (None, Value(2.0)), "honest", "r", True, "swin", None, "too few")
    metrics = {"iou": "M_J", "f": "M_F"}
    shown = markdown(
        Table(
            (
                Section("ave", "ave", "One", metrics, (peer, own), ("a note",), rows="questions"),
                Section("ave", "d", "Two", metrics, (apart,), apart=True),
                Section("avqa", "d", "Three", metrics, (peer,)),
                Section("avqa", "d", "Four", metrics, (), apart=True),
            ),
            {"L": "a letter [I]"},
        )
    )
    one, two, three, rest = shown.split("### ")[1:]
    assert one.splitlines()[2:8] == [
        "| method | M_J | M_F | protocol | source |",
        "| --- | --- | --- | --- | --- |",
        "| X\\|Y | 70.5 | - | best epoch by test | L |",
        "| **full, seed 0**, swin, 402 test questions | 71.00 ± 0.50 | 1.0 | honest | `g` |",
        "",
        "- a note",
    ]
    assert two.splitlines()[2:5] == [
        "| method | backbones | test clips | M_J | M_F | protocol | source | why apart |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| **none, seed 1** | swin | - | - | 2.0 | honest | `r` | too few |",
    ]
    assert "| **yours** |  |  |  | `caeav train --task avqa --seeds 0,1,2` |" in three
    assert "yours" not in one + two + rest and rest.endswith("Sources:\n\n- L: a letter [I]\n")


def test_the_table_of_one_task_lists_only_its_own_sources() -> None:
    table = build_table(None, "avqa")
    assert {section.task for section in table.sections} == {"avqa"} and len(table.sections) == 1
    named = {line.source for line in table.sections[0].lines}
    assert set(table.sources) == named and "D" in build_table(None).sources
    with pytest.raises(CaeavError, match="--task 'cooking'") as caught:
        build_table(None, "cooking")
    assert "choose among ave, ave-weak" in str(caught.value)
