"""`caeav models` as typed: what is listed, reported when weights are missing, and compared by `check`."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import checked, invoke
from typer.testing import Result

from caeav.cli import models
from caeav.manifests.core.errors import CaeavError

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
TINY = "timm:test_resnet"


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CAEAV_HOME", str(tmp_path / "home"))


def call(*arguments: str) -> Result:
    return checked(invoke([models], "models", *arguments))


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """Random weights of a tiny timm model in timm's format."""
    import torch
    from safetensors.torch import save_file

    from caeav.pipeline.backbones.native import import_torchvision

    import_torchvision()
    import timm

    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def test_ls_names_every_model_with_its_state(tmp_path: Path) -> None:
    rows = {(row["kind"], row["name"]): row for row in json.loads(call("ls", "--json").stdout)}
    swin = rows["visual backbone", "swinv2-large"]
    assert swin["state"] == "to pull" and swin["licence"] == "MIT"
    assert swin["bytes_a_clip"] == 2 * 10 * (2304 * 192 + 576 * 384 + 144 * 768 + 36 * 1536)
    assert rows["visual backbone", "classic"]["state"] == "not needed"
    snapshot = tmp_path / "hub" / "models--timm--swinv2_large_window12_192.ms_in22k" / "snapshots" / "a"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    again = {(row["kind"], row["name"]): row for row in json.loads(call("ls", "--json").stdout)}
    assert again["visual backbone", "swinv2-large"]["state"] == "here"
    shown = call("ls", "--kind", "text").stdout
    assert "hashed" in shown and "swinv2-large" not in shown


@needs_timm
def test_show_describes_a_model_whose_weights_are_missing() -> None:
    result = call("show", "swinv2-large")
    for part in ("195.2 M", "visual.stage1", "2304", "by the setting taps", "bicubic", "MIT"):
        assert part in result.stdout
    assert "caeav models pull swinv2-large" in result.stderr
    shown = json.loads(call("show", "swinv2-large", "--set", "preset=reference", "--json").stdout)
    assert shown["settings"]["antialias"] is False and shown["described"] == {}


@needs_timm
def test_show_remembers_a_file_by_its_digest(tiny_file: Path, tmp_path: Path) -> None:
    shown = json.loads(call("show", TINY, "--weights", str(tiny_file), "--json").stdout)
    digest = shown["described"]["weights"]["digest"]
    assert shown["problem"] == "" and shown["licence"] == "apache-2.0"
    assert json.loads((tmp_path / "home" / "weights.json").read_text())["places"] == {digest: str(tiny_file)}
    assert json.loads(call("show", TINY, "--weights", digest, "--json").stdout)["problem"] == ""


@needs_timm
def test_pull_without_network_names_what_to_do() -> None:
    with pytest.raises(CaeavError) as caught:
        call("pull", "swinv2-base")
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert "get model.safetensors of timm/swinv2_base_window12_192.ms_in22k elsewhere" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pull", "hashed"], "hashed has no weights to fetch"),
        (["pull", "swinv2-base", "--weights", "w.pth"], "'w.pth' is no name on the hub"),
        (["show", "swin2-large"], "no model is called 'swin2-large'\n  next: did you mean 'swinv2-large'?"),
        (["check", "hts-at", "--set", "window_s=long"], "its default is 10\n  next: give a whole number"),
        (["show", "classic"], "'classic' is several things: visual backbone, audio backbone"),
        (
            ["show", "classic", "--kind", "text"],
            "no text model is called 'classic'\n  next: did you mean 'clap'? choose one of: clap",
        ),
        (
            ["check", "hashed", "--set", "words=3"],
            "hashed has no setting 'words'\n  next: it has no settings",
        ),
        (["check", "hashed", "--set", "words"], "--set 'words' sets nothing\n  next: write KEY=VALUE"),
        (["check", "hashed", "--weights", "x"], "hashed has no weights, but 'x' was given"),
    ],
)
def test_wrong_calls_are_refused_with_the_next_step(arguments: list[str], said: str) -> None:
    with pytest.raises(CaeavError) as caught:
        call(*arguments)
    assert said in str(caught.value)


