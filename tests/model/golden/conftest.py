"""Golden vectors of the reference: finding them, loading them, comparing with them.

Every file in `$CAEAV_SHARED/golden` and `golden_peers` must belong to a kind below (longest prefix of its name wins),
so further vectors with other seeds and shapes are taken up by themselves and a new kind cannot pass unnoticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vector_names import load_vector_parameters

KINDS = {
    **dict.fromkeys(
        [
            "agreement_gate",
            "spatial_enrichment",
            "temporal_enrichment",
            "token_topk_mask",
            "caste_block",
            "selector",
            "case_attention",
            "case_ffn",
            "temporal_dwconv",
            "case",
            "caption_mapper",
            "caption_adapter",
            "expert_cross",
            "expert_uni",
            "moe",
        ],
        "adapters",
    ),
    **dict.fromkeys(["ave_temporal_attention", "ave_localisation_head", "loss_metric_ave"], "ave"),
    "htsat_": "htsat",
    **dict.fromkeys(["avvp_group_transformer", "loss_avvp"], "avvp"),
    **dict.fromkeys(
        [
            "avs_temporal_attention",
            "avs_tpavi",
            "avs_decoder",
            "avs_fusion_block",
            "loss_avs_s4",
            "loss_avs_ms3",
            "loss_avs_ms3_closer",
        ],
        "avs",
    ),
    **dict.fromkeys(["avqa_question_encoder", "loss_avqa"], "avqa"),
    **dict.fromkeys(["metric_avvp", "metric_avvp_threshold", "metric_avs"], "metrics"),
    "net_": "net",
    **dict.fromkeys(["lavish_adapter", "dgsct_adapter"], "peers"),
    "dgsct_temporal_ave": "ave",
    "dgsct_temporal_avs": "avs",
    "dgsct_temporal_avvp": "avvp",
}


def kind_of(name: str) -> str | None:
    """The longest kind that begins `name`."""
    return max((kind for kind in KINDS if name.startswith(kind)), key=len, default=None)


def golden_folders() -> list[Path]:
    """The folders of vectors in `$CAEAV_SHARED`, as tests/conftest.py resolves it."""
    root = os.environ.get("CAEAV_SHARED", str(Path(__file__).resolve().parents[4] / "shared"))
    return [Path(root) / "golden", Path(root) / "golden_peers"]


def vector_paths() -> dict[str, Path]:
    """Name -> file of every vector there is; none where the folders are absent."""
    return {path.stem: path for folder in golden_folders() for path in sorted(folder.glob("*.safetensors"))}


@dataclass
class Vector:
    """One vector: `meta` is its JSON, `tensors` all tensors under their full names."""

    name: str
    kind: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Tensors whose name begins with `prefix.`, without it; floating ones cast to `dtype`."""
        found = {
            name[len(prefix) + 1 :]: x for name, x in self.tensors.items() if name.startswith(prefix + ".")
        }
        if dtype is not None:
            found = {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}
        return found

    def hyper(self, key: str, default: Any = None) -> Any:
        """A hyper-parameter; numbers written as `16 (real 256)` give 16."""
        value = self.meta["hyper_parameters"].get(key, default)
        return int(value.split()[0]) if isinstance(value, str) and value.split()[0].isdigit() else value

    def shape(self, name: str) -> torch.Size:
        return self.tensors[name].shape

    def has(self, name: str) -> bool:
        return name in self.tensors


