"""Learned visual backbones through their real loading code, on tiny random checkpoints in the published formats."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones import visual_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.image import LearnedVisual
from caeav.pipeline.backbones.native import import_torchvision
from caeav.pipeline.extract.jobs import TokenOptions, job_of

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("timm", "open_clip")),
        reason="caeav[learned] is not installed",
    ),
    pytest.mark.usefixtures("offline_hub"),
]
SWIN = "timm:swinv2_little"
CLIP = "open_clip:little-vit"
CLIP_CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 5, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 6, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def little_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Register a little Swin-V2 with timm, and a little CLIP with open_clip."""
    import_torchvision()
    import open_clip
    from timm.models import generate_default_cfgs, register_model
    from timm.models.swin_transformer_v2 import _cfg, _create_swin_transformer_v2

    def swinv2_little(pretrained: bool = False, **options: Any) -> Any:
        sizes = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 6}
        return _create_swin_transformer_v2("swinv2_little", pretrained=pretrained, **{**sizes, **options})

    record = _cfg(hf_hub_id="somebody/swinv2_little", input_size=(3, 96, 96), num_classes=7, pool_size=(3, 3))
    module = sys.modules[__name__]
    module.default_cfgs = generate_default_cfgs({"swinv2_little.random": record})  # type: ignore[attr-defined]
    if not hasattr(module, "__all__"):
        register_model(swinv2_little)
    path = tmp_path_factory.mktemp("open_clip") / "little-vit.json"
    path.write_text(json.dumps(CLIP_CONFIG))
    open_clip.add_model_config(path)
    yield


def swin(**options: Any) -> Any:
    import timm

    torch.manual_seed(3)
    model = timm.create_model("swinv2_little", **options)
    for parameter in model.parameters():  # timm starts the post-norms at zero
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def original_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Microsoft's published layout: merging at the end of a stage, a plain head, and stored constants."""
    renamed = {}
    for name, x in state.items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts).replace("head.fc.", "head.")] = x
    return {
        **renamed,
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(2),
        "layers.1.blocks.1.attn_mask": torch.zeros(1),
    }


