"""What the vectors do not reach: odd shapes, hand-written backward passes, captions per clip, masks, noise."""

from __future__ import annotations

import math

import pytest
import torch
from random_weights import random_double
from torch import Tensor, nn

from caeav.model.adapters.case import Case
from caeav.model.adapters.caste import Caste
from caeav.model.adapters.config import TemporalMode
from caeav.model.adapters.layers import (
    GroupedLinear,
    PackedAttention,
    TokenSelector,
    selected_count,
    token_topk_mask,
)
from caeav.model.adapters.moe import AvMoe, CrossExpert, UniExpert, latent_attention, load_balance

DOUBLE = torch.float64


def dense_caste(m: Caste, own: Tensor, other: Tensor, segments: int) -> Tensor:
    """The formula of REFERENCE 2.5 over all tokens."""
    w = m.gate(own, other)
    s, t = m.spatial(own), m.temporal(own, segments)
    mixture = w[:, 0, None, None] * s + w[:, 1, None, None] * t
    return m.gamma * token_topk_mask(own, m.topk_ratio) * mixture


@pytest.mark.parametrize("mode", ["dwconv", "tsm", "tsm+dw"])
@pytest.mark.parametrize(
    ("segments", "tokens", "ratio"), [(1, 5, 0.3), (2, 1, 0.3), (4, 9, 1.0), (3, 16, 0.5)]
)
def test_caste_on_selected_tokens_equals_the_dense_formula(
    mode: TemporalMode, segments: int, tokens: int, ratio: float
) -> None:
    torch.manual_seed(0)
    m = random_double(Caste(9, 5, topk_ratio=ratio, gate_dim=6, temporal=mode))
    assert isinstance(m, Caste)
    own = torch.randn(3 * segments, tokens, 9, dtype=DOUBLE, requires_grad=True)
    other = torch.randn(3 * segments, 4, 5, dtype=DOUBLE, requires_grad=True)
    weights = torch.randn(3 * segments, tokens, 9, dtype=DOUBLE)
    sources = [own, other, *m.parameters()]
    got = m(own, other, segments).residual
    want = dense_caste(m, own, other, segments)
    torch.testing.assert_close(got, want)
    got_grads = torch.autograd.grad((got * weights).sum(), sources, allow_unused=True)
    want_grads = torch.autograd.grad((want * weights).sum(), sources, allow_unused=True)
    for source, a, b in zip(sources, got_grads, want_grads, strict=True):
        zero = torch.zeros_like(source)  # the score's bias, which has no effect, and what a mode does not use
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, atol=1e-10, rtol=1e-7)


def test_clips_do_not_mix() -> None:
    torch.manual_seed(0)
    m = random_double(Caste(8, 6))
    own, other = torch.randn(2 * 5, 7, 8, dtype=DOUBLE), torch.randn(2 * 5, 3, 6, dtype=DOUBLE)
    before = m(own, other, 5).residual
    own[5:] += 1.0
    after = m(own, other, 5).residual
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])


def test_rows_must_be_whole_clips() -> None:
    with pytest.raises(ValueError, match="7 rows are not a whole number of clips of 5 segments"):
        Caste(8, 6)(torch.randn(7, 4, 8), torch.randn(7, 4, 6), 5)


def test_castes_backward_computes_in_the_tokens_precision_also_under_autocast() -> None:
    torch.manual_seed(0)
    caste = Caste(8, 6, gate_init=0.1)
    nn.init.ones_(caste.gamma)
    x, other = torch.randn(4, 6, 8, requires_grad=True), torch.randn(4, 5, 6)
    residual = caste(x, other, 2).residual
    cotangent = torch.randn_like(residual)
    (wanted,) = torch.autograd.grad(residual, x, cotangent, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(residual, x, cotangent)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("own", "other"), [((6, 4), (9, 16)), ((9, 16), (6, 4))])
