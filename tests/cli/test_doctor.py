"""What doctor says of this machine: what it says of weights agrees with `caeav models ls`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from caeav.cli import doctor
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.registry import decoders


def test_it_says_of_every_model_where_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    said = {check.about: check.detail for check in doctor._weights()}
    visual, audio = said["weights, visual backbones"], said["weights, audio backbones"]
    assert visual.startswith("not needed: classic; to pull: swinv2-large, ")
    assert visual.endswith("; by model: timm:<name>, open_clip:<name>")
    assert audio == "not needed: classic; give a file: yamnet, hts-at; to pull: clap"


def test_it_looks_for_everything_the_program_depends_on() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    said = {check.about: check.status for check in doctor._packages()}
    needed = [re.split(r"[<>=]", text)[0] for text in project["dependencies"]]
    assert {"av", "pillow", "torch"} <= set(needed)
    assert {name: said[name] for name in needed} == dict.fromkeys(needed, "ok")
    assert said.keys() - set(needed) == set(doctor.OPTIONAL)


def test_a_torch_that_does_not_load_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    [check] = doctor._devices()
    assert (check.about, check.status) == ("devices", "problem")
    assert check.detail.startswith("torch does not load: import of torch halted")


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_a_decoder_that_cannot_be_used_is_no_problem_and_says_why(
    name: str, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchcodec without the system's FFmpeg raises RuntimeError when it is imported, decord is not installed."""
    monkeypatch.setenv("PYTHONPATH", str(repository / "tests" / "absent"))
    monkeypatch.setenv("CAEAV_TEST_WITHOUT", name)
    sample = tmp_path / "sample.mp4"
    sample.write_bytes(doctor._sample())
    check = doctor._decoder(name, sample)
    assert (check.about, check.status) == (f"decoder {name}", "absent")
    assert check.detail.startswith(f"{name} does not load: ")
    assert f"; install caeav[{name}]" in check.detail and check.detail.endswith("or use --decoder pyav")


def test_a_library_that_is_not_there_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchcodec tells pages: it tries a build a version of FFmpeg, and one that fails otherwise is the reason."""
    from caeav.pipeline.media import torchcodec as with_torchcodec

    missing = "OSError: libavutil.so.{}: cannot open shared object file: No such file or directory\n"
    head = "Could not load libtorchcodec. Likely causes:\n  1. FFmpeg\n"
    wrapped = "OSError: Could not load this library: /x/libtorchcodec_core8.so\n"
    broken = "OSError: /x/libtorchcodec_core7.so: undefined symbol: _ZN3c10\n"
    for text, why in (
        (head + missing.format(60) + wrapped + missing.format(59), "the system has no FFmpeg libraries (libavutil)"),
        (head + missing.format(60) + wrapped + broken, "/x/libtorchcodec_core7.so: undefined symbol: _ZN3c10"),
        ("No module named 'torchcodec'", "No module named 'torchcodec'"),
    ):  # fmt: skip
        assert with_torchcodec._load_error(RuntimeError(text)) == why


def test_a_decoder_that_is_not_installed_is_named_before_its_version_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(
        CaeavError, match=r"torchcodec does not load: .*\n  next: install caeav\[torchcodec\]"
    ):
        decoders["torchcodec"]().version()
