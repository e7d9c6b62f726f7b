"""The replies of a child process with a stand-in decoder: each job gets its own rate, notes and reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.extract import decode_job
from caeav.pipeline.extract.jobs import JOBS, CaptionJob, Job, TokenJob
from caeav.pipeline.media.clip import DecodedClip, Note, Sampling
from caeav.pipeline.store import Recipe

T = 2


def job(kind: type[Job], rate_hz: int, **parts: str) -> Job:
    sampling = {"segments": T, "segment_s": 1.0, "rate_hz": rate_hz}
    modalities = {modality: SimpleNamespace(runs_in=runs_in) for modality, runs_in in parts.items()}
    name = next(name for name, job_class in JOBS.items() if job_class is kind)
    return kind(Recipe(name, "n", {"sampling": sampling}), modalities)


@dataclass
class Decoder:
    """Stands in for a decoder: returns a wave filled with its rate, and frames."""

    frames: bool = True
    sound: bool = True
    notes: list[Note] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)

    def decode_each(self, path: str, start_s: float, samplings: list[Sampling]) -> list[DecodedClip]:
        self.asked.append((path, start_s, [s.rate_hz for s in samplings]))
        frames = np.ones((T, 2, 2, 3), np.uint8) if self.frames else None
        return [
            DecodedClip(
                frames,
                np.full(s.samples, s.rate_hz, np.float32) if self.sound else None,
                (True,) * T,
                (True, False),
                list(self.notes),
            )
            for s in samplings
        ]


def load_part(recipe: Recipe, modality: str) -> Any:
    def tokens(clips: list[Any]) -> list[dict[str, Any]]:
        if recipe.name == "bad":
            raise RuntimeError("it broke")
        return [{f"{modality}.x": np.float32(clips[0].max())}]

    return SimpleNamespace(tokens=tokens, caption=lambda clips: [f"{modality} at {clips[0].wave.max():g}"])


def reply(
    monkeypatch: pytest.MonkeyPatch, decoder: Decoder, jobs: list[Job], wanted: list[int], keep: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    monkeypatch.setattr(decode_job, "decoder_of", lambda recipe: decoder)
    for kind in JOBS.values():
        monkeypatch.setattr(kind, "load_part", load_part)
    replies = decode_job.setup(decode_job.worker_settings(jobs, keep_media=keep))
    return replies({"path": "f.mp4", "start_s": 7.5, "jobs": wanted})


WANTED = [
    job(TokenJob, 16, visual="worker", audio="worker"),
    job(TokenJob, 8, visual="device", audio="worker"),
    job(CaptionJob, 8, visual="device", audio="worker"),
    job(TokenJob, 4, audio="device"),
]


def test_each_job_gets_audio_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder()
    arrays, info = reply(monkeypatch, decoder, WANTED, [0, 1, 2, 3])
    assert decoder.asked == [("f.mp4", 7.5, [16, 8, 4])]  # once
    tokens = {name: float(x) for name, x in arrays.items() if "/" in name}
    assert tokens == {"0/visual.x": 1, "0/audio.x": 16, "1/audio.x": 8}
    assert info["texts"] == {"0": {}, "1": {}, "2": {"audio": "audio at 8"}, "3": {}}
    assert set(arrays) - set(tokens) == {"frames", "wave@8", "wave@4"}  # no device component needs that of 16
    assert info["clips"]["8"]["audio_ok"] == [True, False] and info["failed"] == {}
    assert set(info["spent"]) == {"decode", "compute"}


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [([0], set()), ([1], {"frames"}), ([3], {"wave@4"}), ([2], {"frames", "wave@8"})],
)
def test_only_media_for_device_components_are_sent_back(
    wanted: list[int], sent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, _ = reply(monkeypatch, Decoder(), WANTED, wanted)
    assert {name for name in arrays if "/" not in name} == sent
    arrays, _ = reply(monkeypatch, Decoder(), WANTED, wanted, keep=True)
    rate = WANTED[wanted[0]].recipe.fields["sampling"]["rate_hz"]
    assert {name for name in arrays if "/" not in name} == {"frames", f"wave@{rate}"}


def test_a_missing_modality_is_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, info = reply(monkeypatch, Decoder(frames=False), WANTED, [0])
    assert [note["code"] for note in info["clips"]["16"]["notes"]] == ["no_video"]
    said = [Note("no_audio", "of its own")]
    _, info = reply(monkeypatch, Decoder(sound=False, notes=said), [job(TokenJob, 16, visual="worker")], [0])
    assert info["clips"]["16"]["notes"] == [{"code": "no_audio", "detail": "of its own"}]
    arrays, _ = reply(monkeypatch, Decoder(frames=False, sound=False), WANTED, [3])
    assert arrays == {}


def test_a_failing_component_fails_only_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = job(TokenJob, 16, visual="worker", audio="device")
    bad = TokenJob(Recipe("tokens", "bad", bad.recipe.fields), bad.parts)
    arrays, info = reply(monkeypatch, Decoder(), [WANTED[0], bad], [0, 1])
    assert info["failed"] == {"1": "RuntimeError: it broke"} and info["texts"] == {"0": {}}
    assert set(arrays) == {"0/visual.x", "0/audio.x"}
