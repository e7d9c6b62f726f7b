"""CASE's attention and feed-forward units: formulas, dropout, memory kept for the backward pass, half precision."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from random_weights import random_double
from torch import Tensor, nn

from caeav.model.adapters import memory
from caeav.model.adapters.case import AttentionUnit, FeedForwardUnit

DOUBLE = torch.float64


@pytest.mark.parametrize("masked", [False, True])
def test_the_attention_unit_is_the_written_formula(masked: bool) -> None:
    unit = random_double(AttentionUnit(8, heads=2), seed=1).eval()
    query, source = (torch.randn(3, tokens, 8, dtype=DOUBLE) for tokens in (4, 5))
    mask = torch.ones(3, 5, dtype=torch.bool)
    if masked:
        mask[:, 3:] = False
    maps = {n: getattr(unit.attn, n) for n in ("query", "key", "value", "out")}
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        logits = maps["query"](query)[..., h] @ maps["key"](source)[..., h].transpose(1, 2) / 2
        weights = logits.masked_fill(~mask[:, None, :], float("-inf")).softmax(-1)
        heads.append(weights @ maps["value"](source)[..., h])
    wanted = unit.norm(query + maps["out"](torch.cat(heads, dim=-1)))
    torch.testing.assert_close(unit(query, source, mask if masked else None), wanted)


def test_the_feed_forward_unit_is_the_written_formula() -> None:
    unit = random_double(FeedForwardUnit(6), seed=1).eval()
    x = torch.randn(2, 5, 6, dtype=DOUBLE)
    hidden = (x @ unit.fc_in.weight.t() + unit.fc_in.bias).clamp_min(0)
    wanted = unit.norm(x + hidden @ unit.fc_out.weight.t() + unit.fc_out.bias)
    torch.testing.assert_close(unit(x), wanted)


def test_gradients_with_dropout() -> None:
    attention, feed = (
        random_double(AttentionUnit(4, heads=2), seed=1),
        random_double(FeedForwardUnit(4), seed=1),
    )
    query, source = (torch.randn(2, n, 4, dtype=DOUBLE, requires_grad=True) for n in (3, 5))

    def seeded(unit: nn.Module, *given: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same elements are dropped at every evaluation
        out: Tensor = unit(*given)
        return out

    assert torch.autograd.gradcheck(lambda *x: seeded(attention, *x), (query, source))
    assert torch.autograd.gradcheck(lambda x: seeded(feed, x), (query,))


@pytest.mark.parametrize("rates", [{"weight_dropout": 0.5}, {"dropout": 0.5}])
def test_units_drop_in_training_only(rates: dict[str, float]) -> None:
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


def kept_bytes(unit: nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd keeps besides inputs and parameters."""
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = unit(*inputs)
    assert out.requires_grad
    known = {x.untyped_storage().data_ptr() for x in (*inputs, *unit.parameters())}
    return sum(size for storage, size in sizes.items() if storage not in known)


def test_little_is_kept_for_the_backward_pass() -> None:
    """In tensors as large as the tokens, 4 bytes a number: those named here, and one byte a number for each mask."""
    tokens = torch.randn(2, 100, 64)
    size, numbers = tokens.nbytes, 8 * 200  # mean and deviation of the norm
    feed = kept_bytes(FeedForwardUnit(64), tokens)  # a hidden layer of twice the width, the sum; two masks
    assert feed == 2 * size + size + (2 * size + size) // 4 + numbers
    attention = AttentionUnit(64, heads=4, weight_dropout=0.0)  # query, key, value, mixed, the sum; one mask
    assert kept_bytes(attention, tokens, tokens) <= 5 * size + size // 4 + 4 * 2 * 4 * 100 + numbers


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(memory.malloc_trim() is None, reason="this C library has no malloc_trim")
@pytest.mark.parametrize("large", [True, False])
def test_freed_memory_is_returned_before_large_gradients_are_made(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = nn.Parameter(torch.zeros(1000))
    monkeypatch.setattr(memory, "WORTH_BYTES", 4000 if large else 4001)
    output = memory.return_free_memory_before(torch.ones(1, requires_grad=True) * 1, weight)
    blocks = [torch.ones(25_000) for _ in range(600)]  # 100 kB: from the heap, 60 MB in all
    del blocks[::2]
    freed_between = resident_bytes()
    output.backward()
    assert (resident_bytes() < freed_between - 20e6) is large


def test_both_units_return_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[Tensor] = []
    monkeypatch.setattr(memory, "_trim", trims.append)
    monkeypatch.setattr(memory, "WORTH_BYTES", 1)
    x = torch.randn(2, 3, 8, requires_grad=True)
    FeedForwardUnit(8)(AttentionUnit(8, heads=2)(x, x)).sum().backward()
    assert len(trims) == 2
    with torch.no_grad():
        AttentionUnit(8, heads=2)(x, x)  # nothing to hook onto


def test_maps_as_wide_as_the_deepest_audio_tokens_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[Tensor] = []
    monkeypatch.setattr(memory, "_trim", trims.append)
    x = torch.randn(1, 2, 768, requires_grad=True)
    AttentionUnit(768)(x, x).sum().backward()
    assert len(trims) == 1


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
