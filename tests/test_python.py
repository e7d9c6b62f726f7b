"""`import caeav`: every example of docs/PYTHON.md, and what stands behind them."""

from __future__ import annotations

import doctest
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from forked_command import run_command
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import caeav
from caeav.cli import train
from caeav.manifests.core.home import Home
from caeav.model.tasks.base import TASKS
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import prepare
from caeav.model.train.join import Joined, join_stores

SEGMENTS = 5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The set that docs/PYTHON.md describes, made by the commands it names."""
    place = tmp_path_factory.mktemp("python") / "home"
    for command in ("synthesise --clips 24 --seconds 5", "extract --dataset synthetic", "caption"):
        ran = run_command([*command.split(), "--home", str(place)])
        assert ran.returncode == 0, ran.stderr
    app = typer.Typer()
    train.register(app)
    line = "--recipe none --set training.epochs=2 --device cpu"
    trained = CliRunner().invoke(app, [*line.split(), "--home", str(place)])
    assert trained.exit_code == 0, trained.output
    yield Home(place)


def test_every_example_of_the_page_is_true(
    home: Home, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAEAV_HOME", str(home.root))
    video = sorted(home.data("synthetic").rglob("*.mp4"))[0]
    text = (repository / "docs" / "PYTHON.md").read_text()
    test = doctest.DocTestParser().get_doctest(text, {"video": video}, "PYTHON.md", "docs/PYTHON.md", 0)
    assert len(test.examples) > 20
    told: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert failed == 0, "".join(told)


def test_the_probe_of_the_readme_runs(home: Home, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAEAV_HOME", str(home.root))
    [code] = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 10  # the ten-line probe
    held: dict[str, Any] = {}
    exec(code.replace('"ave"', '"synthetic"'), held)
    assert torch.isfinite(held["loss"]) and held["probe"].weight.grad is None


def test_the_page_names_the_commands_that_make_its_set(home: Home, repository: Path) -> None:
    text = (repository / "docs" / "PYTHON.md").read_text()
    assert "caeav synthesise --clips 24 --seconds 5" in text
    assert "caeav train --recipe none --set training.epochs=2" in text


def test_a_sample_is_what_training_reads(home: Home) -> None:
    found = caeav.dataset("synthetic", split="val", captions=True, home=home.root)
    config = resolve_config(task="ave", options={"dataset": "synthetic"}, assignments=["training.device=cpu"])
    data = prepare(home, config).data["val"]
    batch = data.batch(range(len(data)))
    loaded = next(iter(DataLoader(found, batch_size=len(found), collate_fn=found.collate)))
    assert loaded["key"] == batch.keys == list(found.keys)
    taps = {**batch.visual, **batch.audio}
    assert loaded["tokens"].keys() == taps.keys()
    assert all(torch.equal(loaded["tokens"][name], tap) for name, tap in taps.items())
    assert torch.equal(loaded["targets"]["labels"], batch.targets["labels"])
    assert torch.equal(loaded["frames_ok"], batch.frames_ok) and torch.equal(
        loaded["audio_ok"], batch.audio_ok
    )
    assert batch.visual_caption is not None
    assert torch.equal(loaded["captions"]["visual_caption"], batch.visual_caption)


def test_a_dataset_gives_the_same_samples_after_pickling(home: Home) -> None:
    found = caeav.dataset("synthetic", split="val", taps=["visual.stage4", "audio.stage4"], home=home.root)
    first = found[0]
    # what a spawned worker is sent
    sent = pickle.loads(pickle.dumps(found))
    assert torch.equal(sent[0]["tokens"]["visual.stage4"], first["tokens"]["visual.stage4"])
    assert found[-1]["key"] == found.keys[-1]
    with pytest.raises(IndexError):
        found[len(found)]


def test_remarks_of_a_training_are_warnings(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def remarking(*args: Any, **kwargs: Any) -> Joined:
        return replace(join_stores(*args, **kwargs), remarks=("the weights are random",))

    monkeypatch.setattr("caeav.datasets.join_stores", remarking)
    with pytest.warns(UserWarning, match="the weights are random") as told:
        caeav.dataset("synthetic", home=home.root)
    assert [warning.filename for warning in told] == [__file__]


def test_without_a_task_there_are_no_labels(home: Home) -> None:
    found = caeav.dataset("synthetic", task="", home=home.root)
    assert found.task == "" and found[0]["targets"] == {}
    assert found.keys == caeav.open_store("synthetic", home=home.root).split("train")


def test_clips_come_in_the_manifests_order_and_by_key(home: Home) -> None:
    store = caeav.open_store("synthetic", home=home.root)
    clips = list(store.clips())
    assert [clip.key for clip in clips] == list(store)
    again = store[clips[3].key]
    assert again.clip == clips[3].clip and (again["visual.stage1"] == clips[3]["visual.stage1"]).all()
    assert [clip.key for clip in store.clips(store.split("test"))] == store.split("test")
    assert "no such clip" not in store and len(store) == 24
    by_folder = caeav.open_store(store.path)
    assert by_folder.recipe == store.recipe


def test_refusals_say_what_is_allowed(home: Home) -> None:
    with pytest.raises(caeav.CaeavError, match="train, val, test"):
        caeav.open_store("synthetic", home=home.root).split("valid")
    with pytest.raises(caeav.CaeavError, match="train, val, test"):
        caeav.dataset("synthetic", split="training", home=home.root)
    with pytest.raises(caeav.CaeavError, match="tokens or captions"):
        caeav.open_store("synthetic", kind="token", home=home.root)
    with pytest.raises(caeav.CaeavError, match="avqa"):
        caeav.dataset("synthetic", task="avqa", home=home.root)
    assert "avqa" in TASKS.names()


def test_several_stores_are_chosen_by_argument(home: Home) -> None:
    """The next step is one of Python, not of the command line."""
    line = ["extract", "--dataset", "synthetic", "--dtype=float32", "--home", str(home.root)]
    assert run_command(line).returncode == 0
    with pytest.raises(caeav.CaeavError, match=r"tokens=\w{4}") as refused:
        caeav.dataset("synthetic", home=home.root)
    assert "--set" not in str(refused.value)
    with pytest.raises(caeav.CaeavError, match=r"open_store\(DATASET, NAME\)"):
        caeav.open_store("synthetic", home=home.root)
