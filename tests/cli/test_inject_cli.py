"""Adapters inside live backbones from the command line: extract, train, score and predict on tiny checkpoints."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import invoke, refusal
from module_files import load_module
from random_weights import randomise
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import Result

from caeav.cli import caption, evaluate, extract, predict, train
from caeav.cli.options import live_opener
from caeav.manifests.core.home import Home
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.model.train.checkpoint import CheckpointError
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import Experiment, prepare
from caeav.model.train.predict import Predictor
from caeav.model.train.runs import Run
from caeav.pipeline.backbones.htsat.frontend import FrontEnd
from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig
from caeav.pipeline.backbones.native import import_torchvision
from caeav.pipeline.backbones.weights import remember_at

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

SWIN = "swinv2_wee_inject"
FRONT = {"rate_hz": 2000, "fft": 128, "hop": 40, "bands": 16, "low_hz": 50.0, "high_hz": 900.0, "window_s": 2}
TAPS = {
    "visual": ["frames", "stage1", "stage2", "stage3", "stage4", "norm"],
    "audio": ["windows", "stage1", "stage2", "stage3", "stage4"],
}
SMALL = [
    "model.adapters.caste.gate_dim=8",
    "model.adapters.avmoe.reduction=2",
    "model.adapters.avmoe.latents=3",
    "model.adapters.case.proj_dim=8",
    "model.adapters.case.caption_bottleneck=4",
    "model.adapters.case.heads=4",
    "model.head.width=16",
    "training.epochs=1",
    "training.batch_size=4",
    "training.device=cpu",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a generated set, its captions, and tokens of a tiny Swin-V2 and a tiny HTS-AT in float32."""
    folder = tmp_path_factory.mktemp("inject")
    made = Home(folder / "home")
    synthesise(
        folder / "synthetic", SyntheticOptions(clips=16, classes=5, seconds=4, size_px=64, fps=5), workers=1
    )
    dataset = ["--dataset", "synthetic", "--root", str(folder / "synthetic"), "--workers", "1"]
    settings = [f"audio.{key}={value}" for key, value in FRONT.items()]
    settings += [
        f"{modality}.taps=[{','.join(f'{modality}.{tap}' for tap in taps)}]"
        for modality, taps in TAPS.items()
    ]
    models = ["--visual", f"timm:{SWIN}", "--visual-weights", str(tiny_swin(folder))]
    models += ["--audio", "hts-at", "--audio-weights", str(tiny_htsat(folder))]
    sets = [part for text in settings for part in ("--set", text)]
    succeed(made, "extract", *dataset, *models, *sets, "--dtype", "float32")
    succeed(made, "caption", *dataset)
    yield made
    remember_at(None)


def tiny_swin(folder: Path) -> Path:
    """A Swin-V2 that timm knows, and its weight file."""
    import_torchvision()
    import timm
    from timm.models import generate_default_cfgs, register_model
    from timm.models.swin_transformer_v2 import _cfg, _create_swin_transformer_v2

    def swinv2_wee_inject(pretrained: bool = False, **options: Any) -> Any:
        sizes = {
            "embed_dim": 8,
            "depths": (2, 2, 6, 2),
            "num_heads": (1, 2, 2, 4),
            "window_size": 4,
            "img_size": 64,
        }
        return _create_swin_transformer_v2(SWIN, pretrained=pretrained, **{**sizes, **options})

    module: Any = sys.modules[__name__]
    module.default_cfgs = generate_default_cfgs({SWIN: _cfg(input_size=(3, 64, 64), pool_size=(2, 2))})
    register_model(swinv2_wee_inject)
    torch.manual_seed(1)
    model = timm.create_model(SWIN, num_classes=0)
    randomise(model)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def tiny_htsat(folder: Path) -> Path:
    """An HTS-AT in the published format."""
    path = Path(__file__).parents[1] / "pipeline" / "backbones" / "conftest.py"
    files = load_module("tiny_audio", path)
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"channels": 8, "depths": (2, 2, 2, 2), "heads": (2, 2, 4, 4), "window": 4}
    network = Htsat(HtsatConfig(front_end=FrontEnd(**FRONT, image_size=64), **sizes))
    randomise(network)
    network.image.norm.running_mean.normal_(-40, 3)
    network.image.norm.running_var.uniform_(50, 200)
    torch.save({"state_dict": files.htsat_names(network)}, folder / "tiny.ckpt")
    return folder / "tiny.ckpt"


def call(home: Home, *arguments: str) -> Result:
    return invoke((caption, extract, train, evaluate, predict), *arguments, "--home", home.root)


def succeed(home: Home, *arguments: str) -> Result:
    result = call(home, *arguments)
    if result.exit_code != 0:
        raise AssertionError(result.output) from result.exception
    return result


def train_on(home: Home, *more: str) -> Result:
    sets = [part for text in SMALL for part in ("--set", text)]
    return call(home, "train", "--dataset", "synthetic", *sets, *more)


def experiment(home: Home, stage: str, *more: str, recipe: str = "full") -> Experiment:
    given = {
        "dataset": "synthetic",
        "model.adapters.placement": "inject",
        "model.adapters.inject_from": stage,
    }
    return prepare(home, resolve_config("ave", recipe, None, [*SMALL, *more], given), live_opener(home))


RAW = "stores.taps=[visual.frames,audio.windows]"


def outputs_and_gradients(made: Experiment) -> dict[str, Tensor]:
    """Outputs of a network with random adapters for four clips, and the gradients of its adapters."""
    torch.manual_seed(5)
    model = made.build()
    randomise(model)
    model.eval()
    found = model(made.data["train"].batch(range(4)).to(made.device, torch.float32))
    scalars = [found.trunk.visual.square().mean(), found.trunk.audio.square().mean()]
    torch.stack([*scalars, found.found.event_scores.square().mean()]).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"visual": found.trunk.visual, "audio": found.trunk.audio, **grads}


