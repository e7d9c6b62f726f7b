"""CASE's dropout: the masks that version 0.1.0 drew, torch's where it took those, one batch's in several processes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from random_weights import random_double
from torch import Tensor, nn

from caeav.model.adapters.case import AttentionUnit, FeedForwardUnit
from caeav.model.adapters.dropout import Dropout, drop
from caeav.model.adapters.whole_batch import Part, by_sample, sharing

DOUBLE = torch.float64


def masks(seed: int, *wanted: tuple[tuple[int, ...], float]) -> list[Tensor]:
    """What tensors of these shapes are multiplied by, at these rates, in turn: 16 bits of a draw say whether
    an element stays."""
    torch.manual_seed(seed)
    made = []
    for shape, rate in wanted:
        count = torch.Size(shape).numel()
        words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        numbers = words.view(torch.int16)[:count].to(DOUBLE) + 2**15  # 0 .. 65535
        made.append((numbers >= round(rate * 2**16)).to(DOUBLE).view(shape) / (1 - rate))
    return made


@pytest.mark.parametrize("masked", [False, True])
def test_an_attention_unit_drops_weights_then_what_it_adds(masked: bool) -> None:
    unit = random_double(AttentionUnit(6, heads=2, weight_dropout=0.3, dropout=0.4), seed=1).train()
    query, source = torch.randn(3, 5, 6, dtype=DOUBLE), torch.randn(3, 7, 6, dtype=DOUBLE)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 4:] = not masked
    of_weights, of_sum = masks(5, ((3, 2, 5, 7), 0.3), ((3, 5, 6), 0.4))
    attn = unit.attn
    q, k, v = (
        f(x).view(3, -1, 2, 3).transpose(1, 2)
        for f, x in ((attn.query, query), (attn.key, source), (attn.value, source))
    )
    logits = (q @ k.transpose(2, 3) / 3**0.5).masked_fill(~mask[:, None, None], float("-inf"))
    mixed = (logits.softmax(-1) * of_weights) @ v
    wanted = unit.norm(query + of_sum * attn.out(mixed.transpose(1, 2).reshape(3, 5, 6)))
    torch.manual_seed(5)
    torch.testing.assert_close(unit(query, source, mask if masked else None), wanted)


def test_a_feed_forward_unit_drops_its_hidden_layer_then_what_it_adds() -> None:
    unit = random_double(FeedForwardUnit(5, dropout=0.25), seed=1).train()
    x = torch.randn(3, 7, 5, dtype=DOUBLE)
    of_hidden, of_sum = masks(5, ((3, 7, 10), 0.25), ((3, 7, 5), 0.25))
    wanted = unit.norm(x + of_sum * unit.fc_out(unit.fc_in(x).relu() * of_hidden))
    torch.manual_seed(5)
    torch.testing.assert_close(unit(x), wanted)


def test_gradients_pass_what_is_kept_alone() -> None:
    x = torch.randn(4, 9, requires_grad=True)
    (mask,) = masks(3, ((4, 9), 0.5))
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(drop(x, 0.5).sum(), x)
    torch.testing.assert_close(gradient, mask.float())


def test_the_rate_is_met() -> None:
    torch.manual_seed(0)
    x = drop(torch.ones(1000, 1001), 0.2)
    assert abs((x == 0).float().mean().item() - 0.2) < 0.002  # 5 standard deviations
    assert x.unique().tolist() == [0.0, 1.25]


@pytest.mark.parametrize(
    "unit",
    [
        AttentionUnit(4, heads=2).eval(),
        FeedForwardUnit(4).eval(),
        AttentionUnit(4, heads=2, weight_dropout=0.0, dropout=0.0).train(),
        FeedForwardUnit(4, dropout=0.0).train(),
    ],
)
def test_nothing_is_drawn_in_eval_mode_or_at_rate_zero(unit: nn.Module) -> None:
    tokens = [torch.ones(2, 3, 4)] * (2 if isinstance(unit, AttentionUnit) else 1)
    before = torch.get_rng_state()
    unit(*tokens)
    assert torch.equal(torch.get_rng_state(), before)


def test_under_autocast_draws_are_those_of_torch() -> None:
    x = torch.randn(6, 5)
    torch.manual_seed(2)
    wanted = torch.native_dropout(x, 0.3, True)[0]
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Dropout(0.3).train()(x), wanted)
    torch.manual_seed(2)
    assert not torch.equal(drop(x, 0.3), wanted)


@pytest.mark.parametrize("samples", [False, True])
def test_each_process_drops_what_one_alone_would(samples: bool) -> None:
    clip_of = [7, 3, 7, 5, 9, 3]  # samples 0 and 2 share a clip, 1 and 5 another
    rows = len(clip_of) if samples else 3 * len(set(clip_of))
    x = torch.randn(rows, 4, 5)
    torch.manual_seed(9)
    wanted, after = drop(x, 0.4), torch.get_rng_state()
    for rank in range(3):
        part = Part.of(clip_of, rank, 3)
        first, own = 3 * part.first_clip, 3 * part.clips[rank]
        places = list(part.places) if samples else list(range(first, first + own))
        torch.manual_seed(9)
        with sharing(part), by_sample() if samples else nullcontext():
            found = drop(x[places], 0.4)
        assert torch.equal(found, wanted[places])
        assert torch.equal(torch.get_rng_state(), after)
