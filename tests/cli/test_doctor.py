"""What doctor tells about this machine: weights, packages, devices and decoders."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from caeav.cli import doctor
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media import torchcodec as torchcodec_decoder
from caeav.pipeline.media.registry import decoders


def test_doctor_says_where_the_weights_of_every_model_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    said = {check.about: check.detail for check in doctor._weights()}
    visual, audio = said["weights, visual backbones"], said["weights, audio backbones"]
    assert visual.startswith("not needed: classic; to pull: swinv2-large, ")
    assert visual.endswith("; by model: timm:<name>, open_clip:<name>")
    assert audio == "not needed: classic; give a file: yamnet, hts-at; to pull: clap"


def test_doctor_checks_every_dependency() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    said = {check.about: check.status for check in doctor._packages()}
    needed = [re.split(r"[<>=]", text)[0] for text in project["dependencies"]]
    assert {"av", "pillow", "torch"} <= set(needed)
    assert {name: said[name] for name in needed} == dict.fromkeys(needed, "ok")
    assert said.keys() - set(needed) == set(doctor.OPTIONAL)


def test_a_torch_that_does_not_load_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    [check] = doctor._devices()
    assert (check.about, check.status) == ("devices", "problem")
    assert check.detail.startswith("torch does not load: import of torch halted")


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_an_unusable_optional_decoder_is_reported_as_absent_with_the_reason(
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


def test_a_missing_library_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchcodec writes pages: it tries one build per version of FFmpeg; a build that fails otherwise is the reason."""
    missing = "OSError: libavutil.so.{}: cannot open shared object file: No such file or directory\n"
    head = "Could not load libtorchcodec. Likely causes:\n  1. FFmpeg\n"
    wrapped = "OSError: Could not load this library: /x/libtorchcodec_core8.so\n"
    broken = "OSError: /x/libtorchcodec_core7.so: undefined symbol: _ZN3c10\n"
    for text, why in (
        (head + missing.format(60) + wrapped + missing.format(59), "the system has no FFmpeg libraries (libavutil)"),
        (head + missing.format(60) + wrapped + broken, "/x/libtorchcodec_core7.so: undefined symbol: _ZN3c10"),
        ("No module named 'torchcodec'", "No module named 'torchcodec'"),
    ):  # fmt: skip
        assert torchcodec_decoder._load_error(RuntimeError(text)) == why


def test_a_decoder_that_is_not_installed_is_refused_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(
        CaeavError, match=r"torchcodec does not load: .*\n  next: install caeav\[torchcodec\]"
    ):
        decoders["torchcodec"]().version()
