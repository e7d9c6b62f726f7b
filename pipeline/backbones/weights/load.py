"""Load a checkpoint file into a module, wholly or not at all; nothing in the file is executed.

Libraries say nothing about keys that are missing or left over, and draw the rest at random; here both are errors.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from caeav.manifests.core.util import some_of
from caeav.pipeline.backbones.weights.find import HDF5_SUFFIXES, PLAIN_SUFFIXES, Weights
from caeav.pipeline.backbones.weights.hdf5 import read_hdf5
from caeav.pipeline.backbones.weights.inspect import HARMLESS, convert_command, refusal_of
from caeav.pipeline.backbones.weights.parts import choose_part, part_of
from caeav.pipeline.backbones.weights.pickled import WeightsError, check_size, open_pickled, readable

_SHOWN = 8
_WRAPPERS = ("module.", "_orig_mod.")
"""What data parallel training and torch.compile put before every name; no network's own names begin like that."""
_HOLDERS = ("model.", "sed_model.", "net.", "network.", "backbone.", "encoder.")
"""What training programs call the network that they hold."""


def read_tensors(path: Path, part: str = "") -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or HDF5 file, or of a torch file: those of `part`, or as `parts.py` chooses.

    What training programs write beside them is skipped. Raises `WeightsError`.
    """
    if path.suffix in PLAIN_SUFFIXES:
        held = read_hdf5(path) if path.suffix in HDF5_SUFFIXES else _read_safetensors(path)
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


@contextmanager
def seeded(weights: Weights) -> Iterator[None]:
    """Draw random numbers on the CPU from the weights' seed; afterwards the caller's generator goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed or 0)
        yield


@torch.no_grad()
def load_checked(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    unused: Callable[[str], bool] | Collection[str] = (),
    tied: Sequence[str] = (),
) -> None:
    """Copy `state` into `module`, all of whose parameters and persistent buffers must be there in their shapes.

    `unused`: further keys that a checkpoint may hold, such as a classifier's: names, or a test of a name.
    `tied`: names of the module that may be missing, since they share another's tensor.
    Raises `WeightsError` listing what is missing, unexpected, wrongly shaped or not finite, and copies nothing then.
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
        # a tensor of another shape may claim more than there is memory
        if name in state and state[name].shape == wanted[name].shape and not _finite(state[name])
    ]
    if missing or unexpected or wrong or odd:
        parts = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong, "not finite": odd}
        problems = "; ".join(f"{what}: {some_of(names, _SHOWN)}" for what, names in parts.items() if names)
        raise WeightsError(
            f"{source} does not fit {type(module).__name__}: {problems}",
            hint="give the checkpoint of this very model; nothing is left at random values",
        )
    for name, tensor in wanted.items():
        if name in state:
            tensor.copy_(state[name])


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def strip_prefixes(state: Mapping[str, Tensor], known: Callable[[str], bool]) -> dict[str, Tensor]:
    """`state` without what training programs put before its names (`module.`, `model.`, `sed_model.`, ...).

    `known` tells whether a name is the network's. As long as none is, the next prefix comes off the names that have
    it; where none is in the end, only the prefixes come off that no network's own names begin with.
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
    """The value, if it is a dictionary of named tensors and nothing else."""
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
    """What a torch file holds, of any form, read with `weights_only`; raises `WeightsError`."""
    check_size(path)
    names = _names(path)
    try:
        stand_ins: list[Any] = [_stand_in(name) for name in names if HARMLESS.fullmatch(name)]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is refused below
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
    """The classes and functions that a file names; none where it cannot be inspected."""
    try:
        with open_pickled(path) as held:
            return held.names
    except WeightsError:
        return frozenset()


def _stand_in(name: str) -> tuple[Any, str]:
    """A class to use in place of the one called `name`, which keeps nothing but entries of dictionaries."""
    kind = _Entries if _DICTIONARY.search(name) else _Nothing
    return type(kind.__name__, (kind,), {}), name


_DICTIONARY = re.compile(r"(dict|Dict|CfgNode|Munch)$")


class _Nothing:
    """Replaces an object that is not needed."""

    def __new__(cls, *args: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Entries:
    """Replaces a dictionary of another class, whose entries may be the tensors looked for."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


def _refused(path: Path, names: Collection[str], error: Exception) -> WeightsError:
    """Why a torch file was not read, and what to do: convert it, where that may help."""
    if (refusal := refusal_of(path, names)) is not None:
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
    """An error in one line, without torch's advice to run what is in the file."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("WeightsUnpickler error:")
    lines = [line for line in (text[2] or text[0]).splitlines() if line.strip()]
    return readable(lines[0].strip()) if lines else type(error).__name__
