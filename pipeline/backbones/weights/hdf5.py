"""Read the tensors of an HDF5 file of Keras weights; nothing in it is run, and nothing outside it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caeav.pipeline.backbones.weights.pickled import MAX_GROWTH, WeightsError, readable

_DEEP = 12
_MANY = 10_000


def read_hdf5(path: Path) -> dict[str, Tensor]:
    """Every array of numbers in the file, under its path there: `layer1/conv/kernel:0`.

    Raises `WeightsError` for a damaged file, for links that lead out of it or round in it, and for one that claims to
    unpack to more than four times its size.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path.name}: HDF5 needs {error.name}", hint="pip install 'caeav[small]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            datasets = _datasets(file, path)
            return {name: torch.from_numpy(np.array(x[()])) for name, x in datasets.items()}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path} cannot be read as weights: {readable(first)}", hint="get the file again"
        ) from error


def _datasets(file: Any, path: Path) -> dict[str, Any]:
    """The arrays of numbers, none of which has been read yet."""
    import h5py

    found: dict[str, Any] = {}
    seen = 0

    def look(group: Any, prefix: str, depth: int) -> None:
        nonlocal seen
        for name in group:
            seen += 1
            place = readable(f"{prefix}{name}")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{place} leads to another place or file")
            if not depth or seen > _MANY:
                raise ValueError(f"too many groups at {place}")
            inner = group[name]
            if not isinstance(inner, h5py.Dataset):
                look(inner, f"{prefix}{name}/", depth - 1)
            elif inner.external or inner.is_virtual:
                raise ValueError(f"{place} lies in another file")
            elif inner.dtype.kind in "fiu" and inner.shape is not None:
                found[f"{prefix}{name}"] = inner

    look(file, "", _DEEP)
    size = sum(x.size * x.dtype.itemsize for x in found.values())
    most = MAX_GROWTH * path.stat().st_size + (1 << 16)
    if size > most:
        raise ValueError(f"it claims to hold {size} bytes, {most} are allowed for a file of its size")
    return found
