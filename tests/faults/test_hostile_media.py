"""Damaged and malicious media are decoded, refused with a reason, or cost one decode process; never the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from module_files import load_module

from caeav.pipeline.media import scan
from caeav.pipeline.media.clip import PROCESS_BYTES, DecodeError, Limits, Sampling
from caeav.pipeline.media.registry import decoders


@pytest.fixture(scope="module")
def fuzz(repository: Path) -> Any:
    """The fuzz benchmark as a module."""
    return load_module("fuzz_media", repository / "benchmarks" / "fuzz_media.py")


def test_damaged_real_files_never_end_the_run(
    fuzz: Any,
    shared: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))  # for the child processes
    media = str(shared / "data" / "media")
    monkeypatch.setattr(sys, "argv", ["fuzz_media.py", "--variants", "80", "--seed", "11", "--media", media])
    assert fuzz.main() == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "80 variants of 20 files" in out and "; 0 lost" in out
    peak_mib = int(out.split("peak memory of a decoding process ")[1].split()[0])
    assert peak_mib * 2**20 < PROCESS_BYTES / 4


def test_the_benchmark_detects_wrong_clips(fuzz: Any) -> None:
    made = fuzz.DecodedClip(np.zeros((2, 4, 4, 3), np.uint8), None, (True,) * 3, (True,) * 3)
    assert "pictures of shape" in fuzz.wrong(made)
    made = fuzz.DecodedClip(
        None, np.full(fuzz.SAMPLING.samples, np.nan, np.float32), (True,) * 3, (True,) * 3
    )
    assert "not within -1 to 1" in fuzz.wrong(made)
    assert "no refusal" in fuzz.wrong(fuzz.DecodedClip(None, None, (False,) * 3, (False,) * 3))


def avi(path: Path, pictures: int = 10) -> bytes:
    """Five frames per second without audio."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for n in range(pictures):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 4 * n, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes()


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    data = avi(tmp_path / "plain.avi")
    assert data.count(b"FMP4") == 2
    (tmp_path / "odd.avi").write_bytes(data.replace(b"FMP4", b"\xff\xfeQ\x01"))
    with pytest.raises(DecodeError, match="knows no decoder for its codec"):
        decoders["pyav"]().decode(str(tmp_path / "odd.avi"), 0.0, Sampling(2, 1.0, 16_000))


def test_a_file_that_cannot_be_seeked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seek fails in some damaged MP4 files; found by the fuzz run."""
    avi(tmp_path / "deep.avi", pictures=50)

    class Unseekable:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def seek(self, *_: Any, **__: Any) -> None:
            raise av.error.PermissionError(1, "Operation not permitted")

    open_media = scan.open_media

    @contextmanager
    def open_unseekable(path: str, limits: Limits) -> Iterator[Any]:
        with open_media(path, limits) as container:
            yield Unseekable(container)

    monkeypatch.setattr(scan, "open_media", open_unseekable)
    with pytest.raises(DecodeError, match="no place in the file can be gone to: Operation not permitted"):
        decoders["pyav"]().decode(str(tmp_path / "deep.avi"), 7.0, Sampling(2, 1.0, 16_000))