@pytest.mark.parametrize(
    ("stage", "below"), [("stage4", "stage3"), ("stage3", "stage2"), ("stage2", "stage1")]
)
def test_replaying_a_cached_tap_equals_the_whole_live_run(home: Home, stage: str, below: str) -> None:
    replayed, whole = experiment(home, stage), experiment(home, stage, RAW)
    assert [tap.name for tap in replayed.inputs.spec.visual] == [f"visual.{below}"]
    assert [tap.name for tap in whole.inputs.spec.visual] == ["visual.frames"]
    a, b = outputs_and_gradients(replayed), outputs_and_gradients(whole)
    assert a.keys() == b.keys() and len(a) > 20
    for name, x in a.items():
        assert (x - b[name]).abs().max() <= 1e-5 * max(1.0, float(b[name].detach().abs().max())), name


def test_with_gates_at_zero_the_output_is_the_frozen_backbones(home: Home) -> None:
    made = experiment(home, "stage1", recipe="caste")
    model = made.build().eval()
    with torch.no_grad():
        found = model(made.data["val"].batch([0, 1]).to(made.device, torch.float32)).trunk
    for modality, name, output in (("visual", "norm", found.visual), ("audio", "stage4", found.audio)):
        cached = torch.stack(
            [
                torch.from_numpy(made.joined.tokens[0].read(key).arrays[f"{modality}.{name}"].copy())
                for key in made.data["val"].keys[:2]
            ]
        )
        assert torch.allclose(output, cached, atol=1e-5 * float(cached.abs().max()))


@pytest.mark.parametrize(("stage", "start"), [("stage4", "visual.stage3"), ("stage1", "visual.frames")])
def test_train_eval_and_predict(home: Home, tmp_path: Path, stage: str, start: str) -> None:
    result = train_on(home, "--inject-from", stage, "--json")
    assert result.exit_code == 0, result.output
    assert f"run from {start}, audio." in result.stderr and f"adapters from {stage} on" in result.stderr
    trained = json.loads(result.stdout)
    run = home.runs / trained["run"]
    assert "inject_from: " + stage in (run / "config.yaml").read_text()
    scored = json.loads(succeed(home, "eval", "--run", trained["run"], "--split", "val", "--json").stdout)
    assert scored["score"] == pytest.approx(trained["scores"]["val"])
    media = sorted((home.root.parent / "synthetic").rglob("*.mp4"))[0]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    said = json.loads(succeed(home, "predict", str(media), "--run", trained["run"], *out).stdout)
    assert len(said["segments"]) == 4

    claims = shutil.copytree(run, tmp_path / run.name) / "config.yaml"
    claims.write_text(claims.read_text().replace("width: 16\n", "width: 1048576\n"))
    with pytest.raises(CheckpointError, match="of another shape"):  # before anything of that size is made
        Predictor.load(Run(claims.parent), "cpu", live_opener(home))


def test_a_run_holds_adapters_and_no_backbone(home: Home) -> None:
    made = experiment(home, "stage4")
    names = [name for name, _ in made.build().named_parameters()]
    assert names and not any("blocks" in name or "patch" in name for name in names)


def test_what_the_stores_allow_is_reported_before_anything_is_loaded(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caeav.pipeline.extract.jobs.open_live", lambda *_: pytest.fail("loaded"))
    before = sorted(home.runs.iterdir()) if home.runs.is_dir() else []
    only = ["--set", "stores.taps=[visual.stage2,audio.stage2,visual.stage4,audio.stage3,audio.stage4]"]
    said = refusal(train_on(home, "--inject-from", "stage2", *only))
    assert "inject_from stage2 starts from visual.stage1 and audio.stage1" in said
    assert "set inject_from to stage3, which these stores allow" in said
    nothing = refusal(
        train_on(home, "--inject-from", "stage1", "--set", "stores.taps=[visual.stage4,audio.stage4]")
    )
    assert "extract a store with these taps, or with visual.frames and audio.windows" in nothing
    raw_only = refusal(train_on(home, "--set", RAW))
    assert "the ladder needs cached stages" in raw_only
    assert "stage9" in refusal(train_on(home, "--inject-from", "stage9"))
    assert before == (sorted(home.runs.iterdir()) if home.runs.is_dir() else [])


def test_the_ladder_ignores_raw_inputs(home: Home) -> None:
    config = resolve_config("ave", "full", None, SMALL, {"dataset": "synthetic"})
    made = prepare(home, config, live_opener(home))
    assert made.live is None
    assert made.inputs.spec.visual[0].name == "visual.stage1"
    assert made.inputs.spec.audio[0].name == "audio.stage1"


def test_weights_that_are_gone_are_named(home: Home) -> None:
    file = home.root.parent / "tiny.ckpt"
    away = file.rename(file.with_suffix(".away"))
    try:
        said = refusal(train_on(home, "--inject-from", "stage4"))
    finally:
        away.rename(file)
    assert "hts-at" in said and "sha256:" in said


@pytest.mark.parametrize("recipe", ["lavish", "dg-sct"])
def test_other_methods_train_inside_the_backbones_and_are_scored(home: Home, recipe: str) -> None:
    result = train_on(home, "--inject-from", "stage4", "--recipe", recipe, "--json")
    assert result.exit_code == 0, result.output
    trained = json.loads(result.stdout)
    assert any(name.startswith("trunk.stages") for name in trained["parameters"])
    scored = json.loads(succeed(home, "eval", "--run", trained["run"], "--split", "val", "--json").stdout)
    assert scored["score"] == pytest.approx(trained["scores"]["val"])
