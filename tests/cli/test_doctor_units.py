"""What doctor calls a problem, check by check, and what the catalogue finds by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caeav.cli import doctor
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.catalogue import find_all_facts, find_facts, is_kind
from caeav.pipeline.backbones.facts import MODELS, ModelFacts
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store.record import Tap


@pytest.mark.parametrize(("free", "status"), [(5 * 2**30, "ok"), (5 * 2**30 - 1, "low")])
def test_a_disk_that_is_nearly_full_is_told(
    free: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    found = doctor._disk(Home(tmp_path / "not" / "yet"))
    assert found.status == status and str(tmp_path / "not" / "yet") in found.detail
    assert ("below 5 GiB choose another with --home" in found.detail) is (status == "low")
    monkeypatch.setattr(doctor.os, "access", lambda place, how: place != tmp_path)
    found = doctor._disk(Home(tmp_path / "not" / "yet"))
    assert found.status == "problem" and f"{tmp_path} cannot be written to" in found.detail


def measured(
    levels: tuple[int, int, int], hz: float, monkeypatch: pytest.MonkeyPatch, **clip: Any
) -> dict[str, Any]:
    s = np.arange(doctor.SAMPLE.samples) / doctor.SAMPLE.rate_hz
    frames = np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])
    given = {"frames": frames, "wave": np.sin(2 * np.pi * hz * s + 0.1).astype(np.float32), **clip}
    decoder = SimpleNamespace(
        version=lambda: "v1",
        decode=lambda *_: DecodedClip(given["frames"], given["wave"], (True,) * 3, (True,) * 3),
    )
    monkeypatch.setattr(doctor, "decoders", {"d": lambda: decoder})
    _, info = doctor.setup({"decoder": "d"})({"path": "x"})
    return info


def test_what_a_decoder_makes_of_the_sample_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    good = measured((60, 120, 180), 440, monkeypatch)
    assert good == {"version": "v1", "frames": 3, "samples": 48_000, "hz": 440}
    for levels in ((180, 120, 60), (120, 60, 180), (60, 60, 180), (60, 180, 180)):
        assert "wrong order or shade" in measured(levels, 440, monkeypatch)["problem"]
    assert "comes out as 220 Hz" in measured((60, 120, 180), 220, monkeypatch)["problem"]
    assert "comes out as 450 Hz" in measured((60, 120, 180), 450, monkeypatch)["problem"]
    assert measured((60, 120, 180), 440, monkeypatch, frames=None) == {"problem": "no frames came out"}
    assert measured((60, 120, 180), 440, monkeypatch, wave=None) == {"problem": "no audio came out"}


def outcome(monkeypatch: pytest.MonkeyPatch, name: str, reason: str = "", **info: Any) -> doctor.Check:
    class Pool:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def map(self, requests: Any) -> Any:
            failure = SimpleNamespace(reason=reason) if reason else None
            return [SimpleNamespace(failure=failure, info=info)]

    monkeypatch.setattr(doctor, "WorkerPool", Pool)
    return doctor._decoder(name, Path("x"))


def test_only_the_default_decoder_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = outcome(monkeypatch, doctor.DEFAULT_DECODER, "broken\n  next: fix it\nmore")
    assert (failed.status, failed.detail) == ("problem", "broken; fix it") and "(default)" in failed.about
    assert outcome(monkeypatch, "decord", "not installed").status == "absent"
    assert outcome(monkeypatch, "decord", problem="no audio came out").status == "problem"
    fine = outcome(monkeypatch, "decord", version="v", frames=3, samples=48_000, hz=440)
    assert (fine.status, fine.detail) == ("ok", "v; sample: 3 frames, 48000 samples")


def test_bytes_per_clip_count_every_segment_but_a_text_once() -> None:
    taps = (Tap("a", 4, 3), Tap("b", 1, 5))
    row = ModelFacts("m", "visual backbone", "", "", taps)
    assert (row.bytes_a_clip(), row.bytes_a_clip(2)) == (2 * 10 * 17, 2 * 2 * 17)
    assert ModelFacts("m", "text encoder", "", "", taps).bytes_a_clip() == 2 * 17
    assert ModelFacts("m", "visual captioner", "", "").bytes_a_clip() == 0


def test_models_are_found_by_name_family_and_kind() -> None:
    row = MODELS[0]
    assert (
        is_kind(row, None)
        and is_kind(row, "visual")
        and is_kind(row, "backbone")
        and not is_kind(row, "audio")
    )
    assert find_facts("timm:resnet18").name == "timm:"
    assert find_facts("clap", "audio").kind == "audio backbone"
    assert {found.kind for found in find_all_facts("descriptor")} == {"visual captioner", "audio captioner"}
    with pytest.raises(CaeavError, match=r"'clap' is several things: .*\n  next: say which by --kind"):
        find_facts("clap")
    for name in ("timmm:x", "nothing"):
        with pytest.raises(CaeavError, match="no model is called") as refused:
            find_facts(name)
    assert "timm:<name>" in str(refused.value)
    with pytest.raises(CaeavError, match="no audio model is called 'swinv2-large'"):
        find_facts("swinv2-large", "audio")
