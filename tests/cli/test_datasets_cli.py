"""A data set on the command line: named once, remembered afterwards, never replaced silently."""

from __future__ import annotations

import json
import os
import shutil
import wave
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from caeav.cli import train
from caeav.cli.app import build
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import local
from caeav.pipeline.store import StoreReader, list_stores

LONG_AGO = (1_000_000_000, 1_000_000_000)
ROWS = ("dog/a.wav,0,1,dog,train", "cat/b.wav,1,2,cat,val")


def write_wav(path: Path, value: int) -> None:
    """Two seconds of audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes([0, value, 0, 255 - value]) * 8000)
    os.utime(path, LONG_AGO)


def call(*arguments: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(build(), list(map(str, arguments)))
    assert isinstance(result.exception, CaeavError) == fails, result.output + str(result.exception)
    return result


def refusal(*arguments: object) -> str:
    return str(call(*arguments, fails=True).exception)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `clips` with two labelled files, and a home with its stores; not to be changed."""
    root = tmp_path_factory.mktemp("extracted")
    for number, name in enumerate(("dog/a.wav", "cat/b.wav")):
        write_wav(root / "clips" / name, number + 1)
    (root / "l.csv").write_text("\n".join(("file,start_s,end_s,label,split", *ROWS, "")))
    at = ("--home", root / "home", "--workers", 1)
    call("extract", "--dataset", root / "clips", "--labels", root / "l.csv", "--segments", 2, *at)
    texts = root / "texts.csv"
    texts.write_text("key,visual,audio\ndog__a,a dog,woof\ncat__b,a cat,miaow\n")
    files = [
        part
        for modality in ("visual", "audio")
        for part in (f"--{modality}", "file", f"--{modality}-weights", texts)
    ]
    call("caption", "--home", root / "home", *files)  # of the data set last extracted
    return root


@pytest.fixture
def moved(extracted: Path, tmp_path: Path) -> Path:
    """A copy of it in another place, as if it had been moved and the home knew."""
    root = tmp_path / "copy"
    shutil.copytree(extracted, root)
    memory = Home(root / "home").remembered
    memory.write_text(memory.read_text().replace(str(extracted), str(root)))
    for note in (root / "home" / "stores").glob("*/media_root"):
        note.write_text(str(root / "clips"))
    return root


def manifest(root: Path) -> Manifest:
    [info] = [x for x in list_stores(root / "home" / "stores") if x.kind == "tokens"]
    return StoreReader.open(info.path, allow_partial=True).manifest


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_and_segments_are_given_once(moved: Path) -> None:
    home = ("--home", moved / "home")
    before = files_of(moved / "home" / "stores")
    for asked in (("--dataset", moved / "clips"), ("--dataset", "clips"), ()):
        again = call("extract", *asked, *home)
        assert f"--labels {moved / 'l.csv'} --segments 2, as remembered" in again.stderr
        assert "nothing to do" in again.stdout
        for command in (("manifest", "show"), ("manifest", "check")):
            assert "dog" in call(*command, *asked, *home).stdout
    assert f"data set clips, the one last extracted in {moved / 'home'}" in again.stderr
    assert [clip.split for clip in manifest(moved).clips] == ["val", "train"]
    assert files_of(moved / "home" / "stores") == before


@pytest.mark.parametrize("command", ["extract", "caption", "manifest build"])
def test_other_labels_need_relabel(moved: Path, command: str) -> None:
    (moved / "o.csv").write_text("file,label,split\ndog/a.wav,wolf,test\ncat/b.wav,cat,val\n")
    asked = (*command.split(), "--labels", moved / "o.csv", "--home", moved / "home")
    before = files_of(moved / "home" / "stores")
    said = refusal(*asked)
    assert f"--labels {moved / 'l.csv'}, now it is {moved / 'o.csv'}" in said and "--relabel" in said
    assert files_of(moved / "home" / "stores") == before
    if command == "extract":
        assert "used from now on, as --relabel says" in call(*asked, "--relabel").stderr
        assert manifest(moved).classes == ("cat", "wolf")
        assert str(moved / "o.csv") in call("extract", "--home", moved / "home").stderr


