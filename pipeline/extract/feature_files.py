"""Arrays in files of features: `.npy`, `.npz`, `.pt` (tensors only), `.h5`. Nothing in them is ever run.

A file holds one array, or several under names. Of several, `#NAME` after the path names the one to take, else it is the
one named like the tap; no other is guessed. Shapes are known before values are read. HDF5 is read by h5py, imported
here only.
"""

from __future__ import annotations

import tokenize
from collections.abc import Callable, Iterator, Mapping
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
from caeav.manifests.core.util import some_of

FORMATS = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5")
MAX_BYTES = 1 << 28
"""Largest array of one clip."""
MAX_SET_BYTES = 1 << 33
"""Largest array of all clips in an archive, where it can only be read whole."""
SHOWN = 8
"""How many names a message quotes."""
_NUMBERS, _TEXTS = "fiu", "USO"


class FeatureError(CaeavError):
    """Features that cannot be stored as they are."""


@dataclass(frozen=True)
class FileArray:
    """An array in a file, its values unread: shape, kind of values (numpy's letter), and how to read all or one row."""

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], NDArray[Any]]
    row: Callable[[int], NDArray[Any]]


def arrays_in(path: Path) -> dict[str, FileArray]:
    """All arrays of a file by name; the name is empty in a format of one array. Raises `FeatureError`."""
    with _readable(path):
        if not path.stat().st_size:
            raise ValueError("it is empty")
        return _READERS[path.suffix.lower()](path)


def one_array(path: Path, name: str = "", word: str = "") -> FileArray:
    """The array called `name`, the only one, or the one called `word`; raises `FeatureError` naming what there is."""
    held = {key: x for key, x in arrays_in(path).items() if x.kind in _NUMBERS or key == name}
    if name and name in held:
        return held[name]
    if not name and len(held) == 1:
        return next(iter(held.values()))
    if not name and word in held:
        return held[word]
    there = (
        some_of((f"{key or 'an array'} {list(x.shape)}" for key, x in held.items()), SHOWN)
        or "no array of numbers"
    )
    raise FeatureError(
        f"{path.name} holds {there}" + (f", but no {name!r}" if name else ""),
        hint="name one behind the path: TAP=PATH#NAME" if held else "give a file with one array of numbers",
    )


def numbers(held: FileArray, name: str) -> NDArray[Any]:
    """The values of an array of numbers, of at most `MAX_BYTES`."""
    with _readable(Path(name)):
        if held.kind not in _NUMBERS:
            raise ValueError("holds no numbers")
        return held.read()


def texts_in(path: Path) -> list[str]:
    """The names in a list, one per line, blank lines left out; raises `FeatureError`."""
    with _readable(path):
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def texts_of(held: FileArray, name: str) -> list[str] | None:
    """The names in an array of texts; None for other arrays."""
    if held.kind not in _TEXTS or len(held.shape) != 1:
        return None
    with _readable(Path(name)):
        return [x.decode() if isinstance(x, bytes) else str(x) for x in held.read().tolist()]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
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


def _in_memory(array: NDArray[Any]) -> FileArray:
    return FileArray(array.shape, array.dtype.kind, lambda: array, lambda i: array[i])


def _of_npy(path: Path) -> dict[str, FileArray]:
    # A mapped file cannot hold objects, nor claim more values than it has bytes.
    return {"": _in_memory(np.lib.format.open_memmap(path, mode="r"))}


def _of_npz(path: Path) -> dict[str, FileArray]:
    with path.open("rb") as file, open_archive(file, MAX_SET_BYTES) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {info.filename.removesuffix(".npy"): _of_member(path, archive, info) for info in members}


def _of_member(path: Path, archive: ZipFile, info: ZipInfo) -> FileArray:
    """An array of an archive: its header now, its values when wanted, once for all rows."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        # Versions 2 and 3 differ only in how names of fields are encoded, and arrays of numbers have none.
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
    return FileArray(shape, dtype.kind, read, lambda i: once()[i])


def _of_torch(path: Path) -> dict[str, FileArray]:
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
    return {str(name): _in_memory(_as_numpy(x)) for name, x in found.items() if _is_tensor(x)}


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _as_numpy(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def _of_hdf5(path: Path) -> dict[str, FileArray]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise FeatureError(
            f"{path.name}: HDF5 needs {error.name}", hint="pip install 'caeav[hdf5]'"
        ) from error
    found: dict[str, FileArray] = {}

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


def _of_dataset(path: Path, name: str, dataset: Any) -> FileArray:
    import h5py

    size = dataset.size * dataset.dtype.itemsize if dataset.size else 0

    def read(at: Any = ()) -> NDArray[Any]:
        # where rows are clips, the file may be far larger than one of them
        if (size if at == () else size // max(dataset_rows, 1)) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        with h5py.File(path, "r") as file:
            return np.asarray(file[name][at])

    dataset_rows = dataset.shape[0] if dataset.shape else 0
    return FileArray(tuple(dataset.shape or ()), dataset.dtype.kind, read, read)


_READERS: Mapping[str, Callable[[Path], dict[str, FileArray]]] = {
    ".npy": _of_npy,
    ".npz": _of_npz,
    ".pt": _of_torch,
    ".pth": _of_torch,
    ".h5": _of_hdf5,
    ".hdf5": _of_hdf5,
}
