"""What is printed at the end of a stage, in words and as JSON, and which end is a failure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caeav.cli import stage as stages
from caeav.cli.options import at_home
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract.context import WHOLE, failure_limit
from caeav.pipeline.extract.identity import MediaChanged
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.store import Quarantined, Recipe
from caeav.pipeline.store.media_record import MediaChange
from caeav.pipeline.store.slices import Slice

LOST = (Quarantined("a", "decode", "no video: x", 2), Quarantined("b", "media", "file not found: b.mp4", 1))
CHANGE = MediaChange("s", "c", "c.mp4", "gone", "c.mp4 is no file")


def summary(**other: Any) -> StageSummary:
    made = StageSummary(
        path=Path("home/stores/mine/s"),
        recipe=Recipe("tokens", "s", {"dtype": "int8"}),
        stored=6,
        expected=10,
        bytes=12288,
        quarantined=LOST,
        due=5,
        seconds=2.5,
        notes={"longer_media": 3},
        remarks=("a remark",),
        max_failed=2,
        busy_s={"decode": 1.23456, "write": 0.01},
        limit="decode 97 %",
        media=(CHANGE,),
    )
    return replace(made, **other)


def test_json_holds_the_whole_summary(capsys: pytest.CaptureFixture[str]) -> None:
    made = summary()
    stages.finish(made, True, "next")
    assert json.loads(capsys.readouterr().out) == {
        "path": "home/stores/mine/s",
        "fingerprint": made.recipe.fingerprint,
        "expected": 10,
        "stored": 6,
        "bytes": 12288,
        "quarantined": [
            {"key": "a", "stage": "decode", "reason": "no video: x", "attempts": 2},
            {"key": "b", "stage": "media", "reason": "file not found: b.mp4", "attempts": 1},
        ],
        "due": 5,
        "seconds": 2.5,
        "busy_s": {"decode": 1.235, "write": 0.01},
        "limit": "decode 97 %",
        "notes": {"longer_media": 3},
        "remarks": ["a remark"],
        "media": [{"key": "c", "media": "c.mp4", "what": "gone", "detail": "c.mp4 is no file"}],
    }


def test_the_printed_summary_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    stages.finish(summary(), False, "caeav train")
    assert capsys.readouterr().out.splitlines() == [
        "5 clips in 2.5 s (2.0 clips/s)",
        "limited by   decode 97 % (seconds of work: decode 1.2)",
        "stored       6 of 10, 2.0 kB per clip",
        "quarantined  2",
        "  1 x decode: no video",
        "  1 x media: file not found",
        "noted        3 x longer_media",
        "store        home/stores/mine/s",
        "next         caeav train",
    ]
    stages.finish(summary(due=0, stored=0, quarantined=(), notes={}, limit=""), False, "caeav train")
    assert capsys.readouterr().out.splitlines() == [
        "nothing to do: every clip is stored or quarantined already",
        "stored       0 of 10",
        "store        home/stores/mine/s",
    ]
    stages.finish(summary(bytes=6 * 3 * 10**6), False, "")
    shown = capsys.readouterr().out
    assert "3.0 MB per clip" in shown and "next" not in shown


@pytest.mark.parametrize(("kinds", "said"), [(8, ""), (9, "  and 1 other reasons, see quarantine.jsonl")])
def test_the_first_reasons_are_named_and_the_others_counted(
    kinds: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tuple(Quarantined(f"k{i}", "decode", f"reason {i}", 1) for i in range(kinds))
    stages.finish(summary(quarantined=lost, max_failed=99), False, "")
    lines = capsys.readouterr().out.splitlines()
    assert sum("1 x decode" in line for line in lines) == 8
    assert (said in lines) is bool(said) and ("other reasons" in "".join(lines)) is bool(said)


def test_reasons_are_grouped_by_stage_and_kind_most_frequent_first() -> None:
    found = [("decode", "b: 1"), ("media", "b: 1"), ("decode", "a"), ("media", "b: 2")]
    lost = tuple(Quarantined(str(i), stage, reason, 1) for i, (stage, reason) in enumerate(found))
    counted = summary(quarantined=lost).reasons()
    assert list(counted.items()) == [("media: b", 2), ("decode: a", 1), ("decode: b", 1)]


@pytest.mark.parametrize("as_json", [True, False])
def test_too_many_failures_are_an_error_after_the_summary(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "2 of 10 clips are quarantined; --max-failed allows 1\n"
    with pytest.raises(CaeavError, match=message) as refused:
        stages.finish(summary(max_failed=1), as_json, "")
    assert "quarantine.jsonl; fix the media and give --retry-failed" in str(refused.value)
    assert "no video" in capsys.readouterr().out
    for place in (0, 1):  # whichever store it is
        several = [summary(), summary()]
        several[place] = summary(max_failed=1)
        with pytest.raises(CaeavError, match=message):
            stages.finish_all(several, as_json, "caeav train")
        shown = capsys.readouterr().out
        if as_json:
            assert len(json.loads(shown)) == 2
        else:
            assert shown.count("stored       6 of 10") == 2 and shown.count("next") == 1
    stages.finish(summary(max_failed=2), as_json, "")
    stages.finish_all([summary()], as_json, "")


@pytest.mark.parametrize(
    ("text", "total", "limit"),
    [("25", 10, 25), ("0", 10, 0), ("10%", 10, 1), ("10%", 11, 2), ("0%", 10, 0), ("100%", 7, 7)],
)
def test_max_failed_is_a_number_or_a_share(text: str, total: int, limit: int) -> None:
    assert failure_limit(text, total) == limit


@pytest.mark.parametrize("text", ["101%", "-1", "1.5", "%", "", "ten"])
def test_a_malformed_max_failed_is_refused(text: str) -> None:
    with pytest.raises(CaeavError, match="is no number of clips"):
        failure_limit(text, 10)


def test_run_options_are_parsed() -> None:
    run = stages.run_options(3, 9.0, True, "5", "0, 1", "2/3", "redo", True)
    assert (run.workers, run.deadline_s, run.retry_failed, run.max_failed) == (3, 9.0, True, "5")
    assert (run.devices, run.part, run.changed, run.relabel) == (("0", "1"), Slice(2, 3), "redo", True)
    plain = stages.run_options(None, 1.0, False, "10%")
    assert plain.workers >= 1 and plain.part == WHOLE and plain.devices == ("auto",)
    assert (plain.retry_failed, plain.changed, plain.relabel) == (False, "", False)


def test_changed_media_are_refused_and_listed_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for as_json in (True, False):
        with pytest.raises(MediaChanged), stages.telling_changes(as_json):
            raise MediaChanged("mine", [CHANGE])
        shown = capsys.readouterr().out
        if as_json:
            found = json.loads(shown)
            assert found["media"] == [stages.media_json(CHANGE)] and "mine" in found["refused"]
        else:
            assert shown == ""


def test_next_steps_repeat_what_the_next_command_would_not_find(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAEAV_HOME", str(tmp_path))
    assert stages.next_step("caption", "x", None, tmp_path) == "caeav caption --dataset x"
    elsewhere = tmp_path / "a b"
    assert (
        stages.next_step("caption", "x", Path("r"), elsewhere, segment_seconds=0.5)
        == f"caeav caption --dataset x --root r --home '{elsewhere}' --segment-seconds 0.5"
    )
    tasks = {
        "ave": "ave",
        "synthetic": "ave",
        "llp": "avvp",
        "synthetic-avs-ms3": "avs-ms3",
        "music-avqa": "avqa",
    }
    for dataset, task in tasks.items():
        assert stages.train_step(dataset, None) == f"caeav train --task {task} --dataset {dataset}"
    assert stages.train_step("mine", None) == "caeav train --dataset mine"
    assert stages.merge_step("my set", elsewhere) == f"caeav store merge 'my set' --home '{elsewhere}'"
    assert at_home(Home(tmp_path)) == "" and at_home(Home(elsewhere)) == f" --home '{elsewhere}'"