def test_other_labels_are_confirmed_at_a_terminal(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (moved / "o.csv").write_text("file,label,split\ndog/a.wav,wolf,test\ncat/b.wav,cat,val\n")
    asked = ("extract", "--labels", str(moved / "o.csv"), "--home", str(moved / "home"))
    monkeypatch.setattr("caeav.cli.datasets.is_terminal", lambda: True)
    no = CliRunner().invoke(build(), asked, input="n\n")
    assert isinstance(no.exception, CaeavError) and manifest(moved).classes == ("cat", "dog")
    yes = CliRunner().invoke(build(), asked, input="y\n")
    assert yes.exit_code == 0 and manifest(moved).classes == ("cat", "wolf")


def test_looking_at_other_labels_changes_nothing_and_says_so(moved: Path) -> None:
    (moved / "o.csv").write_text("file,label\ndog/a.wav,wolf\ncat/b.wav,cat\n")
    asked = ("--labels", moved / "o.csv", "--home", moved / "home")
    before = files_of(moved / "home" / "stores")
    shown = call("manifest", "show", *asked)
    assert "wolf" in shown.stdout and "only this command uses it" in shown.stderr
    assert files_of(moved / "home" / "stores") == before


def test_a_home_without_memory_does_not_lose_all_labels_silently(moved: Path) -> None:
    Home(moved / "home").remembered.unlink()
    asked = ("extract", "--dataset", moved / "clips", "--segments", 2, "--home", moved / "home")
    said = refusal(*asked)
    assert "have labels or splits in tokens-classic-" in said and "--labels FILE" in said
    assert manifest(moved).classes == ("cat", "dog")
    assert call(*asked, "--relabel").exit_code == 0
    assert not any(clip.events or clip.split for clip in manifest(moved).clips)


def test_changed_media_are_refused_listed_in_json_and_redone_on_request(moved: Path) -> None:
    home = ("--home", moved / "home")
    write_wav(moved / "clips" / "dog" / "a.wav", 77)
    os.utime(moved / "clips" / "dog" / "a.wav")
    for command in (("extract", *home), ("extract", "--captions", *home)):
        refused = call(*command, "--json", fails=True)
        told = json.loads(refused.stdout)
        assert [(x["key"], x["what"]) for x in told["media"]] == [("dog__a", "changed")]
        assert "dog/a.wav" in told["media"][0]["detail"] and refused.exit_code == 1
    assert "--changed cannot be 'maybe'" in refusal("extract", *home, "--changed", "maybe")
    done = json.loads(call("extract", *home, "--changed", "redo", "--workers", 1, "--json").stdout)
    assert (done["due"], [x["key"] for x in done["media"]]) == (1, ["dog__a"])
    assert "nothing to do" in call("extract", *home).stdout


def test_verify_with_media_exits_with_1_when_they_changed(moved: Path) -> None:
    home = ("--home", moved / "home")
    unchanged = CliRunner().invoke(build(), ["store", "verify", "clips", "--media", *map(str, home)])
    assert unchanged.exit_code == 0 and "media as it was: 2 clips" in unchanged.stdout
    write_wav(moved / "clips" / "dog" / "a.wav", 77)  # of the same length and time
    for more in ((), ("--json",)):
        done = CliRunner().invoke(build(), ["store", "verify", "clips", "--media", *map(str, home), *more])
        assert done.exit_code == 1 and "dog__a" in done.stdout and "changed" in done.stdout
    verifications = json.loads(done.stdout)
    by_kind = {verified["path"].rpartition("/")[2].partition("-")[0]: verified for verified in verifications}
    assert all(verified["sound"] for verified in verifications)
    assert [x["key"] for x in by_kind["tokens"]["media"]["changes"]] == ["dog__a"]
    assert by_kind["captions"]["media"]["unknown"] == 2  # made of a file of texts
    assert CliRunner().invoke(build(), ["store", "verify", "clips", *map(str, home)]).exit_code == 0
    assert "add --media" in refusal("store", "verify", "clips", "--root", moved, *home)
    empty = moved / "empty"
    empty.mkdir()
    gone = CliRunner().invoke(
        build(), ["store", "verify", "clips", "--media", "--root", str(empty), *map(str, home)]
    )
    assert gone.exit_code == 1 and gone.stdout.count("is no file in") == 2


def test_every_command_takes_a_folder_a_name_or_nothing(moved: Path) -> None:
    home = ("--home", moved / "home")
    for asked in (("--dataset", moved / "clips"), ("--dataset", "clips"), ()):
        assert '"dog__a","a dog","woof"' in call("caption", "export", *asked, *home).stdout
        assert "a dog" in call("caption", "show", "dog__a", *asked, *home).stdout
    assert "clips" in call("store", "ls", "--dataset", moved / "clips", *home).stdout
    assert "captions-" in call("store", "show", moved / "clips", *home).stdout


def test_a_folder_without_stores_is_named_as_it_was_given(moved: Path) -> None:
    write_wav(moved / "other" / "c.wav", 3)
    for asked in (("train",), ("caption", "export"), ("caption", "embed"), ("store", "ls")):
        said = refusal(*asked, "--dataset", moved / "other", "--home", moved / "home")
        assert f"there is no store of {moved / 'other'} in {moved / 'home'} yet" in said, asked
        assert f"caeav extract --dataset {moved / 'other'} --home {moved / 'home'}" in said


def test_train_takes_the_last_data_set_and_its_task(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def trained(
        home: Home, given: tuple[Any, ...], seeds: list[int], command: str, *_: object
    ) -> list[dict[str, Any]]:
        asked.append((given[0], given[4].get("dataset"), command))
        return []

    monkeypatch.setattr(train, "_train_all", trained)
    monkeypatch.setattr(train, "finish", lambda *_: None)
    home = ("--home", moved / "home")
    said = call("train", *home).stderr
    assert f"data set clips, the one last extracted in {moved / 'home'}" in said
    assert "task ave, for which clips is labelled" in said
    call("train", "--dataset", moved / "clips", *home)
    call("train", "--task", "avvp", *home)
    call("train", "--set", "dataset=other", "--task", "ave", *home)
    config = moved / "c.yaml"
    config.write_text("dataset: other\n")
    call("train", "--config", config, *home)
    assert [(task, dataset) for task, dataset, _ in asked] == [
        ("ave", "clips"),
        ("ave", "clips"),
        ("avvp", "clips"),
        ("ave", None),
        ("ave", None),
    ]
    assert asked[0][2] == "caeav train --task ave --recipe full --dataset clips"
    synthetic = moved / "home" / "datasets.json"
    synthetic.write_text(synthetic.read_text().replace('"last": "clips"', '"last": "synthetic-llp"'))
    call("train", "--task", "ave", *home)  # for which the last one is not labelled
    assert asked[-1][:2] == ("ave", None)
    call("train", *home)
    assert asked[-1][:2] == ("avvp", "synthetic-llp")


def test_train_without_labels_says_how_to_give_them(moved: Path) -> None:
    Home(moved / "home").remembered.unlink()
    (moved / "l.csv").unlink()
    cut = ("--segments", 2, "--home", moved / "home")
    call("extract", "--dataset", moved / "clips", "--relabel", *cut)
    said = refusal("train", "--home", moved / "home")
    assert "the clips of clips have no labels" in said and "extract --dataset clips --labels FILE" in said


def test_train_names_the_merge_of_slices_and_the_choice_between_two_stores(moved: Path) -> None:
    home = ("--home", moved / "home")
    stores = moved / "home" / "stores" / "clips"
    [first] = stores.glob("tokens-*")
    part = stores / f"{first.name}.slice-1-of-2"
    first.rename(part)
    said = refusal("train", "--task", "ave", *home)
    assert f"{first.name} exists as 1 of 2 slices" in said and "caeav store merge clips, once all 2" in said
    part.rename(first)
    call("extract", "--dtype", "float32", "--workers", 1, *home)
    [second] = [path for path in stores.glob("tokens-*") if path != first]
    said = refusal("train", *home)
    assert f"--set stores.tokens={second.name[-12:-8]}" in said.partition("next:")[2]
    assert first.name in said and second.name in said


@pytest.mark.parametrize("command", ["extract", "caption"])
def test_the_deadline_reaches_the_decoding_processes(
    moved: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Pool:
        def __init__(self, *_: object, deadline_s: float, **__: object) -> None:
            given.append(deadline_s)
            raise CaeavError("seen")

    monkeypatch.setattr(local, "WorkerPool", Pool)
    other = ("--dtype", "float32", "--deadline", 7.5, "--home", moved / "home")
    assert "seen" in refusal(command, *other)
    assert given == [7.5]
