"""The losses of AVVP, AVS and AVQA by hand; the vectors are in golden/."""

from __future__ import annotations

import math

import pytest
import torch

from caeav.model.tasks.ave.loss import weak_ave_loss
from caeav.model.tasks.avqa.loss import avqa_loss
from caeav.model.tasks.avs.loss import (
    mask_loss,
    masked_divergence,
    masked_similarity,
    nearest_sound_divergence,
)
from caeav.model.tasks.avvp.head import AvvpOutput
from caeav.model.tasks.avvp.loss import avvp_loss

LOG2 = math.log(2)


def test_avvp_loss_smooths_the_visual_target_only() -> None:
    half, sure = torch.full((1, 2), 0.5), torch.tensor([[1.0, 0.0]])
    unused = torch.zeros(0)
    loss = avvp_loss(AvvpOutput(half, sure, sure, unused, unused, torch.zeros(2, 2), torch.eye(2)), sure)
    assert loss.clip.item() == pytest.approx(LOG2)
    assert loss.audio.item() == pytest.approx(0, abs=1e-6)
    assert loss.visual.item() == pytest.approx(-0.05 * math.log(1e-7), rel=0.02)  # clamped, not infinite
    assert loss.audio_token.item() == pytest.approx(LOG2)
    assert loss.visual_token.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_avvp_loss_stays_finite_in_half_precision() -> None:
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    unused = torch.zeros(0)
    output = AvvpOutput(sure, sure, sure, unused, unused, torch.zeros(2, 2), torch.zeros(2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = avvp_loss(output, 1 - sure)
    assert loss.clip.item() == pytest.approx(-math.log(1e-7), rel=0.02)


def test_avqa_loss_by_hand() -> None:
    sure = torch.tensor([[[0.0, math.log(3)]]])
    loss = avqa_loss(torch.zeros(1, 4), sure, sure, torch.tensor([2]))
    assert loss.answer.item() == pytest.approx(2 * LOG2)
    assert loss.match.item() == pytest.approx((-math.log(0.75) - math.log(0.25)) / 2)


def test_an_unlisted_answer_gives_no_loss() -> None:
    sure, logits = torch.zeros(2, 1, 2), torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    assert avqa_loss(logits, sure, sure, torch.tensor([0, -1])).answer.item() == pytest.approx(LOG2)
    assert avqa_loss(logits, sure, sure, torch.tensor([-1, -1])).answer.item() == 0


def test_mask_loss_reads_as_many_frames_as_have_masks() -> None:
    logits = torch.zeros(2, 5, 4, 4)
    logits[:, 1:] = 50.0
    assert mask_loss(logits, torch.zeros(2, 1, 4, 4)).item() == pytest.approx(LOG2)
    assert mask_loss(logits, torch.zeros(2, 5, 4, 4)).item() == pytest.approx((LOG2 + 4 * 50) / 5, rel=1e-5)


def test_masked_similarity_by_hand() -> None:
    logits = torch.full((1, 1, 4, 4), -50.0)
    logits[..., :2] = 50.0  # the left half
    grid = torch.zeros(1, 1, 2, 2, 2)
    grid[0, 0, 0, :, 0] = 1.0  # left places: channel 0; right places: channel 1
    grid[0, 0, 1, :, 1] = 1.0
    same, other = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])
    assert masked_similarity(logits, [grid], [same]).item() == pytest.approx(0, abs=1e-5)
    assert masked_similarity(logits, [grid], [other]).item() == pytest.approx(-math.log(1e-6), rel=1e-4)
    mean = masked_similarity(logits, [grid, grid], [same, other]).item()
    assert mean == pytest.approx(-math.log(1e-6) / 2, rel=1e-4)


def test_masked_divergence_sums_over_frames() -> None:
    logits = torch.zeros(2, 3, 4, 4)  # every place half covered
    grid = torch.zeros(2, 3, 2, 2, 2)
    grid[:, :, 1] = 2 * math.log(3)  # pooled: log 3 -> softmax (1/4, 3/4)
    audio = torch.zeros(2, 3, 2)
    per_frame = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert masked_divergence(logits, [grid], [audio]).item() == pytest.approx(6 * per_frame, rel=1e-5)


def test_nearest_sound_is_never_the_frame_itself() -> None:
    torch.manual_seed(0)
    logits, grid = torch.zeros(1, 3, 2, 2), torch.rand(1, 3, 4, 1, 1, requires_grad=True)
    audio = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])  # 0 and 1 are near; 2 is nearest to 1
    loss = nearest_sound_divergence(logits, [grid], [audio])
    unit = torch.nn.functional.normalize(grid[0, :, :, 0, 0], dim=-1).softmax(dim=-1)
    wanted = sum((unit[j] * (unit[j] / unit[i]).log()).sum() for i, j in ((0, 1), (1, 0), (2, 1)))
    torch.testing.assert_close(loss, wanted)
    assert loss.item() > 0


def test_weak_labels_are_the_events_that_occur_in_a_clip() -> None:
    """Whether an event occurs counts, not for how long; background is no class."""
    labels = torch.zeros(2, 4, 3)
    labels[0, 1, 0] = labels[1, :3, 1] = 1  # one second of the first class, three of the second
    labels[..., 2] = 1 - labels[..., :2].sum(dim=-1)
    p = torch.tensor([[0.8, 0.3], [0.4, 0.9]])
    wanted = -(p[0, 0].log() + (1 - p[0, 1]).log() + (1 - p[1, 0]).log() + p[1, 1].log()) / 4
    torch.testing.assert_close(weak_ave_loss(p.log(), labels), wanted)
    sure = torch.zeros(1, 2)  # a probability of one: its complement has no logarithm
    assert weak_ave_loss(sure, labels[:1]).isfinite()
