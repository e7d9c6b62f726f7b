"""The reply of a child process is compared with its request: an invalid reply fails its clip, never the run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.clip import Manifest
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import local
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.decode_job import setup, worker_settings
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.records import validate_reply
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.media.workers.pool import Outcome
from caeav.pipeline.store import StoreReader

JOBS = dict(enumerate((TokenOptions().job(4, 1.0), CaptionOptions().job(4, 1.0))))
Change = Callable[[dict[str, Any], dict[str, Any]], Any]


@pytest.fixture(scope="module")
def reply(small_set: Path) -> Outcome:
    """The real reply for the first clip."""
    path = next((small_set / "AVE").iterdir())
    arrays, info = setup(worker_settings(list(JOBS.values())))(
        {"path": str(path), "start_s": 0.0, "jobs": list(JOBS)}
    )
    return Outcome("a", arrays, info)


def test_real_replies_are_valid(reply: Outcome) -> None:
    assert validate_reply(reply, JOBS) == ""
    failed = {**reply.info, "failed": {"1": "ValueError: no words"}, "texts": {"0": {}}}
    assert validate_reply(replace(reply, info=failed), JOBS) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays, info: info.clear(), "KeyError: 'spent'"),
        (lambda arrays, info: info["spent"].update(decode="long"), "TypeError"),
        (lambda arrays, info: info["spent"].update(decode=float("nan")), "ValueError"),
        (lambda arrays, info: info["texts"]["1"].update(visual=None), "None is no text"),
        (lambda arrays, info: info["texts"].pop("0"), "KeyError: '0'"),
        (lambda arrays, info: info.update(failed=["0"]), "AttributeError"),
        (lambda arrays, info: info["texts"].update({"0": ["words"]}), "texts: ['words']"),
        (lambda arrays, info: info["clips"]["16000"].update(frames_ok=[True]), "frames_ok: [True]"),
        (
            lambda arrays, info: info["clips"]["16000"].update(audio_ok=[True, 1, True, True]),
            "audio_ok: [True, 1, True, True]",
        ),
        (lambda arrays, info: info["clips"]["16000"].update(notes=["silent"]), "TypeError"),
        (
            lambda arrays, info: info["clips"]["16000"].update(notes=[{"code": "c", "detail": 3}]),
            "3 is no text",
        ),
        (lambda arrays, info: info.update(failed={"1": 3}), "3 is no text"),
        (lambda arrays, info: info["spent"].update(compute=-1.0), "seconds spent"),
        (lambda arrays, info: info["spent"].update(compute=float("inf")), "ValueError"),
        (lambda arrays, info: info["clips"]["16000"]["facts"].update(fps=float("nan")), "ValueError"),
        (lambda arrays, info: info["clips"]["16000"]["facts"].update(fps={1}), "TypeError"),
        (
            lambda arrays, info: arrays.update(
                {"0/audio.stage1": arrays["0/audio.stage1"].astype(np.float64)}
            ),
            "audio.stage1 is float64",
        ),
        (lambda arrays, info: arrays.update(frames=np.zeros((4, 0, 2, 3), np.uint8)), "frames is uint8"),
        (lambda arrays, info: arrays.update(frames=np.zeros((3, 2, 2, 3), np.uint8)), "frames is uint8"),
        (lambda arrays, info: info["clips"]["16000"]["facts"].update(device=1), "facts"),
        (lambda arrays, info: arrays.pop("0/visual.stage1"), "KeyError: '0/visual.stage1'"),
        (lambda arrays, info: arrays.update({"7/visual.stage1": np.zeros(3)}), "KeyError: '7/visual.stage1'"),
        (
            lambda arrays, info: arrays.update({"0/visual.stage1": arrays["0/visual.stage1"][:3]}),
            "visual.stage1 is float32 [3, ",
        ),
        (lambda arrays, info: arrays.update(frames=np.zeros((4, 2, 2, 4), np.uint8)), "frames is uint8"),
        (lambda arrays, info: arrays.update(frames=np.zeros(4, np.uint8)), "frames is uint8"),
        (
            lambda arrays, info: arrays.update({"wave@16000": np.zeros(5, np.float32)}),
            "wave@16000 is float32",
        ),
    ],
)
def test_invalid_replies_are_described(reply: Outcome, change: Change, said: str) -> None:
    arrays, info = dict(reply.arrays), copy.deepcopy(dict(reply.info))
    change(arrays, info)
    assert said in validate_reply(Outcome("a", arrays, info), JOBS)


def test_an_invalid_reply_quarantines_the_clip_in_all_stores(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(small_manifest, clips=small_manifest.clips[:2])
    invalid = manifest.clips[0].key

    class Invalid(local.WorkerPool):
        def map(self, requests: Any) -> Any:
            for outcome in super().map(requests):
                yield replace(outcome, info={}) if outcome.id == invalid else outcome

    monkeypatch.setattr(local, "WorkerPool", Invalid)
    options = [TokenOptions(), CaptionOptions()]
    for summary in extract_all(
        RunContext(manifest, Home(tmp_path), RunOptions(1), lambda progress: None), options
    ):
        [entry] = summary.quarantined
        assert (entry.key, entry.stage) == (invalid, "decode")
        assert entry.reason == "its process sent an invalid reply: KeyError: 'spent'"
        assert list(StoreReader.open(summary.path).keys) == [manifest.clips[1].key]