@needs_timm
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet18.nonsense", "has no weights 'resnet18.nonsense'\n  next: did you mean 'resnet18."),
        (
            "timm:resnet5O",
            "has no model 'resnet5O'\n  next: choose one of timm.list_models(), e.g. resnet50,",
        ),
        ("open_clip:ViT-B32", "did you mean 'ViT-B-32'?"),
    ],
)
def test_the_nearest_model_of_a_library_is_suggested(name: str, said: str) -> None:
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed")
    with pytest.raises(CaeavError) as caught:
        call("check", name, "--kind", "visual")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("classic", "visual"),
        ("classic", "audio"),
        ("hashed", "text"),
        ("descriptor", "visual"),
        ("descriptor", "audio"),
    ],
)
def test_embedded_models_give_what_is_recorded_in_the_package(name: str, kind: str) -> None:
    result = call("check", name, "--kind", kind)
    assert result.exit_code == 0 and "as recorded in caeav" in result.stderr


@needs_timm
def test_check_says_that_nothing_is_recorded_then_compares(tiny_file: Path, tmp_path: Path) -> None:
    given = ("check", TINY, "--weights", str(tiny_file))
    first = call(*given)
    assert first.exit_code == 3 and "nothing was compared" in first.stderr
    assert call(*given, "--record").exit_code == 0
    assert call(*given).exit_code == 0
    assert call(*given, "--set", "preset=reference").exit_code == 3  # other preprocessing is another model

    path = tmp_path / "home" / "model_records.json"
    records: dict[str, Any] = json.loads(path.read_text())
    [entry] = records.values()
    assert str(tmp_path) not in json.dumps(entry)
    entry["statistics"]["visual.level5"]["sums"][3] += 0.1
    path.write_text(json.dumps(records))
    with pytest.raises(CaeavError, match=r"not as recorded in .*:\n  visual.level5: sum 4") as changed:
        call(*given)
    assert "visual.level4" not in str(changed.value)
    path.write_text("[]")
    with pytest.raises(CaeavError, match="holds no records of models"):
        call(*given)


@needs_timm
def test_random_weights_are_reported() -> None:
    result = call("check", TINY, "--weights", "random:0")
    assert "the weights are random" in result.stderr


@needs_timm
def test_pull_serves_every_kind_of_a_name_from_the_cache(tiny_file: Path, tmp_path: Path) -> None:
    """What lies in the hub's cache is not fetched again, so a copied cache works without network."""
    place = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    tiny_file.rename(place / "snapshots" / "abc" / "model.safetensors")
    [row] = json.loads(call("pull", TINY, "--json").stdout)
    assert (row["kind"], row["source"]) == ("visual backbone", "hub:timm/test_resnet.r160_in1k")
    assert row["digest"] == json.loads(call("show", TINY, "--json").stdout)["described"]["weights"]["digest"]
    with pytest.raises(CaeavError, match="HF_HUB_OFFLINE is set"):
        call("pull", "clip-vit-b32")  # a visual backbone and a text encoder: no --kind is needed


class Trainer:
    """What a training program may put beside its weights."""


@needs_timm
def test_a_checkpoint_with_objects_is_converted_by_the_command_that_the_error_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the error of `show` to weights that it takes, as typed."""
    import torch

    from caeav.pipeline.backbones.native import import_torchvision

    import_torchvision()
    import timm

    monkeypatch.chdir(tmp_path)
    state = timm.create_model("test_resnet").state_dict()
    torch.save({"model": state, "model_ema": state, "trainer": Trainer()}, tmp_path / "run.pth")
    shown = call("show", TINY, "--weights", "run.pth")
    assert "it holds objects of" in shown.stderr
    with pytest.raises(CaeavError) as caught:
        call("check", TINY, "--weights", "run.pth")
    assert f"it holds objects of {Trainer.__module__}.Trainer" in str(caught.value)
    command = shlex.split(str(caught.value).partition("runs nothing: ")[2])
    assert command[:3] == ["caeav", "models", "convert"]
    done = call(*command[2:])
    for said in (
        "taken        model_ema (a moving average",
        "left out     trainer: an object of",
        "never made",
    ):
        assert said in done.stdout
    assert json.loads(call("show", TINY, "--weights", "run.safetensors", "--json").stdout)["problem"] == ""
    assert call("check", TINY, "--weights", "run.safetensors").exit_code == models.NO_RECORD
    torch.save({"model": state, "model_ema": state}, tmp_path / "plain.pth")
    shown = call("show", TINY, "--weights", "plain.pth")
    assert "model_ema (a moving average, preferred as in timm); not taken: model" in shown.stdout
    raw = json.loads(call("convert", "run.pth", "raw.safetensors", "--take", "model", "--json").stdout)
    assert raw["taken"] == "model" and raw["others"] == ["model_ema"] and raw["tensors"] == len(state)
