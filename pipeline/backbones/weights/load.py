"""Tensors from a checkpoint file into a module, wholly or not at all. Imports torch; nothing in a file is executed.

Libraries stay silent about keys that are missing or left over and draw the rest at random; here both are errors.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from caeav.pipeline.backbones.weights.find import Weights
from caeav.pipeline.backbones.weights.inspect import HARMLESS, convert_command, refused_names
from caeav.pipeline.backbones.weights.parts import choose_part, part_of
from caeav.pipeline.backbones.weights.pickled import WeightsError, check_size, open_pickled, readable

_SHOWN = 8
_WRAPPERS = ("module.", "_orig_mod.")
"""What data parallel training and torch.compile put before every name; no network's own names begin so."""
_HOLDERS = ("model.", "sed_model.", "net.", "network.", "backbone.", "encoder.")
"""What training programs call the network they hold."""


def read_tensors(path: Path, part: str = "") -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a torch file (`weights_only`): of `part`, or as `parts.py` says.

    Settings and bookkeeping of other programs beside them are skipped. Raises `WeightsError`.
    """
    if path.suffix == ".safetensors":
        held = _read_safetensors(path)
        if not held:
            raise WeightsError(f"{path} holds no named tensors", hint="give a checkpoint of the model")
        return held
    whole = read_plain(path)
    taken = choose_part(whole, _pure, _entries, str(path), part).taken
    return dict(_pure(part_of(whole, taken, _entries)) or {})


def read_weights(weights: Weights) -> dict[str, Tensor]:
    """The tensors of all files of a checkpoint; a name in two shards is an error."""
    state: dict[str, Tensor] = {}
    for path in weights.files:
        for name, tensor in read_tensors(path, weights.part).items():
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
        # of the right shape: a strange one may claim more than there is memory
        if name in state and state[name].shape == wanted[name].shape and not _finite(state[name])
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
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def unwrapped(state: Mapping[str, Tensor], known: Callable[[str], bool]) -> dict[str, Tensor]:
    """`state` without what training put before its names (`module.`, `model.`, `sed_model.`, ...).

    `known`: whether a name is one of the network's; as long as none is, a prefix comes off, from those that bear it.
    Where no name is known in the end, only the prefixes come off that are nobody's own.
    """
    found = dict(state)
    plain = found
    while found and not any(map(known, found)):
        prefix = next((p for p in (*_WRAPPERS, *_HOLDERS) if any(name.startswith(p) for name in found)), None)
        if prefix is None:
            return plain
        bare = {name.removeprefix(prefix): x for name, x in found.items()}
        if len(bare) != len(found):
            return plain
        plain = bare if plain is found and prefix in _WRAPPERS else plain
        found = bare
    return found


def _pure(value: Any) -> Mapping[str, Tensor] | None:
    """The value where it is a dictionary of named tensors and nothing else."""
    held = _entries(value)
    if not held or not all(isinstance(k, str) and isinstance(x, Tensor) for k, x in held.items()):
        return None
    return held


def _entries(value: Any) -> Mapping[Any, Any] | None:
    return value if isinstance(value, Mapping) else None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def read_plain(path: Path) -> Any:
    """What a torch file holds, of any form, by `weights_only`; raises `WeightsError`."""
    check_size(path)
    names = _names(path)
    try:
        stand_ins: list[Any] = [_stand_in(name) for name in names if HARMLESS.fullmatch(name)]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter(
                "ignore"
            )  # of other protocols: what it cannot read is refused with the reason
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        MemoryError,
    ) as error:
        raise _refused(path, names, error) from error


def _names(path: Path) -> frozenset[str]:
    """The classes and functions that a file names; none where it cannot be looked into."""
    try:
        with open_pickled(path) as held:
            return held.names
    except WeightsError:
        return frozenset()


def _stand_in(name: str) -> tuple[Any, str]:
    """A class that takes the place of the one called `name` and keeps nothing of what it is given."""
    kind = _Entries if _DICTIONARY.search(name) else _Nothing
    return type(kind.__name__, (kind,), {}), name


_DICTIONARY = re.compile(r"(dict|Dict|CfgNode|Munch)$")


class _Nothing:
    """Stands for an object that is of no use here."""

    def __new__(cls, *args: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Entries:
    """Stands for a dictionary of another class: its entries may be what is looked for."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


def _refused(path: Path, names: Collection[str], error: Exception) -> WeightsError:
    """Why a torch file was not read, and what to do: convert it where it can be."""
    if (refusal := refused_names(path, names)) is not None:
        return refusal
    if names:
        return WeightsError(
            f"{path} cannot be read as plain weights: {_first_line(error)}",
            hint=f"only tensors are read; get the file again, or try: {convert_command(path)}",
        )
    return _damaged(path, error)


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path} cannot be read as plain weights: {_first_line(error)}",
        hint="only tensors are read, code in a checkpoint never is; get the file again, best as .safetensors",
    )


def _first_line(error: Exception) -> str:
    """What an error says in a line, without torch's advice to run what is in the file."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("WeightsUnpickler error:")
    said = [line for line in (text[2] or text[0]).splitlines() if line.strip()]
    return readable(said[0].strip()) if said else type(error).__name__


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