def test_context_is_tokens_then_channels_whatever_the_order(
    own: tuple[int, int], other: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    (n, c), (m, d) = own, other
    moe = random_double(AvMoe(c, n, d, m, bottleneck=2))
    assert isinstance(moe, AvMoe)
    tokens = torch.randn(3, m, d, dtype=DOUBLE)
    mixed = moe.token_proj(tokens.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(moe.context(tokens), moe.channel_proj(mixed))


def test_grouped_linear_is_a_grouped_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 6, 1, groups=3, bias=False)
    mine = GroupedLinear(12, 6, 3)
    mine.weight.data.copy_(conv.weight[..., 0, 0])
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(mine(x), conv(x.transpose(1, 2).unsqueeze(-1))[..., 0].transpose(1, 2))


def make_case(**options: float) -> tuple[Case, dict[str, Tensor]]:
    torch.manual_seed(0)
    case = random_double(Case(16, 8, proj_dim=4, heads=4, **options))  # type: ignore[arg-type]
    assert isinstance(case, Case)
    given = {
        "visual": torch.randn(6, 5, 16, dtype=DOUBLE),
        "audio": torch.randn(6, 4, 8, dtype=DOUBLE),
        "visual_caption": torch.randn(2, 7, 16, dtype=DOUBLE),
        "audio_caption": torch.randn(2, 6, 8, dtype=DOUBLE),
    }
    return case, given


def test_one_caption_per_clip_equals_the_caption_repeated_over_its_segments() -> None:
    case, given = make_case()
    case.eval()
    clip = case(**given, segments=3)
    repeated = {n: x.repeat_interleave(3, dim=0) if "caption" in n else x for n, x in given.items()}
    segment = case(**repeated, segments=3)
    torch.testing.assert_close(clip.visual, segment.visual)
    torch.testing.assert_close(clip.audio, segment.audio)
    torch.testing.assert_close(clip.gate_visual, segment.gate_visual)
    torch.testing.assert_close(
        clip.proj_audio_caption.repeat_interleave(3, dim=0), segment.proj_audio_caption
    )


def test_masked_caption_padding_has_no_influence() -> None:
    case, given = make_case()
    case.eval()
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    other = {**given, "visual_caption": given["visual_caption"].clone()}
    other["visual_caption"][0, 4:] = 9.0
    first, second = (case(**g, segments=3, visual_mask=mask) for g in (given, other))
    for name in ("visual", "audio", "proj_visual_caption"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name))
    assert not torch.allclose(case(**given, segments=3).visual, case(**other, segments=3).visual)


def test_a_caption_without_any_token_gives_finite_values() -> None:
    case, given = make_case()
    mask = torch.zeros(2, 7, dtype=torch.bool)
    out = case(**given, segments=3, visual_mask=mask)
    out.visual.sum().backward()
    assert out.visual.isfinite().all()
    assert all(p.grad.isfinite().all() for p in case.parameters() if p.grad is not None)


def test_counts_of_selected_tokens_at_real_sizes() -> None:
    real = {2304: 691, 4096: 1228, 576: 172, 1024: 307, 144: 43, 256: 76, 36: 10, 64: 19, 2: 1}
    assert {n: selected_count(n, 0.3) for n in real} == real


def test_selector_weights_sum_to_one_and_equal_noise_repeats_a_call() -> None:
    torch.manual_seed(0)
    selector, x = TokenSelector(0.3), torch.randn(4, 10, 6)
    noise = torch.empty(4, 10).exponential_()
    weights, probabilities = selector(x, noise)
    again, _ = selector(x, noise)
    assert torch.equal(weights, again)
    assert not torch.equal(weights, selector(x)[0])
    torch.testing.assert_close(weights.sum(1), torch.ones(4, 1))
    assert ((weights > 0).sum(1) == 3).all()
    assert probabilities is not None and probabilities.shape == (4, 10)
    assert selector.eval()(x)[1] is None


