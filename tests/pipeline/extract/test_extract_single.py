"""One file processed by the recipes of stores: exactly what the stores hold, or a refusal that names the field."""

from __future__ import annotations

import copy
import wave as wav
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extraction import quiet

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract.captions import caption
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.single_file import process_file
from caeav.pipeline.extract.tokens import extract
from caeav.pipeline.store import Recipe, StoreReader

WriteWave = Callable[[Path, np.ndarray[Any, Any]], Path]


@pytest.fixture
def write_wave() -> WriteWave:
    """`write_wave(path, wave)`: write 16 kHz mono audio of 16 bits."""

    def write(path: Path, wave: np.ndarray[Any, Any]) -> Path:
        with wav.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(16_000)
            out.writeframes((wave * 32767).astype("<i2").tobytes())
        return path

    return write


def changed(recipe: Recipe, *path: str, value: object) -> Recipe:
    fields = copy.deepcopy(dict(recipe.fields))
    place = fields
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return replace(recipe, fields=fields)


def test_a_file_gets_exactly_the_tokens_and_captions_of_the_stores(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    manifest = replace(small_manifest, clips=small_manifest.clips[:1])
    run = RunOptions(workers=1)
    tokens = extract(RunContext(manifest, Home(tmp_path), run, quiet), TokenOptions())
    captions = caption(RunContext(manifest, Home(tmp_path), run, quiet), CaptionOptions())
    clip = manifest.clips[0]
    path = Path(manifest.media_root) / clip.media
    found = process_file(path, StoreReader.open(tokens.path).recipe, StoreReader.open(captions.path).recipe)
    assert found.captions is not None
    for made, stored in ((found.tokens, tokens.path), (found.captions, captions.path)):
        record = StoreReader.open(stored).read(clip.key)
        assert set(made.arrays) == set(record.arrays)
        for name, array in record.arrays.items():
            np.testing.assert_array_equal(made.arrays[name], array)
        assert {name: value for name, value in made.info.items() if name != "silent"} == record.info
    assert found.frames.shape == (4, 64, 64, 3)
    assert found.frames.dtype == np.uint8


def test_a_later_start_gives_later_seconds(small_manifest: Manifest) -> None:
    path = Path(small_manifest.media_root) / small_manifest.clips[0].media
    recipe = TokenOptions().job(2, 1.0).recipe
    start, later = process_file(path, recipe), process_file(path, recipe, start_s=2.0)
    assert later.captions is None
    assert not np.array_equal(start.frames, later.frames)
    whole = process_file(path, TokenOptions().job(4, 1.0).recipe)
    np.testing.assert_array_equal(whole.frames[2:], later.frames)


def test_other_components_than_the_recipes_are_refused_naming_the_field(small_manifest: Manifest) -> None:
    path = Path(small_manifest.media_root) / small_manifest.clips[0].media
    recipe = TokenOptions().job(4, 1.0).recipe
    with pytest.raises(CaeavError, match=r"fields\.visual\.version: 99 -> 1"):
        process_file(path, changed(recipe, "visual", "version", value=99))
    with pytest.raises(CaeavError, match="unknown audio backbone 'gone'"):
        process_file(path, changed(recipe, "audio", "name", value="gone"))


def test_another_decoder_version_is_noted_and_not_refused(small_manifest: Manifest) -> None:
    path = Path(small_manifest.media_root) / small_manifest.clips[0].media
    recipe = TokenOptions().job(4, 1.0).recipe
    found = process_file(path, changed(recipe, "decoder", "version", value="av 1.0"))
    [note] = [note for note in found.tokens.info["notes"] if note["code"] == "decoder_version"]
    assert "av 1.0" in note["detail"]


def test_missing_and_undecodable_files_are_errors_with_the_reason(tmp_path: Path) -> None:
    recipe = TokenOptions().job(4, 1.0).recipe
    with pytest.raises(CaeavError, match="no file"):
        process_file(tmp_path / "none.mp4", recipe)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    with pytest.raises(CaeavError, match=r"broken\.mp4: \w+"):
        process_file(broken, recipe)


def test_silent_segments_are_marked(tmp_path: Path, write_wave: WriteWave) -> None:
    """Digital silence is real audio (`audio_ok`) and yet silent."""
    tone = 0.5 * np.sin(np.arange(16_000) / 5)
    path = write_wave(tmp_path / "gap.wav", np.concatenate([tone, 0 * tone, tone, 1e-5 * tone]))
    found = process_file(path, TokenOptions().job(5, 1.0).recipe)
    assert found.tokens.info["audio_ok"] == [True, True, True, True, False]
    assert found.tokens.info["silent"] == [False, True, False, True, True]
