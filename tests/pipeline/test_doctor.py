"""The report on this machine: what it says of weights agrees with `caeav models ls`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from caeav.pipeline import doctor


def test_it_says_of_every_model_where_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    said = {check.about: check.detail for check in doctor._weights()}
    visual, audio = said["weights, visual backbones"], said["weights, audio backbones"]
    assert visual.startswith("not needed: classic; to pull: swinv2-large, ")
    assert visual.endswith("; by model: timm:<name>, open_clip:<name>")
    assert audio == "not needed: classic; give a file: hts-at; to pull: clap"


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
