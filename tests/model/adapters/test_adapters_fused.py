"""The short cuts of AVMoE equal what they replace: reading through the maps, norms next to linear maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from caeav.model.adapters.kernels import fused
from caeav.model.adapters.kernels.fused import WideEnd, normed_product, weighted_ends
from caeav.model.adapters.kernels.reads import ask_latents, read_through_maps
from caeav.model.adapters.layers import grouped_product
from caeav.model.adapters.moe import AvMoe

DOUBLE = torch.float64


def test_what_latents_read_through_the_maps_is_what_they_read_of_the_context() -> None:
    torch.manual_seed(0)
    plain = AvMoe(12, 5, 10, 7, bottleneck=4, latents=4, cross_experts=2)  # 8 latents: no fewer than channels
    few = AvMoe(12, 5, 10, 7, bottleneck=4, latents=2, cross_experts=2)
    assert few.reads_through_maps() and not plain.reads_through_maps()
    moe = few.to(DOUBLE)
    other = torch.randn(3, 7, 10, dtype=DOUBLE, requires_grad=True)
    asking = torch.cat([expert.latent_tokens for expert in moe.cross_experts]).detach().requires_grad_()
    context = moe.context(other)
    wanted = torch.softmax(asking @ context.transpose(1, 2), -1) @ context, context.mean(1)
    found = read_through_maps(other, asking, moe.token_proj, moe.channel_proj)
    sources = [other, asking, *moe.token_proj.parameters(), *moe.channel_proj.parameters()]
    factors = [torch.randn_like(x) for x in wanted]
    gradients = [
        torch.autograd.grad(sum((f * x).sum() for f, x in zip(factors, side, strict=True)), sources)
        for side in (wanted, found)
    ]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_tokens_ask_latents() -> None:
    torch.manual_seed(0)
    for tokens in (3, 9):  # fewer and more tokens than channels take different ways
        x, read, gate = (
            torch.randn(shape, dtype=DOUBLE, requires_grad=True)
            for shape in ((2, tokens, 5), (2, 4, 5), (1,))
        )
        want = x + gate * torch.softmax(0.3 * x @ read.transpose(1, 2), -1) @ read
        torch.testing.assert_close(ask_latents(x, read, gate, scale=0.3), want)
        assert torch.autograd.gradcheck(lambda *given: ask_latents(*given, scale=0.3), (x, read, gate))


def test_grouped_product() -> None:
    torch.manual_seed(0)
    left, right = (torch.randn(s, dtype=DOUBLE, requires_grad=True) for s in ((5, 6), (3, 2, 4)))
    torch.testing.assert_close(grouped_product(left, right), left @ torch.block_diag(*right))
    assert torch.autograd.gradcheck(grouped_product, (left, right))


def test_gradients_of_the_bottlenecks_ends() -> None:
    torch.manual_seed(0)
    norm, end_norm = nn.LayerNorm(6).to(DOUBLE), nn.LayerNorm(6).to(DOUBLE)
    for part in (norm, end_norm):
        nn.init.normal_(part.weight)
        nn.init.normal_(part.bias)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=DOUBLE, requires_grad=True)

    x, down = tensor(2, 3, 6), tensor(2, 2, 3)
    torch.testing.assert_close(normed_product(x, norm, down), norm(x) @ torch.block_diag(*down).T)
    assert torch.autograd.gradcheck(lambda *given: normed_product(given[0], norm, given[1]), (x, down))

    def ends(
        shares: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return weighted_ends(shares, [WideEnd(hidden, up, bias, end_norm), WideEnd(hidden, up, bias, None)])

    given = tensor(2, 2), tensor(2, 3, 4), tensor(2, 3, 2), tensor(6)
    wide = given[1] @ torch.block_diag(*given[2]).T + given[3]
    shares = given[0][..., None, None]
    torch.testing.assert_close(ends(*given), shares[:, 0] * end_norm(wide) + shares[:, 1] * wide)
    assert torch.autograd.gradcheck(ends, given)


def test_wide_tokens_are_taken_in_pieces_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused.PIECE, "cpu", 12)  # two of the seven tokens at a time
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).to(DOUBLE)
    x, down = (torch.randn(s, dtype=DOUBLE, requires_grad=True) for s in ((1, 7, 6), (2, 2, 3)))
    assert [(s.start, s.stop) for s in fused._pieces(x[0])] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    torch.testing.assert_close(normed_product(x, norm, down), norm(x) @ torch.block_diag(*down).T)
    assert torch.autograd.gradcheck(lambda *given: normed_product(given[0], norm, given[1]), (x, down))
    with torch.no_grad():
        assert [s.stop for s in fused._pieces(torch.zeros(2, 99))] == [1, 2]  # at least one token


def test_norms_of_tokens_that_hardly_vary_are_exact_and_finite() -> None:
    """The variance is the difference of two large numbers there."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    hidden, up = torch.randn(1, 50, 4), 0.01 * torch.randn(2, 3, 2)
    bias = 1000 + torch.randn(6)
    found = weighted_ends(torch.ones(1, 1), [WideEnd(hidden, up, bias, norm)])
    wide = hidden.double() @ torch.block_diag(*up.double()).T + bias.double()
    torch.testing.assert_close(
        found.double(), torch.nn.functional.layer_norm(wide, (6,)), atol=2e-3, rtol=1e-3
    )
    alike = torch.randn(1, 1, 4).expand(1, 6, 4)  # no variance at all, or what rounding makes of it
    even = weighted_ends(torch.ones(1, 1), [WideEnd(1e6 * hidden, alike, torch.full((6,), 1e7), norm)])
    assert even.isfinite().all()


@pytest.mark.parametrize("latents", [2, 8])  # few: read through the maps; many: the context is made
@pytest.mark.parametrize("norms", [True, False])
def test_the_layer_in_half_precision(latents: int, norms: bool) -> None:
    torch.manual_seed(0)
    moe = AvMoe(
        12, 5, 10, 7, bottleneck=4, latents=latents, batch_norm=norms, pre_norm=norms, post_norm=norms
    )
    for name, p in moe.named_parameters():
        if name.endswith("gate"):
            nn.init.constant_(p, 1.0)
    x, other = (torch.randn(*shape, requires_grad=True) for shape in ((6, 5, 12), (6, 7, 10)))
    sources = [x, other, *(p for n, p in moe.named_parameters() if "pre_norm.bias" not in n)]
    cotangent = torch.randn(6, 5, 12)
    exact = moe(x, other).residual
    wanted = torch.autograd.grad((exact * cotangent).sum(), sources)
    with torch.autocast("cpu", torch.bfloat16):
        rough = moe(x, other).residual
        assert rough.dtype is torch.bfloat16
        found = torch.autograd.grad((rough * cotangent).sum(), sources)  # autocast is still on here
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()
    largest = max(want.norm() for want in wanted)
    for p, got, want in zip(sources, found, wanted, strict=True):
        assert got.dtype is p.dtype
        if want.norm() > 0.01 * largest:  # smaller ones are rounding
            assert (got * want).sum() > 0.9 * got.norm() * want.norm()
            assert 0.5 < got.norm() / want.norm() < 2
