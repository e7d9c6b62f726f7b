"""LAVISH's and DG-SCT's adapters against the formulas written out, their fixes, and their places on the ladder."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from token_batches import SMALL, token_batch
from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError, TrunkOutput, token_mean
from caeav.model.adapters.config import COPIES, AdapterConfig
from caeav.model.adapters.dg_sct import DgSctAdapter
from caeav.model.adapters.ladder import LadderTrunk
from caeav.model.adapters.lavish import LavishAdapter
from caeav.model.adapters.moe import ContextMaps

DOUBLE = torch.float64


# ---- the formulas, written out ----


def norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    if f"{name}.weight" not in p:
        return x
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def batch_norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    if f"{name}.weight" not in p:
        return x
    centred = x - x.mean((0, 1))
    return centred / (centred.square().mean((0, 1)) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def grouped(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    return x @ torch.block_diag(*weight.chunk(groups)).T


def affine(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def literal(
    p: dict[str, Tensor], x: Tensor, o: Tensor, groups: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """PEERS 1.1 and 2.1, line by line, in training; the map is None for LAVISH."""
    c = o
    if "maps.token_proj.weight" in p:
        c = torch.einsum("nm,bmd->bnd", p["maps.token_proj.weight"], o) + p["maps.token_proj.bias"][:, None]
        c = affine(c, p, "maps.channel_proj")
    latents = p["latent_tokens"].expand(len(x), -1, -1)
    r = latents + torch.softmax(latents @ c.transpose(1, 2), -1) @ c
    x = x + p["attn_gate"] * torch.softmax(x @ r.transpose(1, 2), -1) @ r
    found = None
    if "channel_guide.weight" in p:
        m = c.mean(1, keepdim=True)
        q = (affine(m, p, "channel_guide").relu() * affine(x, p, "channel_own").relu()).mean(1, keepdim=True)
        ch = torch.sigmoid(affine(affine(q, p, "channel_mix").relu(), p, "channel_out"))
        k = affine(x * (1 + ch), p, "spatial_own").relu() * affine(m, p, "spatial_guide").relu()
        s = affine(k, p, "spatial_out")
        found = torch.softmax(torch.tanh(s)[..., 0], -1)
        factor = options["alpha"] * ch + options["beta"] * torch.sigmoid(s) + 1 - options["alpha"]
        if "temporal_gate.weight" in p:
            factor = factor + options["gamma"] * torch.sigmoid(affine(m, p, "temporal_gate"))
        x = x * factor
    h = batch_norm(grouped(norm(x, p, "pre_norm"), p["down.weight"], groups), p, "down_bn").relu()
    h = batch_norm(grouped(h, p["up.weight"], groups), p, "up_bn")
    gate = p.get("out_gate", torch.ones((), dtype=DOUBLE))
    return (
        norm(gate * h, p, "post_norm") if options["gate_first"] else gate * norm(h, p, "post_norm")
    ), found


@pytest.mark.parametrize("seed", range(24))
def test_adapters_of_any_shape_and_option_equal_the_formulas(seed: int) -> None:
    draw, switch = random.Random(seed), random.Random(seed + 100)
    torch.manual_seed(seed)
    groups = draw.choice([1, 2, 4])
    c, d = groups * 2 * draw.randint(1, 4), draw.randint(3, 9)
    n, m, k = draw.randint(1, 9), draw.randint(1, 9), draw.randint(1, 12)
    options: dict[str, Any] = {
        name: switch.random() < 0.5
        for name in ("batch_norm", "pre_norm", "post_norm", "out_gate", "gate_first")
    }
    guided, alike = bool(seed % 2), seed % 3 == 0
    if alike and not guided:
        maps, m, d = None, n, c
    else:
        maps = ContextMaps(c, n, d, m)
    of_guided = {"alpha": 0.4, "beta": 0.2, "gamma": draw.choice([0.0, 0.3])}
    kind: Any = DgSctAdapter if guided else LavishAdapter
    adapter = kind(c, 2 * groups, groups, k, maps=maps, **options, **(of_guided if guided else {})).to(DOUBLE)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.6)
    x, o = torch.randn(4, n, c, dtype=DOUBLE), torch.randn(4, m, d, dtype=DOUBLE)

    got = adapter(x, o)
    got = got if guided else (got, None)
    want = literal(dict(adapter.named_parameters()), x, o, groups, {**options, **of_guided})
    gradients = []
    for outputs in (got, want):
        torch.manual_seed(1)
        adapter.zero_grad()
        torch.stack([(y * torch.randn_like(y)).sum() for y in outputs if y is not None]).sum().backward()
        gradients.append({name: p.grad for name, p in adapter.named_parameters()})
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    largest = max(float(g.abs().max()) for g in gradients[1].values() if g is not None)
    for name, wanted in gradients[1].items():
        other = torch.zeros_like(wanted) if gradients[0][name] is None else gradients[0][name]
        torch.testing.assert_close(other, wanted, atol=1e-8 * largest, rtol=1e-7, msg=name)


def test_the_context_resized_from_grid_to_grid() -> None:
    torch.manual_seed(0)
    maps, other = ContextMaps(6, 16, 5, 9, resize=True), torch.randn(2, 9, 5)
    grid = F.interpolate(
        maps.channel_proj(other).transpose(1, 2).unflatten(2, (3, 3)), size=(4, 4), mode="bicubic"
    )
    torch.testing.assert_close(maps.context(other), grid.flatten(2).transpose(1, 2))
    assert not hasattr(maps, "token_proj")
    with pytest.raises(AdapterError, match="6 tokens form no square grid"):
        ContextMaps(6, 16, 5, 6, resize=True)


# ---- oddities and their fixes ----


def adapter(kind: Any, **options: Any) -> Any:
    torch.manual_seed(5)
    made = kind(8, 4, 2, 3, maps=ContextMaps(8, 9, 8, 4), **options)
    for name, p in made.named_parameters():
        if name != "latent_tokens":
            nn.init.normal_(p, std=0.5)
    return made


@pytest.mark.parametrize(("start", "apart"), [("zeros", False), ("uniform", True)])
def test_latents_that_start_at_zero_stay_equal(start: str, apart: bool) -> None:
    made = adapter(LavishAdapter, latent_start=start)
    optimiser = torch.optim.Adam(made.parameters(), 0.05)
    x, other = torch.randn(4, 9, 8), torch.randn(4, 4, 8)
    for _ in range(5):
        optimiser.zero_grad()
        made(x, other).square().mean().backward()
        optimiser.step()
    latents = made.latent_tokens.detach()
    assert latents.abs().max() > 0.01 and (float((latents - latents[0]).abs().max()) > 1e-3) == apart


@pytest.mark.parametrize(("last", "acts"), [(False, False), (True, True)])
def test_scaling_whole_tokens_has_an_effect_only_after_the_norm(last: bool, acts: bool) -> None:
    made = adapter(DgSctAdapter, alpha=0.0, beta=0.5, spatial_last=last)
    x, other = 50 * torch.randn(4, 9, 8), torch.randn(4, 4, 8)
    made(x, other).residual.square().mean().backward()
    through = made.spatial_out.weight.grad.abs().max() / made.down.weight.grad.abs().max()
    assert (float(through) > 1e-3) == acts


def test_the_size_of_a_gate_before_the_norm_has_no_effect() -> None:
    made, x, other = adapter(LavishAdapter, gate_first=True), torch.randn(4, 9, 8), torch.randn(4, 4, 8)
    nn.init.normal_(made.up.weight, std=50)  # eps is small beside the variance
    found = []
    for gate in (1.0, 3.0, -1.0):
        nn.init.constant_(made.out_gate, gate)
        found.append(made(x, other) - made.post_norm.bias)
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[0], -found[2])


@pytest.mark.parametrize("peer", COPIES)
def test_reference_follows_the_named_copy_and_revised_none(peer: str) -> None:
    def part(variant: str, **given: Any) -> dict[str, Any]:
        made = AdapterConfig.model_validate({"variant": variant, peer: given})
        return dict(getattr(made, peer).model_dump())

    for copy, oddities in COPIES[peer].items():
        assert part("reference", task_copy=copy).items() >= oddities.items()
        plain, revised = part("revised"), part("revised", task_copy=copy)
        assert {name for name in plain if plain[name] != revised[name]} <= {"task_copy"}
        for name, value in oddities.items():
            assert plain[name] != value
            assert part("reference", task_copy=copy, **{name: plain[name]})[name] == plain[name]
    with pytest.raises(ValueError, match="task_copy"):
        part("reference", task_copy="mine")


def test_two_kinds_of_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"avmoe.enabled and lavish.enabled are true; allowed: one of them"):
        AdapterConfig.model_validate({"lavish": {"enabled": True}})


# ---- on the ladder ----


def config(peer: str, **more: Any) -> AdapterConfig:
    off = {name: {"enabled": False} for name in ("caste", "avmoe", "case")}
    return AdapterConfig.model_validate({**off, "variant": "revised", peer: {"enabled": True, **more}})


@pytest.mark.parametrize("peer", ["lavish", "dg_sct"])
def test_peers_begin_as_the_frozen_taps_and_every_part_learns(peer: str) -> None:
    batch, trunk = token_batch(SMALL), LadderTrunk(SMALL, config(peer))
    out = trunk(batch)
    assert torch.equal(out.visual, batch.visual["visual.b"])
    assert torch.equal(out.audio, batch.audio["audio.b"])
    for name, p in trunk.named_parameters():
        if name.endswith("gate") or ".up." in name:
            nn.init.normal_(p, std=0.5)
    out = trunk(batch)
    (out.pooled_visual().square().sum() + out.pooled_audio().square().sum()).backward()
    asleep = {name for name, p in trunk.named_parameters() if p.grad is None or not p.grad.any()}
    assert asleep == set()
    assert out.losses == {} and out.agreement is None


def test_each_modality_reads_the_other_at_both_places_of_every_stage() -> None:
    trunk, batch = LadderTrunk(SMALL, config("lavish")), token_batch(SMALL)
    for p in trunk.parameters():
        nn.init.normal_(p, std=0.3)
    plain = trunk.eval()(batch)
    batch.audio["audio.a"] = torch.randn_like(batch.audio["audio.a"])
    moved = trunk(batch)
    assert not torch.allclose(plain.visual, moved.visual)
    assert trunk.stages[0].p1.visual.maps is None  # equal taps need no map
    assert trunk.stages[1].p1.visual.maps is not None


def test_the_last_maps_of_dg_sct_pool_the_tokens() -> None:
    batch, trunk = token_batch(SMALL), LadderTrunk(SMALL, config("dg_sct")).eval()
    for p in trunk.parameters():
        nn.init.normal_(p, std=0.5)
    last = {}
    trunk.stages[1].p2.visual.register_forward_hook(lambda m, given, out: last.update(visual=out.spatial_map))
    out = trunk(batch)
    assert out.visual_weights is not None and out.audio_weights is not None
    torch.testing.assert_close(out.visual_weights.flatten(0, 1), last["visual"])
    torch.testing.assert_close(out.visual_weights.sum(-1), torch.ones(2, 3))
    wanted = torch.einsum("btl,btlc->btc", out.visual_weights, out.visual)
    torch.testing.assert_close(out.pooled_visual(), wanted)
    assert not torch.allclose(wanted, out.visual.mean(2))
    assert out.pooled_audio().shape == (2, 3, 16)


def test_tokens_without_weights_are_averaged() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(token_mean(x, None), x.mean(dim=2))
    torch.testing.assert_close(token_mean(x, torch.full((2, 3, 4), 0.25)), x.mean(dim=2))
    assert torch.equal(TrunkOutput(x, x).pooled_visual(), x.mean(dim=2))
