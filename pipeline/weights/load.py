"""Tensors from a checkpoint file into a module, wholly or not at all. Imports torch; nothing in a file is executed.

Libraries stay silent about keys that are missing or left over and draw the rest at random; here both are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from caeav.pipeline.weights.find import Weights, WeightsError

_CONTAINERS = ("state_dict", "model", "module")
_SHOWN = 8


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a torch file that holds tensors only (`weights_only`).

    A state dict inside `state_dict`, `model` or `module` is found. Raises `WeightsError`.
    """
    held = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name in _CONTAINERS:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
            break
    if not isinstance(held, Mapping) or not held or not all(isinstance(x, Tensor) for x in held.values()):
        raise WeightsError(f"{path} holds no named tensors", hint="give a checkpoint of the model")
    return {str(name): tensor for name, tensor in held.items()}


def read_weights(weights: Weights) -> dict[str, Tensor]:
    """The tensors of all files of a checkpoint; a name in two shards is an error."""
    state: dict[str, Tensor] = {}
    for path in weights.files:
        for name, tensor in read_tensors(path).items():
            if name in state:
                raise WeightsError(
                    f"{name} is in two files of {weights.source}", hint="get the checkpoint again"
                )
            state[name] = tensor
    return state


@torch.no_grad()
def load_checked(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    unused: Callable[[str], bool] | Collection[str] = (),
    tied: Sequence[str] = (),
) -> None:
    """Copy `state` into `module`; its parameters and persistent buffers must all be there in their shapes.

    `unused`: names (or a test of a name) of keys that a checkpoint may hold beyond those, such as a classifier's.
    `tied`: names of the module that may be absent since they share another's tensor.
    Raises `WeightsError` listing what is missing, unexpected, wrongly shaped or not finite; nothing is copied then.
    """
    wanted = module.state_dict(keep_vars=True)
    skip = unused if callable(unused) else unused.__contains__
    missing = [name for name in wanted if name not in state and name not in set(tied)]
    unexpected = [name for name in state if name not in wanted and not skip(name)]
    wrong = [
        f"{name} is {list(state[name].shape)}, needed {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    odd = [
        name
        for name in wanted
        if name in state and state[name].is_floating_point() and not _finite(state[name])
    ]
    if missing or unexpected or wrong or odd:
        parts = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong, "not finite": odd}
        said = "; ".join(f"{what}: {_some(names)}" for what, names in parts.items() if names)
        raise WeightsError(
            f"{source} does not fit {type(module).__name__}: {said}",
            hint="give the checkpoint of this very model; nothing is left at random values",
        )
    for name, tensor in wanted.items():
        if name in state:
            tensor.copy_(state[name])


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightsError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WeightsError(
        f"{path} cannot be read as plain weights: {first}",
        hint="only tensors are read, code in a checkpoint never is; get the file again, best as .safetensors",
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
