"""A data set on the command line: named once, known afterwards, and never another one in silence."""

from __future__ import annotations

import json
import os
import shutil
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from caeav.cli import datasets, train
from caeav.cli.app import build
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import local
from caeav.pipeline.store import StoreReader, list_stores

LONG_AGO = (1_000_000_000, 1_000_000_000)
ROWS = ("dog/a.wav,0,1,dog,train", "cat/b.wav,1,2,cat,val")


def sound(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes([0, value, 0, 255 - value]) * 8000)  # 2 s
    os.utime(path, LONG_AGO)


def call(*arguments: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(build(), list(map(str, arguments)))
    assert isinstance(result.exception, CaeavError) == fails, result.output + str(result.exception)
    return result


def refusal(*arguments: object) -> str:
    return str(call(*arguments, fails=True).exception)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `clips` with two labelled files, and a home into which it was extracted; not to be changed."""
    root = tmp_path_factory.mktemp("begun")
    for number, name in enumerate(("dog/a.wav", "cat/b.wav")):
        sound(root / "clips" / name, number + 1)
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
def there(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, at another place: as if it had been moved there and said so once."""
    root = tmp_path / "copy"
    shutil.copytree(begun, root)
    memory = Home(root / "home").remembered
    memory.write_text(memory.read_text().replace(str(begun), str(root)))
    for note in (root / "home" / "stores").glob("*/media_root"):
        note.write_text(str(root / "clips"))
    return root


def manifest(root: Path) -> Manifest:
    [info] = [x for x in list_stores(root / "home" / "stores") if x.kind == "tokens"]
    return StoreReader.open(info.path, allow_partial=True).manifest


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_and_cut_are_given_once(there: Path) -> None:
    home = ("--home", there / "home")
    before = files_of(there / "home" / "stores")
    for asked in (("--dataset", there / "clips"), ("--dataset", "clips"), ()):
        again = call("extract", *asked, *home)
        assert f"--labels {there / 'l.csv'} --segments 2, as remembered" in again.stderr
        assert "nothing to do" in again.stdout
        for command in (("manifest", "show"), ("manifest", "check")):
            assert "dog" in call(*command, *asked, *home).stdout
    assert f"data set clips, the one last extracted in {there / 'home'}" in again.stderr
    assert [clip.split for clip in manifest(there).clips] == ["val", "train"]
    assert files_of(there / "home" / "stores") == before


@pytest.mark.parametrize("command", ["extract", "caption", "manifest build"])
def test_other_labels_are_a_change_that_is_asked_for(there: Path, command: str) -> None:
    (there / "o.csv").write_text("file,label,split\ndog/a.wav,wolf,test\ncat/b.wav,cat,val\n")
    asked = (*command.split(), "--labels", there / "o.csv", "--home", there / "home")
    before = files_of(there / "home" / "stores")
    said = refusal(*asked)
    assert f"--labels {there / 'l.csv'}, now it is {there / 'o.csv'}" in said and "--relabel" in said
    assert files_of(there / "home" / "stores") == before
    if command == "extract":
        assert "taken, as --relabel says" in call(*asked, "--relabel").stderr
        assert manifest(there).classes == ("cat", "wolf")
        assert str(there / "o.csv") in call("extract", "--home", there / "home").stderr


def test_at_a_terminal_it_is_asked(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (there / "o.csv").write_text("file,label,split\ndog/a.wav,wolf,test\ncat/b.wav,cat,val\n")
    asked = ("extract", "--labels", str(there / "o.csv"), "--home", str(there / "home"))
    monkeypatch.setattr("caeav.cli.datasets.is_terminal", lambda: True)
    no = CliRunner().invoke(build(), asked, input="n\n")
    assert isinstance(no.exception, CaeavError) and manifest(there).classes == ("cat", "dog")
    yes = CliRunner().invoke(build(), asked, input="y\n")
    assert yes.exit_code == 0 and manifest(there).classes == ("cat", "wolf")


def test_looking_at_other_labels_changes_nothing_and_says_so(there: Path) -> None:
    (there / "o.csv").write_text("file,label\ndog/a.wav,wolf\ncat/b.wav,cat\n")
    asked = ("--labels", there / "o.csv", "--home", there / "home")
    before = files_of(there / "home" / "stores")
    shown = call("manifest", "show", *asked)
    assert "wolf" in shown.stdout and "only this command looks at it so" in shown.stderr
    assert files_of(there / "home" / "stores") == before


def test_a_home_of_old_does_not_lose_all_labels_in_silence(there: Path) -> None:
    Home(there / "home").remembered.unlink()
    asked = ("extract", "--dataset", there / "clips", "--segments", 2, "--home", there / "home")
    said = refusal(*asked)
    assert "have labels or splits in tokens-classic-" in said and "--labels FILE" in said
    assert manifest(there).classes == ("cat", "dog")
    assert call(*asked, "--relabel").exit_code == 0
    assert not any(clip.events or clip.split for clip in manifest(there).clips)


def test_changed_media_are_refused_told_in_json_and_made_anew(there: Path) -> None:
    home = ("--home", there / "home")
    sound(there / "clips" / "dog" / "a.wav", 77)
    os.utime(there / "clips" / "dog" / "a.wav")
    for command in (("extract", *home), ("extract", "--captions", *home)):
        refused = call(*command, "--json", fails=True)
        told = json.loads(refused.stdout)
        assert [(x["key"], x["what"]) for x in told["media"]] == [("dog__a", "changed")]
        assert "dog/a.wav" in told["media"][0]["detail"] and refused.exit_code == 1
    assert "--changed cannot be 'maybe'" in refusal("extract", *home, "--changed", "maybe")
    done = json.loads(call("extract", *home, "--changed", "redo", "--workers", 1, "--json").stdout)
    assert (done["due"], [x["key"] for x in done["media"]]) == (1, ["dog__a"])
    assert "nothing to do" in call("extract", *home).stdout


def test_verify_of_media_ends_with_1_when_they_changed(there: Path) -> None:
    home = ("--home", there / "home")
    sound_ = CliRunner().invoke(build(), ["store", "verify", "clips", "--media", *map(str, home)])
    assert sound_.exit_code == 0 and "media as it was: 2 clips" in sound_.stdout
    sound(there / "clips" / "dog" / "a.wav", 77)  # of the same length and time
    for more in ((), ("--json",)):
        done = CliRunner().invoke(build(), ["store", "verify", "clips", "--media", *map(str, home), *more])
        assert done.exit_code == 1 and "dog__a" in done.stdout and "changed" in done.stdout
    verifications = json.loads(done.stdout)
    by_kind = {verified["path"].rpartition("/")[2].partition("-")[0]: verified for verified in verifications}
    assert all(verified["sound"] for verified in verifications)
    assert [x["key"] for x in by_kind["tokens"]["media"]["changes"]] == ["dog__a"]
    assert by_kind["captions"]["media"]["unknown"] == 2  # made of a file of texts
    assert CliRunner().invoke(build(), ["store", "verify", "clips", *map(str, home)]).exit_code == 0
    assert "add --media" in refusal("store", "verify", "clips", "--root", there, *home)
    empty = there / "empty"
    empty.mkdir()
    gone = CliRunner().invoke(
        build(), ["store", "verify", "clips", "--media", "--root", str(empty), *map(str, home)]
    )
    assert gone.exit_code == 1 and gone.stdout.count("is no file in") == 2


def test_every_command_takes_the_folder_or_nothing(there: Path) -> None:
    home = ("--home", there / "home")
    for asked in (("--dataset", there / "clips"), ("--dataset", "clips"), ()):
        assert '"dog__a","a dog","woof"' in call("caption", "export", *asked, *home).stdout
        assert "a dog" in call("caption", "show", "dog__a", *asked, *home).stdout
    assert "clips" in call("store", "ls", "--dataset", there / "clips", *home).stdout
    assert "captions-" in call("store", "show", there / "clips", *home).stdout


def test_a_folder_of_which_nothing_was_made_is_named_as_it_was_given(there: Path) -> None:
    sound(there / "other" / "c.wav", 3)
    for asked in (("train",), ("caption", "export"), ("caption", "embed"), ("store", "ls")):
        said = refusal(*asked, "--dataset", there / "other", "--home", there / "home")
        assert f"nothing was made of {there / 'other'} in {there / 'home'} yet" in said, asked
        assert f"caeav extract --dataset {there / 'other'} --home {there / 'home'}" in said


def test_train_takes_the_last_data_set_and_its_task(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def trained(
        home: Home, given: tuple[Any, ...], seeds: list[int], command: str, *_: object
    ) -> list[dict[str, Any]]:
        asked.append((given[0], given[4].get("dataset"), command))
        return []

    monkeypatch.setattr(train, "_train_all", trained)
    monkeypatch.setattr(train, "finish", lambda *_: None)
    home = ("--home", there / "home")
    said = call("train", *home).stderr
    assert f"data set clips, the one last extracted in {there / 'home'}" in said
    assert "task ave, for which clips is labelled" in said
    call("train", "--dataset", there / "clips", *home)
    call("train", "--task", "avvp", *home)
    call("train", "--set", "dataset=other", "--task", "ave", *home)
    config = there / "c.yaml"
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
    synthetic = there / "home" / "datasets.json"
    synthetic.write_text(synthetic.read_text().replace('"last": "clips"', '"last": "synthetic-llp"'))
    call("train", "--task", "ave", *home)  # for which the last one is not labelled
    assert asked[-1][:2] == ("ave", None)
    call("train", *home)
    assert asked[-1][:2] == ("avvp", "synthetic-llp")


def test_only_what_is_extracted_is_the_last_and_looking_remembers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered: list[bool] = []
    known = SimpleNamespace(
        notes=(),
        changes=(),
        built=True,
        name_or_folder="d",
        root=None,
        name="mine",
        source=datasets.source(None, None, None, None, None),
    )
    monkeypatch.setattr(datasets, "resolve_dataset", lambda *_: known)
    made = SimpleNamespace(dataset="mine")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    monkeypatch.setattr(datasets, "remember", lambda *_, last, last_name: remembered.append(last))
    given = datasets.source(None, None, None, None, None)
    for does in (datasets.LOOKS, datasets.KEEPS, datasets.IS_LAST):
        for asked, called in (("", "mine"), ("d/", "d/")):
            found = datasets.load(asked, given, Home(tmp_path), does)
            assert found == datasets.Loaded(made, called, known.source)  # type: ignore[arg-type]
    assert remembered == [False, False, True, True]


def test_train_without_labels_is_told_how_to_give_them(there: Path) -> None:
    Home(there / "home").remembered.unlink()
    (there / "l.csv").unlink()
    cut = ("--segments", 2, "--home", there / "home")
    call("extract", "--dataset", there / "clips", "--relabel", *cut)
    said = refusal("train", "--home", there / "home")
    assert "the clips of clips have no labels" in said and "extract --dataset clips --labels FILE" in said


def test_train_on_slices_says_merge_and_of_two_stores_which_it_would_take(there: Path) -> None:
    home = ("--home", there / "home")
    stores = there / "home" / "stores" / "clips"
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
def test_the_deadline_reaches_the_processes_that_decode(
    there: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Pool:
        def __init__(self, *_: object, deadline_s: float, **__: object) -> None:
            given.append(deadline_s)
            raise CaeavError("seen")

    monkeypatch.setattr(local, "WorkerPool", Pool)
    other = ("--dtype", "float32", "--deadline", 7.5, "--home", there / "home")
    assert "seen" in refusal(command, *other)
    assert given == [7.5]
