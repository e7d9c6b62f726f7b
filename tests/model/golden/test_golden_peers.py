"""LAVISH's and DG-SCT's adapters equal the official classes: outputs, inner values, all gradients, BN statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from vector_names import channels_first, channels_last

from caeav.model.adapters.dg_sct import DgSctAdapter
from caeav.model.adapters.lavish import LavishAdapter
from caeav.model.adapters.moe import ContextMaps, UniExpert

GROUP = "peers"

Vector = Any
Tensors = dict[str, Tensor]


class Flat(nn.Module):
    """An adapter under the vectors' names, which have no level for the maps of the context."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self._run = [adapter]
        for part in (adapter, getattr(adapter, "maps", None) or nn.Module()):
            for name, child in part.named_children():
                if name != "maps":
                    self.add_module(name, child)
            for name, p in part.named_parameters(recurse=False):
                self.register_parameter(name, p)

    @property
    def adapter(self) -> nn.Module:
        return self._run[0]


def bottleneck(v: Vector) -> dict[str, Any]:
    switches = ("batch_norm", "pre_norm", "post_norm", "out_gate")
    return {
        "channels": v.hyper("dim"),
        "bottleneck": v.hyper("down_dim"),
        "groups": v.hyper("groups"),
        "gate_first": bool(v.hyper("gate_before_post_norm")),
        **{name: bool(v.hyper(name)) for name in switches},
    }


def build_lavish(v: Vector) -> nn.Module:
    if not v.hyper("multimodal"):
        return Flat(UniExpert(nonlinear=bool(v.hyper("relu")), **bottleneck(v)))
    return Flat(LavishAdapter(latents=v.hyper("latents"), maps=None, **bottleneck(v)))


def run_lavish(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    assert isinstance(m, Flat)
    return {
        "y": channels_first(m.adapter(*(channels_last(x[name]) for name in ("x", "context") if name in x)))
    }


def build_dgsct(v: Vector) -> nn.Module:
    maps = ContextMaps(
        v.hyper("dim"),
        v.hyper("tokens"),
        v.hyper("other_dim"),
        v.hyper("other_tokens"),
        resize=v.hyper("token_map") == "bicubic",
    )
    weights = {name: v.hyper(name) for name in ("alpha", "beta", "gamma")}
    return Flat(DgSctAdapter(latents=v.hyper("latents"), maps=maps, **weights, **bottleneck(v)))


def run_dgsct(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    assert isinstance(m, Flat)
    adapter = m.adapter
    assert isinstance(adapter, DgSctAdapter) and adapter.maps is not None
    own, other = channels_last(x["x"]), channels_last(x["other"])
    out = adapter(own, other)
    attended = adapter.attend(own, other)
    found = {
        "y": channels_first(out.residual),
        "spatial_map": out.spatial_map.unsqueeze(1),
        "context": adapter.maps.context(other),
        "channel_map": attended.channel_map.squeeze(1),
        "spatial_score": attended.spatial_score,
    }
    if attended.temporal_map is not None:
        found["temporal_map"] = attended.temporal_map.view(v.shape("mid.temporal_map"))
    return found


TABLE: dict[str, tuple[Callable[[Vector], nn.Module], Callable[..., Tensors]]] = {
    "lavish_adapter": (build_lavish, run_lavish),
    "dgsct_adapter": (build_dgsct, run_dgsct),
}


def test_equals_the_official_class(vector: Vector, check_vector: Callable[..., None]) -> None:
    check_vector(vector, *TABLE[vector.kind])
