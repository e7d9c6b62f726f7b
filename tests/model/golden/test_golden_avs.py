"""The AVS head's parts and losses equal the reference. The vectors lay maps out as `[BT, C, H, W]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from caeav.model.tasks.avs.config import AvsHeadConfig
from caeav.model.tasks.avs.head import FusionBlock, MaskDecoder, TemporalGates, Tpavi
from caeav.model.tasks.avs.loss import (
    mask_loss,
    masked_divergence,
    masked_similarity,
    nearest_sound_divergence,
)

GROUP = "avs"

Vector = Any
Tensors = dict[str, Tensor]
SCALES = 4


class NamedDecoder(nn.Module):
    """A decoder under the vectors' names: what we call `out` is `head` there."""

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        for name, child in decoder.named_children():
            self.add_module("head" if name == "out" else name, child)
        self._run = [decoder]

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self._run[0].decode(maps)


def scales_of(v: Vector, prefix: str = "input.f") -> int:
    return sum(name.startswith(prefix) and name[len(prefix) :].isdigit() for name in v.tensors)


def build_peer_temporal(v: Vector) -> nn.Module:
    return build_temporal(v, "input.map")


def run_peer_temporal(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    """DG-SCT's vectors count their maps from 0."""
    numbered = {f"f{int(n[3:]) + 1}" if n.startswith("map") else n: value for n, value in x.items()}
    found = run_temporal(m, numbered, v)
    return {f"map{int(n[1:]) - 1}" if n[0] == "f" else n: value for n, value in found.items()}


def maps_of(x: Tensors) -> list[Tensor]:
    return [x[f"f{i}"] for i in range(1, 1 + sum(name[1:].isdigit() and name[0] == "f" for name in x))]


def build_decoder(v: Vector) -> nn.Module:
    config = AvsHeadConfig(
        channels=v.shape("input.f1")[1],
        out_channels=(v.shape("param.head.conv1.weight")[0], v.shape("param.head.conv2.weight")[0]),
    )
    return NamedDecoder(MaskDecoder(scales_of(v), config))


def run_decoder(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    """The mask, and the rectified maps that the masked losses read."""
    maps = maps_of(x)
    assert all((grid < 0).any() for grid in maps)  # else it would not show that they are rectified
    logits, rectified = m(maps)
    return {"mask_logits": logits} | {f"f{i}_after": grid for i, grid in enumerate(rectified, start=1)}


def build_fusion(v: Vector) -> nn.Module:
    return FusionBlock(v.shape("input.coarse")[1], skip=v.has("input.skip"))


def build_tpavi(v: Vector) -> nn.Module:
    audio = v.has("input.audio")
    return Tpavi(v.shape("input.visual")[1], v.shape("input.audio")[2] if audio else 1, with_audio=audio)


def run_tpavi(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    size = x["visual"].shape[-2:]
    tokens = x["visual"].permute(0, 2, 3, 4, 1).flatten(2, 3)
    out, aligned = m(tokens, x.get("audio"))
    found = {"visual": out.unflatten(2, size).permute(0, 4, 1, 2, 3)}
    return found if aligned is None else {**found, "audio": aligned}


def build_temporal(v: Vector, prefix: str = "input.f") -> nn.Module:
    layers = {n.split(".")[4] for n in v.tensors if n.startswith("param.visual_encoder.0.layers.")}
    config = AvsHeadConfig(
        channels=v.shape("param.visual_in.0.weight")[1],
        audio_in=v.shape("input.audio")[2],
        width=v.shape("param.visual_in.0.weight")[0],
        hidden=v.shape("param.visual_encoder.0.layers.0.ffn_in.weight")[0],
        encoder_layers=len(layers),
        gamma=v.hyper("gamma"),
    )
    return TemporalGates(scales_of(v, prefix), config)


def run_temporal(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    clips = x["audio"].shape[0]
    maps = maps_of(x)
    tokens = [f.flatten(2).transpose(1, 2).unflatten(0, (clips, -1)) for f in maps]
    lifted, audio = m(tokens, x["audio"])
    found = {
        f"f{i}": out.flatten(0, 1).transpose(1, 2).reshape(f.shape)
        for i, (out, f) in enumerate(zip(lifted, maps, strict=True), start=1)
    }
    return {**found, "audio": audio.flatten(0, 1)}


def loss_inputs(x: Tensors) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, maps and audio of a loss vector, per clip."""
    clips = x["a0"].shape[0]
    maps = [x[f"v{i}"].unflatten(0, (clips, -1)) for i in range(SCALES)]
    logits = x["mask_logits"].squeeze(1).unflatten(0, (clips, -1))
    return logits, maps, [x[f"a{i}"] for i in range(SCALES)]


def run_s4(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    logits, maps, audio = loss_inputs(x)
    mask, masked = mask_loss(logits, x["masks_s4"].flatten(1, 2)), masked_similarity(logits, maps, audio)
    return {
        "total_with_masked_av": (mask + v.hyper("lambda_1") * masked).view(1),
        "bce_first_frame": mask.view(1),
    }


def run_ms3(term: Callable[..., Tensor]) -> Callable[..., Tensors]:
    def run(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
        logits, maps, audio = loss_inputs(x)
        masks = x["masks_ms3"].squeeze(1).unflatten(0, (logits.shape[0], -1))
        mask, masked = mask_loss(logits, masks), term(logits, maps, audio)
        return {"total": (mask + v.hyper("lambda_1", 0.5) * masked).view(1), "bce_five_frames": mask.view(1)}

    return run


TABLE: dict[str, tuple[Callable[[Vector], nn.Module], Callable[..., Tensors]]] = {
    "avs_temporal_attention": (build_temporal, run_temporal),
    "dgsct_temporal_avs": (build_peer_temporal, run_peer_temporal),
    "avs_tpavi": (build_tpavi, run_tpavi),
    "avs_decoder": (build_decoder, run_decoder),
    "avs_fusion_block": (build_fusion, lambda m, x, v: {"y": m(x["coarse"], x.get("skip"))}),
    "loss_avs_s4": (lambda v: nn.Module(), run_s4),
    "loss_avs_ms3": (lambda v: nn.Module(), run_ms3(masked_divergence)),
    "loss_avs_ms3_closer": (lambda v: nn.Module(), run_ms3(nearest_sound_divergence)),
}


def test_equals_the_reference(vector: Vector, check_vector: Callable[..., None]) -> None:
    check_vector(vector, *TABLE[vector.kind])
