"""The official metrics number for number: LLP, AVSBench."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from caeav.model.tasks.avs.metric import AvsMetric, f_curves, frame_iou
from caeav.model.tasks.avvp.head import AvvpOutput
from caeav.model.tasks.avvp.metric import AvvpMetric, predict_tracks

GROUP = "metrics"

Vector = Any
Tensors = dict[str, Tensor]


def run_avvp(x: Tensors) -> Tensors:
    metric = AvvpMetric(x["gt_audio"].shape[1])
    tracks = [x[name] > 0 for name in ("pred_audio", "pred_visual", "gt_audio", "gt_visual")]
    for clips in zip(*(track.split(4) for track in tracks), strict=True):
        metric.update_tracks(*clips)
    score = metric.compute()
    summary = torch.tensor([*astuple(score.segment), *astuple(score.event)], dtype=torch.float64)
    return {"segment_f": score.per_clip[0], "event_f": score.per_clip[1], "summary": summary}


def run_threshold(x: Tensors) -> Tensors:
    unused = torch.zeros(0)
    tracks = predict_tracks(
        AvvpOutput(
            x["clip_prob"], unused, unused, x["audio_frame_prob"], x["visual_frame_prob"], unused, unused
        )
    )
    return {f"pred_{name}": track[0].float() for name, track in zip(("audio", "visual"), tracks, strict=True)}


def run_avs(x: Tensors) -> Tensors:
    logits, masks = x["mask_logits"], x["masks"]
    metric = AvsMetric()
    metric.update(logits.unsqueeze(0), masks.unsqueeze(0))
    score = metric.compute()
    best = f_curves(logits, masks).amax(dim=-1)
    empty = ~masks.flatten(1).any(dim=1)
    return {
        "miou": torch.tensor([score.mean_iou]),
        "f_measure": torch.tensor([score.f_measure]),
        "iou_each": frame_iou(logits, masks),
        "f_each": torch.where(empty, torch.nan, best),
    }


TABLE = {"metric_avvp": run_avvp, "metric_avvp_threshold": run_threshold, "metric_avs": run_avs}


def test_equals_the_official_evaluation(vector: Vector) -> None:
    found = TABLE[vector.kind](vector.group("input"))
    wanted = vector.group("output")
    assert wanted.keys() == found.keys()
    for name, want in wanted.items():
        # The official mask metrics are computed in float32 and only stored wider.
        tolerance = 1e-6 if vector.kind == "metric_avs" or want.dtype == torch.float32 else 1e-9
        torch.testing.assert_close(
            found[name].double(), want.double(), rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )
