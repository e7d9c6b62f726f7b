"""The AVVP grouping head and loss equal the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from caeav.model.tasks.avvp.grouping import GroupTransformer
from caeav.model.tasks.avvp.head import AvvpOutput, SegmentGates, frame_attention
from caeav.model.tasks.avvp.loss import avvp_loss

GROUP = "avvp"

Vector = Any
Tensors = dict[str, Tensor]


class WithTokens(nn.Module):
    """The vectors count the class tokens among the inputs; they are ours to pass on."""

    def __init__(self, transformer: GroupTransformer) -> None:
        super().__init__()
        self.blocks, self.grouping = transformer.blocks, transformer.grouping
        if transformer.han is not None:
            self.han = transformer.han
        self._run = [transformer]

    def forward(self, x: Tensors) -> Tensors:
        out = self._run[0](x["x"], x["class_tokens"], x.get("x_other"))
        attention = frame_attention(out.logits, bounded=False)
        return {"groups": out.groups, "soft_attention": attention.unsqueeze(1), "segments": out.segments}


def build_group(v: Vector) -> nn.Module:
    groups, width = v.shape("input.class_tokens")[-2:]
    other = v.shape("input.x_other")[1] if v.has("input.x_other") else None
    return WithTokens(
        GroupTransformer(width, groups, v.hyper("depth"), v.hyper("heads"), other_segments=other)
    )


def run_loss(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    frames = torch.zeros(0)  # the loss does not read them
    loss = avvp_loss(
        AvvpOutput(
            x["clip_prob"],
            x["audio_prob"],
            x["visual_prob"],
            frames,
            frames,
            x["audio_token_logits"],
            x["visual_token_logits"],
        ),
        x["labels"],
        visual_keep=v.hyper("label_smoothing_visual"),
        audio_keep=v.hyper("label_smoothing_audio"),
    )
    names = ["clip_bce", "audio_bce", "visual_bce_smoothed", "audio_token_ce", "visual_token_ce"]
    return {"total": sum(loss).view(1)} | {
        name: value.view(1) for name, value in zip(names, loss, strict=True)
    }


def build_gates(v: Vector) -> nn.Module:
    return SegmentGates(
        v.shape("input.visual")[2],
        heads=v.hyper("heads"),
        hidden=v.hyper("ffn"),
        layers=v.hyper("encoder_layers"),
        dropout=0.1,
        gamma=v.hyper("gamma"),
    )


def run_gates(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    visual, audio = m(x["visual"], x["audio"])
    return {"visual": visual, "audio": audio}


TABLE: dict[str, tuple[Callable[[Vector], nn.Module], Callable[..., Tensors]]] = {
    "avvp_group_transformer": (build_group, lambda m, x, v: m(x)),
    "dgsct_temporal_avvp": (build_gates, run_gates),
    "loss_avvp": (lambda v: nn.Module(), run_loss),
}


def test_equals_the_reference(vector: Vector, check_vector: Callable[..., None]) -> None:
    check_vector(vector, *TABLE[vector.kind])
