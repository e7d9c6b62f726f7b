"""Hand-written operations equal their plain formulas, values and gradients; AVMoE's cheaper way to read the context."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from caeav.model.adapters.kernels import normed
from caeav.model.adapters.kernels.latents import (
    attend_latents,
    plain_attend_latents,
    plain_read_through_maps,
    read_through_maps,
)
from caeav.model.adapters.kernels.mixture import UpProjection, mix_experts, plain_mix_experts
from caeav.model.adapters.kernels.normed import normed_product, plain_normed_product
from caeav.model.adapters.kernels.pooling import plain_pool_and_select, pool_and_select
from caeav.model.adapters.kernels.products import grouped_product, plain_grouped_product
from caeav.model.adapters.layers import TokenBatchNorm
from caeav.model.adapters.moe import AvMoe, read_context

DOUBLE = torch.float64


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, requires_grad=True)


def assert_equal_with_gradients(
    fast: Callable[[], Sequence[Tensor]], plain: Callable[[], Sequence[Tensor]], sources: Sequence[Tensor]
) -> None:
    wanted, found = plain(), fast()
    torch.testing.assert_close(tuple(found), tuple(wanted))
    cotangents = [torch.randn_like(x) for x in wanted]
    torch.testing.assert_close(
        torch.autograd.grad(found, sources, cotangents), torch.autograd.grad(wanted, sources, cotangents)
    )


@pytest.mark.parametrize(("segments", "tokens", "count"), [(1, 5, 2), (3, 5, 2), (3, 4, 4), (6, 1, 1)])
def test_pool_and_select_equals_its_plain_formula(segments: int, tokens: int, count: int) -> None:
    torch.manual_seed(0)
    index = torch.stack([torch.randperm(tokens)[:count] for _ in range(6)])
    sources = tensor(6, tokens, 4), tensor(4), tensor(4, 3), tensor(4)
    assert_equal_with_gradients(
        lambda: pool_and_select(*sources, index, segments),
        lambda: plain_pool_and_select(*sources, index, segments),
        sources,
    )
    assert torch.autograd.gradcheck(lambda *given: tuple(pool_and_select(*given, index, segments)), sources)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_mix_experts_equals_its_plain_formula(training: bool, batch_norm: bool, norm: bool) -> None:
    torch.manual_seed(0)

    def parts() -> tuple[TokenBatchNorm | None, nn.LayerNorm | None]:
        made = TokenBatchNorm(6).to(DOUBLE).train(training), nn.LayerNorm(6).to(DOUBLE)
        for p in (*made[0].parameters(), *made[1].parameters()):
            nn.init.normal_(p)
        made[0].running_mean.fill_(0.3)
        made[0].running_var.fill_(2.0)
        return made[0] if batch_norm else None, made[1] if norm else None

    norms = [parts() for _ in range(2)]
    again = copy.deepcopy([batch for batch, _ in norms])
    weights, hidden, up = (
        tensor(3, 2),
        [tensor(3, 5, 4) for _ in range(2)],
        [tensor(2, 3, 2) for _ in range(2)],
    )

    def experts(batch_norms: Sequence[TokenBatchNorm | None]) -> list[UpProjection]:
        return [
            UpProjection(h, w, b, n) for h, w, b, (_, n) in zip(hidden, up, batch_norms, norms, strict=True)
        ]

    layer_norms = [p for _, n in norms if n is not None for p in n.parameters()]
    assert_equal_with_gradients(
        lambda: [mix_experts(weights, experts([batch for batch, _ in norms]))],
        lambda: [plain_mix_experts(weights, experts(again))],
        [weights, *hidden, *up, *layer_norms],
    )
    for (fast, _), plain in zip(norms, again, strict=True):
        if fast is not None and plain is not None:
            torch.testing.assert_close(dict(fast.named_buffers()), dict(plain.named_buffers()))
            gradients = [
                torch.autograd.grad(mix(weights, experts([b, b])).sum(), list(b.parameters()))
                for mix, b in ((mix_experts, fast), (plain_mix_experts, plain))
            ]
            torch.testing.assert_close(gradients[0], gradients[1])


def test_gradients_of_mix_experts_are_derivatives() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).to(DOUBLE)
    nn.init.normal_(norm.weight)

    def mixed(weights: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
        batch_norm = TokenBatchNorm(6).to(DOUBLE)
        return mix_experts(
            weights, [UpProjection(hidden, up, batch_norm, norm), UpProjection(hidden, up, None, None)]
        )

    assert torch.autograd.gradcheck(mixed, (tensor(2, 2), tensor(2, 3, 4), tensor(2, 3, 2)))


def level(bias: Tensor) -> TokenBatchNorm:
    """A batch norm in eval mode that adds `bias` and does nothing else."""
    norm = TokenBatchNorm(len(bias), eps=0.0).eval()
    norm.bias.data.copy_(bias)
    return norm


def test_norms_of_tokens_that_hardly_vary_are_exact_and_finite() -> None:
    """The variance is the difference of two large numbers there."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    hidden, up = torch.randn(1, 50, 4), 0.01 * torch.randn(2, 3, 2)
    bias = 1000 + torch.randn(6)
    found = mix_experts(torch.ones(1, 1), [UpProjection(hidden, up, level(bias), norm)])
    wide = hidden.double() @ torch.block_diag(*up.double()).T + bias.double()
    torch.testing.assert_close(
        found.double(), torch.nn.functional.layer_norm(wide, (6,)), atol=2e-3, rtol=1e-3
    )
    alike = torch.randn(1, 1, 4).expand(1, 6, 4)  # no variance at all, or what rounding makes of it
    even = mix_experts(
        torch.ones(1, 1), [UpProjection(1e6 * hidden, alike, level(torch.full((6,), 1e7)), norm)]
    )
    assert even.isfinite().all()