def test_latent_attention_is_the_written_formula() -> None:
    torch.manual_seed(0)
    x, c, latents = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.randn(4, 3)
    gate = torch.tensor([0.7])
    for n in range(2):
        read = latents + torch.softmax(latents @ c[n].T, dim=1) @ c[n]
        want = x[n] + 0.7 * torch.softmax(x[n] @ read.T, dim=1) @ read
        torch.testing.assert_close(latent_attention(x, c, latents, gate)[n], want)


def test_load_balance_is_smallest_for_even_use() -> None:
    even = load_balance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert even.item() == pytest.approx(2 * math.log(2))
    assert load_balance(torch.tensor([[0.9, 0.1]])).item() == pytest.approx(-math.log(0.9) - math.log(0.1))


def test_router_noise_is_for_training_only() -> None:
    torch.manual_seed(0)
    moe = AvMoe(8, 4, 6, 5, bottleneck=2, router_noise=1.0)
    x, other = torch.randn(3, 4, 8), torch.randn(3, 5, 6)
    assert not torch.equal(moe(x, other).probabilities, moe(x, other).probabilities)
    moe.eval()
    assert torch.equal(moe(x, other).probabilities, moe(x, other).probabilities)


def test_packed_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = PackedAttention(12, 4), nn.MultiheadAttention(12, 4, batch_first=True)
    theirs.in_proj_weight.data.copy_(ours.qkv.weight)
    theirs.out_proj.weight.data.copy_(ours.out.weight)
    query, source = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(query, source), theirs(query, source, source)[0])
    torch.testing.assert_close(ours(query), theirs(query, query, query)[0])


def test_autocast_reaches_the_hand_written_steps() -> None:
    torch.manual_seed(0)
    caste, moe = Caste(8, 6, gate_init=0.1), AvMoe(8, 4, 6, 5, bottleneck=2, batch_norm=True)
    for p in (caste.gamma, *(e.out_gate for e in (*moe.cross_experts, *moe.uni_experts))):
        assert isinstance(p, nn.Parameter)
        nn.init.ones_(p)
    x, other = torch.randn(4, 4, 8, requires_grad=True), torch.randn(4, 5, 6)
    exact = caste(x, other, 2).residual + moe(x, other).residual
    with torch.autocast("cpu", torch.bfloat16):
        rough = caste(x, other, 2).residual + moe(x, other).residual
    rough.float().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    torch.testing.assert_close(rough.float(), exact, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("kind", ["cross", "uni"])
def test_an_experts_gate_scales_what_it_adds(kind: str) -> None:
    torch.manual_seed(0)
    expert = CrossExpert(8, 4, 2, 3) if kind == "cross" else UniExpert(8, 4, 2)
    given = [torch.randn(4, 5, 8) for _ in range(2 if kind == "cross" else 1)]
    assert expert.out_gate is not None
    assert not expert(*given).any()  # the gate starts at 0
    found = []
    for gate in (1.0, -0.5):
        nn.init.constant_(expert.out_gate, gate)
        found.append(expert(*given))
    torch.testing.assert_close(found[1], -0.5 * found[0])
    assert found[0].any()


def test_each_expert_is_weighted_by_its_probability() -> None:
    torch.manual_seed(0)
    layer = AvMoe(8, 5, 6, 7, bottleneck=4, latents=3).eval()
    nn.init.constant_(layer.cross_experts[0].out_gate, 0.7)
    nn.init.constant_(layer.uni_experts[0].out_gate, -0.4)  # different, to show whose gate is whose
    x, other = torch.randn(4, 5, 8), torch.randn(4, 7, 6)
    out = layer(x, other)
    context = layer.context(other)
    p = layer.router(torch.cat([x.mean(dim=1), context.mean(dim=1)], dim=-1))
    torch.testing.assert_close(out.probabilities, p)
    parts = layer.cross_experts[0](x, context), layer.uni_experts[0](x)
    wanted = p[:, 0, None, None] * parts[0] + p[:, 1, None, None] * parts[1]
    torch.testing.assert_close(out.residual, wanted, atol=1e-5, rtol=1e-4)
