"""Making the set: the same bytes for any number of processes, resumed after an interruption, never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from typer.testing import Result

from caeav.cli import synthesise as synthesise_command
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic import SyntheticOptions, generate, synthesise

SMALL: dict[str, Any] = {"clips": 6, "seconds": 4, "size_px": 64, "fps": 4, "seed": 3}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "set"
    synthesise(root, SyntheticOptions(**SMALL), workers=1)
    return root


def test_two_processes_write_the_same_bytes_as_one(made: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthesise(tmp_path / "set", SyntheticOptions(**SMALL), workers=2, progress=lambda *at: seen.append(at))
    assert contents(tmp_path / "set") == contents(made)
    assert seen == [(n, 6) for n in range(7)]


def test_another_seed_gives_other_media(made: Path, tmp_path: Path) -> None:
    synthesise(tmp_path / "set", SyntheticOptions(**{**SMALL, "seed": 4, "clips": 5}), workers=1)
    assert not set(contents(tmp_path / "set").values()) & {
        data for name, data in contents(made).items() if name.endswith(".mp4")
    }


def test_an_interrupted_run_is_gone_on_with(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, options = tmp_path / "set", SyntheticOptions(**SMALL)
    write = generate.write_clip

    def fail_at_the_third(root: Path, options: SyntheticOptions, index: int, split: str) -> None:
        if index == 2:
            raise KeyboardInterrupt
        write(root, options, index, split)

    monkeypatch.setattr(generate, "write_clip", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        synthesise(root, options, workers=1)
    assert not (root / "Annotations.txt").exists()  # lists mean that the set is complete
    monkeypatch.undo()
    first = {p: p.stat().st_mtime_ns for p in (root / "AVE").iterdir()}
    assert len(first) == 2

    summary = synthesise(root, options, workers=1)
    assert (summary.written, summary.kept) == (4, 2)
    assert all(p.stat().st_mtime_ns == when for p, when in first.items())
    assert contents(root) == contents(made)


def test_a_second_run_touches_nothing(made: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    summary = synthesise(made, SyntheticOptions(**SMALL))
    assert (summary.written, summary.kept) == (0, 6)
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


def test_other_options_are_refused_by_name(made: Path) -> None:
    before = contents(made)
    with pytest.raises(CaeavError) as caught:
        synthesise(made, SyntheticOptions(**{**SMALL, "fps": 5, "misaligned": 0.5}))
    assert "fps: 4 in the folder, 5 asked for" in str(caught.value)
    assert "misaligned: 0.6 in the folder, 0.5 asked for" in str(caught.value)
    assert "size_px" not in str(caught.value)
    assert contents(made) == before


@pytest.mark.parametrize(
    "name, text", [("Annotations.txt", "someone's"), ("dataset.json", '{"segments": 10}')]
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CaeavError, match="empty or new folder"):
        synthesise(tmp_path, SyntheticOptions(**SMALL))
    assert contents(tmp_path) == {name: text.encode()}


def test_summary_counts_what_was_made(made: Path) -> None:
    summary = synthesise(made, SyntheticOptions(**SMALL))
    assert sum(summary.splits.values()) == sum(summary.kinds.values()) == sum(summary.classes.values()) == 6
    assert [s.knows for s in summary.scores] == ["nothing", "visual alone", "audio alone", "audio and visual"]


def run(*arguments: str) -> Result:
    return invoke([synthesise_command], "synthesise", *arguments)


def test_the_command_prints_counts_and_bounds(tmp_path: Path) -> None:
    sizes = ("--clips", "5", "--seconds", "4", "--size", "64", "--fps", "4", "--workers", "1")
    small = (*sizes, "--mix", "cut=1,silent=2")
    result = run("--home", str(tmp_path), *small)
    assert result.exit_code == 0, result.output
    assert "wrote 5 clips" in result.stderr
    assert "visual alone" in result.stdout and "split train" in result.stdout
    again = run("--home", str(tmp_path), "--json", *small)
    facts = json.loads(again.stdout)
    assert facts["root"] == str(tmp_path / "data" / "synthetic")
    assert (facts["written"], facts["kept"]) == (0, 5)
    assert facts["options"]["mix"] == {"offscreen": 0.0, "silent": 2.0, "wrong_sound": 0.0, "cut": 1.0}
    assert [b["knows"] for b in facts["bounds"]] == [
        "nothing",
        "visual alone",
        "audio alone",
        "audio and visual",
    ]


def test_the_command_refuses_a_mix_without_numbers() -> None:
    result = run("--mix", "cut=much")
    assert isinstance(result.exception, CaeavError)
    assert "--mix is 'cut=much'" in str(result.exception)


def test_the_command_writes_another_layout_into_its_own_folder(tmp_path: Path) -> None:
    small = ("--clips", "2", "--classes", "5", "--workers", "1", "--home", str(tmp_path), "--json")
    facts = json.loads(run("--dataset", "avs-s4", "--size", "64", *small).stdout)
    assert facts["root"] == str(tmp_path / "data" / "synthetic-avs-s4")
    assert (facts["options"]["layout"], facts["options"]["seconds"], facts["options"]["size_px"]) == (
        "avs-s4",
        5,
        64,
    )
    named = json.loads(run("--dataset", "synthetic-avs-s4", "--size", "64", *small).stdout)
    assert (named["root"], named["written"]) == (facts["root"], 0)
    result = run("--dataset", "avs-s5", *small)
    assert isinstance(result.exception, CaeavError)
    assert "layout is 'avs-s5'; there are ave, llp, avs-s4, avs-ms3, music-avqa" in str(result.exception)
