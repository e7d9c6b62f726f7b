"""Arrays in the files that features come in: `.npy`, `.npz`, `.pt` (tensors only), `.h5`. Nothing in them is run.

A file holds one array, or several under names. Of several, the one asked for by `#NAME` behind the path is taken, else
the one called as the tap; no other is guessed. An array is looked at before its values are read. HDF5 is read by h5py,
imported here only.
"""

from __future__ import annotations

import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.archive import open_archive
from caeav.manifests.core.errors import CaeavError

FORMATS = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5")
MAX_BYTES = 1 << 28
"""Of one clip's array."""
MAX_SET_BYTES = 1 << 33
"""Of an array of all clips in an archive, which can only be read whole."""
_SHOWN = 8
_NUMBERS, _TEXTS = "fiu", "USO"


class FeatureError(CaeavError):
    """Features that cannot be taken as they are."""


@dataclass(frozen=True)
class Held:
    """An array in a file: its shape and kind of values (as numpy's letters), and `read` for the values themselves.

    `row` reads one entry of the first axis.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], NDArray[Any]]
    row: Callable[[int], NDArray[Any]]


def arrays_in(path: Path) -> dict[str, Held]:
    """Name -> array of all that a file holds; the name is empty in a format of one array. Raises `FeatureError`."""
    with _told(path):
        if not path.stat().st_size:
            raise ValueError("it is empty")
        return _READERS[path.suffix.lower()](path)


def one_array(path: Path, name: str = "", word: str = "") -> Held:
    """The array called `name`, the only one, or the one called `word`; raises `FeatureError` naming what there is."""
    held = {key: x for key, x in arrays_in(path).items() if x.kind in _NUMBERS or key == name}
    if name and name in held:
        return held[name]
    if not name and len(held) == 1:
        return next(iter(held.values()))
    if not name and word in held:
        return held[word]
    there = (
        in_short(f"{key or 'an array'} {list(x.shape)}" for key, x in held.items()) or "no array of numbers"
    )
    raise FeatureError(
        f"{path.name} holds {there}" + (f", but no {name!r}" if name else ""),
        hint="name one behind the path: TAP=PATH#NAME" if held else "give a file with one array of numbers",
    )


def numbers(held: Held, name: str) -> NDArray[Any]:
    """The values of an array of numbers, of at most `MAX_BYTES`."""
    with _told(Path(name)):
        if held.kind not in _NUMBERS:
            raise ValueError("holds no numbers")
        return held.read()


def texts_in(path: Path) -> list[str]:
    """The names in a list: a line each, blank ones left out; raises `FeatureError`."""
    with _told(path):
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def texts_of(held: Held, name: str) -> list[str] | None:
    """The names in an array of texts; None for other arrays."""
    if held.kind not in _TEXTS or len(held.shape) != 1:
        return None
    with _told(Path(name)):
        return [x.decode() if isinstance(x, bytes) else str(x) for x in held.read().tolist()]


def in_short(words: Iterable[str]) -> str:
    """The first of some words, and how many more there are."""
    every = list(words)
    more = len(every) - _SHOWN
    return ", ".join(every[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except FeatureError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        MemoryError,
        EOFError,
        SyntaxError,
        RuntimeError,
        NotImplementedError,
        tokenize.TokenError,
        BadZipFile,
    ) as error:
        text = " ".join(str(error).split())
        raise FeatureError(
            f"{path.name} cannot be read: {text}",
            hint=f"give one of {', '.join(FORMATS)} that holds numbers, and no Python objects",
        ) from error


def _held(array: NDArray[Any]) -> Held:
    return Held(array.shape, array.dtype.kind, lambda: array, lambda i: array[i])


def _of_npy(path: Path) -> dict[str, Held]:
    # A mapped file cannot hold objects, nor claim more values than it has bytes.
    return {"": _held(np.lib.format.open_memmap(path, mode="r"))}


def _of_npz(path: Path) -> dict[str, Held]:
    with path.open("rb") as file, open_archive(file, MAX_SET_BYTES) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {info.filename.removesuffix(".npy"): _of_member(path, archive, info) for info in members}


def _of_member(path: Path, archive: ZipFile, info: ZipInfo) -> Held:
    """An array of an archive: its header now, its values when they are wanted, once for all rows."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        # The second form's header is the third's, but for how names of fields are written, which numbers lack.
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(file)

    def read(most: int = MAX_BYTES) -> NDArray[Any]:
        if info.file_size > most:
            raise ValueError(f"larger than {most} bytes")
        with path.open("rb") as whole, open_archive(whole, MAX_SET_BYTES) as again, again.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    once = cache(lambda: read(MAX_SET_BYTES))
    return Held(shape, dtype.kind, read, lambda i: once()[i])


def _of_torch(path: Path) -> dict[str, Held]:
    from caeav.pipeline.backbones.weights.load import read_plain
    from caeav.pipeline.backbones.weights.pickled import WeightsError

    try:
        held = read_plain(path)
    except WeightsError as error:
        raise FeatureError(
            f"{path.name} cannot be read: {error.problem.removeprefix(str(path)).strip(' :')}",
            hint="save tensors alone: torch.save(tensor, PATH), or a dictionary of them",
        ) from error
    found = held if isinstance(held, Mapping) else {"": held}
    return {str(name): _held(_as_numpy(x)) for name, x in found.items() if _is_tensor(x)}


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _as_numpy(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def _of_hdf5(path: Path) -> dict[str, Held]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise FeatureError(
            f"{path.name}: HDF5 needs {error.name}", hint="pip install 'caeav[hdf5]'"
        ) from error
    found: dict[str, Held] = {}

    def look(group: Any, prefix: str, depth: int) -> None:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{prefix}{name} leads into another file or place")
            inner = group[name]
            if isinstance(inner, h5py.Dataset):
                if inner.external or inner.is_virtual:
                    raise ValueError(f"{prefix}{name} lies in another file")
                found[prefix + name] = _of_dataset(path, f"{prefix}{name}", inner)
            elif depth:
                look(inner, f"{prefix}{name}/", depth - 1)

    with h5py.File(path, "r") as file:
        look(file, "", 4)
    return found


def _of_dataset(path: Path, name: str, dataset: Any) -> Held:
    import h5py

    size = dataset.size * dataset.dtype.itemsize if dataset.size else 0

    def read(at: Any = ()) -> NDArray[Any]:
        # a file whose rows are clips may be far larger than one clip
        if (size if at == () else size // max(dataset_rows, 1)) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        with h5py.File(path, "r") as file:
            return np.asarray(file[name][at])

    dataset_rows = dataset.shape[0] if dataset.shape else 0
    return Held(tuple(dataset.shape or ()), dataset.dtype.kind, read, read)


_READERS: Mapping[str, Callable[[Path], dict[str, Held]]] = {
    ".npy": _of_npy,
    ".npz": _of_npz,
    ".pt": _of_torch,
    ".pth": _of_torch,
    ".h5": _of_hdf5,
    ".hdf5": _of_hdf5,
}
