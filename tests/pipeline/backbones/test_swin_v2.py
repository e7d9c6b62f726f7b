"""The live Swin-V2: running it half block by half block equals timm's forward, bit for bit."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.timm_models import LiveSwinV2, import_timm, timm_visual

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

LARGE = "swinv2_large_window12_192"
TINY = {"embed_dim": 12, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 3, 4)}


def create(**options: Any) -> LiveSwinV2:
    torch.manual_seed(5)
    live = LiveSwinV2(import_timm().create_model(LARGE, num_classes=0, **TINY, **options))
    for parameter in live.module.parameters():  # timm starts the post-norms at zero
        torch.nn.init.normal_(parameter, std=0.2)
    live.module.eval()
    return live


def walk(live: LiveSwinV2, frames: torch.Tensor) -> list[torch.Tensor]:
    x = live.embed(frames)
    ends = []
    for i, stage in enumerate(live.stages):
        assert x.shape[1:] == (stage.tokens, stage.channels)
        for block in stage.blocks:
            x = x + block.attention(x)
            x = x + block.mlp(x)
        ends.append(x)
        if i + 1 < len(live.stages):
            x = stage.merge(x)
    return [*ends, live.norm(x)]


@pytest.mark.parametrize(
    "options",
    [
        {"img_size": 96},  # 24 x 24 tokens: shifted windows of 12, then whole grids
        {"img_size": 192},
        {"img_size": 96, "window_size": 6},
        {"img_size": (96, 64), "window_size": 8},
    ],
    ids=["96", "192", "window6", "oblong"],
)
def test_running_half_block_by_half_block_equals_timms_forward(options: dict[str, Any]) -> None:
    live = create(**options)
    size = options["img_size"]
    frames = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    with torch.no_grad():
        ends = walk(live, frames)
        wanted = live.module.forward_intermediates(frames, intermediates_only=True)
        assert torch.equal(ends[-1], live.module.forward_features(frames).flatten(1, 2))
    for end, want in zip(ends[:-1], wanted, strict=True):
        assert torch.equal(end, want.flatten(2).transpose(1, 2))  # timm gives [BT, C, H, W]


def test_gradients_equal_timms() -> None:
    live = create(img_size=96)
    frames = torch.randn(1, 3, 96, 96, requires_grad=True)
    walk(live, frames)[-1].square().sum().backward()
    ours, frames.grad = frames.grad, None
    live.module.forward_features(frames).square().sum().backward()
    assert ours is not None and torch.equal(ours, frames.grad)


def test_merging_the_last_stage_is_an_error() -> None:
    with pytest.raises(ValueError, match="last stage"):
        create(img_size=96).stages[-1].merge(torch.zeros(1, 9, 96))


def test_a_model_timm_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(CaeavError, match="swinv2_enormous"):
        timm_visual(ModelChoice("timm:swinv2_enormous"))


def test_the_model_of_the_papers_has_the_published_size() -> None:
    with torch.device("meta"):
        live = LiveSwinV2(import_timm().create_model(LARGE, num_classes=0))
    assert [(s.tokens, s.channels, len(s.blocks)) for s in live.stages] == [
        (2304, 192, 2),
        (576, 384, 2),
        (144, 768, 18),
        (36, 1536, 2),
    ]
    assert 195.0e6 < sum(p.numel() for p in live.module.parameters()) < 195.5e6
