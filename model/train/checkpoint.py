"""Weights in safetensors files: published whole, and compared name by name before anything is loaded.

A file holds tensors and JSON facts (in its metadata under `caeav`), never code: there is no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import some_of

FACTS = "caeav"
SHOWN_NAMES = 8
Module = TypeVar("Module", bound=nn.Module)


class CheckpointError(CaeavError):
    """A checkpoint that is damaged or belongs to another model."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Publish `tensors` and JSON `facts` as one safetensors file."""
    held = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
    publish_bytes(path, save(held, metadata={FACTS: json.dumps(facts, sort_keys=True)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file written by `write_tensors`; raises `CheckpointError`."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _facts(file)  # noqa: SIM118 - not a mapping


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a file, without reading its tensors; raises `CheckpointError`."""
    with _opened(path) as file:
        return _facts(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever goes wrong, also while it is read, raises `CheckpointError`."""
    if path.exists() and not path.is_file():  # a pipe or device may block forever
        raise CheckpointError(f"{path} is no plain file", hint="give a checkpoint")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {error}", hint="restore the file, or train again"
        ) from error


def _facts(file: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((file.metadata() or {}).get(FACTS, "{}"))
    return facts


def load_fitting(build: Callable[[], Module], path: Path) -> Module:
    """Build a model and fill it from `path`; it is allocated only if its shapes are those in the file.

    Raises `CheckpointError` like `load_into`.
    """
    tensors, _ = read_tensors(path)
    try:
        with torch.device("meta"):
            claimed = build()
    except RuntimeError as error:
        raise CheckpointError(
            f"a model of the size claimed beside {path} is impossible: {error}", hint="restore the run folder"
        ) from error
    _compare(claimed, tensors, path)
    model = build()
    load_into(model, tensors, path)
    return model


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Fill `model` with `tensors`; raises `CheckpointError` with all differences in names and shapes, and then leaves
    the model as it was."""
    _compare(model, tensors, source)
    model.load_state_dict(dict(tensors), strict=True)


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    wanted = model.state_dict()
    differences = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(tensors[name].shape)} where the model has {list(x.shape)}"
            for name, x in wanted.items()
            if name in tensors and tensors[name].shape != x.shape
        ],
    }
    lines = [
        f"  {len(names)} {what}: {some_of(names, SHOWN_NAMES)}"
        for what, names in differences.items()
        if names
    ]
    if lines:
        raise CheckpointError(
            f"{source} does not fit this model:\n" + "\n".join(lines),
            hint="use the config.yaml and inputs.json of the same run folder",
        )


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers: everything that does not belong to a frozen backbone."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: x for name, x in model.state_dict().items() if name not in frozen}


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Trainable parameters per part; a part is the first two steps of the parameter names."""
    counts: dict[str, int] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            part = ".".join(name.split(".")[:-1][:2]) or name
            counts[part] = counts.get(part, 0) + p.numel()
    return counts
