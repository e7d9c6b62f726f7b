"""What `caeav manifest` prints of a manifest, clip by clip and as counts, the manifest itself being given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import checked, invoke
from typer.testing import Result

from caeav.cli import datasets, manifest
from caeav.manifests.checks import check
from caeav.manifests.clip import Clip, Event, Finding, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import WARNINGS, finding
from caeav.manifests.manifest import manifest_digest, read_manifest, source_digest
from caeav.manifests.masks import pack_mask


def clip(key: str, split: str = "", label: str = "", **extra: Any) -> Clip:
    events = (Event(label, 1.0, 3.5),) if label else ()
    return Clip(key, f"{key}.mp4", 2.0, 10.0, split, events, extra)


CLIPS = (
    clip("ab", "train", "dog"),
    clip("a", "val", "cat", id="v"),
    clip("abc", "test"),
    clip("b", labels=["dog", "cat"]),
)
MINE = Manifest("mine", 10, 1.0, ("dog", "cat"), CLIPS)


def call(monkeypatch: pytest.MonkeyPatch, made: Manifest, *arguments: str) -> tuple[Result, tuple[Any, ...]]:
    loaded: list[tuple[Any, ...]] = []

    def load(*args: Any) -> datasets.Loaded:
        loaded.append(args)
        return datasets.Loaded(made, made.dataset, args[1])

    monkeypatch.setattr(manifest, "load", load)
    return checked(invoke([manifest], "manifest", *arguments)), loaded[-1]


def keys(result: Result) -> list[str]:
    return [row["key"] for row in json.loads(result.stdout)]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], ["ab", "a", "abc", "b"]),
        (["--split", "train"], ["ab"]),
        (["--split", "none"], ["b"]),
        (["--key", "b"], ["b"]),
        (["--key", "bc"], ["abc"]),
        (["--key", "ab", "--limit", "1"], ["ab"]),
        (["--limit", "2"], ["ab", "a"]),
        (["--split", "test", "--key", "a"], ["abc"]),
    ],
)
def test_clips_are_chosen_by_split_and_key(
    given: list[str], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = call(monkeypatch, MINE, "show", *given, "--json")
    found = json.loads(result.stdout)
    assert ([found["key"]] if isinstance(found, dict) else keys(result)) == wanted


def test_a_part_of_several_keys_selects_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Manifest("mine", 10, 1.0, (), (clip("xa"), clip("xb"), clip("y")))
    assert keys(call(monkeypatch, made, "show", "--key", "x", "--json")[0]) == ["xa", "xb"]


def test_nothing_chosen_names_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaeavError) as refused:
        call(monkeypatch, MINE, "show", "--split", "none", "--key", "zz")
    assert str(refused.value) == (
        "no clip of mine is in split none and has 'zz' in its key\n"
        "  next: its splits are train (1), val (1), test (1), none (1), its first key is ab"
    )


def test_a_table_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Manifest("mine", 10, 1.0, (), tuple(clip(f"k{i:02}") for i in range(25)))
    result, _ = call(monkeypatch, made, "show")
    assert result.stdout.count(".mp4") == 20 and "20 of 25 clips; more with --limit" in result.stderr
    result, _ = call(monkeypatch, made, "show", "--limit", "22")
    assert result.stdout.count(".mp4") == 22 and "22 of 25" in result.stderr
    result, _ = call(monkeypatch, MINE, "show")
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert rows[0] == ["ab", "train", "2", "10", "dog", "1-3.5", "ab.mp4"]
    assert rows[3] == ["b", "none", "2", "10", "dog;", "cat", "b.mp4"] and "more with" not in result.stderr


def test_one_clip_is_shown_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.mp4").touch()
    mask = np.zeros((2, 4), bool)
    mask[0, 0] = True
    question = {"id": 1, "split": "val", "type": ["Audio", "Counting"], "text": "how many?", "answer": "two"}
    shown = clip("m", "val", "dog", masks=[pack_mask(mask), None], questions=[question], id="v")
    made = Manifest("mine", 10, 1.0, ("dog",), (shown, clip("n")), str(tmp_path))
    text = call(monkeypatch, made, "show", "--key", "m")[0].stdout
    for part in (
        "4 x 2, 12.5% sound",
        "mask of second 1  none",
        "how many?",
        "extra.id",
        "dog 1-3.5; 1 question; 1 mask",
    ):
        assert part in text
    found = json.loads(call(monkeypatch, made, "show", "--key", "m", "--json")[0].stdout)
    assert (found["path"], found["media_there"]) == (str(tmp_path / "m.mp4"), True)
    found = json.loads(call(monkeypatch, made, "show", "--key", "n", "--json")[0].stdout)
    assert found["media_there"] is False


def test_build_passes_its_options_on_and_prints_both_digests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut = ("--labels", "folders", "--segments", "4", "--segment-seconds", "0.5", "--stride-seconds", "2")
    result, loaded = call(
        monkeypatch,
        MINE,
        *("build", "--dataset", "x", "--root", "r", *cut, "--relabel", "--home", str(tmp_path), "--json"),
    )
    given = datasets.source(Path("r"), "folders", 4, 0.5, 2.0)
    assert loaded[0] == "x" and loaded[1] == given and loaded[2].root == tmp_path
    assert loaded[3:] == (datasets.KEEPS, True)
    found = json.loads(result.stdout)
    assert found["path"] == str(tmp_path / "data" / "mine" / "manifest.jsonl")
    assert (found["digest"], found["source_digest"]) == (manifest_digest(MINE), source_digest(MINE))
    assert read_manifest(Path(found["path"])) == MINE
    for command in ("show", "check"):
        _, loaded = call(
            monkeypatch, MINE, command, "--dataset", "x", "--root", "r", *cut, "--home", str(tmp_path)
        )
        assert (loaded[0], loaded[1], loaded[3]) == ("x", given, datasets.LOOKS)


def printed(capsys: pytest.CaptureFixture[str], made: Manifest) -> str:
    checked = check(made)
    manifest.print_counts(checked)
    manifest.print_classes(checked)
    manifest.print_findings(checked)
    shown = capsys.readouterr()
    return shown.out + shown.err


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_counts_of_seconds_classes_and_the_balance(capsys: pytest.CaptureFixture[str]) -> None:
    made = Manifest(
        "mine",
        10,
        1.0,
        ("dog", "cat", "cow"),
        (clip("a", "train", "dog"), clip("b", "train", "dog"), clip("c", "", "cat")),
    )
    text = printed(capsys, made)
    assert text.startswith("mine: 3 clips, 3 of them without media, 3 classes\n")
    assert ["train", "2", "20", "20.0%", "80.0%", "(background)"] in rows(text)
    assert ["none", "1", "10", "20.0%", "80.0%", "(background)"] in rows(text)
    assert ["class", "train", "none", "all"] in rows(text)
    assert ["dog", "2", "0", "2"] in rows(text) and ["cat", "0", "1", "1"] in rows(text)
    assert "balance: dog 2 times, cow 0 times" in text
    without = printed(capsys, Manifest("mine", 10, 1.0, (), (clip("a", "train"),)))
    assert (
        ["split", "clips", "seconds"] in rows(without)
        and "constant" not in without
        and "balance" not in without
    )


def test_leaks_are_printed_for_scored_splits_only(capsys: pytest.CaptureFixture[str]) -> None:
    made = Manifest(
        "mine", 10, 1.0, (), (clip("a", "train", id="v"), clip("b", "test", id="v"), clip("c", "test"))
    )
    text = printed(capsys, made)
    assert [line for line in text.splitlines() if line.startswith("leak")] == [
        "leak: 1 of 2 clips of test are of videos that train has too"
    ]
    asked = [{"split": s, "answer": "x", "type": ["Audio", "Counting"]} for s in ("train", "test", "test")]
    text = printed(capsys, Manifest("mine", 10, 1.0, ("x",), (clip("a", questions=asked),)))
    assert "leak: 2 of 2 questions of test are of videos that train has too" in text
    assert "1 answer" in text and ["all", "1", "1", "100.0%", "(x)", "2", "1", "100.0%", "(x)"] in rows(text)


def test_warnings_are_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Finding] = [
        finding(code, f"w{i}", f"d{i}") for code in (WARNINGS[0], "damaged_row") for i in range(3)
    ]
    text = printed(capsys, Manifest("mine", 10, 1.0, (), (), findings=tuple(found)))
    assert (
        all(f"w{i}: d{i}" in text for i in range(3))
        and text.count("w0: d0") == 2
        and text.count("w1: d1") == 1
    )
    assert "nothing odd was found" in printed(capsys, Manifest("mine", 10, 1.0, (), ()))


def test_masks_and_modalities_have_tables_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    mask = pack_mask(np.ones((2, 2), bool))
    text = printed(
        capsys, Manifest("mine", 2, 1.0, (), (clip("a", "train", masks=[mask, None]), clip("b", "val")))
    )
    assert ["train", "1", "2", "1", "0", "100.0%", "100.0%", "(everything)"] in rows(text)
    assert ["val", "1", "-", "-", "-", "-", "-"] in rows(text)
    heard = Clip("a", "a.mp4", 0.0, 10.0, "val", (Event("dog", 0.0, 5.0, "audio"),))
    text = printed(capsys, Manifest("mine", 10, 1.0, ("dog",), (heard, clip("b", "train", labels=["dog"]))))
    assert ["val", "1", "audio", "1", "50.0%", "0"] in rows(text)
    assert ["train", "1", "labels", "of", "the", "clip", "alone", "-", "-", "-"] in rows(text)
