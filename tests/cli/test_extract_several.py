"""`caeav extract` for several stores at once, in slices and in other number formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import invoke

from caeav.cli import extract
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.pipeline.store import StoreReader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "synthetic"
    synthesise(folder, SyntheticOptions(clips=12, classes=5, seconds=4, size_px=64, fps=5), workers=1)
    return folder


def command(made: Path, home: Path, *more: str) -> tuple[int, str, str]:
    """Exit status, standard output, and the error with standard error."""
    place = ("--dataset", "synthetic", "--root", made, "--home", home, "--workers", 2)
    result = invoke([extract], "extract", *place, *more)
    error = str(result.exception) if isinstance(result.exception, CaeavError) else ""
    return result.exit_code, result.stdout, error + result.stderr


def test_a_visual_an_audio_and_a_caption_store_from_one_command(made: Path, tmp_path: Path) -> None:
    arguments = ("--visual", "classic,none", "--audio", "none,classic", "--captions")
    code, out, _ = command(made, tmp_path, *arguments)
    assert code == 0
    assert out.count("stored       12 of 12") == 3
    assert out.count("next ") == 1
    assert "caeav train --task ave --dataset synthetic" in out
    code, out, _ = command(made, tmp_path, *arguments, "--json")
    stores = [StoreReader.open(Path(each["path"])) for each in json.loads(out)]
    assert [each["due"] for each in json.loads(out)] == [0, 0, 0]
    modalities = [{name.split(".")[0] for name in store.array_specs()} for store in stores]
    assert modalities[:2] == [{"visual"}, {"audio"}]
    assert "visual_caption" in modalities[2]


def test_a_slice_names_merging_as_the_next_step(made: Path, tmp_path: Path) -> None:
    code, out, _ = command(made, tmp_path, "--slice", "2/3", "--shard-clips", "3")
    assert code == 0
    assert "stored       3 of 3" in out  # of the four shards of three clips, the second
    assert ".slice-2-of-3" in out
    assert "next         caeav store merge synthetic --home" in out


@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
def test_number_formats_read_back_as_floats_from_both_backends(
    made: Path, tmp_path: Path, backend: str
) -> None:
    found = {}
    for dtype in ("float32", "int8", "bfloat16"):
        code, out, _ = command(made, tmp_path, "--dtype", dtype, "--backend", backend, "--json")
        assert code == 0
        reader = StoreReader.open(Path(json.loads(out)["path"]))
        found[dtype] = reader.read(reader.keys[5]).arrays
    assert set(found["float32"]) == set(found["int8"]) == set(found["bfloat16"])
    for name, exact in found["float32"].items():
        for dtype in ("int8", "bfloat16"):
            np.testing.assert_allclose(found[dtype][name], exact, atol=0.01 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--slice", "0/3"), "slice"),
        (("--slice", "half"), "slice"),
        (("--dtype", "int4"), "unknown dtype 'int4'"),
        (("--devices", "gpu"), "unknown device 'gpu'\n  next: did you mean 0, the first GPU? give auto, cpu"),
        (("--devices", "cpu,cup"), "unknown device 'cup'\n  next: did you mean 'cpu'? give auto"),
        (("--devices", "cpu,0"), "GPUs and CPUs do not give the same bytes"),
        (("--visual", "clasic"), "did you mean 'classic'? choose one of: classic"),
        (("--visual", "classic,"), "backbones"),
        (("--visual", "none", "--audio", "none"), "without visual and without audio"),
        (("--visual", "classic,classic", "--audio", "classic,classic"), "asked for twice"),
        (("--visual", "classic", "--set", "visual2.size=3"), "sets nothing"),
    ],
)
def test_invalid_options_are_refused(
    made: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, _, error = command(made, tmp_path, *arguments)
    assert code == 1
    assert words in error