@dataclass
class Run:
    """What one evaluation gave: outputs, and gradients under the vectors' names."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)


Forward = Callable[[nn.Module, dict[str, Tensor], Vector], Mapping[str, Tensor]]


def evaluate(vector: Vector, module: nn.Module, forward: Forward, dtype: torch.dtype) -> Run:
    """Load the parameters, run, and differentiate the sum of `<output, cotangent>`."""
    module = module.to(dtype).train(vector.meta["mode"] == "train")
    load_vector_parameters(module, {**vector.group("param", dtype), **vector.group("buffer", dtype)})
    inputs = vector.group("input", dtype)
    for name, x in inputs.items():  # labels and noise have no gradient in the vectors
        x.requires_grad_(vector.has(f"grad.input.{name}") or f"input.{name}" in vector.meta["no_gradient"])
    outputs = dict(forward(module, inputs, vector))
    cotangents = vector.group("cotangent", dtype)
    if cotangents:
        scalar = sum((outputs[name] * c).sum() for name, c in cotangents.items())
        assert isinstance(scalar, Tensor)
        scalar.backward()
    gradients: dict[str, Tensor | None] = {f"input.{name}": x.grad for name, x in inputs.items()}
    gradients |= {f"param.{name}": p.grad for name, p in module.named_parameters()}
    return Run(outputs, gradients, dict(module.named_buffers()))


def largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def check(vector: Vector, build: Callable[[Vector], nn.Module], forward: Forward) -> None:
    """Outputs, gradients and buffers of both precisions within the tolerances of the vectors' README."""
    noise = vector.meta["float32_vs_float64"] or {"max_abs_output": 0.0, "max_rel_grad": 0.0}
    limits = {
        torch.float64: (lambda scale: 1e-9 * scale, 1e-9),
        torch.float32: (
            lambda _: max(1e-5, 4 * noise["max_abs_output"]),
            max(1e-4, 4 * noise["max_rel_grad"]),
        ),
    }
    if not vector.group("output64") and vector.group("grad") and not vector.group("grad64"):
        del limits[torch.float64]  # computed in float32 only
    for dtype, (output_limit, gradient_limit) in limits.items():
        run = evaluate(vector, build(vector), forward, dtype)
        wanted = {**vector.group("output"), **vector.group("output64")}  # float64 where there is one
        assert wanted and wanted.keys() <= run.outputs.keys()
        wanted |= {
            n: x for n, x in {**vector.group("mid"), **vector.group("mid64")}.items() if n in run.outputs
        }
        for name, want in wanted.items():
            got = run.outputs[name]
            assert got.shape == want.shape, name
            difference = largest(got.double() - want.double())
            assert difference <= output_limit(largest(want.double())), f"{dtype} output.{name}: {difference}"

        gradients = {**vector.group("grad"), **vector.group("grad64")}
        scale_of_all = max((largest(g) for g in gradients.values()), default=0.0)
        zero_names = vector.meta["gradients_that_are_exactly_zero_in_exact_arithmetic"]
        exactly_zero = {name.removeprefix("grad.") for name in zero_names}
        for name, want in gradients.items():
            got_gradient = run.gradients[name]
            got = torch.zeros_like(want) if got_gradient is None else got_gradient.view_as(want).double()
            scale = scale_of_all if name in exactly_zero else largest(want)
            difference = largest(got - want.double())
            assert difference <= gradient_limit * scale, f"{dtype} grad.{name}: {difference} of {scale}"
        for name in vector.meta["no_gradient"]:
            got_gradient = run.gradients[name]
            assert got_gradient is None or not got_gradient.any(), f"{dtype}: {name} should get no gradient"
        covered = {n for n, g in run.gradients.items() if g is not None and g.any()}
        assert covered <= gradients.keys(), f"gradients nobody asked for: {covered - gradients.keys()}"

        for name, want in vector.group("buffer_after").items():
            difference = largest(run.buffers[name].double() - want.double())
            # Stored in float32 only.
            assert difference <= 1e-5 * max(1.0, largest(want)), f"{dtype} buffer {name}: {difference}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `vector` run once for every vector of their module's `GROUP`."""
    if "vector" in metafunc.fixturenames:
        names = [name for name in vector_paths() if KINDS.get(kind_of(name) or "") == metafunc.module.GROUP]
        if not names:
            root = golden_folders()[0].parent
            reason = f"no vectors of group {metafunc.module.GROUP!r} in {root}"
            if not root.is_dir():  # as the fixture `shared` says it
                reason = f"no shared data at {root}; set CAEAV_SHARED"
            names = [pytest.param("", marks=pytest.mark.skip(reason=reason))]
        metafunc.parametrize("vector", names, indirect=True)


@pytest.fixture
def vector(request: pytest.FixtureRequest) -> Vector:
    name: str = request.param
    path = vector_paths()[name]
    kind = kind_of(name)
    assert kind is not None
    meta = json.loads(path.with_suffix(".json").read_text())
    return Vector(name, kind, meta, load_file(path))


@pytest.fixture
def check_vector() -> Callable[[Vector, Callable[[Vector], nn.Module], Forward], None]:
    return check


@pytest.fixture
def kinds() -> dict[str, str]:
    return KINDS


@pytest.fixture
def all_vectors(shared: Path) -> dict[str, str | None]:
    """Every vector's name and kind."""
    return {name: kind_of(name) for name in vector_paths()}
