"""HDF5 files of weights: numeric arrays are read; links, external data and oversized arrays are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caeav.pipeline.backbones.weights import WeightsError
from caeav.pipeline.backbones.weights.load import read_tensors

h5py: Any = pytest.importorskip("h5py", reason="h5py is not installed")


def written(path: Path, fill: Callable[[Any], object]) -> Path:
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def test_arrays_are_read_under_their_paths(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["a/b/kernel:0"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        file["step"] = np.int64(3)
        file["name"] = "no number"
        file.create_group("empty")

    found = read_tensors(written(tmp_path / "w.h5", fill))
    assert set(found) == {"a/b/kernel:0", "step"}
    assert torch.equal(found["a/b/kernel:0"], torch.arange(6.0).view(2, 3)) and int(found["step"]) == 3


def soft(file: Any) -> None:
    file["a"] = np.ones(3)
    file["b"] = h5py.SoftLink("/a")


def outside(file: Any) -> None:
    file["b"] = h5py.ExternalLink("other.h5", "/a")


def stored_outside(file: Any) -> None:
    place = str(Path(file.filename).with_name("secret"))
    file.create_dataset("b", (4,), dtype="u1", external=[(place, 0, 4)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", shape=(4,))
    file.create_virtual_dataset("b", layout)


def round_in_circles(file: Any) -> None:
    file.create_group("g")["again"] = file["/"]


def grows(file: Any) -> None:
    file.create_dataset("a", (1 << 24,), dtype="f4", chunks=(1 << 16,), fillvalue=1.0)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (soft, "b leads to another place or file"),
        (outside, "b leads to another place or file"),
        (stored_outside, "b lies in another file"),
        (virtual, "b lies in another file"),
        (round_in_circles, "too many groups"),
        (grows, "claims to hold 67108864 bytes"),
        (lambda file: None, "holds no named tensors"),
    ],
)
def test_links_external_data_and_oversized_arrays_are_refused(
    fill: Callable[[Any], object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"abcd")
    with pytest.raises(WeightsError, match=said):
        read_tensors(written(tmp_path / "w.h5", fill))


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_tensors(tmp_path / "w.h5")


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "w.h5", soft)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"w\.h5: HDF5 needs h5py\n.*caeav\[small\]"):
        read_tensors(path)
