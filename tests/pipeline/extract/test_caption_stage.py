"""Captioning: texts and embeddings are stored together, a missing modality is noted, bytes are reproducible."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from extraction import quiet
from typer import Typer
from typer.testing import CliRunner

import caeav.cli.caption
from caeav.manifests.clip import Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.classic.text import HashedText
from caeav.pipeline.extract.captions import caption
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions
from caeav.pipeline.store import StoreReader

ONE = RunOptions(workers=1)


def write_silent_video(path: Path) -> None:
    """Write two seconds of video without an audio track."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(10):
            image = np.full((64, 64, 3), 60 + 10 * i, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


def test_texts_and_their_embeddings_are_stored_together(small_manifest: Manifest, tmp_path: Path) -> None:
    manifest = replace(small_manifest, clips=small_manifest.clips[:5])
    summary = caption(RunContext(manifest, Home(tmp_path), ONE, quiet), CaptionOptions(shard_clips=2))
    assert summary.stored == 5
    assert summary.path.name.startswith("captions-descriptor-hashed-")
    reader = StoreReader.open(summary.path)
    for clip in manifest.clips:
        record = reader.read(clip.key)
        for modality in ("visual", "audio"):
            text = record.info["texts"][modality]
            tokens, mask = HashedText(ModelChoice("hashed")).encode([text])
            assert text.endswith(".")
            assert record.arrays[f"{modality}_caption"].dtype == np.float16
            np.testing.assert_array_equal(record.arrays[f"{modality}_caption"], tokens[0].astype(np.float16))
            np.testing.assert_array_equal(record.arrays[f"{modality}_caption_mask"].astype(bool), mask[0])


def test_captions_do_not_name_the_classes(small_manifest: Manifest, tmp_path: Path) -> None:
    summary = caption(RunContext(small_manifest, Home(tmp_path), RunOptions(2), quiet), CaptionOptions())
    texts = " ".join(
        " ".join(record.info["texts"].values()) for record in StoreReader.open(summary.path)
    ).lower()
    assert len(texts) > 1000
    for clip in small_manifest.clips:
        assert all(event.label.lower() not in texts for event in clip.events)


def test_a_missing_modality_has_an_empty_text_and_a_note(tmp_path: Path) -> None:
    media = tmp_path / "films"
    media.mkdir()
    write_silent_video(media / "silent.mp4")
    manifest = load_dataset(str(media), None, Home(tmp_path), segments=2)
    summary = caption(RunContext(manifest, Home(tmp_path), ONE, quiet), CaptionOptions())
    assert summary.notes["no_audio"] == 1
    [record] = StoreReader.open(summary.path)
    assert record.info["texts"]["audio"] == ""
    assert record.info["texts"]["visual"]
    assert "no_audio" in {note["code"] for note in record.info["notes"]}
    assert not record.arrays["audio_caption"].any()
    assert not record.arrays["audio_caption_mask"].any()
    assert record.info["audio_ok"] == [False, False]


def test_workers_and_shard_order_do_not_change_a_byte(
    small_manifest: Manifest, tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    options = CaptionOptions(shard_clips=3)
    manifest = replace(small_manifest, clips=small_manifest.clips[:9])
    one = caption(RunContext(manifest, Home(tmp_path / "one"), ONE, quiet), options)
    two = caption(RunContext(manifest, Home(tmp_path / "two"), RunOptions(2), quiet), options)
    assert digests(one.path) == digests(two.path)


def test_the_command_captions_a_data_set(small_set: Path, tmp_path: Path) -> None:
    app = Typer()
    caeav.cli.caption.register(app)
    app.callback()(lambda: None)
    arguments = [
        "caption",
        "--dataset",
        "synthetic",
        "--root",
        str(small_set),
        "--home",
        str(tmp_path),
        "--workers",
        "2",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "stored       24 of 24" in result.stdout
    assert "caeav train --task ave --dataset synthetic" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(result.stdout)["due"] == 0


@pytest.mark.parametrize("bad", [{"visual": "blip9"}, {"audio_text": "word2vec"}])
def test_unknown_names_are_refused(small_manifest: Manifest, tmp_path: Path, bad: dict[str, str]) -> None:
    with pytest.raises(Exception, match="choose one of"):
        caption(RunContext(small_manifest, Home(tmp_path), ONE, quiet), CaptionOptions(**bad))
