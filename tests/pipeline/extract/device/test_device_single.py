"""One file processed by device components, as for prediction: what the stores hold, up to rounding."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.single_file import process_file
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.store import StoreReader

COMPUTE = ComputeOptions(batch=4)


def test_tokens_and_captions_are_those_of_the_stores(small_manifest: Manifest, tmp_path: Path) -> None:
    manifest = replace(small_manifest, clips=small_manifest.clips[:3])
    options = [
        TokenOptions("tiny", "none", dtype="int8", compute=COMPUTE),
        TokenOptions("none", "tiny", compute=COMPUTE),
        CaptionOptions("tiny", "tiny", "tiny", "tiny", compute=COMPUTE),
    ]
    run = RunOptions(workers=1, devices=("cpu",))
    made = extract_all(RunContext(manifest, Home(tmp_path), run, lambda progress: None), options)
    clip = manifest.clips[2]
    visual, audio, captions = (StoreReader.open(summary.path) for summary in made)
    path = Path(manifest.media_root) / clip.media
    found = process_file(path, [visual.recipe, audio.recipe], captions.recipe, device="cpu")
    for reader in (visual, audio):
        for name, stored in reader.read(clip.key).arrays.items():
            assert found.tokens.arrays[name].dtype == stored.dtype
            np.testing.assert_allclose(found.tokens.arrays[name], stored, atol=0.02)
    assert set(found.tokens.arrays) == {"visual.stage1", "visual.stage2", "audio.stage1"}
    assert found.captions is not None
    wanted = captions.read(clip.key)
    assert found.captions.info["texts"] == wanted.info["texts"]
    np.testing.assert_allclose(
        found.captions.arrays["audio_caption"], wanted.arrays["audio_caption"], atol=1e-2
    )
    assert found.frames.shape == (4, 64, 64, 3)


def test_a_failing_backbone_is_an_error_naming_the_file(
    small_manifest: Manifest, tmp_path: Path, tiny: Any
) -> None:
    def fail(batch: object) -> None:
        raise ValueError("no")

    tiny.hook = fail
    recipe = TokenOptions("tiny", "none", compute=COMPUTE).job(4, 1.0).recipe
    path = Path(small_manifest.media_root) / small_manifest.clips[0].media
    with pytest.raises(CaeavError, match=rf"{path.name}: compute: ValueError: no"):
        process_file(path, recipe, device="cpu")


def test_a_file_without_video_gets_no_caption_of_black_frames(tmp_path: Path) -> None:
    """As in a store, where a captioner sees that there are no frames."""
    path = tmp_path / "hum.wav"
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes((np.sin(np.arange(16000)) * 9000).astype("<i2").tobytes())
    options = CaptionOptions("tiny", "tiny", "tiny", "tiny", compute=COMPUTE)
    found = process_file(path, TokenOptions().job(2, 1.0).recipe, options.job(2, 1.0).recipe)
    assert found.captions is not None
    assert found.captions.info["texts"]["visual"] == ""
    assert found.captions.info["texts"]["audio"].startswith("About 0.")
    assert found.frames.shape == (2, 64, 64, 3) and not found.frames.any()
