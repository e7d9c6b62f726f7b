"""Checkpoints are loaded into a module completely or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_pickle import Hostile
from safetensors.torch import save_file
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.weights.find import Weights
from caeav.pipeline.backbones.weights.load import load_checked, read_tensors, read_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(x.float()).to(x.dtype) for name, x in network().state_dict().items()}


def test_everything_is_copied() -> None:
    module, wanted = network(), state()
    load_checked(module, {**wanted, "head.bias": torch.zeros(1)}, source="w", unused=["head.bias"])
    assert all(torch.equal(x, wanted[name]) for name, x in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), "missing: 0.weight"),
        (lambda s: s.pop("1.running_var"), "missing: 1.running_var"),
        (lambda s: s.update({"0.wieght": torch.zeros(1)}), "unexpected: 0.wieght"),
        (lambda s: s.update({"0.bias": torch.zeros(4)}), r"wrong shape: 0.bias is [4], needed [3]"),
        (lambda s: s["0.weight"].fill_(float("nan")), "not finite: 0.weight"),
    ],
)
def test_nothing_is_copied_when_anything_is_wrong(
    change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    module, given = network(), state()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    change(given)
    with pytest.raises(CaeavError) as caught:
        load_checked(module, given, source="w.pth")
    assert f"w.pth does not fit Sequential: {message}" in str(caught.value)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}]
)
def test_torch_files_are_read_through_the_usual_containers(
    wrap: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    torch.save(wrap(state()), tmp_path / "w.pth")
    found = read_tensors(tmp_path / "w.pth")
    assert found.keys() == state().keys()
    assert all(torch.equal(x, state()[name]) for name, x in found.items())


def test_shards_are_joined(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{i}.safetensors" for i in range(2))
    for i, path in enumerate(paths):
        save_file({f"x{i}": torch.full((2,), i)}, path)
    assert {k: v.tolist() for k, v in read_weights(Weights("w", "d", paths)).items()} == {
        "x0": [0, 0],
        "x1": [1, 1],
    }
    save_file({"x0": torch.zeros(2)}, paths[1])
    with pytest.raises(CaeavError, match="x0 is in two files"):
        read_weights(Weights("w", "d", paths))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_files_are_errors(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = tmp_path / f"whole-{name}"
    if name.endswith("pth"):
        torch.save(state(), whole)
    else:
        save_file(state(), whole)
    for content in (b"", b"<html>404</html>", whole.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(CaeavError, match="cannot be read as plain weights"):
            read_tensors(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({**state(), "x": Hostile()}, tmp_path / "evil.pth")
    with pytest.raises(CaeavError, match="only tensors are read"):
        read_tensors(tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out


def test_a_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CaeavError, match="holds no named tensors"):
        read_tensors(tmp_path / "w.pth")
