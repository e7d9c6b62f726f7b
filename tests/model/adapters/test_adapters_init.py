"""Initial values as in the reference (REFERENCE section 2): fixed ones exactly, drawn ones by their moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from caeav.model.adapters.case import CaptionAdapter, CaptionMapper, Case
from caeav.model.adapters.caste import Caste
from caeav.model.adapters.layers import DepthwiseOverTime
from caeav.model.adapters.moe import AvMoe
from caeav.model.tasks.ave.config import AveHeadConfig
from caeav.model.tasks.ave.head import TemporalAttention


def assert_uniform(x: Tensor, bound: float) -> None:
    """Drawn from U(-bound, bound): within it, nearly reaching it, with its deviation."""
    assert x.abs().max() <= bound
    assert x.abs().max() >= 0.9 * bound
    assert x.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_caste_starts_as_in_the_reference() -> None:
    m = Caste(96, 64)
    for layer in (m.spatial.attn.key, m.spatial.attn.value, m.spatial.attn.out):
        assert layer.weight.std().item() == pytest.approx(0.001, rel=0.05)
        assert not layer.bias.any()
    assert not m.spatial.attn.score.bias.any()
    assert m.spatial.attn.score.weight.abs().max() < 0.005
    assert_uniform(m.gate.self_proj.weight, 1 / math.sqrt(96))
    assert_uniform(m.gate.mlp_in.weight, 1 / math.sqrt(4 * 128))
    assert_uniform(m.temporal.pointwise.weight, 1 / math.sqrt(96))
    assert_uniform(m.temporal.depthwise.weight, 1 / math.sqrt(3))
    assert [p.item() for p in (m.gamma, m.spatial.gamma, m.temporal.gamma)] == [0, 0, 0]
    opened = Caste(96, 64, gate_init=0.1)
    assert [p.item() for p in (opened.gamma, opened.spatial.gamma, opened.temporal.gamma)] == pytest.approx(
        [0, 0.1, 0.1]
    )


def test_depthwise_biases_are_uniform() -> None:
    assert_uniform(DepthwiseOverTime(512).bias, 1 / math.sqrt(3))


def test_caption_adapter_and_mapper_start_as_in_the_reference() -> None:
    adapter = CaptionAdapter(768, 48, 64)
    assert adapter.down.weight.std().item() == pytest.approx(math.sqrt(2 / 768), rel=0.05)
    assert not adapter.down.bias.any() and not adapter.up.weight.any() and not adapter.up.bias.any()
    assert not adapter(torch.randn(2, 5, 768)).any()
    assert_uniform(CaptionMapper(64).attn.query.weight, 1 / 8)


def test_case_starts_as_in_the_reference() -> None:
    m = Case(64, 32)
    assert m.selector.temperature.item() == 1.0
    assert m.contrastive_temperature.item() == pytest.approx(0.2)
    assert_uniform(m.audio_to_visual.weight, 1 / math.sqrt(32))


def test_avmoe_starts_as_in_the_reference() -> None:
    m = AvMoe(64, 16, 32, 8, bottleneck=8, batch_norm=True)
    cross, uni = m.cross_experts[0], m.uni_experts[0]
    assert cross.latent_tokens.shape == (32, 64)
    assert cross.latent_tokens.min() >= 0 and 0.95 < cross.latent_tokens.max() < 1
    assert [p.item() for p in (cross.attn_gate, cross.out_gate, uni.out_gate)] == [0, 0, 0]
    assert_uniform(cross.down.weight, 1 / math.sqrt(32))  # 2 groups
    assert_uniform(cross.up.weight, 1 / math.sqrt(4))
    assert_uniform(m.token_proj.weight, 1 / math.sqrt(8))
    assert (cross.up_bn.weight == 1).all() and not cross.up_bn.bias.any()


def test_moe_options_decide_which_parameters_exist() -> None:
    plain = AvMoe(
        64,
        16,
        32,
        8,
        bottleneck=8,
        pre_norm=False,
        post_norm=False,
        out_gate=False,
        cross_experts=2,
        uni_experts=3,
    )
    names = {name.split(".")[2] for name, _ in plain.named_parameters() if "experts" in name}
    assert names == {"latent_tokens", "attn_gate", "down", "up"}
    assert (
        len(plain.cross_experts) == 2 and len(plain.uni_experts) == 3 and plain.router.fc3.out_features == 5
    )
    gated = AvMoe(64, 16, 32, 8, bottleneck=8, uni_attention="gated", gate_init=0.1)
    assert gated.uni_experts[0].attn_gate.item() == pytest.approx(0.1)


def test_temporal_attention_starts_as_in_the_reference() -> None:
    m = TemporalAttention(48, 40, AveHeadConfig())
    first, second = m.visual_encoder.layers
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a is not b
    packed = first.attn.qkv
    assert_uniform(packed.weight, math.sqrt(6 / (256 + 3 * 256)))
    assert not packed.bias.any() and not first.attn.out.bias.any()
    lstm = m.rnn["audio"]
    assert isinstance(lstm, nn.LSTM)
    assert_uniform(lstm.weight_hh_l0, 1 / math.sqrt(128))


def test_parameter_counts_at_real_sizes() -> None:
    """CASTE and AVMoE of REFERENCE 2.5 and 2.14, CASE of 2.9, in millions; made without memory for weights."""

    def millions(module: nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    ave = {"groups": 2, "latents": 32, "batch_norm": True}
    visual = [(2304, 192), (576, 384), (144, 768), (36, 1536)]
    audio = [(4096, 96), (1024, 192), (256, 384), (64, 768)]
    caste_v, caste_a = [0.220, 0.702, 2.550, 9.785], [0.108, 0.257, 0.775, 2.697]
    moe_v, moe_a = [9.529, 0.821, 0.715, 2.239], [9.495, 0.736, 0.489, 1.565]
    with torch.device("meta"):
        for s, ((n, c), (m, d)) in enumerate(zip(visual, audio, strict=True)):
            assert millions(Caste(c, d)) == pytest.approx(caste_v[s], abs=6e-4)
            assert millions(Caste(d, c)) == pytest.approx(caste_a[s], abs=6e-4)
            assert millions(AvMoe(c, n, d, m, bottleneck=c // 8, **ave)) == pytest.approx(moe_v[s], abs=6e-4)
            assert millions(AvMoe(d, m, c, n, bottleneck=d // 8, **ave)) == pytest.approx(moe_a[s], abs=6e-4)
        assert millions(Case(1536, 768)) == pytest.approx(78.56, abs=6e-3)
