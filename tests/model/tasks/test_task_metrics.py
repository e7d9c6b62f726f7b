"""The metrics of AVVP, AVS and AVQA by hand: runs, ties, empty truth, calls; the vectors are in golden/."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caeav.manifests.clip import Clip
from caeav.model.adapters.batch import Inputs, InputSpec
from caeav.model.tasks.ave.metric import AveMetric, predict_seconds
from caeav.model.tasks.avqa.metric import QUESTION_TYPES, AvqaMetric, QuestionTypeError
from caeav.model.tasks.avs.metric import AvsMetric, f_curves, frame_iou
from caeav.model.tasks.avvp.head import AvvpOutput
from caeav.model.tasks.avvp.metric import AvvpMetric, clip_f, predict_tracks, run_hits, segment_counts
from caeav.model.tasks.avvp.prediction import Tracks
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.sample import Sample
from caeav.model.train.config_file import resolve_config


def track(text: str) -> Tensor:
    """`"11.1"` -> bool track."""
    return torch.tensor([c == "1" for c in text])


@pytest.mark.parametrize(
    ("predicted", "truth", "hits", "false_alarms", "misses"),
    [
        ("11.1", "1111", 1, 1, 0),  # 2 of 4 seconds: exactly one half is enough
        ("1...", "111.", 0, 1, 1),
        ("....", "1.1.", 0, 0, 2),
        ("1111", "....", 0, 1, 0),
        ("....", "....", 0, 0, 0),
        ("1.11", "1.11", 2, 0, 0),  # a run at the very end
        ("1111", "11.1", 1, 0, 1),
        (".11.", ".11.", 1, 0, 0),
    ],
)
def test_a_run_is_hit_when_at_least_half_of_it_overlaps(
    predicted: str, truth: str, hits: int, false_alarms: int, misses: int
) -> None:
    assert run_hits(track(predicted), track(truth)).tolist() == [hits, false_alarms, misses]


def runs_by_hand(tracks: list[bool]) -> list[set[int]]:
    groups = groupby(range(len(tracks)), key=lambda t: tracks[t])
    return [set(times) for active, times in groups if active]


def test_runs_equal_a_search_over_sets() -> None:
    torch.manual_seed(0)
    predicted, truth = torch.rand(2, 60, 3, 10) > 0.4
    counts = run_hits(predicted, truth)
    for clip in range(60):
        for c in range(3):
            ours, theirs = runs_by_hand(predicted[clip, c].tolist()), runs_by_hand(truth[clip, c].tolist())
            hit = [any(len(p & t) / len(p | t) >= 0.5 for t in theirs) for p in ours]
            missed = sum(not any(len(p & t) / len(p | t) >= 0.5 for p in ours) for t in theirs)
            assert counts[clip, c].tolist() == [sum(hit), len(hit) - sum(hit), missed]


def test_clip_f_averages_the_classes_that_occur() -> None:
    predicted = torch.stack([track("11.."), track("...."), track("1...")])
    truth = torch.stack([track("1.1."), track("...."), track("....")])
    # Class 0: TP 1, FP 1, FN 1 -> 1/2; class 1 occurs nowhere; class 2: a false alarm -> 0.
    assert clip_f(segment_counts(predicted, truth)).item() == pytest.approx(0.25)
    nothing = torch.zeros_like(predicted)
    assert clip_f(segment_counts(nothing, nothing)).item() == 1.0


def test_a_second_needs_the_clip_as_well_and_ties_count() -> None:
    half = torch.tensor([[0.5, 0.49]])
    frames = torch.tensor([[[0.5, 0.9], [0.4, 0.9], [0.9, 0.9]]])  # [B, T, K]
    unused = torch.zeros(0)
    audio, visual = predict_tracks(AvvpOutput(half, unused, unused, frames, 1 - frames, unused, unused))
    assert audio.int().tolist() == [[[1, 0, 1], [0, 0, 0]]]
    assert visual.int().tolist() == [[[1, 1, 0], [0, 0, 0]]]


def test_avvp_scores_by_hand() -> None:
    audio, visual = track("11..").view(1, 1, 4), track(".111").view(1, 1, 4)
    metric = AvvpMetric(classes=1)
    metric.update_tracks(audio, visual, audio, track("...1").view(1, 1, 4))
    empty = torch.zeros(1, 1, 4, dtype=torch.bool)
    metric.update_tracks(empty, empty, empty, empty)  # nothing there, nothing predicted: 1 everywhere
    score = metric.compute()
    # Visual: TP 1, FP 2 -> 1/2. AV: predicted second 1 only, truth none -> 0. Pooled: TP 3, FP 2 -> 6/8.
    assert score.segment.audio == pytest.approx(100)
    assert score.segment.visual == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert score.segment.audio_visual == pytest.approx(100 * (0 + 1) / 2)
    assert score.segment.type_av == pytest.approx((100 + 75 + 50) / 3)
    assert score.segment.event_av == pytest.approx(100 * (6 / 8 + 1) / 2)
    # Events: the visual run covers 1 of 3 seconds: one false alarm and one miss.
    assert score.event.visual == pytest.approx(100 * (0 + 1) / 2)
    assert score.event.event_av == pytest.approx(100 * (2 / 4 + 1) / 2)
    assert score.clips == 2
    assert score.per_clip.shape == (2, 2, 4)
    torch.testing.assert_close(score.per_class[0, :, 0], torch.tensor([1, 0.5, 0.75, 0]).double())


def masks_by_hand(logits: Tensor, masks: Tensor) -> tuple[float, float]:
    """One official call, threshold after threshold: mean IoU, best of the averaged curve."""
    ious, curves = [], []
    for frame, mask in zip(logits.sigmoid(), masks, strict=True):
        shown = (frame > 0.5).float()
        if mask.sum() == 0:
            ious.append(((1 - shown) * (1 - mask)).sum() / (mask.numel() + 1e-7))
            continue
        ious.append((shown * mask).sum() / (torch.maximum(shown, mask).sum() + 1e-7))
        curve = []
        for threshold in torch.linspace(0, 1 - 1e-10, 255):
            reached = (frame >= threshold).float()
            precision = (reached * mask).sum() / (reached.sum() + 1e-20)
            recall = (reached * mask).sum() / (mask.sum() + 1e-20)
            value = 1.3 * precision * recall / (0.3 * precision + recall)
            curve.append(0.0 if value.isnan() else value.item())
        curves.append(torch.tensor(curve))
    best = torch.stack(curves).mean(dim=0).max().item() if curves else 0.0
    return torch.stack(ious).mean().item(), best


@pytest.mark.parametrize("clips_per_call", [1, 2])
def test_mask_scores_depend_on_the_call_not_on_the_batch(clips_per_call: int) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(3, 2, 12, 12)
    logits[0, 0, :4] = 30.0  # saturates: reaches even the last threshold, 1
    masks = (torch.rand(3, 2, 12, 12) > 0.7).float()
    masks[1, 0] = 0
    calls = [slice(0, 1), slice(1, 2), slice(2, 3)] if clips_per_call == 1 else [slice(0, 2), slice(2, 3)]
    wanted = torch.tensor([masks_by_hand(logits[c].flatten(0, 1), masks[c].flatten(0, 1)) for c in calls])
    for batch in (1, 3):
        metric = AvsMetric(clips_per_call)
        for chunk in zip(logits.split(batch), masks.split(batch), strict=True):
            metric.update(*chunk)
        score = metric.compute()
        torch.testing.assert_close(score.calls.float(), wanted, rtol=1e-5, atol=1e-6)
        assert score.f_measure == pytest.approx(wanted[:, 1].mean().item(), abs=1e-6)
        assert (score.frames, score.empty_frames) == (6, 1)


def test_a_call_without_any_mask() -> None:
    logits = torch.full((1, 2, 4, 4), -5.0)
    logits[0, 1, 0] = 5.0  # a quarter of the second frame is wrongly filled
    metric = AvsMetric()
    metric.update(logits, torch.zeros(1, 2, 4, 4))
    score = metric.compute()
    assert score.mean_iou == pytest.approx((1 + 0.75) / 2)
    assert score.f_measure == 0.0


def test_a_perfect_mask_and_one_that_misses_everything() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, :2] = 1
    right, wrong = 20 * (mask - 0.5), -20 * (mask - 0.5)
    assert frame_iou(right, mask).item() == pytest.approx(1)
    assert f_curves(right, mask).max().item() == pytest.approx(1)
    assert frame_iou(wrong, mask).item() == 0
    # Only where the threshold is so low that the whole frame is taken: precision 1/2, recall 1.
    assert f_curves(wrong, mask).max().item() == pytest.approx(1.3 * 0.5 / (0.15 + 1))


def test_a_pixel_at_one_half_is_not_covered() -> None:
    mask = torch.zeros(1, 2, 2)
    mask[0, 0] = 1
    logits = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])  # a probability of one half exactly is not above it
    assert frame_iou(logits, mask).item() == pytest.approx(1 / 2)
    assert frame_iou(logits, torch.zeros(1, 2, 2)).item() == pytest.approx(
        3 / 4
    )  # empty truth: three left empty


def test_a_pixel_at_a_threshold_reaches_it() -> None:
    """Of the official 255 thresholds the first is 0, the last 1 in float32, and 127 lies at one half."""
    mask = torch.zeros(1, 2, 2)
    mask[0, 0] = 1
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    assert (thresholds[0], thresholds[127], thresholds[-1]) == (0.0, 0.5, 1.0)
    sure = torch.tensor([[[200.0, 200.0], [-200.0, -200.0]]])  # 1 and 0 exactly
    curve = f_curves(sure, mask)[0]
    assert curve[-1].item() == pytest.approx(1)  # at a threshold of 1 only what is 1
    assert curve[0].item() == pytest.approx(1.3 * 0.5 / (0.15 + 1))  # at 0 also what is 0: the whole frame
    half = torch.tensor([[[0.0, 0.0], [-200.0, -200.0]]])
    curve = f_curves(half, mask)[0]
    assert (curve[127].item(), curve[128].item()) == (pytest.approx(1), 0.0)


def test_a_second_at_one_half_is_background() -> None:
    relevance = torch.tensor([[0.0, 1e-3, -1e-3]])
    assert predict_seconds(relevance, torch.tensor([[0.1, 0.9]])).tolist() == [[2, 1, 2]]
    # Of equal class scores the first counts.
    assert predict_seconds(relevance, torch.tensor([[0.5, 0.5]])).tolist() == [[2, 0, 2]]


def test_the_mean_over_batches_and_the_hits_of_each_clip() -> None:
    metric = AveMetric(classes=2)
    labels = F.one_hot(torch.tensor([[0, 0, 2, 2], [1, 1, 1, 2], [0, 2, 2, 2]]), 3)
    relevance = torch.tensor([[9.0, 9, -9, -9], [9, 9, -9, 9], [-9, -9, -9, -9]])
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    metric.update(relevance[:2], scores[:2], labels[:2])
    metric.update(relevance[2:], scores[2:], labels[2:])
    found = metric.compute()
    assert found.clip_hits.tolist() == [4, 2, 3]
    assert found.accuracy == pytest.approx(9 / 12)
    assert found.batch_mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert found.per_class == pytest.approx((2 / 3, 2 / 3, 5 / 6))
    assert sum(found.class_seconds) == 12


def test_answers_are_pooled_by_type_and_modality() -> None:
    metric = AvqaMetric()
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    counting, temporal = ["Audio", "Counting"], ["Audio-Visual", "Temporal"]
    metric.update(logits, torch.tensor([0, 1, 1]), [counting, ["Audio", "Comparative"], temporal])
    metric.update(
        logits[:1], torch.tensor([-1]), [counting]
    )  # an answer outside the vocabulary is never right
    score = metric.compute()
    assert score.accuracy == pytest.approx(2 / 4)
    assert score.per_type == {
        ("Audio", "Counting"): 0.5,
        ("Audio", "Comparative"): 0.0,  # of equal scores the first counts
        ("Audio-Visual", "Temporal"): 1.0,
    }
    assert score.per_modality == {"Audio": pytest.approx(1 / 3), "Audio-Visual": 1.0}
    assert sum(score.questions.values()) == 4
    assert len(QUESTION_TYPES) == 9


def test_unknown_question_types_are_refused_before_anything_is_counted() -> None:
    metric = AvqaMetric()
    with pytest.raises(QuestionTypeError, match=r"\('Audio', 'Temporal'\)"):
        metric.update(torch.zeros(1, 2), torch.tensor([0]), [["Audio", "Temporal"]])
    with pytest.raises(ValueError, match="call update"):
        metric.compute()


@pytest.mark.parametrize("metric", [AvvpMetric(2), AvsMetric()])
def test_a_score_needs_an_update(metric: AvvpMetric | AvsMetric) -> None:
    with pytest.raises(ValueError, match="call update"):
        metric.compute()


def test_a_prediction_of_avvp_uses_the_threshold_of_its_scores() -> None:
    frames = torch.tensor([[[0.45, 0.1], [0.6, 0.1], [0.1, 0.1]]])  # [B, T, K]
    output = AvvpOutput(**{name: torch.ones(1, 2) for name in AvvpOutput._fields})._replace(
        audio_frame_prob=frames, visual_frame_prob=frames.flip(1)
    )
    inputs, sample = (
        Inputs("d", ("bell", "dog"), 1.0, InputSpec(3, (), ())),
        Sample("a", Clip("a", "", 0.0, 3.0), ""),
    )
    audio, visual = [], []
    for threshold in (0.5, 0.4):
        config = resolve_config("avvp", "none", assignments=[f"metric.threshold={threshold}"])
        found = TASKS["avvp"].decode(output, inputs, config, sample)
        assert isinstance(found, Tracks)
        audio.append(found.on["audio"][:, 0].tolist())
        visual.append(found.on["visual"][:, 0].tolist())
    assert audio == [[False, True, False], [True, True, False]]
    assert visual == [[False, True, False], [False, True, True]]


def test_each_type_weighs_by_the_number_of_its_questions() -> None:
    metric = AvqaMetric()
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for logits, kind in ((right, 0), (right, 0), (right, 0), (wrong, 1), (wrong, 4)):
        metric.update(logits, torch.tensor([0]), [QUESTION_TYPES[kind]])
    score = metric.compute()
    assert score.accuracy == pytest.approx(3 / 5)
    assert [score.per_type[QUESTION_TYPES[k]] for k in (0, 1, 4)] == [1, 0, 0]
    assert score.per_modality[QUESTION_TYPES[0][0]] == pytest.approx(3 / 4)
