"""The AVE head, loss and metric equal the reference. The vectors are time-major, we are batch-first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from caeav.model.tasks.ave.config import AveHeadConfig
from caeav.model.tasks.ave.head import LocalisationHead, TemporalAttention
from caeav.model.tasks.ave.loss import ave_loss, event_class
from caeav.model.tasks.ave.metric import AveMetric

GROUP = "ave"

Vector = Any
Tensors = dict[str, Tensor]


def swap(x: Tensor) -> Tensor:
    """Time-major to batch-first and back."""
    return x.transpose(0, 1)


def layers_of(v: Vector, stack: str) -> int:
    return len({n.split(".")[3] for n in v.tensors if n.startswith(f"param.{stack}.layers.")})


def build_temporal(v: Vector) -> nn.Module:
    config = AveHeadConfig(
        visual_in=v.shape("param.visual_in.weight")[0],
        audio_in=v.shape("param.audio_in.weight")[0],
        width=v.shape("param.visual_encoder.in_proj.weight")[0],
        hidden=v.shape("param.visual_encoder.layers.0.ffn_in.weight")[0],
        heads=v.hyper("heads"),
        encoder_layers=layers_of(v, "visual_encoder"),
        decoder_layers=layers_of(v, "visual_decoder"),
        gamma=v.hyper("gamma"),
    )
    return TemporalAttention(v.shape("input.visual")[2], v.shape("input.audio")[2], config)


def run_temporal(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    out = m(x["visual"], x["audio"])
    return {"visual": swap(out.visual), "audio": swap(out.audio), "gate": swap(out.gate)}


def build_localisation(v: Vector) -> nn.Module:
    config = AveHeadConfig(
        width=v.shape("input.visual")[2],
        heads=v.hyper("heads"),
        topk_frames=v.hyper("topk_frames"),
        score_weight=v.hyper("gamma"),
        interaction=bool(v.hyper("inter")),
    )
    return LocalisationHead(v.shape("param.event_class.weight")[0], config)


def run_localisation(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    out = m(swap(x["visual"]), swap(x["audio"]))
    return {
        "event_relevance": swap(out.event_relevance).unsqueeze(-1),
        "event_scores": out.event_scores,
        "av_score": out.av_score,
        "visual_out": swap(out.visual),
        "audio_out": swap(out.audio),
    }


def run_loss(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    relevance = swap(x["event_relevance"]).squeeze(-1)
    loss = ave_loss(relevance, x["event_scores"], x["av_score"], x["labels"])
    metric = AveMetric(x["event_scores"].shape[1])
    metric.update(relevance, x["event_scores"], x["labels"])
    return {
        "total": sum(loss).view(1),
        "relevance_bce": loss.relevance.view(1),
        "event_ce": loss.event.view(1),
        "av_ce": loss.score.view(1),
        "event_index": event_class(x["labels"]),
        "accuracy_percent": torch.tensor([100 * metric.compute().accuracy], dtype=torch.float64),
    }


TABLE: dict[str, tuple[Callable[[Vector], nn.Module], Callable[..., Tensors]]] = {
    "ave_temporal_attention": (build_temporal, run_temporal),
    "dgsct_temporal_ave": (build_temporal, run_temporal),
    "ave_localisation_head": (build_localisation, run_localisation),
    "loss_metric_ave": (lambda v: nn.Module(), run_loss),
}


def test_equals_the_reference(vector: Vector, check_vector: Callable[..., None]) -> None:
    check_vector(vector, *TABLE[vector.kind])
