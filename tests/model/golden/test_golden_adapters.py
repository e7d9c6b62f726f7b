"""CASTE, CASE and AVMoE equal the reference: outputs and all gradients, in float64 and float32."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from vector_names import channels_first, channels_last

from caeav.model.adapters.case import AttentionUnit, CaptionAdapter, CaptionMapper, Case, FeedForwardUnit
from caeav.model.adapters.caste import AgreementGate, Caste, SpatialEnrichment, TemporalEnrichment
from caeav.model.adapters.layers import TemporalConv, TokenSelector, token_topk_mask
from caeav.model.adapters.moe import AvMoe, Bottleneck, CrossExpert, UniExpert, load_balance

GROUP = "adapters"

Vector = Any  # the class lives in conftest.py, which tests cannot import
Tensors = dict[str, Tensor]


def bottleneck_options(v: Vector, prefix: str) -> dict[str, Any]:
    """Options of an expert, read off the parameters it has."""
    down = v.shape(f"{prefix}down.weight")
    up = v.shape(f"{prefix}up.weight")
    return {
        "channels": up[0],
        "bottleneck": down[0],
        "groups": up[0] // down[1],
        "batch_norm": v.has(f"{prefix}down_bn.weight"),
        "pre_norm": v.has(f"{prefix}pre_norm.weight"),
        "post_norm": v.has(f"{prefix}post_norm.weight"),
        "out_gate": v.has(f"{prefix}out_gate"),
    }


def uni_attention(v: Vector, prefix: str) -> str:
    if v.has(f"{prefix}frame_attn.qkv.weight"):
        return "frame"
    if v.has(f"{prefix}latent_tokens"):
        return "latent"
    return "gated" if v.has(f"{prefix}attn_gate") else "none"


def build_cross(v: Vector) -> nn.Module:
    return CrossExpert(latents=v.shape("param.latent_tokens")[0], **bottleneck_options(v, "param."))


def build_uni(v: Vector) -> nn.Module:
    kind = uni_attention(v, "param.")
    latents = v.shape("param.latent_tokens")[0] if kind == "latent" else 1
    return UniExpert(attention=kind, latents=latents, **bottleneck_options(v, "param."))  # type: ignore[arg-type]


def build_moe(v: Vector) -> nn.Module:
    def count(kind: str) -> int:
        return len({n.split(".")[2] for n in v.tensors if n.startswith(f"param.{kind}.")})

    n, m = v.shape("param.token_proj.weight")[:2]
    options = bottleneck_options(v, "param.cross_experts.0.")
    return AvMoe(
        options.pop("channels"),
        n,
        v.shape("param.channel_proj.weight")[1],
        m,
        latents=v.shape("param.cross_experts.0.latent_tokens")[0],
        cross_experts=count("cross_experts"),
        uni_experts=count("uni_experts"),
        uni_attention=uni_attention(v, "param.uni_experts.0."),  # type: ignore[arg-type]
        router_noise=0.01 if v.has("input.noise") else 0.0,
        **options,
    )


def run_moe(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    noise = x["noise"][:, 0] if "noise" in x else None
    out = m(channels_last(x["x"]), channels_last(x["other"]), noise)
    return {
        "residual": channels_first(out.residual),
        "routing_probs": out.probabilities.unsqueeze(1),
        "load_balance_loss": load_balance(out.probabilities),
        "expert_index": out.probabilities.argmax(dim=-1, keepdim=True),
    }


def run_case(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    out = m(
        *(x[name] for name in ("visual", "audio", "visual_caption", "audio_caption")),
        v.hyper("T"),
        visual_noise=x.get("exp_noise_visual"),
        audio_noise=x.get("exp_noise_audio"),
    )
    names = ["visual", "audio", "visual_caption", "audio_caption"]
    names += [f"proj_{name}" for name in names]
    found = {name: getattr(out, name) for name in names}
    if out.prob_visual is not None:
        found |= {"prob_visual": out.prob_visual, "prob_audio": out.prob_audio}
    return found


def build_caste(v: Vector) -> nn.Module:
    return Caste(
        v.shape("input.self")[2],
        v.shape("input.other")[2],
        topk_ratio=v.hyper("topk_ratio"),
        gate_dim=v.shape("param.gate.self_proj.weight")[0],
        temporal="tsm+dw" if v.hyper("use_tsm") else "dwconv",
    )


def build_gate(v: Vector) -> nn.Module:
    return AgreementGate(
        v.shape("input.self")[2], v.shape("input.other")[2], v.shape("param.self_proj.weight")[0]
    )


def run_selector(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    mask, probabilities = m(x["x"], x.get("exp_noise"))
    return {"mask": mask} if probabilities is None else {"mask": mask, "probs": probabilities}


def channels(v: Vector) -> int:
    return int(v.shape("input.x")[2])


Build = Callable[[Vector], nn.Module]
Forward = Callable[[nn.Module, Tensors, Vector], Mapping[str, Tensor]]

TABLE: dict[str, tuple[Build, Forward]] = {
    "agreement_gate": (build_gate, lambda m, x, v: {"weights": m(x["self"], x["other"])}),
    "spatial_enrichment": (
        lambda v: SpatialEnrichment(channels(v)),
        lambda m, x, v: {"enriched": m(x["x"])},
    ),
    "temporal_enrichment": (
        lambda v: TemporalEnrichment(channels(v), v.hyper("mode")),
        lambda m, x, v: {"enriched": m(x["x"], v.hyper("T"))},
    ),
    "token_topk_mask": (
        lambda v: nn.Module(),
        lambda m, x, v: {"mask": token_topk_mask(x["x"], v.hyper("ratio"))},
    ),
    "caste_block": (
        build_caste,
        lambda m, x, v: {"residual": m(x["self"], x["other"], v.hyper("T")).residual},
    ),
    "selector": (lambda v: TokenSelector(v.hyper("ratio")), run_selector),
    "case_attention": (
        lambda v: AttentionUnit(v.shape("input.query")[2], v.hyper("heads")),
        lambda m, x, v: {"y": m(x["query"], x["key_value"])},
    ),
    "case_ffn": (lambda v: FeedForwardUnit(channels(v)), lambda m, x, v: {"y": m(x["x"])}),
    "temporal_dwconv": (
        lambda v: TemporalConv(channels(v), v.hyper("dilation")),
        lambda m, x, v: {"y": m(x["x"], v.hyper("T"))},
    ),
    "case": (
        lambda v: Case(
            v.shape("input.visual")[2],
            v.shape("input.audio")[2],
            proj_dim=v.shape("param.proj_visual.linear.weight")[0],
            heads=v.hyper("heads"),
            topk_ratio=v.hyper("topk_ratio"),
            weight_dropout=0.0,  # the train vectors were made without dropout
            dropout=0.0,
        ),
        run_case,
    ),
    "caption_mapper": (
        lambda v: CaptionMapper(channels(v), v.hyper("heads")),
        lambda m, x, v: {"y": m(x["x"])},
    ),
    "caption_adapter": (
        lambda v: CaptionAdapter(channels(v), v.shape("param.down.weight")[0], v.shape("param.up.weight")[0]),
        lambda m, x, v: {"y": m(x["x"])},
    ),
    "expert_cross": (
        build_cross,
        lambda m, x, v: {"y": channels_first(m(channels_last(x["x"]), channels_last(x["context"])))},
    ),
    "expert_uni": (build_uni, lambda m, x, v: {"y": channels_first(m(channels_last(x["x"])))}),
    "moe": (build_moe, run_moe),
}


def test_equals_the_reference(vector: Vector, check_vector: Callable[..., None]) -> None:
    check_vector(vector, *TABLE[vector.kind])


def test_every_option_of_a_bottleneck_is_read_off_the_vectors() -> None:
    """A new option must be read off the vectors as well; the experts set two that no vector varies."""
    options = inspect.signature(Bottleneck).parameters.keys() - {"activation", "gate_first"}
    assert options == bottleneck_options(AnyVector(), "").keys()


class AnyVector:
    """Has every parameter, of one shape."""

    def shape(self, name: str) -> tuple[int, int]:
        return 4, 2

    def has(self, name: str) -> bool:
        return True