@pytest.fixture
def swin_file(tmp_path: Path) -> Path:
    save_file(swin(num_classes=7).state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def clip_model() -> Any:
    import open_clip

    torch.manual_seed(4)
    return open_clip.CLIP(**CLIP_CONFIG).eval()


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    save_file(clip_model().state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path / "open_clip_model.safetensors"


def make(name: str, weights: Path | str = "", **settings: Any) -> LearnedVisual:
    backbone = visual_backbones[name](ModelChoice(name, str(weights), settings))
    assert isinstance(backbone, LearnedVisual)
    return backbone


def frames(t: int = 2, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (t, height, width, 3), dtype=np.uint8)


def test_swin_taps_are_timms_stages_before_merging(swin_file: Path) -> None:
    backbone = make(SWIN, swin_file, taps=["visual.norm", "visual.stage1", "visual.stage2", "visual.stage4"])
    assert [(t.name, t.tokens, t.channels) for t in backbone.taps()] == [
        ("visual.stage1", 576, 12),
        ("visual.stage2", 144, 24),
        ("visual.stage4", 9, 96),
        ("visual.norm", 9, 96),
    ]
    clip = frames()
    [found] = backbone.tokens([clip])
    model, x = swin(num_classes=7), backbone.prepare(clip)
    with torch.no_grad():
        levels = model.forward_intermediates(x, intermediates_only=True)
        norm = model.forward_features(x).flatten(1, 2)
    assert list(found) == [tap.name for tap in backbone.taps()]
    for i in (1, 2, 4):
        assert np.array_equal(found[f"visual.stage{i}"], levels[i - 1].flatten(2).transpose(1, 2).numpy())
    assert np.array_equal(found["visual.norm"], norm.numpy())


def test_the_live_network_continues_from_cached_taps(swin_file: Path) -> None:
    """From the pixels to every stage, and onwards from the tap of each stage."""
    names = ["visual.frames", *(f"visual.stage{i}" for i in range(1, 5)), "visual.norm"]
    backbone = make(SWIN, swin_file, taps=names)
    live = backbone.live()
    [found] = backbone.tokens([frames()])
    taps = {name: torch.from_numpy(x) for name, x in found.items()}
    pixels = taps["visual.frames"].unflatten(1, (96, 96)).permute(0, 3, 1, 2)
    with torch.no_grad():
        x = live.embed(pixels)
        for i, stage in enumerate(live.stages):
            if i:
                x = live.stages[i - 1].merge(
                    taps[f"visual.stage{i}"]
                )  # continued from the previous stage's tap
            for block in stage.blocks:
                x = x + block.attention(x)
                x = x + block.mlp(x)
            assert torch.equal(x, taps[f"visual.stage{i + 1}"])
        assert torch.equal(live.norm(x), taps["visual.norm"])


def test_frames_alone_need_no_pass_through_the_network(swin_file: Path) -> None:
    backbone = make(SWIN, swin_file, taps=["visual.frames"])
    for part in backbone.module().modules():
        part.register_forward_pre_hook(lambda *_: pytest.fail("the network was run"))
    assert backbone.tokens([frames()])[0]["visual.frames"].shape == (2, 96 * 96, 3)


@pytest.mark.parametrize(
    "publish",
    [
        lambda s: (save_file, s, "model.safetensors"),
        lambda s: (torch.save, s, "w.pth"),
        lambda s: (torch.save, {"model": original_layout(s)}, "w.pth"),
    ],
    ids=["timm safetensors", "timm pth", "original pth"],
)
def test_swin_loads_every_published_layout(
    publish: Callable[[dict[str, Tensor]], tuple[Callable[..., None], Any, str]], tmp_path: Path
) -> None:
    state = swin(num_classes=7).state_dict()
    save, content, name = publish(state)
    save(content, tmp_path / name)
    module = make(SWIN, tmp_path / name).module()
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    loaded = module.state_dict()
    assert loaded.keys() == {k for k in state if not k.startswith("head.")}
    assert all(torch.equal(x, state[k]) for k, x in loaded.items())


def test_the_default_weights_are_those_in_the_hubs_cache(swin_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--somebody--swinv2_little"
    snapshot = place / "snapshots" / "abc"
    (place / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    with pytest.raises(
        CaeavError, match=r"not on this machine\n  next: caeav models pull timm:swinv2_little"
    ):
        make(SWIN)
    swin_file.rename(snapshot / "model.safetensors")
    described = make(SWIN).describe()["weights"]
    assert described["source"] == "hub:somebody/swinv2_little"
    assert described["digest"].startswith("sha256:")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.1.blocks.1.mlp.fc1.weight"), "missing: layers.1.blocks.1.mlp.fc1.weight"),
        (lambda s: s.update({"layers.1.extra": torch.zeros(1)}), "unexpected: layers.1.extra"),
        (
            lambda s: s.update({"norm.weight": torch.zeros(5)}),
            r"wrong shape: norm.weight is [5], needed [96]",
        ),
    ],
)
def test_missing_unexpected_and_misshapen_keys_of_swin_are_refused(
    swin_file: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = load_file(swin_file)
    change(state)
    save_file(state, swin_file)
    with pytest.raises(CaeavError) as caught:
        make(SWIN, swin_file).module()
    assert message in str(caught.value)


def test_clip_taps_are_patches_after_blocks_and_the_embedding(clip_file: Path) -> None:
    taps = ["visual.block2", "visual.block5", "visual.pooled"]
    backbone = make(CLIP, clip_file, taps=taps)
    assert [(t.name, t.tokens, t.channels) for t in backbone.taps()] == [
        ("visual.block2", 16, 16),
        ("visual.block5", 16, 16),
        ("visual.pooled", 1, 8),
    ]
    clip = frames()
    [found] = backbone.tokens([clip])
    model, x = clip_model(), backbone.prepare(clip)
    seen: list[Tensor] = []
    for i in (1, 4):
        model.visual.transformer.resblocks[i].register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        embedding = model.encode_image(x)
    for name, block in zip(taps, seen, strict=False):
        np.testing.assert_allclose(found[name], block[:, 1:].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["visual.pooled"][:, 0], embedding.numpy(), atol=1e-6)


def test_four_blocks_evenly_apart_are_the_default(clip_file: Path) -> None:
    assert [tap.name for tap in make(CLIP, clip_file).taps()] == [f"visual.block{i}" for i in (1, 2, 3, 5)]


def test_clip_loads_a_distributed_checkpoint_and_another_size(clip_file: Path, tmp_path: Path) -> None:
    state = {f"module.{k}": x for k, x in load_file(clip_file).items()}
    torch.save({"state_dict": state}, tmp_path / "epoch.pt")
    a, b = (
        make(CLIP, clip_file).module().state_dict(),
        make(CLIP, tmp_path / "epoch.pt").module().state_dict(),
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    larger = make(CLIP, clip_file, size=[48, 48])
    assert [tap.tokens for tap in larger.taps()] == [36] * 4
    assert larger.tokens([frames()])[0]["visual.block5"].shape == (2, 36, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.proj"), "missing: proj"),
        (lambda s: s.pop("text_projection"), "lacks 1 keys of CLIP's text tower: text_projection"),
        (lambda s: s.update({"adapter.weight": torch.zeros(1)}), "unexpected: adapter.weight"),
    ],
)
def test_missing_and_unexpected_keys_of_clip_are_refused(
    clip_file: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = load_file(clip_file)
    change(state)
    save_file(state, clip_file)
    with pytest.raises(CaeavError) as caught:
        make(CLIP, clip_file).module()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "timm:test_convnext"])
def test_any_timm_model_can_be_used_by_name(name: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name.removeprefix("timm:")).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    taps = [tap.name for tap in make(name, "random:0").offered_taps]
    backbone = make(name, tmp_path / "w.safetensors", taps=taps)
    clip = frames()
    [found] = backbone.tokens([clip])
    record = model.pretrained_cfg
    assert backbone.describe()["settings"]["mean"] == list(record["mean"])
    assert backbone.describe()["settings"]["size"] == list(record["input_size"][1:])
    x = backbone.prepare(clip)
    with torch.no_grad():
        levels = model.forward_intermediates(x, intermediates_only=True)
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    for tap, level in zip(taps, levels, strict=False):
        np.testing.assert_allclose(found[tap], level.flatten(2).transpose(1, 2).numpy(), atol=1e-5)
    np.testing.assert_allclose(found["visual.pooled"][:, 0], pooled.numpy(), atol=1e-5)
    assert [(t.name, t.tokens, t.channels) for t in backbone.taps()] == [
        (n, *found[n].shape[1:]) for n in taps
    ]


def test_a_clips_tokens_do_not_depend_on_its_batch(swin_file: Path) -> None:
    backbone = make(SWIN, swin_file)
    clips = torch.stack([backbone.prepare(frames(2, 30 + i, 50)) for i in range(3)])
    backbone.module()
    with torch.inference_mode():
        together = backbone.forward(clips)
        alone = backbone.forward(
            torch.stack([clips[1], torch.zeros_like(clips[1]), torch.zeros_like(clips[1])])
        )
    for name, x in together.items():
        torch.testing.assert_close(x[1], alone[name][0])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (SWIN, {"taps": ["visual.stage9"]}, "has no tap visual.stage9\n  next: it has visual.frames"),
        (
            SWIN,
            {"preset": "mine"},
            "has no preset 'mine'\n  next: choose one of: published, reference, whole",
        ),
        (SWIN, {"colour": 1}, "has no setting 'colour'\n  next: its settings are antialias, crop, fit"),
        (
            SWIN,
            {"antialias": "yes"},
            "setting 'antialias' of timm:swinv2_little is 'yes', its default is True",
        ),
        (SWIN, {"fit": "squeeze"}, "setting 'fit' is 'squeeze'\n  next: choose one of: stretch, crop"),
        (SWIN, {"size": [2, 2]}, "2 x 2"),
        (SWIN, {"size": [-1, 3]}, "setting 'size' is [-1, 3]"),
        ("timm:resnet1000", {}, "has no model 'resnet1000'"),
        ("open_clip:RN50", {}, "open_clip has no ViT 'RN50'"),
        ("open_clip:nothing", {}, "open_clip has no ViT 'nothing'"),
        (CLIP, {}, "open_clip:little-vit has no default weights"),
    ],
)
def test_wrong_choices_are_refused_with_what_is_allowed(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CaeavError) as caught:
        make(name, "random:0" if settings else "", **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-32", "it comes from hub:"),
        ("timm:gcvit_base.in1k", "rwightman/pytorch-image-models, its release file gcvit_base_224_nvidia-"),
        ("timm:coatnet_0_224", "timm knows no weights of this architecture"),
    ],
)
def test_weights_without_a_hub_name_are_named_with_their_publisher(name: str, message: str) -> None:
    with pytest.raises(CaeavError, match="has no default weights") as caught:
        make(name)
    assert message in str(caught.value)


