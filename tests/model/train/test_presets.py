"""The `lite` preset: within its budget at the sizes of large backbones, and every map of low rank does its work."""

from __future__ import annotations

import pytest
import torch
from token_batches import SMALL, token_batch
from torch import nn

from caeav.model.adapters.batch import CaptionSpec, InputSpec
from caeav.model.adapters.config import AdapterConfig, CaseConfig
from caeav.model.adapters.ladder import LadderTrunk
from caeav.model.adapters.layers import LowRankContext, LowRankLinear, make_linear
from caeav.model.adapters.moe import AvMoe
from caeav.pipeline.store.record import Tap

DOUBLE = torch.float64


def large_spec() -> InputSpec:
    """Swin-V2-L at 192 pixels, HTS-AT, CLIP text."""
    visual = [(2304, 192), (576, 384), (144, 768), (36, 1536)]
    audio = [(4096, 96), (1024, 192), (256, 384), (64, 768)]
    return InputSpec(
        10,
        tuple(Tap(f"visual.stage{i + 1}", *shape) for i, shape in enumerate(visual)),
        tuple(Tap(f"audio.stage{i + 1}", *shape) for i, shape in enumerate(audio)),
        CaptionSpec(77, 768),
        CaptionSpec(77, 768),
    )


@pytest.mark.parametrize("variant", ["reference", "revised"])
def test_lite_adapters_of_large_backbones_have_at_most_ten_million_parameters(variant: str) -> None:
    def count(preset: str) -> int:
        config = AdapterConfig.model_validate({"variant": variant, "preset": preset})
        with torch.device("meta"):
            return sum(p.numel() for p in LadderTrunk(large_spec(), config).parameters() if p.requires_grad)

    assert count("lite") <= 10_000_000
    assert count("reference") > 100_000_000


def test_lite_leaves_tokens_unchanged_at_first_and_learns() -> None:
    spec, batch = SMALL, token_batch(SMALL)
    small = {
        "caste": {"map_rank": 2},
        "avmoe": {"token_rank": 3, "channel_rank": 2},
        "case": {"width": 8, "heads": 4},
    }
    config = AdapterConfig.model_validate({"variant": "revised", "preset": "lite", **small})
    without_case = config.model_copy(update={"case": CaseConfig(enabled=False)})
    assert torch.equal(LadderTrunk(spec, without_case)(batch).audio, batch.audio["audio.b"])
    trunk = LadderTrunk(spec, config)
    assert isinstance(trunk.stages[0].caste_visual.spatial.attn.key, LowRankLinear)
    for name, p in trunk.named_parameters():
        if name.endswith(("gate", "gamma")) or ".up." in name:
            nn.init.normal_(p, std=0.5)
    out = trunk(batch)
    assert out.visual.shape == (2, 3, 9, 16) and out.audio.shape == (2, 3, 6, 16)
    (
        out.visual.square().sum() + out.audio.sum() + sum(p.sum() for n, p in out.aux.items() if "proj" in n)
    ).backward()
    silent = {n for n, p in trunk.named_parameters() if p.grad is None or not p.grad.any()}
    # Maps no output depends on: key and score biases (exactly, up to rounding), the temperature without an objective.
    assert {n for n in silent if "reduce" in n or "lift" in n or "low_rank" in n} == set()


def test_low_rank_maps() -> None:
    assert isinstance(make_linear(8, 8, 0), nn.Linear) and isinstance(make_linear(8, 8, 4), nn.Linear)
    low = make_linear(8, 8, 3)
    assert isinstance(low, LowRankLinear)
    assert torch.linalg.matrix_rank(low(torch.eye(8)) - low(torch.zeros(1, 8))).item() == 3


def test_low_rank_context_equals_the_full_maps_of_the_same_matrices() -> None:
    torch.manual_seed(0)
    m = LowRankContext(12, 20, 3, 6, 8, 2).to(DOUBLE)
    other = torch.randn(4, 12, 6, dtype=DOUBLE)
    tokens = torch.einsum("nr,rm,bmd->bnd", m.spread.weight, m.gather.weight, other)
    want = tokens @ (m.channels.up.weight @ m.channels.down.weight).t()
    want = want + m.spread.weight.sum(1)[:, None] * m.channels.up.bias + m.spread.bias[:, None]
    torch.testing.assert_close(m(other), want)
    layer = AvMoe(8, 20, 6, 12, bottleneck=2, token_rank=3, channel_rank=2)
    assert "token_proj.weight" not in layer.state_dict()
    assert layer(torch.randn(4, 20, 8), other.float()).residual.shape == (4, 20, 8)
