"""CASE's units on the CPU: the hand-written backward passes equal the plain way, and keep less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from caeav.model.adapters.case import AttentionUnit, FeedForwardUnit
from caeav.model.adapters.kernels import cpu_units as leanunits
from caeav.model.adapters.kernels import cpu_units as pages

DOUBLE = torch.float64


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module.to(DOUBLE)


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, requires_grad=True)


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leanunits, "pays", lambda x: False)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_unit_goes_both_ways_alike(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = shaken(AttentionUnit(8, heads=2)).eval()
    query, source = tensor(3, 4, 8), tensor(3, 5, 8)
    mask = torch.rand(3, 5) > 0.4 if masked else None
    if mask is not None:
        mask[:, 0] = True
    given = [query, source, *unit.parameters()]
    cotangent = torch.randn(3, 4, 8, dtype=DOUBLE)
    found = unit(query, source, mask)
    gradients = torch.autograd.grad(found, given, cotangent)
    plainly(monkeypatch)
    wanted = unit(query, source, mask)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, given, cotangent))


def test_feed_forward_unit_goes_both_ways_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = shaken(FeedForwardUnit(6)).eval()
    x = tensor(2, 5, 6)
    given = [x, *unit.parameters()]
    cotangent = torch.randn(2, 5, 6, dtype=DOUBLE)
    found = unit(x)
    gradients = torch.autograd.grad(found, given, cotangent)
    plainly(monkeypatch)
    wanted = unit(x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, given, cotangent))


def test_gradients_with_dropout() -> None:
    attention, feed = shaken(AttentionUnit(4, heads=2)), shaken(FeedForwardUnit(4))

    def seeded(unit: nn.Module, *given: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same elements are dropped at every evaluation
        out: Tensor = unit(*given)
        return out

    assert torch.autograd.gradcheck(lambda *x: seeded(attention, *x), (tensor(2, 3, 4), tensor(2, 5, 4)))
    assert torch.autograd.gradcheck(lambda x: seeded(feed, x), (tensor(2, 3, 4),))
    for unit, given in ((attention, (tensor(2, 3, 4), tensor(2, 5, 4))), (feed, (tensor(2, 3, 4),))):
        assert torch.autograd.gradcheck(lambda *_, u=unit, g=given: seeded(u, *g), tuple(unit.parameters()))


def test_dropout_takes_the_stated_share_and_scales_up_the_rest() -> None:
    torch.manual_seed(0)
    x, change = torch.full((200, 500), 3.0), torch.ones(200, 500)
    gone = leanunits._draw(change, 0.2)
    assert gone is not None and leanunits._draw(change, 0.0) is None
    assert 0.19 < gone.float().mean() < 0.21
    drawn = [
        leanunits._draw(torch.empty(7), 0.1) for _ in range(20_000)
    ]  # no multiple of what is drawn at once
    shares = torch.stack([x for x in drawn if x is not None]).double()
    assert ((shares.mean(0) - 0.1).abs() < 0.01).all()
    assert (torch.corrcoef(shares.t()) - torch.eye(7)).abs().max() < 0.03
    left = (~gone) / 0.8
    torch.testing.assert_close(leanunits._without(change, gone, 0.2), left)
    torch.testing.assert_close(leanunits._add_dropped(x, change, gone, 0.2), 3 + left)
    assert leanunits._without(x, None, 0.0) is x


def test_each_rate_of_dropout_is_that_of_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[tuple[int, ...], float]] = []

    def noted(x: Tensor, rate: float) -> None:
        drawn.append((tuple(x.shape), rate))

    monkeypatch.setattr(leanunits, "_draw", noted)
    attention = AttentionUnit(8, heads=2, weight_dropout=0.25, dropout=0.5)
    feed = FeedForwardUnit(8, dropout=0.125)
    query, source = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    feed(attention(query, source))
    of_weights, of_sum = ((3, 2, 4, 5), 0.25), ((3, 4, 8), 0.5)
    assert drawn == [of_weights, of_sum, ((3, 4, 16), 0.125), ((3, 4, 8), 0.125)]
    drawn.clear()
    feed.eval()(attention.eval()(query, source))
    assert {rate for _, rate in drawn} == {0.0}


@pytest.mark.parametrize("rates", [{"weight_dropout": 0.5}, {"dropout": 0.5}])
def test_the_plain_way_drops_in_training_only(
    rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly(monkeypatch)
    x = torch.randn(2, 6, 8)
    attention = AttentionUnit(8, heads=2, **{"weight_dropout": 0.0, "dropout": 0.0, **rates})
    units = [lambda: attention(x, x)]
    if "dropout" in rates:
        feed = FeedForwardUnit(8, **rates)
        units.append(lambda: feed(x))
    for unit in units:
        assert not torch.equal(unit(), unit())
    for module in (attention, *([feed] if "dropout" in rates else [])):
        module.eval()
    for unit in units:
        assert torch.equal(unit(), unit())


def test_the_plain_feed_forward_drops_of_its_hidden_layer_and_of_what_it_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plainly(monkeypatch)
    feed = FeedForwardUnit(8)
    dropped: list[Tensor] = []
    feed.dropout.register_forward_pre_hook(lambda module, given: dropped.append(given[0]))
    feed(torch.randn(2, 3, 8))
    assert [x.shape[-1] for x in dropped] == [16, 8] and (dropped[0] >= 0).all() and (dropped[1] < 0).any()


def test_the_lean_way_is_for_training_in_full_precision() -> None:
    x = torch.zeros(1)
    assert leanunits.pays(x)
    with torch.no_grad():
        assert not leanunits.pays(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not leanunits.pays(x)
    assert not leanunits.pays(torch.zeros(1, device="meta"))


def kept_bytes(unit: nn.Module, *given: Tensor) -> int:
    """Bytes that autograd keeps beside inputs and parameters."""
    known = {x.untyped_storage().data_ptr() for x in (*given, *unit.parameters())}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in known:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = unit(*given)
    assert out.requires_grad
    return sum(sizes.values())


def test_less_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, feed = AttentionUnit(64, heads=4), FeedForwardUnit(64)
    query, source = torch.randn(2, 40, 64), torch.randn(2, 50, 64)
    lean = kept_bytes(attention, query, source), kept_bytes(feed, query)
    plainly(monkeypatch)
    plain = kept_bytes(attention, query, source), kept_bytes(feed, query)
    assert lean[0] < 0.6 * plain[0] and lean[1] < 0.7 * plain[1]


def test_frozen_parameters_and_half_precision() -> None:
    torch.manual_seed(0)
    unit = AttentionUnit(8, heads=2).eval()
    x = torch.randn(2, 3, 8, requires_grad=True)
    for p in unit.parameters():
        p.requires_grad_(False)
    unit(x, x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in unit.parameters())
    unit.requires_grad_(True)
    exact = unit(x, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = unit(x, x)
    rough.float().square().sum().backward()
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unit.parameters())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(pages._trim() is None, reason="this C library has no malloc_trim")
def test_freed_memory_goes_back_to_the_system() -> None:
    large, small = torch.empty(pages.WORTH_BYTES // 4), torch.empty(1000)
    blocks = [torch.ones(25_000) for _ in range(600)]  # 100 kB: from the heap, 60 MB in all
    del blocks[::2]
    freed_between = resident_bytes()
    pages.return_free_memory(small)
    assert resident_bytes() > freed_between - 5e6
    pages.return_free_memory(large)
    assert resident_bytes() < freed_between - 20e6


def test_memory_is_returned_before_large_gradients_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(leanunits, "return_free_memory", lambda weight: sizes.append(weight.numel()))
    unit, feed = AttentionUnit(8, heads=2), FeedForwardUnit(8)
    x = torch.randn(2, 3, 8, requires_grad=True)
    feed(unit(x, x)).sum().backward()
    assert sizes == [2 * 8 * 8, 8 * 8]
