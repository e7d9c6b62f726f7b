"""Weights in and out of safetensors files: published whole, compared name by name before anything is loaded.

No pickle anywhere: a file holds tensors and JSON facts (in the header's metadata under `caeav`), never code.
What a resumed training needs besides weights is `resume.py`.
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
    """All tensors and the facts of a file written by `write_tensors`; raises `CheckpointError`."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _facts(file)  # noqa: SIM118 - not a mapping


def read_facts(path: Path) -> dict[str, Any]:
    """Only the JSON facts of a file; its tensors are not read. Raises `CheckpointError`."""
    with _opened(path) as file:
        return _facts(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; whatever is wrong with it, also while it is read, is a `CheckpointError`."""
    if path.exists() and not path.is_file():  # a pipe or device may never end
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
    """Build a model and fill it from `path`; nothing is allocated for it unless its shapes are those in the file.

    Raises `CheckpointError` as `load_into`.
    """
    tensors, _ = read_tensors(path)
    try:
        with torch.device("meta"):
            claimed = build()
    except RuntimeError as error:
        raise CheckpointError(
            f"a model of the size claimed beside {path} cannot be: {error}", hint="restore the run folder"
        ) from error
    _compare(claimed, tensors, path)
    model = build()
    load_into(model, tensors, path)
    return model


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Fill `model` with `tensors` after comparing every name and shape.

    Raises `CheckpointError` listing all differences; the model is then as before.
    """
    _compare(model, tensors, source)
    model.load_state_dict(dict(tensors), strict=True)


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    wanted = model.state_dict()
    faults = [
        *_listed("missing", sorted(wanted.keys() - tensors.keys())),
        *_listed("unexpected", sorted(tensors.keys() - wanted.keys())),
        *_listed(
            "of another shape",
            [
                f"{name} {list(tensors[name].shape)} where the model has {list(x.shape)}"
                for name, x in wanted.items()
                if name in tensors and tensors[name].shape != x.shape
            ],
        ),
    ]
    if faults:
        raise CheckpointError(
            f"{source} does not fit this model:\n" + "\n".join(faults),
            hint="use the config.yaml and inputs.json that lie in the same run folder",
        )


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers: everything of a model that is not a frozen backbone's."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: x for name, x in model.state_dict().items() if name not in frozen}


def parameter_counts(model: nn.Module, depth: int = 2) -> dict[str, int]:
    """Trainable parameters per part, parts named by the first `depth` steps of the parameter names."""
    counts: dict[str, int] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            part = ".".join(name.split(".")[:-1][:depth]) or name
            counts[part] = counts.get(part, 0) + p.numel()
    return counts


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return [f"  {len(names)} {what}: {', '.join(names[:SHOWN_NAMES])}{more}"]
