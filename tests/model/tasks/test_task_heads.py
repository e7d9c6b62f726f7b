"""The heads of AVVP, AVS and AVQA beyond the vectors: clips are independent, switches, starts, shapes, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from caeav.model.adapters.batch import TrunkOutput
from caeav.model.adapters.correspondence import Match
from caeav.model.tasks.ave.config import AveHeadConfig, WeakAveHeadConfig
from caeav.model.tasks.ave.head import AveHead, WeakAveHead
from caeav.model.tasks.avqa.config import AvqaHeadConfig
from caeav.model.tasks.avqa.head import AvqaHead, QuestionEncoder, ground
from caeav.model.tasks.avs.config import AvsHeadConfig
from caeav.model.tasks.avs.head import AvsHead, MapError, ResidualUnit, Tpavi, token_maps
from caeav.model.tasks.avvp.config import AvvpHeadConfig
from caeav.model.tasks.avvp.grouping import Assign, DropPath
from caeav.model.tasks.avvp.head import AvvpHead, MotionError, any_of, frame_attention

AVVP = AvvpHeadConfig(width=16, audio_depth=1, visual_depth=1, cross_depth=1)
AVS = AvsHeadConfig(channels=8, audio_in=6, width=8, hidden=12, mask_size=32, out_channels=(6, 4))
AVQA = AvqaHeadConfig(match_widths=(8, 6, 4))


def trunk(clips: int = 2, segments: int = 5) -> TrunkOutput:
    return TrunkOutput(torch.randn(clips, segments, 4, 12), torch.randn(clips, segments, 3, 8))


def avvp(config: AvvpHeadConfig = AVVP) -> AvvpHead:
    torch.manual_seed(0)
    head = AvvpHead(12, 8, 6, 5, config, motion_channels=7).eval()
    with torch.no_grad():  # away from the start, where all classes are alike
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def run_avvp(x: TrunkOutput, motion: Tensor) -> list[Tensor]:
    return list(avvp()(x, motion))[:5]


def run_avqa(x: TrunkOutput, extra: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    head = AvqaHead(12, 8, 9, 20, AVQA).eval()
    question = (extra[:, :4, 0].abs() * 100).long() % 20
    return [out for out in head(x, question, x.visual.flip(1)) if out is not None]


def run_avs(x: TrunkOutput, extra: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    out = AvsHead([12, 12], 8, AVS).eval()([x.visual, x.visual[:, :, :1]], x.audio)
    return [out.mask_logits, *out.maps, *out.audio]


@pytest.mark.parametrize("run", [run_avvp, run_avqa, run_avs])
def test_clips_of_a_batch_do_not_influence_each_other(
    run: Callable[[TrunkOutput, Tensor], list[Tensor]],
) -> None:
    torch.manual_seed(1)
    both, extra = trunk(), torch.randn(2, 5, 7)
    together = run(both, extra)
    for clip in range(2):
        rows = slice(clip, clip + 1)
        alone = run(TrunkOutput(both.visual[rows], both.audio[rows]), extra[rows])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[rows], b, rtol=1e-4, atol=1e-5)


def test_frame_probabilities_exceed_one_in_the_reference_only() -> None:
    logits = 9 * torch.randn(2, 6, 10)
    reference = frame_attention(logits, bounded=False)
    assert reference.min() > 1.04
    assert reference.max() < 1.24
    bounded = frame_attention(logits, bounded=True)
    assert bounded.amax(dim=-1).eq(1).all()
    assert bounded.min() < 0.1  # seconds may differ


def test_hard_segments_choose_one_group_and_learn_by_the_soft_ones() -> None:
    torch.manual_seed(0)
    assign = Assign(8, hard=True).eval()
    assigned = assign._assign(assign(torch.randn(2, 5, 8), torch.randn(2, 7, 8)).logits)
    assert assigned.detach().round().sum(dim=1).eq(1).all()
    torch.testing.assert_close(assigned, assigned.round())
    (assigned * torch.randn_like(assigned)).sum().backward()
    assert assign.query.weight.grad is not None
    assert assign.query.weight.grad.abs().sum() > 0
    logits = torch.zeros(1, 2, 4000)
    assert 0.45 < assign.train()._assign(logits)[0, 0].mean() < 0.55  # in training the choice is drawn


def test_drop_path_skips_whole_clips_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 3)
    dropped = drop(x)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert dropped.eq(dropped[:, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x


def test_the_parsing_head_is_wired_as_described() -> None:
    """Audio is regrouped by the visual segments, both grouped by their class tokens, then across by visual groups."""
    torch.manual_seed(0)
    x, motion = trunk(), torch.randn(2, 5, 7)
    head = avvp()
    out = head(x, motion)
    heard = head.audio_in(x.audio.mean(dim=2))
    seen = head.visual_fuse(torch.cat([head.visual_in(x.visual.mean(dim=2)), head.motion_in(motion)], dim=-1))
    visual = head.visual_group(seen, head.visual_class_tokens)
    audio = head.audio_group(heard, head.audio_class_tokens, seen)
    across = head.cross_group(audio.groups, visual.groups).groups
    torch.testing.assert_close(out.clip_prob, head.clip_prob(across).sigmoid().squeeze(-1))
    torch.testing.assert_close(out.audio_prob, head.audio_prob(audio.groups).sigmoid().squeeze(-1))
    torch.testing.assert_close(out.visual_prob, head.visual_prob(visual.groups).sigmoid().squeeze(-1))
    for prob, frames, logits in (
        (out.audio_prob, out.audio_frame_prob, audio.logits),
        (out.visual_prob, out.visual_frame_prob, visual.logits),
    ):
        attention = frame_attention(logits, bounded=False).transpose(1, 2)
        torch.testing.assert_close(frames, prob.unsqueeze(1) * attention)
    torch.testing.assert_close(out.audio_token_logits, head.token_class(head.audio_class_tokens))
    torch.testing.assert_close(out.visual_token_logits, head.token_class(head.visual_class_tokens))
    assert not torch.allclose(out.audio_token_logits, out.visual_token_logits)


def test_the_segmentation_head_is_wired_as_described() -> None:
    """Each scale has its own maps, gates and places; rows stay rows, and the sound is that of the whole frame."""
    torch.manual_seed(0)
    head = AvsHead([12, 12], 8, AVS).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = trunk()
    taps = [torch.randn(2, 5, 16, 12), x.visual]  # 4x4 and 2x2 places; maps of 8x8 and 4x4
    out = head(taps, x.audio)
    maps = [head.stage_proj1(taps[0]), head.stage_proj2(taps[1])]
    grids = [
        torch.nn.functional.interpolate(
            tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side)), size=2 * side, mode="bicubic"
        ).flatten(2).transpose(1, 2).unflatten(0, (2, 5))
        for tokens, side in zip(maps, (4, 2), strict=True)
    ]  # fmt: skip
    lifted, heard = head.temporal(grids, head.audio_in(x.audio.mean(dim=2)))
    read = [head.tpavi1(lifted[0], heard), head.tpavi2(lifted[1], heard)]
    places = [
        tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        for (tokens, _), side in zip(read, (8, 4), strict=True)
    ]
    logits, _ = head.decode(places)
    torch.testing.assert_close(out.mask_logits.flatten(0, 1), logits.view(10, 32, 32))
    for found, (_, aligned) in zip(out.audio, read, strict=True):
        torch.testing.assert_close(found, aligned)
    assert [list(grid.shape) for grid in out.maps] == [[2, 5, 8, 8, 8], [2, 5, 8, 4, 4]]


@pytest.mark.parametrize("hidden", [0, 10])
def test_the_answering_head_is_wired_as_described(hidden: int) -> None:
    """The question attends each modality over time, beside its mean; audio and frames are matched second by second."""
    torch.manual_seed(0)
    head = AvqaHead(12, 8, 9, 20, AVQA.model_copy(update={"answer_hidden": hidden})).eval()
    x, words = trunk(), torch.randint(1, 20, (2, 4))
    other = torch.randn_like(x.visual)
    out = head(x, words, other)
    audio = head.audio_fc2(head.audio_fc1(x.audio.mean(dim=2)).relu())  # [B, T, d]

    def see(tokens: Tensor) -> Tensor:
        return head.grounding_fc(torch.cat([tokens.mean(dim=2), ground(tokens, audio)], dim=-1).tanh())

    def match(visual: Tensor) -> Tensor:
        y = head.match_fc1(torch.cat([audio, visual], dim=-1)).relu()
        return head.match_fc4(head.match_fc3(head.match_fc2(y).relu()).relu())

    visual, asked = see(x.visual), head.question(words)
    torch.testing.assert_close(out.match_positive, match(visual))
    torch.testing.assert_close(out.match_negative, match(see(other)))
    streams = []
    for name, stream in (("audio", audio), ("visual", visual)):
        found = getattr(head, f"attn_{name}")(asked.unsqueeze(1), stream)[:, 0]
        inner = getattr(head, f"{name}_ffn_out")(getattr(head, f"{name}_ffn_in")(found).relu())
        streams.append(getattr(head, f"{name}_norm")(found + inner) + stream.mean(dim=1))
    fused = head.fusion(torch.cat(streams, dim=-1).tanh())
    code = (fused * asked).tanh()
    if hidden:
        code = head.answer_fc(torch.cat([fused * asked, fused, asked], dim=-1)).relu()
    torch.testing.assert_close(out.answer_logits, head.answer(code))


def test_the_localising_head_is_wired_as_described() -> None:
    torch.manual_seed(0)
    config = AveHeadConfig(width=8, hidden=8, visual_in=8, audio_in=6, topk_frames=2, score_weight=0.4)
    head, x = AveHead(12, 8, 3, config).eval(), trunk()
    out = head(x)
    streams = head.temporal_attention(x.visual.mean(dim=2), x.audio.mean(dim=2))
    end = head.localisation
    best = [
        layer(stream).topk(2, dim=1).values.mean(dim=1)
        for layer, stream in (
            (end.visual_frame_class, streams.visual),
            (end.audio_frame_class, streams.audio),
        )
    ]
    score, fused = (best[0] + best[1]) / 2, (streams.visual + streams.audio) / 2
    torch.testing.assert_close(out.av_score, score)
    torch.testing.assert_close(out.event_relevance, end.event_relevance(fused)[..., 0])
    torch.testing.assert_close(out.event_scores, end.event_class(fused.amax(dim=1)) + 0.4 * score)


def test_drawn_groups_follow_their_probabilities() -> None:
    """In training a segment falls to a group as often as the softmax says, not only to the likeliest."""
    torch.manual_seed(0)
    assign, logits = Assign(4, hard=True).train(), torch.tensor([2.0, 0.0, -1.0])
    drawn = assign._assign(logits.view(1, 3, 1).expand(1, 3, 40_000)).detach().round()
    torch.testing.assert_close(drawn.mean(dim=-1)[0], logits.softmax(0), atol=0.01, rtol=0)
    assigned = assign.eval()._assign(logits.view(1, 3, 1)).detach()
    assert assigned.round().flatten().tolist() == [1, 0, 0]


def test_a_group_is_an_average_of_its_segments_and_small_when_empty() -> None:
    torch.manual_seed(0)
    assign = Assign(4, hard=False).eval()
    tokens, segments = torch.randn(1, 3, 4), torch.randn(1, 5, 4)
    found = assign(tokens, segments)
    share = found.logits.softmax(dim=1)
    wanted = (share @ assign.value(segments)) / (share.sum(dim=-1, keepdim=True) + 1)
    torch.testing.assert_close(found.groups, assign.out(wanted))


def test_own_seconds_give_the_probability_of_their_modality() -> None:
    """The sure seconds weigh more; the reference's seconds are the clip's, times an attention."""
    torch.manual_seed(0)
    x, motion = trunk(), torch.randn(2, 5, 7)
    own = avvp(AVVP.model_copy(update={"own_seconds": True}))(x, motion)
    for clip, frames in ((own.audio_prob, own.audio_frame_prob), (own.visual_prob, own.visual_frame_prob)):
        torch.testing.assert_close(clip, frames.square().sum(dim=1) / frames.sum(dim=1))
    for bounded in (False, True):
        found = avvp(AVVP.model_copy(update={"bounded_attention": bounded}))(x, motion)
        ratio = found.audio_frame_prob / found.audio_prob.unsqueeze(1)
        assert bool((ratio.amax(dim=1) > 1).all()) is not bounded
        assert not bounded or torch.allclose(ratio.amax(dim=1), torch.ones(2, 6))


def test_an_event_is_in_a_clip_if_either_modality_or_both_together_have_it() -> None:
    torch.manual_seed(0)
    x, motion = trunk(), torch.randn(2, 5, 7)
    across = avvp(AVVP)(x, motion)
    either = avvp(AVVP.model_copy(update={"either_modality": True}))(x, motion)
    missed = (1 - across.clip_prob) * (1 - across.audio_prob) * (1 - across.visual_prob)
    torch.testing.assert_close(either.clip_prob, 1 - missed)
    torch.testing.assert_close(either.audio_prob, across.audio_prob)
    rare = torch.full((), 1e-9)
    assert float(any_of(rare, rare)) == pytest.approx(2e-9)  # what 1 - (1 - p)^2 rounds to 0


def test_maps_of_a_narrow_parsing_head_start_at_the_scale_of_their_inputs() -> None:
    torch.manual_seed(0)
    scaled, fixed = (
        AvvpHead(12, 8, 6, 5, AVVP.model_copy(update={"scaled_init": on})).audio_group.blocks[0].mlp.fc_out
        for on in (True, False)
    )
    assert float(fixed.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert float(scaled.weight.detach().std()) == pytest.approx((3 * scaled.in_features) ** -0.5, rel=0.2)


@pytest.mark.parametrize("pooling", ["mean", "max", "linear"])
def test_weak_labels_pool_seconds_that_are_seen_and_heard(pooling: str) -> None:
    torch.manual_seed(0)
    config = WeakAveHeadConfig(width=8, pooling=pooling)  # type: ignore[arg-type]
    head, x = WeakAveHead(12, 8, 3, config).eval(), trunk()
    out = head(x)
    seen, heard = x.visual.mean(dim=2), x.audio.mean(dim=2)
    streams = head.streams.visual_in(seen).relu(), head.streams.audio_in(heard).relu()
    p = head.seen(streams[0]).sigmoid() * head.heard(streams[1]).sigmoid()  # [B, T, K]
    torch.testing.assert_close(out.seconds.exp(), p)
    pooled = {"mean": p.mean(1), "max": p.amax(1), "linear": p.square().sum(1) / p.sum(1)}[pooling]
    torch.testing.assert_close(out.clip.exp(), pooled)
    assert torch.equal(out.event_scores, out.clip)
    best = p[torch.arange(2), :, pooled.argmax(dim=-1)]  # [B, T]: of the clip's own event
    torch.testing.assert_close(out.event_relevance.sigmoid(), best)
    around = WeakAveHead(12, 8, 3, config.model_copy(update={"context": True})).eval()
    alone = replace(x, visual=x.visual[:, :1], audio=x.audio[:, :1])
    torch.testing.assert_close(head(alone).seconds, out.seconds[:, :1])  # every second by itself
    assert not torch.allclose(around(alone).seconds, around(x).seconds[:, :1])  # or knowing the whole clip


def some_match() -> Match:
    visual, audio = (torch.nn.functional.normalize(torch.randn(2, 5, 3), dim=-1) for _ in range(2))
    return Match(visual.requires_grad_(), audio, torch.tensor(4.0), torch.tensor(-0.5))


def test_the_agreement_is_evidence_for_the_relevance_of_a_second() -> None:
    torch.manual_seed(0)
    config = AveHeadConfig(width=8, hidden=8, visual_in=8, audio_in=6)
    head, x = AveHead(12, 8, 3, config, agreement=True).eval(), replace(trunk(), match=some_match())
    plain = AveHead(12, 8, 3, config).eval()
    plain.load_state_dict(head.state_dict(), strict=False)
    logits = x.match.logits().detach()
    torch.testing.assert_close(head(x).event_relevance, plain(x).event_relevance + logits)
    with torch.no_grad():
        head.agreement.scale.fill_(2.0)
        head.agreement.shift.fill_(0.3)
    found = head(x)
    torch.testing.assert_close(found.event_relevance, plain(x).event_relevance + 2 * logits + 0.3)
    torch.testing.assert_close(found.event_scores, plain(x).event_scores)
    found.event_relevance.sum().backward()
    assert x.match.visual.grad is None and head.agreement.scale.grad is not None


def test_weak_seconds_are_decided_with_the_agreement_but_trained_without() -> None:
    torch.manual_seed(0)
    config = WeakAveHeadConfig(width=8)
    head, x = WeakAveHead(12, 8, 3, config, agreement=True).eval(), replace(trunk(), match=some_match())
    plain = WeakAveHead(12, 8, 3, config).eval()
    plain.load_state_dict(head.state_dict())
    found, without = head(x), plain(x)
    assert torch.equal(found.clip, without.clip) and torch.equal(found.seconds, without.seconds)
    torch.testing.assert_close(found.event_relevance, without.event_relevance + x.match.logits().detach())


def test_motion_must_go_with_the_head() -> None:
    with pytest.raises(MotionError, match="built with motion features, the batch has none"):
        avvp()(trunk())
    without = AvvpHead(12, 8, 6, 5, AVVP)
    with pytest.raises(MotionError, match=r"built without motion features, the batch has \[2, 5, 7\]"):
        without(trunk(), torch.zeros(2, 5, 7))
    assert without(trunk()).audio_frame_prob.shape == (2, 5, 6)


def test_avvp_classes_start_equal() -> None:
    head = AvvpHead(12, 8, 6, 5, AVVP)
    assert not head.audio_class_tokens.any()
    assert head.audio_in.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not head.visual_group.grouping.assign.query.bias.any()


def published_tpavi(layer: Tpavi, x: Tensor, audio: Tensor) -> Tensor:
    """With the `[N, N]` matrix."""
    assert layer.audio_align is not None
    places = x.flatten(1, 2)
    sound = layer.audio_align(audio).unsqueeze(2).expand(-1, -1, x.shape[2], -1).flatten(1, 2)
    matrix = layer.query(places) @ layer.key(sound).transpose(1, 2) / places.shape[1]
    read = layer.out_conv(matrix @ layer.value(places))
    return layer.norm(places + layer.out_bn(read)).view_as(x)


def test_tpavi_equals_its_quadratic_form_and_starts_as_a_norm() -> None:
    torch.manual_seed(0)
    layer = Tpavi(16, 6).double().eval()
    x, audio = torch.randn(2, 5, 30, 16).double(), torch.randn(2, 5, 6).double()
    torch.testing.assert_close(layer(x, audio)[0], layer.norm(x))
    torch.nn.init.normal_(layer.out_bn.weight)
    out, aligned = layer(x, audio)
    torch.testing.assert_close(out, published_tpavi(layer, x, audio), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(out, layer.norm(x))
    assert aligned is not None
    assert aligned.shape == (2, 5, 16)


def test_rectified_units_add_the_rectified_input() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 5)
    reference, fixed = ResidualUnit(4, rectified=True), ResidualUnit(4, rectified=False)
    fixed.load_state_dict(reference.state_dict())
    torch.testing.assert_close(reference(x) - fixed(x), x.relu() - x)


def test_the_mask_is_as_large_as_asked_for_with_any_number_of_taps() -> None:
    audio = torch.randn(2, 3, 4, 8)
    for sides in ([6, 3, 2, 1], [6, 3], [5]):
        taps = [torch.randn(2, 3, side**2, 12) for side in sides]
        out = AvsHead([12] * len(sides), 8, AVS)(taps, audio)
        assert out.mask_logits.shape == (2, 3, 32, 32)
        assert [grid.shape[-1] for grid in out.maps] == [8, 4, 2, 1][: len(sides)]


def test_case_can_reach_the_mask_through_the_last_tap() -> None:
    torch.manual_seed(0)
    head = AvsHead([12, 12], 8, AVS).eval()
    taps, audio = (
        [torch.randn(1, 3, 16, 12), torch.randn(1, 3, 4, 12, requires_grad=True)],
        torch.randn(1, 3, 4, 8),
    )
    head(taps, audio).mask_logits.sum().backward()
    assert taps[1].grad is not None
    assert taps[1].grad.abs().sum() > 0


def test_unrectified_maps_keep_their_sign() -> None:
    taps, audio = [torch.randn(1, 2, 16, 12)], torch.randn(1, 2, 4, 8)
    maps = {}
    for rectified in (True, False):
        torch.manual_seed(0)
        head = AvsHead([12], 8, AVS.model_copy(update={"rectified": rectified})).eval()
        maps[rectified] = head(taps, audio).maps[0]
    assert (maps[False] < 0).any()
    torch.testing.assert_close(maps[True], maps[False].relu())
    units = [module for module in head.modules() if isinstance(module, ResidualUnit)]
    assert units and not any(unit.rectified for unit in units)


def test_maps_need_square_grids_and_masks_that_halve() -> None:
    with pytest.raises(MapError, match="50 tokens per frame are no square grid"):
        token_maps(torch.zeros(1, 2, 50, 3), 4)
    with pytest.raises(MapError, match="mask of 40 pixels does not halve evenly over 4 maps"):
        AvsHead([4] * 4, 4, AVS.model_copy(update={"mask_size": 40}))


def test_grounding_averages_unit_tokens_by_likeness() -> None:
    torch.manual_seed(0)
    tokens, audio = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    alike = torch.einsum("btlc,btc->btl", unit, torch.nn.functional.normalize(audio, dim=-1))
    wanted = torch.einsum("btl,btlc->btc", alike.softmax(dim=-1), unit)
    torch.testing.assert_close(ground(tokens, audio), wanted)


def test_padding_changes_the_question_unless_it_is_skipped() -> None:
    torch.manual_seed(0)
    reference = QuestionEncoder(9, 6)
    skipping = QuestionEncoder(9, 6, skip_padding=True)
    skipping.load_state_dict(reference.state_dict())
    short, padded = torch.tensor([[3, 5]]), torch.tensor([[3, 5, 0, 0], [1, 2, 3, 4]])
    torch.testing.assert_close(skipping(padded)[0], reference(short)[0])
    torch.testing.assert_close(skipping(padded)[1], reference(padded)[1])
    assert not torch.allclose(reference(padded)[0], reference(short)[0])
    gap = torch.tensor([[3, 0, 5, 0]])  # up to the last word, whatever stands between
    torch.testing.assert_close(skipping(gap), reference(gap[:, :3]))
    assert skipping(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()  # a question without a word


def test_the_match_needs_negatives_only_when_there_are_some() -> None:
    head = AvqaHead(12, 8, 9, 20, AVQA)
    out = head(trunk(), torch.ones(2, 4, dtype=torch.long))
    assert out.match_negative is None
    assert out.match_positive.shape == (2, 5, 2)
    assert out.answer_logits.shape == (2, 9)


def test_negatives_of_the_batch_are_the_other_clips_after_the_adapters() -> None:
    torch.manual_seed(0)
    config = AVQA.model_copy(update={"negatives": "batch", "input_norm": "batch", "dropout": 0.0})
    head = AvqaHead(12, 8, 9, 20, config).train()
    asked, places = torch.randint(1, 20, (3, 4)), torch.tensor([0, 1, 0])
    x = trunk()
    out = head(x, asked, clip_of=places)
    exchanged = head(replace(x, visual=x.visual.flip(0)), asked, clip_of=places)
    assert out.match_negative is not None and out.match_negative.shape == (3, 5, 2)
    torch.testing.assert_close(out.match_negative, exchanged.match_positive)
    alone = replace(x, visual=x.visual[:1], audio=x.audio[:1])
    assert head(alone, asked[:1]).match_negative is None
    assert head.eval()(x, asked, clip_of=places).match_negative is None


def test_negatives_that_bypass_the_adapters_do_not_change_running_statistics() -> None:
    torch.manual_seed(0)
    x, asked = trunk(), torch.ones(2, 4, dtype=torch.long)
    heads = [
        AvqaHead(12, 8, 9, 20, AVQA.model_copy(update={"input_norm": "batch"})).train() for _ in range(2)
    ]
    heads[0](x, asked, 100 + torch.randn_like(x.visual))
    heads[1](x, asked)
    norms = [head.visual_in_norm.norm for head in heads]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)
    assert torch.equal(norms[0].running_var, norms[1].running_var)


@pytest.mark.parametrize("run", [run_avvp, run_avqa, run_avs])
def test_heads_run_in_half_precision(run: Callable[[TrunkOutput, Tensor], list[Tensor]]) -> None:
    torch.manual_seed(1)
    x, extra = trunk(), torch.randn(2, 5, 7)
    full = run(x, extra)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(x, extra)
    for a, b in zip(full, half, strict=True):
        assert (a - b.to(a.dtype)).abs().mean() <= 0.03 * a.abs().max()


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (AvvpHeadConfig, {"width": 30}, "width 30 must be a multiple of heads 8"),
        (AvsHeadConfig, {"width": 30}, "width 30 must be even and a multiple of heads 4"),
        (AvsHeadConfig, {"channels": 7}, "channels 7 must be even"),
    ],
)
def test_widths_are_checked(config: type, values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_a_hidden_layer_lets_the_answer_depend_on_the_clip_without_the_question() -> None:
    for hidden, differ in ((0, False), (16, True)):
        torch.manual_seed(0)
        head = AvqaHead(12, 8, 9, 20, AVQA.model_copy(update={"answer_hidden": hidden})).eval()
        torch.nn.init.zeros_(head.question.out.weight)
        torch.nn.init.zeros_(head.question.out.bias)
        first, second = head(trunk(), torch.ones(2, 4, dtype=torch.long)).answer_logits
        assert first.shape == (9,)
        assert torch.equal(first, second) is not differ
