"""The report on this machine: what it says of weights agrees with `caeav models ls`."""

from __future__ import annotations

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
