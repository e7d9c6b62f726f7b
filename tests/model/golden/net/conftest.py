"""The stand-in backbones of the reference's whole-network vectors, as each vector's JSON describes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caeav.model.adapters.live import Live

Vector = Any


class VisualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.mlp_in = nn.Linear(width, width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attention(self, x: Tensor) -> Tensor:
        return self.norm1(self.attn(x + x.mean(dim=1, keepdim=True)))

    def mlp(self, x: Tensor) -> Tensor:
        return self.norm2(torch.tanh(self.mlp_in(x)))


class AudioBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(self.norm1(x)))


class Merge(nn.Module):
    """`(M x) R^T`; without `M` the mean of every 4 tokens in a row."""

    def __init__(self, tokens: tuple[int, int], widths: tuple[int, int], *, mix: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(*tokens, bias=False) if mix else None
        self.reduction = nn.Linear(*widths, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.unflatten(1, (-1, 4)).mean(dim=2) if self.mix is None else self.mix.weight @ x
        return self.reduction(mixed)


class Stage(nn.Module):
    def __init__(self, tokens: int, channels: int, blocks: list[nn.Module], merging: Merge | None) -> None:
        super().__init__()
        self.tokens, self.channels = tokens, channels
        self.blocks = nn.ModuleList(blocks)
        self.merging = merging

    def merge(self, x: Tensor) -> Tensor:
        assert self.merging is not None
        return self.merging(x)


class StandIn(nn.Module):
    """A stand-in backbone; `embed` does nothing, the vectors begin behind it."""

    def __init__(self, v: Vector, modality: str) -> None:
        super().__init__()
        hyper = v.meta["hyper_parameters"]
        tokens, widths, depths = (
            hyper[f"{modality}_tokens"],
            hyper[f"{modality}_dims"],
            hyper[f"stage_depths_{modality}"],
        )
        bare = not any(f"param.{modality}_backbone.stage.0.block" in name for name in v.tensors)
        block = nn.Identity if bare else VisualBlock if modality == "visual" else AudioBlock
        self.stages = nn.ModuleList()
        for i, (n, c, depth) in enumerate(zip(tokens, widths, depths, strict=True)):
            mix = v.has(f"param.{modality}_backbone.stage.{i}.merge.mix.weight")
            last = i == len(tokens) - 1
            merging = None if last else Merge((n, tokens[i + 1]), (c, widths[i + 1]), mix=mix)
            self.stages.append(Stage(n, c, [block(c) for _ in range(depth)], merging))
        self.final = nn.LayerNorm(widths[-1]) if modality == "visual" else None

    @property
    def module(self) -> nn.Module:
        return self

    def embed(self, x: Tensor) -> Tensor:
        return x

    def norm(self, x: Tensor) -> Tensor:
        assert self.final is not None
        return self.final(x)


def their_name(ours: str, like: set[str]) -> str:
    """A stand-in's parameter under the vector's name."""
    blocks = "blocks" if any(".blocks." in name for name in like) else "block"
    for pattern, there in (
        (r"^stages\.", "stage."),
        (r"\.blocks\.", f".{blocks}."),
        (r"\.mlp_in\.", ".mlp."),
        (r"\.merging\.", ".merge."),
        (r"^final\.", "norm."),
    ):
        ours = re.sub(pattern, there, ours)
    return ours


def load_stand_in(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fill a stand-in from a vector's tensors, its prefix already stripped; all of them."""
    names = {their_name(ours, set(tensors)): ours for ours in module.state_dict()}
    assert names.keys() == tensors.keys()
    module.load_state_dict({ours: tensors[name] for name, ours in names.items()})


@pytest.fixture
def stand_ins() -> Callable[[Vector], Live]:
    """Both stand-in backbones of a vector, in float64 and with its weights."""

    def build(v: Vector) -> Live:
        live = Live(StandIn(v, "visual"), StandIn(v, "audio"))
        for modality, module in zip(("visual", "audio"), live.modules, strict=True):
            load_stand_in(module.double(), v.group(f"param.{modality}_backbone", torch.float64))
        return live

    return build
