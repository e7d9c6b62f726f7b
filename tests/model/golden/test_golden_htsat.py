"""The parts of HTS-AT equal the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from caeav.pipeline.backbones.htsat.frontend import fold, mix_up
from caeav.pipeline.backbones.htsat.network import HtsatBlock, PatchMerging

GROUP = "htsat"

Vector = Any
Tensors = dict[str, Tensor]


def build_block(v: Vector) -> nn.Module:
    return HtsatBlock(
        v.hyper("dim"),
        v.hyper("heads"),
        tuple(v.hyper("resolution")),
        window=v.hyper("window"),
        shift=v.hyper("shift"),
        mlp_ratio=v.hyper("mlp_ratio"),
    )


TABLE: dict[str, tuple[Callable[[Vector], nn.Module], Callable[..., Tensors]]] = {
    "htsat_block": (build_block, lambda m, x, v: {"y": m(x["x"])}),
    "htsat_patch_merging": (
        lambda v: PatchMerging(v.hyper("dim"), tuple(v.hyper("resolution"))),
        lambda m, x, v: {"y": m(x["x"])},
    ),
    "htsat_mixup": (lambda v: nn.Module(), lambda m, x, v: {"y": mix_up(x["x"], x["lam"])}),
    "htsat_spectrogram_fold": (
        lambda v: nn.Module(),
        lambda m, x, v: {"y": fold(x["x"], v.hyper("spec_size"))},
    ),
}


def test_equals_the_reference(vector: Vector, check_vector: Callable[..., None]) -> None:
    kind = max((name for name in TABLE if vector.name.startswith(name)), key=len)
    check_vector(vector, *TABLE[kind])