def test_random_weights_are_named_and_reproducible() -> None:
    one, two, other = (make(SWIN, f"random:{seed}") for seed in (0, 0, 1))
    assert one.describe()["weights"] == {"source": "random:0", "digest": "random:0"}
    a, b, c = (x.module().state_dict()["patch_embed.proj.weight"] for x in (one, two, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_recipe_finds_its_weights_again_and_refuses_others(swin_file: Path) -> None:
    options = TokenOptions(ModelChoice(SWIN, str(swin_file), {"preset": "reference"}))
    recipe = options.job(4, 1.0).recipe
    assert str(swin_file.parent) not in json.dumps(recipe.as_json())
    described = recipe.fields["visual"]
    assert described["settings"]["antialias"] is False and "preset" not in described["settings"]
    again = job_of(recipe).parts["visual"]
    assert isinstance(again, LearnedVisual)
    assert torch.equal(again.module().state_dict()["norm.weight"], load_file(swin_file)["norm.weight"])

    renamed = swin_file.rename(swin_file.with_name("copy.safetensors"))
    moved = TokenOptions(ModelChoice(SWIN, str(renamed), {"preset": "reference"})).job(4, 1.0).recipe
    assert moved.fingerprint == recipe.fingerprint  # the same weights under another name
    assert job_of(recipe).recipe is recipe

    state = load_file(renamed)
    state["norm.weight"][0] += 1
    save_file(state, renamed)
    with pytest.raises(CaeavError, match=r"visual\.weights\.digest"):
        job_of(recipe)
    other = TokenOptions(ModelChoice(SWIN, str(renamed), {"preset": "reference"})).job(4, 1.0).recipe
    assert other.fingerprint != recipe.fingerprint
    renamed.unlink()
    with pytest.raises(CaeavError, match="show it once: caeav models show timm:swinv2_little --weights FILE"):
        job_of(recipe)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model.", "backbone."])
def test_of_a_training_checkpoint_of_timm_the_average_is_taken(prefix: str, tmp_path: Path) -> None:
    """As by timm's `load_state_dict(use_ema=True)`: the average takes precedence, and training prefixes are removed."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    average = {f"{prefix}{name}": x.clone() for name, x in model.state_dict().items()}
    other = {name: torch.zeros_like(x) for name, x in average.items()}
    path = tmp_path / "last.pth.tar"
    torch.save(
        {"epoch": 3, "arch": "x", "state_dict": other, "state_dict_ema": average, "args": Namespace(a=1)},
        path,
    )
    backbone = make("timm:test_resnet", path)
    assert backbone.describe()["weights"]["part"] == "state_dict_ema"
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    [found], [wanted] = (
        make("timm:test_resnet", x).tokens([frames()]) for x in (path, tmp_path / "w.safetensors")
    )
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x)


def test_an_older_recipe_keeps_the_weights_it_was_made_with(swin_file: Path, tmp_path: Path) -> None:
    """An older recipe names no part and means `model`, although a path now means the average."""
    state = load_file(swin_file)
    other = {name: x + 1 if name == "norm.weight" else x for name, x in state.items()}
    path = tmp_path / "both.pth"
    torch.save({"model": state, "model_ema": other}, path)
    before = TokenOptions(ModelChoice(SWIN, f"{path}#model")).job(4, 1.0).recipe
    now = TokenOptions(ModelChoice(SWIN, str(path))).job(4, 1.0).recipe
    assert "part" not in before.fields["visual"]["weights"] and before.fingerprint != now.fingerprint
    for recipe, wanted in ((before, state), (now, other)):
        again = job_of(recipe).parts["visual"]
        assert isinstance(again, LearnedVisual)
        assert torch.equal(again.module().state_dict()["norm.weight"], wanted["norm.weight"])


def test_openais_clip_uses_quick_gelu_in_both_towers() -> None:
    from caeav.pipeline.backbones import text_backbones

    choice = ModelChoice("clip-vit-b32", "random:0")
    for made in (visual_backbones[choice.name](choice), text_backbones[choice.name](choice)):
        assert made.describe()["settings"]["quick_gelu"] is True
    plain = ModelChoice("open_clip:ViT-B-32", "random:0")
    for made in (visual_backbones[plain.name](plain), text_backbones[plain.name](plain)):
        assert made.describe()["settings"]["quick_gelu"] is False
