"""Untrusted checkpoints: no code runs, no memory is allocated for a header's claims, wrong keys are listed."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_pickle import Hostile
from torch import nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.train.checkpoint import (
    CheckpointError,
    load_fitting,
    load_into,
    read_facts,
    read_tensors,
    write_tensors,
)
from caeav.pipeline.backbones.weights.load import load_checked
from caeav.pipeline.backbones.weights.load import read_tensors as read_weights


def crafted(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


HUGE = 1 << 40
HEADERS = {
    "huge shape": {"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}},
    "shape without bytes": {"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 0]}},
    "overflow": {"x": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}},
    "overlap": {
        "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    },
    "hole": {"x": {"dtype": "F32", "shape": [1], "data_offsets": [64, 68]}},
    "odd dtype": {"x": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}},
    "list": [1, 2],
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_with_false_claims_are_refused(name: str, tmp_path: Path) -> None:
    path = crafted(tmp_path / "w.safetensors", HEADERS[name], bytes(4))
    for read in (read_tensors, read_facts):
        with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
            read(path)
    with pytest.raises(CaeavError, match="cannot be read as plain weights"):
        read_weights(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError):
        read_tensors(path)
    with pytest.raises(CaeavError):
        read_weights(path)


def test_pipes_devices_and_folders_are_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "folder.safetensors").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match="no plain file"):
            read_tensors(path)
        with pytest.raises(CheckpointError, match="no plain file"):
            read_facts(path)


def test_a_pickle_named_safetensors_is_not_unpickled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": Hostile()}, tmp_path / "w.safetensors")
    for read in (read_tensors, read_weights):
        with pytest.raises(CaeavError):
            read(tmp_path / "w.safetensors")
    assert "executed" not in capsys.readouterr().out


def test_missing_unexpected_and_misshapen_keys_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = {"0.weight": torch.ones(5, 3), "0.bias": torch.ones(2), "stranger": torch.ones(1)}
    write_tensors(tmp_path / "w.safetensors", state, {})
    tensors, _ = read_tensors(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as refused:
        load_into(model, tensors, tmp_path / "w.safetensors")
    for text in (
        "2 missing: 1.bias, 1.weight",
        "1 unexpected: stranger",
        "0.weight [5, 3] where the model has [2, 3]",
    ):
        assert text in str(refused.value)
    with pytest.raises(CaeavError) as refused:
        load_checked(model, tensors, source="w")
    for text in ("missing: 1.weight, 1.bias", "unexpected: stranger", "0.weight is [5, 3], needed [2, 3]"):
        assert text in str(refused.value)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_shapes_are_compared_before_anything_is_allocated(tmp_path: Path) -> None:
    """A run folder can claim inputs of any size; the network is allocated only when the weights have that size."""
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, {})
    made: list[str] = []

    def claimed() -> nn.Module:
        made.append(str(torch.get_default_device()))
        return nn.Linear(1 << 22, 1 << 22)  # 64 TiB

    with pytest.raises(CheckpointError, match="2 of another shape"):
        load_fitting(claimed, path)
    assert made == ["meta"]
    model = load_fitting(lambda: nn.Linear(3, 2), path)
    assert torch.equal(model.weight, torch.ones(2, 3)) and model.weight.device.type == "cpu"
