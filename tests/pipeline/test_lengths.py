"""How long media files are: headers, bare streams read through, no media, a crash in the library, the memory."""

from __future__ import annotations

import json
import os
import wave
from pathlib import Path

import numpy as np
import pytest

from caeav.manifests.home import Home
from caeav.pipeline import lengths
from caeav.pipeline.decode.media import DecodeError
from caeav.pipeline.lengths import FILE, length_s, lengths_in


def sound(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"\0\1" * round(8000 * seconds))
    return path


def test_lengths_come_in_order_and_none_where_there_is_none(tmp_path: Path) -> None:
    files = [
        sound(tmp_path / "a.wav", 2.5),
        tmp_path / "gone.wav",
        tmp_path / "b.mp4",
        sound(tmp_path / "c.wav", 1),
    ]
    files[2].write_bytes(b"nothing")
    ask = lengths_in(Home(tmp_path / "home"))
    assert ask(files) == [2.5, None, None, 1.0]
    assert ask([]) == []


def test_real_media_have_the_lengths_their_players_show(shared: Path) -> None:
    media = shared / "data" / "media"
    for name, seconds in (
        ("bento.mp4", 1.1),
        ("big_buck_bunny_432_433.webm", 1.0),
        ("nasa_13013.mp4", 13.056),
    ):
        assert length_s(str(media / name)) == pytest.approx(seconds, abs=0.05)


def test_a_bare_stream_is_read_through_since_its_header_guesses(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "bare.aac"
    with av.open(str(path), "w", format="adts") as out:
        stream = out.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 16000
        noise = np.random.default_rng(0).uniform(-1, 1, frame.planes[0].buffer_size // 4)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        for number in range(100):
            if number == 20:  # noise after silence: the first packets tell nothing of the bit rate
                frame.planes[0].update(noise.astype("float32").tobytes())
            frame.pts = number * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert length_s(str(path)) == pytest.approx(100 * 1024 / 16000, abs=0.1)


def test_files_joined_end_to_end_are_as_long_as_their_parts_together(tmp_path: Path) -> None:
    """The header of the first part, or the last stamp, tells one part's length only."""
    av = pytest.importorskip("av")
    for suffix, codec, rates in (("flac", "flac", (16000, 16000)), ("adts", "aac", (16000, 32000))):
        parts = []
        for rate in rates:
            path = tmp_path / f"part.{suffix}"
            with av.open(str(path), "w", format=suffix) as out:
                stream = out.add_stream(codec, rate=rate, layout="mono")
                noise = np.random.default_rng(0).integers(-9000, 9000, (1, 3 * rate), dtype=np.int16)
                frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
                frame.sample_rate, frame.pts = rate, 0
                for packet in [*stream.encode(frame), *stream.encode(None)]:
                    out.mux(packet)
            parts.append(path.read_bytes())
        joined = tmp_path / f"joined.{suffix.replace('adts', 'aac')}"
        joined.write_bytes(b"".join(parts))
        assert length_s(str(joined)) == pytest.approx(6.0, abs=0.3)


def test_what_is_no_media_is_an_error_for_one_file(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(DecodeError, match="not readable media"):
        length_s(str(tmp_path / "x.mp4"))


def test_a_file_that_ends_the_process_costs_itself_alone(shared: Path, tmp_path: Path) -> None:
    crash = shared / "cases" / "pcm_5.1_film_order.mov"
    if not crash.is_file():
        pytest.skip(f"{crash} is not there")
    files = [sound(tmp_path / "a.wav", 1), crash, sound(tmp_path / "b.wav", 2)]
    first, _, last = lengths_in(Home(tmp_path))(files)
    assert (first, last) == (1.0, 2.0)


def test_lengths_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = lengths_in(Home(tmp_path / "home"))
    path, broken = sound(tmp_path / "a.wav", 1), tmp_path / "b.wav"
    broken.write_bytes(b"nothing")
    assert ask([path, broken]) == [1.0, None]
    asked: list[str] = []

    def measure(paths: list[str]) -> list[float | None]:
        asked.extend(paths)
        return [7.0] * len(paths)

    monkeypatch.setattr(lengths, "_measure", measure)
    assert ask([broken, path]) == [None, 1.0] and not asked
    os.utime(path, (1, 1))
    assert ask([broken, path]) == [None, 7.0] and asked == [str(path)]
    sound(path, 3)
    os.utime(path, (1, 1))
    assert ask([path]) == [7.0] and asked == [str(path)] * 2


def test_a_damaged_memory_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_measure", lambda paths: [7.0] * len(paths))
    memory, ask = tmp_path / FILE, lengths_in(Home(tmp_path))
    path = sound(tmp_path / "a.wav", 1)
    mark = [str(path), path.stat().st_size, path.stat().st_mtime_ns]
    for text in ("{", json.dumps([*mark, "1"]), json.dumps([mark, 1, 2, 3]), json.dumps([*mark]), "\xff"):
        memory.write_bytes(text.encode("latin-1"))
        assert ask([path]) == [7.0]
    memory.unlink()
    memory.mkdir()
    assert ask([path]) == [7.0]
