"""What a stage shows while it runs: a bar from the beginning, remarks on lines of their own."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from caeav.cli import stage
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import Source
from caeav.pipeline.extract.progress import OnClip, Progress, Remark, StageSummary
from caeav.pipeline.store import Quarantined, Recipe


def test_the_bar_is_shown_and_its_clock_runs_before_the_first_clip(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LOG_EVERY_S", 0.3)
    monkeypatch.setattr(stage, "TICK_S", 0.05)

    def slow(on_clip: OnClip, remark: Remark) -> None:
        on_clip(Progress(0, 0, 2))
        assert "0/2" in capsys.readouterr().err
        while capsys.readouterr().err.count("caption:   0%") == 0:  # what the clock alone redraws
            time.sleep(0.02)
        began = time.monotonic()
        time.sleep(0.5)  # ten ticks, and one more line is due
        lines = capsys.readouterr().err.count("caption:   0%")
        assert lines <= 1 + (time.monotonic() - began) / stage.LOG_EVERY_S
        remark("one thing")
        on_clip(Progress(2, 1, 2))

    stage.with_bar("caption", slow)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "one thing" in [line.strip() for line in lines]
    assert "2/2" in lines[-1] and "failed=1" in lines[-1]


@pytest.mark.parametrize(
    ("due", "size", "shown"),
    [
        (1, 512, ("1 clip in 60.0 s (60.0 s per clip)", "1 of 1, 512 B per clip")),
        (240, 240 * 10**6, ("240 clips in 60.0 s (4.0 clips/s)", "240 of 240, 1.0 MB per clip")),
    ],
)
def test_speed_and_size_are_shown_in_suitable_units(
    due: int, size: int, shown: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe("captions", "slow", {})
    summary = StageSummary(
        Path("x"),
        recipe,
        due,
        due,
        size,
        quarantined=(),
        due=due,
        seconds=60.0,
        notes={},
        remarks=(),
        max_failed=0,
    )
    stage.finish(replace(summary, limit="write 53%", busy_s={"write": 0.001}), False, "")
    out = capsys.readouterr().out
    assert shown[0] in out and shown[1] in out
    assert "limited by   write 53%\n" in out


@pytest.mark.parametrize("failed", [(3, 0), (0, 3), (1, 0), (0, 0)])
@pytest.mark.parametrize("as_json", [False, True])
def test_too_many_failures_in_any_of_several_stores_are_an_error_that_names_it(
    failed: tuple[int, ...], as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(name: str, count: int) -> StageSummary:
        lost = tuple(Quarantined(f"k{i}", "decode", "no", 1) for i in range(count))
        recipe = Recipe("tokens", name, {})
        return StageSummary(Path(name), recipe, 9 - count, 9, 90, lost, 9, 1.0, {}, (), max_failed=2)

    summaries = [made(name, count) for name, count in zip(("one", "two"), failed, strict=True)]
    if max(failed) <= 2:
        stage.finish_all(summaries, as_json, "next")
    else:
        with pytest.raises(CaeavError, match="3 of 9 clips are quarantined; --max-failed allows 2") as raised:
            stage.finish_all(summaries, as_json, "next")
        assert str(Path(("one", "two")[failed.index(3)]) / "quarantine.jsonl") in raised.value.hint
    out = capsys.readouterr().out
    assert "one" in out and "two" in out  # both are shown in any case


def test_the_next_step_repeats_labels_and_segments(tmp_path: Path) -> None:
    """Captions of ten seconds would not fit tokens of two."""
    step = stage.next_step(
        "caption", "my clips", None, tmp_path, labels=Path("a b.csv"), segments=2, segment_seconds=0.5
    )
    assert step == (
        f"caeav caption --dataset 'my clips' --home {tmp_path} --labels 'a b.csv' --segments 2 --segment-seconds 0.5"
    )
    assert stage.next_step("caption", "ave", None, None, segments=None) == "caeav caption --dataset ave"


def test_the_suggested_check_repeats_home_and_segments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "notes.txt"):
        (tmp_path / "clips" / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAEAV_HOME", raising=False)
    for home, said in ((Home.find(), ""), (Home.find("h"), f" --home {tmp_path / 'h'}")):
        stage.load("clips", Source(segments=4), home)
        command = f"caeav manifest check --dataset clips{said} --segments 4"
        assert capsys.readouterr().err.endswith(f"shown by {command}\n")
