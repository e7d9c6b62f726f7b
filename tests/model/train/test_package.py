"""A packaged run: it is a run again, predicts the same, and brings nothing else along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_client import HubClient

from caeav.manifests.core.home import Home
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import prepare, reopen
from caeav.model.train.package import MAX_BYTES, MODEL, PackageError, pack, unpack
from caeav.model.train.predict import Predictor
from caeav.model.train.runs import ORIGIN, Run, create_run, find_run
from caeav.model.train.session import train
from caeav.pipeline.store.remote import hub
from caeav.pipeline.store.remote.hub import HubError, pull_folder, push_folder


@pytest.fixture(scope="module")
def run(tiny_home: Home) -> Run:
    sets = ["training.epochs=1", "model.head.width=16", "training.device=cpu"]
    experiment = prepare(
        tiny_home, resolve_config(preset="avmoe", assignments=sets, options={"dataset": "tiny"})
    )
    made = create_run(tiny_home, experiment.config)
    made.write(ORIGIN, {"command": "caeav train --home /home/someone/secret", "group": ""})
    train(experiment, made)
    return made


def probabilities(home: Home, run: Run) -> Any:
    record = reopen(home, run).joined.tokens[0].read("clip040")
    found = Predictor.load(run, "cpu").predict("clip040", record.arrays, dict(record.info))
    return np.array([row["probability"] for row in found.rows()])


def test_a_package_comes_back_as_the_run_it_was(tiny_home: Home, run: Run, tmp_path: Path) -> None:
    package = pack(run, tmp_path / "package")
    assert not (package / "checkpoints").exists() and not (package / "tensorboard").exists()
    other = Home(tmp_path / "other")
    taken = unpack(package, other)
    assert taken.name == run.name and find_run(other, "last").folder == taken.folder
    assert taken.result() == run.result() and taken.config() == run.config()
    for each in (Run(package), taken):
        np.testing.assert_array_equal(probabilities(tiny_home, each), probabilities(tiny_home, run))
    with pytest.raises(PackageError, match="already"):
        unpack(package, other)
    again = pack(taken, tmp_path / "again")  # what was taken can be handed on
    assert (again / MODEL).read_bytes() == (package / MODEL).read_bytes()


def test_the_card_is_for_hubs_and_says_nothing_about_the_machine(run: Run, tmp_path: Path) -> None:
    package = pack(run, tmp_path / "package")
    text = (package / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "caeav" and {"ave", "avmoe"} <= set(head["tags"])
    results = {
        each["dataset"]["split"]: each["metrics"][0]["value"] for each in head["model-index"][0]["results"]
    }
    assert results == run.result()["scores"]  # type: ignore[index]
    assert "secret" not in "".join(p.read_text() for p in package.glob("*.json"))
    assert json.loads((package / ORIGIN).read_text())["name"] == run.name


def test_what_is_no_package_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match=r"it lacks config\.yaml"):
        unpack(tmp_path / "empty", home)
    package = pack(run, tmp_path / "package")
    with pytest.raises(PackageError, match="is not empty"):
        pack(run, package)
    (package / "evil.py").write_text("raise SystemExit")
    assert not (unpack(package, home).folder / "evil.py").exists()
    monkeypatch.setitem(MAX_BYTES, MODEL, 10)
    with pytest.raises(PackageError, match="at most 10 B"):
        unpack(package, Home(tmp_path / "second"))
    monkeypatch.undo()
    (package / MODEL).write_bytes(b"\x80\x04pickled")
    with pytest.raises(Exception, match=r"model\.safetensors"):
        unpack(package, Home(tmp_path / "third"))
    assert not (tmp_path / "third" / "runs").exists()


def test_a_name_in_a_package_cannot_leave_the_home(run: Run, tmp_path: Path) -> None:
    package = pack(run, tmp_path / "package")
    origin = json.loads((package / ORIGIN).read_text())
    (package / ORIGIN).write_text(json.dumps({**origin, "name": "../../outside"}))
    assert unpack(package, Home(tmp_path / "home")).folder == tmp_path / "home" / "runs" / "outside"


def test_an_unfinished_run_is_not_packed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "half").mkdir(parents=True)
    with pytest.raises(PackageError, match="--resume half"):
        pack(Run(tmp_path / "runs" / "half"), tmp_path / "package")


def test_a_package_is_pushed_to_the_hub_and_pulled_back(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = HubClient(tmp_path / "hub")
    monkeypatch.setattr(hub, "_client", lambda: client)
    address = push_folder(pack(run, tmp_path / "package"), "me/run", "model", private=True)
    assert address == "https://example.org/me/run" and client.made == [("me/run", "model", True)]
    (tmp_path / "into").mkdir()
    back = pull_folder("me/run", "model", ["config.yaml", MODEL], tmp_path / "into")
    assert sorted(path.name for path in back.iterdir()) == ["config.yaml", MODEL]


def test_what_the_hub_refuses_has_a_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="write hub:OWNER/REPO"):
        push_folder(tmp_path, "me", "model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="give a folder instead"):
        push_folder(tmp_path, "me/run", "model")