def test_grouped_product_equals_its_plain_formula() -> None:
    torch.manual_seed(0)
    x, blocks = tensor(2, 5, 6), tensor(3, 2, 4)
    torch.testing.assert_close(grouped_product(x, blocks), x @ torch.block_diag(*blocks))
    assert_equal_with_gradients(
        lambda: [grouped_product(x, blocks)], lambda: [plain_grouped_product(x, blocks)], [x, blocks]
    )


@pytest.mark.parametrize("pieces", [2, 7])
def test_normed_product_equals_its_plain_formula(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normed, "WORTH_NUMBERS", 7 * 6)
    monkeypatch.setitem(normed.PIECE, "cpu", pieces * 6)  # of seven tokens two at a time, or all
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).to(DOUBLE)
    for p in norm.parameters():
        nn.init.normal_(p)
    x, blocks = tensor(1, 7, 6), tensor(2, 2, 3)
    assert_equal_with_gradients(
        lambda: [normed_product(x, norm, blocks)],
        lambda: [plain_normed_product(x, norm, blocks)],
        [x, blocks, *norm.parameters()],
    )
    assert torch.autograd.gradcheck(lambda x, b: normed_product(x, norm, b), (x, blocks))
    assert kept_shapes(lambda: normed_product(x, norm, blocks)) == {(7, 6), (7, 4), (7, 1)}
    monkeypatch.setattr(normed, "WORTH_NUMBERS", 7 * 6 + 1)  # few tokens: the plain formula itself
    assert kept_shapes(lambda: normed_product(x, norm, blocks)) != {(7, 6), (7, 4), (7, 1)}


def kept_shapes(run: Callable[[], Tensor]) -> set[tuple[int, ...]]:
    """Shapes that autograd keeps, of tensors with a row for each of seven tokens."""
    shapes: set[tuple[int, ...]] = set()

    def note(x: Tensor) -> Tensor:
        shapes.add(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        run()
    return {shape for shape in shapes if 7 in shape}


def test_latents_read_the_same_through_the_maps_as_from_the_context() -> None:
    torch.manual_seed(0)
    many = AvMoe(12, 5, 10, 7, bottleneck=4, latents=4, cross_experts=2)
    few = AvMoe(12, 5, 10, 7, bottleneck=4, latents=2, cross_experts=2)
    assert few.reads_through_maps(4) and not many.reads_through_maps(8)
    moe = few.to(DOUBLE)
    other = tensor(3, 7, 10)
    queries = torch.cat([expert.latent_tokens for expert in moe.cross_experts]).detach().requires_grad_()

    def of_the_context() -> tuple[Tensor, Tensor]:
        context = moe.context(other)
        return read_context(queries, context), context.mean(dim=1)

    assert_equal_with_gradients(
        lambda: read_through_maps(other, queries, moe.token_proj, moe.channel_proj),
        of_the_context,
        [other, queries, *moe.token_proj.parameters(), *moe.channel_proj.parameters()],
    )
    torch.testing.assert_close(
        plain_read_through_maps(other, queries, moe.token_proj, moe.channel_proj), of_the_context()
    )


def test_the_context_is_made_where_that_takes_fewer_operations() -> None:
    """At the sizes of the embedded backbones' last stage, 4 tokens, nothing is saved by reading through the maps."""
    sizes = {
        True: [(2304, 192, 4096, 96, 32), (36, 1536, 64, 768, 32), (64, 64, 64, 32, 8)],
        False: [(4, 256, 4, 256, 8)],
    }
    with torch.device("meta"):
        for expected, rows in sizes.items():
            for n, c, m, d, latents in rows:
                assert (
                    AvMoe(c, n, d, m, bottleneck=4, latents=latents).reads_through_maps(latents) is expected
                )


def test_attend_latents_equals_its_plain_formula() -> None:
    torch.manual_seed(0)
    sources = x, latents, gate = tensor(2, 9, 5), tensor(2, 4, 5), tensor(1)
    wanted = x + gate * torch.softmax(0.3 * x @ latents.transpose(1, 2), -1) @ latents
    torch.testing.assert_close(attend_latents(*sources, 0.3), wanted)
    assert_equal_with_gradients(
        lambda: [attend_latents(*sources, 0.3)], lambda: [plain_attend_latents(*sources, 0.3)], sources
    )


@pytest.mark.parametrize("latents", [2, 8])  # few: read through the maps; many: the context is made
@pytest.mark.parametrize("norms", [True, False])
def test_the_layer_in_half_precision(latents: int, norms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normed, "WORTH_NUMBERS", 0)
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
