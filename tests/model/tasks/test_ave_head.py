"""The AVE head's loss and metric by hand, and the loader of vector parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from vector_names import VectorMismatchError, load_vector_parameters

from caeav.model.adapters.batch import TrunkOutput
from caeav.model.tasks.ave.config import AveHeadConfig
from caeav.model.tasks.ave.head import AveHead, LocalisationHead
from caeav.model.tasks.ave.loss import ave_loss, event_class
from caeav.model.tasks.ave.metric import AveMetric

SMALL = AveHeadConfig(visual_in=16, audio_in=8, width=16, hidden=32)


def one_hot(rows: list[list[int]], classes: int) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(rows), classes + 1).float()


def test_loss_by_hand() -> None:
    labels = one_hot([[2, 1], [2, 2]], classes=2)  # clip 0: background, class 1; clip 1: nothing at all
    assert event_class(labels).tolist() == [1, 0]
    relevance = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    scores, av = torch.zeros(2, 2), torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    loss = ave_loss(relevance, scores, av, labels)
    assert loss.relevance.item() == pytest.approx((3 * math.log(2) - math.log(0.75)) / 4)
    assert loss.event.item() == pytest.approx(math.log(2))
    assert loss.score.item() == pytest.approx((-math.log(0.75) + math.log(2)) / 2)


def test_a_class_without_seconds_has_no_accuracy() -> None:
    metric = AveMetric(classes=2)
    with pytest.raises(ValueError, match="call update"):
        metric.compute()
    metric.update(torch.tensor([[5.0]]), torch.tensor([[1.0, 0.0]]), one_hot([[0]], 2))
    assert metric.compute().per_class[0] == 1.0
    assert all(math.isnan(x) for x in metric.compute().per_class[1:])


def test_clips_shorter_than_topk_frames_average_what_there_is() -> None:
    torch.manual_seed(0)
    head = LocalisationHead(3, SMALL)
    visual, audio = torch.randn(2, 2, 16), torch.randn(2, 2, 16)
    want = (head.visual_frame_class(visual).mean(1) + head.audio_frame_class(audio).mean(1)) / 2
    torch.testing.assert_close(head(visual, audio).av_score, want)


def test_clips_of_a_batch_do_not_influence_each_other() -> None:
    torch.manual_seed(0)
    head = AveHead(12, 8, 3, SMALL.model_copy(update={"interaction": True})).eval()
    trunk = TrunkOutput(torch.randn(2, 5, 4, 12), torch.randn(2, 5, 3, 8))
    before = head(trunk)
    trunk.visual[1] += 1
    after = head(trunk)
    assert torch.equal(before.event_relevance[0], after.event_relevance[0])
    assert not torch.equal(before.event_relevance[1], after.event_relevance[1])


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_input_norm_makes_the_head_blind_to_scale(kind: str) -> None:
    torch.manual_seed(0)
    head = AveHead(
        12, 8, 3, SMALL.model_copy(update={"input_norm": kind, "dropout": 0.0, "visual_dropout": 0.0})
    )
    trunk = TrunkOutput(torch.randn(4, 5, 4, 12), torch.randn(4, 5, 3, 8))
    scaled = TrunkOutput(trunk.visual * 50, trunk.audio * 50)
    torch.testing.assert_close(
        head(trunk).event_relevance, head(scaled).event_relevance, atol=1e-3, rtol=1e-3
    )


def test_head_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="width 30 must be even and a multiple of heads 4"):
        AveHeadConfig(width=30)


def test_vector_tensors_are_loaded_all_or_none() -> None:
    module = nn.Sequential(nn.Linear(2, 3))
    weight = torch.ones(3, 2, 1, 1)
    with pytest.raises(
        VectorMismatchError, match=r"missing for \['0.bias'\]; not known to the module: \['x'\]"
    ):
        load_vector_parameters(module, {"0.weight": weight, "x": weight})
    with pytest.raises(VectorMismatchError, match=r"0.weight has shape \[2, 3\], the module has \[3, 2\]"):
        load_vector_parameters(module, {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(3)})
    load_vector_parameters(module, {"0.weight": weight, "0.bias": torch.zeros(3)})
    assert (module[0].weight == 1).all()
