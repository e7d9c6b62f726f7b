"""The ladder: tokens are unchanged at first, every part can be switched off, changes travel from stage to stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError, CaptionSpec, InputSpec, TokenBatch
from caeav.model.adapters.caste import Caste
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.ladder import LadderTrunk, LowRankMerge, merge_patches, pool_tokens
from caeav.model.adapters.layers import WidthError
from caeav.model.adapters.moe import Bottleneck, load_balance
from caeav.pipeline.store.record import Tap

B, T = 2, 3
VISUAL = (Tap("visual.s1", 16, 8), Tap("visual.s2", 4, 16), Tap("visual.s3", 4, 24))
AUDIO = (Tap("audio.s2", 9, 8), Tap("audio.s3", 1, 16))
CAPTIONS = {"visual_caption": CaptionSpec(5, 16), "audio_caption": CaptionSpec(6, 16)}


def make_spec(visual: tuple[Tap, ...] = VISUAL, audio: tuple[Tap, ...] = AUDIO, **more: Any) -> InputSpec:
    return InputSpec(T, visual, audio, **{**CAPTIONS, **more})


def make_batch(spec: InputSpec) -> TokenBatch:
    torch.manual_seed(1)

    def caption(given: CaptionSpec | None) -> tuple[Tensor | None, Tensor | None]:
        if given is None:
            return None, None
        return torch.randn(B, given.tokens, given.channels), torch.arange(given.tokens).expand(B, -1) < 3

    (vc, vm), (ac, am) = caption(spec.visual_caption), caption(spec.audio_caption)
    return TokenBatch(
        keys=["a", "b"],
        visual={tap.name: torch.randn(B, T, tap.tokens, tap.channels) for tap in spec.visual},
        audio={tap.name: torch.randn(B, T, tap.tokens, tap.channels) for tap in spec.audio},
        frames_ok=torch.ones(B, T, dtype=torch.bool),
        audio_ok=torch.ones(B, T, dtype=torch.bool),
        visual_caption=vc,
        visual_caption_mask=vm,
        audio_caption=ac,
        audio_caption_mask=am,
    )


def config(**parts: Any) -> AdapterConfig:
    """Everything on but what is given as False; a mapping changes settings of a part."""
    given = {name: {"enabled": value} if isinstance(value, bool) else value for name, value in parts.items()}
    return AdapterConfig.model_validate(given)


def open_gates(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, Caste):
            nn.init.ones_(part.gamma)
        if isinstance(part, Bottleneck) and part.out_gate is not None:
            nn.init.ones_(part.out_gate)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "parts",
    [{"caste": False, "avmoe": False}, {"avmoe": False}, {"caste": False}, {}, {"avmoe": {"num_skip": 2}}],
    ids=["off", "caste", "avmoe", "both", "both-skipping"],
)
def test_tokens_are_unchanged_at_first(parts: dict[str, Any], training: bool) -> None:
    spec = make_spec()
    trunk = LadderTrunk(spec, config(case=False, **parts)).train(training)
    batch = make_batch(spec)
    out = trunk(batch)
    assert torch.equal(out.visual, batch.visual["visual.s3"])
    assert torch.equal(out.audio, batch.audio["audio.s3"])
    if parts == {"caste": False, "avmoe": False}:
        assert list(trunk.parameters()) == []
        assert out.agreement is None and out.losses == {} and out.aux == {}


def test_each_part_reports_its_outputs() -> None:
    spec = make_spec()
    out = LadderTrunk(spec, config())(make_batch(spec))
    assert out.agreement is not None and out.agreement.shape == (B, T)
    assert ((out.agreement > 0) & (out.agreement < 1)).all()
    assert out.losses["load_balance"].ndim == 0
    assert out.aux["routing.stage1.p1.visual"].shape == (B, T, 2)
    assert out.aux["proj_visual"].shape == (B, T, 512) and out.aux["proj_visual_caption"].shape == (B, 512)
    assert out.aux["selected_visual"].shape == (B, T, 4)
    assert out.visual.shape == (B, T, 4, 24) and out.audio.shape == (B, T, 1, 16)


def test_agreement_is_the_deepest_stages_mean_of_both_gates() -> None:
    spec = make_spec()
    trunk, batch = LadderTrunk(spec, config(avmoe=False, case=False)), make_batch(spec)
    out = trunk(batch)
    v, a = batch.visual["visual.s3"].flatten(0, 1), batch.audio["audio.s3"].flatten(0, 1)
    last = trunk.stages[-1]
    want = (last.caste_visual.gate(v, a)[:, 0] + last.caste_audio.gate(a, v)[:, 0]) / 2
    torch.testing.assert_close(out.agreement, want.view(B, T))


def test_taps_are_paired_from_the_deepest_on() -> None:
    spec = make_spec()
    trunk, batch = LadderTrunk(spec, config(case=False)), make_batch(spec)
    open_gates(trunk)
    assert trunk.names == [("visual.s2", "audio.s2"), ("visual.s3", "audio.s3")]
    trunk.eval()
    before = trunk(batch)
    batch.visual["visual.s1"].normal_()  # has no partner
    assert torch.equal(before.visual, trunk(batch).visual)
    batch.audio["audio.s2"].normal_()  # changes the last taps through the merge alone
    after = trunk(batch)
    assert not torch.equal(before.visual, after.visual)


def test_a_stage_without_avmoe_adds_caste_directly() -> None:
    spec = make_spec()
    trunk, batch = (
        LadderTrunk(spec, config(avmoe={"num_skip": 1, "enabled": False}, case=False)),
        make_batch(spec),
    )
    open_gates(trunk.stages[-1])
    v, a = batch.visual["visual.s3"].flatten(0, 1), batch.audio["audio.s3"].flatten(0, 1)
    residual = trunk.stages[-1].caste_visual(v, a, T).residual
    assert residual.any()
    torch.testing.assert_close(trunk(batch).visual.flatten(0, 1), v + residual)


def test_skipped_stages_have_no_experts() -> None:
    spec = make_spec()
    trunk = LadderTrunk(spec, config(avmoe={"num_skip": 2}))
    assert [stage.p1 is None for stage in trunk.stages] == [False, True]


def test_case_without_captions_is_refused() -> None:
    spec = make_spec(audio_caption=None)
    with pytest.raises(
        AdapterError, match=r"the inputs lack \['audio_caption'\]\n  next: join a caption store"
    ):
        LadderTrunk(spec, config())
    whole = make_spec()
    batch = make_batch(whole)
    batch.visual_caption = None
    with pytest.raises(AdapterError, match="CASE needs a visual caption, this batch has none"):
        LadderTrunk(whole, config())(batch)


def test_captions_of_different_widths_get_their_own_mapper() -> None:
    spec = make_spec(audio_caption=CaptionSpec(6, 32))
    assert LadderTrunk(spec, config())(make_batch(spec)).audio.isfinite().all()


def test_padding_is_attended_only_when_asked_for() -> None:
    spec = make_spec()
    for masked in (True, False):
        torch.manual_seed(0)
        trunk = LadderTrunk(spec, config(case={"mask_padding": masked})).eval()
        for part in trunk.guidance.children():
            if hasattr(part, "up"):
                nn.init.normal_(part.up.weight)
        batch = make_batch(spec)
        before = trunk(batch).visual
        batch.visual_caption[:, 3:] = 5.0
        assert torch.equal(before, trunk(batch).visual) is masked


def test_impossible_settings_say_what_would_be_possible() -> None:
    with pytest.raises(AdapterError, match="0 cross and 0 uni experts"):
        LadderTrunk(make_spec(), config(avmoe={"cross_experts": 0, "uni_experts": 0}))
    with pytest.raises(WidthError, match="16 channels does not split into 7 heads\n  next: choose a number"):
        LadderTrunk(make_spec(), config(case={"heads": 7}))
    with pytest.raises(AdapterError, match="got 3 visual, 0 audio"):
        LadderTrunk(make_spec(audio=()), config())
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        AdapterConfig.model_validate({"caste": {"ratio": 0.5}})


def test_bottlenecks_of_narrow_taps_stay_whole_groups() -> None:
    moe = config().avmoe
    assert [moe.bottleneck(c) for c in (8, 24, 96, 1536)] == [2, 2, 12, 192]


def test_merge_patches_concatenates_neighbours_in_the_backbones_order() -> None:
    x = torch.arange(16.0).view(1, 16, 1)  # a 4x4 grid, row by row
    assert merge_patches(x, 4)[0].tolist() == [[0, 4, 1, 5], [2, 6, 3, 7], [8, 12, 9, 13], [10, 14, 11, 15]]


def test_token_pooling_uses_the_grid_when_both_are_square() -> None:
    x = torch.arange(36.0).view(1, 36, 1)  # 6x6 -> 2x2: means of 3x3 blocks
    assert pool_tokens(x, 4)[0, :, 0].tolist() == [7, 10, 25, 28]
    assert pool_tokens(torch.arange(6.0).view(1, 6, 1), 3)[0, :, 0].tolist() == [0.5, 2.5, 4.5]


@pytest.mark.parametrize(("below", "above"), [(16, 4), (36, 4), (6, 3), (4, 4), (1, 4), (3, 1), (9, 16)])
def test_no_change_below_is_no_change_above(below: int, above: int) -> None:
    merge = LowRankMerge(Tap("a", below, 8), Tap("b", above, 12), rank=4)
    assert not merge(torch.zeros(2, below, 8)).any()
    out = merge(torch.randn(2, below, 8))
    assert out.shape == (2, above, 12) and out.any()


@pytest.mark.parametrize("parts", [
    {"avmoe": {"num_skip": 1}}, {"avmoe": {"num_skip": 2}}, {"avmoe": False}, {"caste": False},
], ids=["both", "skipping", "caste", "avmoe"])  # fmt: skip
def test_changes_travel_up_the_stages_as_described(parts: dict[str, Any]) -> None:
    """`x = tap + merge(change below)`; CASTE enriches what the first experts see, the second see theirs alone; all of a
    stage's residuals and what came from below are its change."""
    visual = (Tap("visual.s1", 16, 8), Tap("visual.s2", 4, 16), Tap("visual.s3", 4, 24))
    audio = (Tap("audio.s1", 16, 8), Tap("audio.s2", 9, 8), Tap("audio.s3", 4, 16))
    spec = make_spec(visual, audio)
    torch.manual_seed(0)
    trunk = LadderTrunk(spec, config(case=False, **parts)).eval()
    with torch.no_grad():
        for p in trunk.parameters():
            p.add_(0.2 * torch.randn_like(p))
    trunk.keep_stages = True
    batch = make_batch(spec)
    found = trunk(batch)
    change: list[Tensor] = []
    weights = None
    for i, stage in enumerate(trunk.stages):
        taps = [batch.visual[visual[i].name].flatten(0, 1), batch.audio[audio[i].name].flatten(0, 1)]
        below = [stage.merge_visual(change[0]), stage.merge_audio(change[1])] if change else [0.0, 0.0]
        x = [tap + from_below for tap, from_below in zip(taps, below, strict=True)]
        added: list[Any] = [0.0, 0.0]
        enriched = x
        if stage.caste_visual is not None:
            own = stage.caste_visual(x[0], x[1], T), stage.caste_audio(x[1], x[0], T)
            enriched = [a + out.residual for a, out in zip(x, own, strict=True)]
            weights = (own[0].weights[:, 0] + own[1].weights[:, 0]) / 2
            if stage.p1 is None:
                added = [out.residual for out in own]
        if stage.p1 is not None:
            first = residuals(stage.p1, enriched)
            second = residuals(stage.p2, [a + b for a, b in zip(x, first, strict=True)])
            added = [a + b for a, b in zip(first, second, strict=True)]
        change = [a + b for a, b in zip(below, added, strict=True)]
        visual_end = (taps[0] + change[0]).unflatten(0, (B, T))
        torch.testing.assert_close(found.aux[f"stage{i + 1}.visual"], visual_end, atol=1e-4, rtol=1e-4)
    audio_end = (taps[1] + change[1]).unflatten(0, (B, T))
    torch.testing.assert_close(found.visual, visual_end, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.audio, audio_end, atol=1e-4, rtol=1e-4)
    if weights is None:
        assert found.agreement is None
    else:
        assert found.agreement is not None
        torch.testing.assert_close(found.agreement, weights.unflatten(0, (B, T)))


@pytest.mark.parametrize("uniform", [False, True])
def test_load_balance_is_the_sum_over_all_layers_of_experts(uniform: bool) -> None:
    spec = make_spec()
    torch.manual_seed(0)
    trunk = LadderTrunk(spec, config(case=False, avmoe={"num_skip": 1, "uniform_target": uniform})).eval()
    out = trunk(make_batch(spec))
    routed = [p.flatten(0, 1) for name, p in out.aux.items() if name.startswith("routing.")]
    assert len(routed) == 8  # two stages, two places, two modalities
    wanted = torch.stack([load_balance(p, uniform_target=uniform) for p in routed]).sum()
    torch.testing.assert_close(out.losses["load_balance"], wanted)


def residuals(pair: Any, x: list[Tensor]) -> list[Tensor]:
    return [pair.visual(x[0], x[1]).residual, pair.audio(x[1], x[0]).residual]


def test_autocast_runs_through_the_trunk() -> None:
    spec = make_spec()
    trunk, batch = LadderTrunk(spec, config()), make_batch(spec)
    open_gates(trunk)
    with torch.autocast("cpu", torch.bfloat16):
        out = trunk(batch)
    out.visual.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in trunk.parameters() if p.grad is not None)
