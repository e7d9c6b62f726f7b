"""How long files are is asked once a file, and again when it is another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from caeav.manifests.clip import Manifest
from caeav.manifests.home import Home
from caeav.pipeline import lengths
from caeav.pipeline.lengths import FILE, lengths_in


def test_lengths_are_found_remembered_and_found_again_for_another_file(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, clip, broken = Home(tmp_path / "h"), tmp_path / "a.mp4", tmp_path / "b.mp4"
    shutil.copy(Path(small_manifest.media_root) / small_manifest.clips[0].media, clip)
    broken.write_bytes(b"nothing")
    paths = [clip, broken, tmp_path / "none.mp4"]
    length, *others = lengths_in(home)(paths)
    assert length == pytest.approx(4, abs=0.3) and others == [None, None]
    asked: list[list[str]] = []
    monkeypatch.setattr(lengths, "_ask", lambda names: asked.append(list(names)) or dict.fromkeys(names, 7.0))
    assert lengths_in(home)(paths) == [length, None, None]
    os.utime(clip, (1, 1))
    assert lengths_in(home)(paths) == [7.0, None, None]
    assert asked == [[str(clip)]]
    for damage in ("{", "[1]", '{"x": 3}', f'{{"{clip}": [1, 2, "long"]}}'):
        (home.root / FILE).write_text(damage)
        assert lengths_in(home)(paths[:1]) == [7.0]


def test_a_home_that_cannot_be_written_to_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h").touch()
    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(lengths, "_ask", lambda names: dict.fromkeys(names, 7.0))
    assert lengths_in(Home(tmp_path / "h"))([tmp_path / "a.mp4"]) == [7.0]
