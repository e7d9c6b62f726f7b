"""The short cuts of AVMoE equal what they replace: reading through the maps, norms next to linear maps."""

from __future__ import annotations

import torch
from torch import nn

from caeav.model.adapters.fused import WideEnd, normed_product, weighted_ends
from caeav.model.adapters.latentreads import read_through_maps
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


def test_gradients_of_the_bottlenecks_ends() -> None:
    torch.manual_seed(0)
    norm, end_norm = nn.LayerNorm(6).to(DOUBLE), nn.LayerNorm(6).to(DOUBLE)
    for part in (norm, end_norm):
        nn.init.normal_(part.weight)
        nn.init.normal_(part.bias)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=DOUBLE, requires_grad=True)

    x, down = tensor(2, 3, 6), tensor(4, 6)
    torch.testing.assert_close(normed_product(x, norm, down), norm(x) @ down.T)
    assert torch.autograd.gradcheck(lambda *given: normed_product(given[0], norm, given[1]), (x, down))

    def ends(
        shares: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return weighted_ends(shares, [WideEnd(hidden, up, bias, end_norm), WideEnd(hidden, up, bias, None)])

    given = tensor(2, 2), tensor(2, 3, 4), tensor(6, 4), tensor(6)
    wide = given[1] @ given[2].T + given[3]
    shares = given[0][..., None, None]
    torch.testing.assert_close(ends(*given), shares[:, 0] * end_norm(wide) + shares[:, 1] * wide)
    assert torch.autograd.gradcheck(ends, given)


def test_reading_through_the_maps_in_half_precision() -> None:
    torch.manual_seed(0)
    moe = AvMoe(12, 5, 10, 7, bottleneck=4, latents=2, batch_norm=True)
    for expert in (*moe.cross_experts, *moe.uni_experts):
        nn.init.constant_(expert.out_gate, 1.0)
    x, other = torch.randn(3, 5, 12), torch.randn(3, 7, 10)
    exact = moe(x, other).residual
    with torch.autocast("cpu", torch.bfloat16):
        rough = moe(x, other).residual
    assert rough.dtype is torch.bfloat16
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()
    rough.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters() if p.requires_grad)
