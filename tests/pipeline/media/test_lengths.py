"""The lengths of media files: from headers, by reading bare streams, after crashes of the library, remembered."""

from __future__ import annotations

import json
import os
import wave
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caeav.manifests.core.home import Home
from caeav.pipeline.media import lengths
from caeav.pipeline.media.clip import DecodeError, Limits
from caeav.pipeline.media.lengths import FILE, length_s, lengths_in
from caeav.pipeline.media.workers.pool import Outcome


def audio(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"\0\1" * round(8000 * seconds))
    return path


def test_lengths_are_returned_in_order_and_none_for_unreadable_files(tmp_path: Path) -> None:
    files = [
        audio(tmp_path / "a.wav", 2.5),
        tmp_path / "gone.wav",
        tmp_path / "b.mp4",
        audio(tmp_path / "c.wav", 1),
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


def test_a_bare_stream_is_read_to_its_end(tmp_path: Path) -> None:
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


def test_a_joined_file_is_as_long_as_its_parts_together(tmp_path: Path) -> None:
    """The first header and the last timestamp each tell the length of one part only."""
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


def test_a_file_that_is_not_media_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(DecodeError, match="not readable media"):
        length_s(str(tmp_path / "x.mp4"))


def test_a_file_that_crashes_the_process_affects_no_other(shared: Path, tmp_path: Path) -> None:
    crash = shared / "cases" / "pcm_5.1_film_order.mov"
    if not crash.is_file():
        pytest.skip(f"{crash} is not there")
    files = [audio(tmp_path / "a.wav", 1), crash, audio(tmp_path / "b.wav", 2)]
    first, _, last = lengths_in(Home(tmp_path))(files)
    assert (first, last) == (1.0, 2.0)


def test_lengths_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = lengths_in(Home(tmp_path / "home"))
    path, broken = audio(tmp_path / "a.wav", 1), tmp_path / "b.wav"
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
    audio(path, 3)
    os.utime(path, (1, 1))
    assert ask([path]) == [7.0] and asked == [str(path)] * 2


def test_lengths_are_measured_again_when_the_memory_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "_measure", lambda paths: [7.0] * len(paths))
    memory, ask = tmp_path / FILE, lengths_in(Home(tmp_path))
    path = audio(tmp_path / "a.wav", 1)
    mark = [str(path), path.stat().st_size, path.stat().st_mtime_ns]
    for text in ("{", json.dumps([*mark, "1"]), json.dumps([mark, 1, 2, 3]), json.dumps([*mark]), "\xff"):
        memory.write_bytes(text.encode("latin-1"))
        assert ask([path]) == [7.0]
    memory.unlink()
    memory.mkdir()
    assert ask([path]) == [7.0]


class Pool:
    """Stands in for `WorkerPool`: returns prepared answers in the order of requests."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[Any]()

    def __call__(self, *setup: Any, **how: Any) -> Pool:
        self.how = how
        return self

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def map(self, requests: Any) -> Any:
        for request in requests:
            self.asked.append(request["paths"])
            answer = self.answers.pop(0)
            failed = answer if isinstance(answer, str) else None
            yield Outcome(request["id"], {}, {} if failed else {"seconds": answer}, failed)


def test_a_group_with_an_incomplete_answer_is_measured_file_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "AT_ONCE", 2)
    pool = Pool([1, 2.5], "crashed", [3.0], [4.0], [5.0])
    monkeypatch.setattr(lengths, "WorkerPool", pool)
    assert lengths._measure(list("abcde")) == [1.0, 2.5, 4.0, 5.0, 3.0]
    assert pool.asked == [["a", "b"], ["c", "d"], ["e"], ["c"], ["d"]]
    assert pool.how["retries"] == 0 and pool.how["deadline_s"] == lengths.DEADLINE_S
    pool = Pool([1.0], [-1], "crashed", [])
    monkeypatch.setattr(lengths, "WorkerPool", pool)
    assert lengths._measure(["a", "b", "c"]) == [
        None,
        None,
        None,
    ]  # a single answer for two files is incomplete
    assert pool.asked == [["a", "b"], ["c"], ["a"], ["b"]]


@pytest.mark.parametrize("answer", [0, -1.0, float("inf"), float("nan"), "7", None, 1e12])
def test_an_invalid_length_is_none(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(lengths, "WorkerPool", Pool([answer, 3]))
    assert lengths._measure(["a", "b"]) == [None, 3.0]


def test_a_file_is_remembered_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(paths: list[str]) -> list[float | None]:
        asked.extend(paths)
        return [None] * len(paths)

    monkeypatch.setattr(lengths, "_measure", measure)
    monkeypatch.chdir(tmp_path)
    ask, path = lengths_in(Home(tmp_path / "home")), audio(tmp_path / "a.wav", 1)
    assert ask([Path("a.wav"), path]) == [None, None] and asked == [str(path)]
    assert ask([path]) == [None] and len(asked) == 1  # an unknown length is remembered too
    with path.open("ab") as file:
        file.write(b"12")
    when = path.stat().st_mtime_ns
    assert ask([path]) == [None] and len(asked) == 2
    audio(path, 1)
    os.utime(path, ns=(when, when))
    assert ask([path]) == [None] and len(asked) == 3  # another size at the same time
    row = [str(path), path.stat().st_size, when]
    for seconds, again in ((2.5, 0), (2, 0), (None, 0), ("2", 1), ([2], 1)):
        (tmp_path / "home" / FILE).write_text(json.dumps([*row, seconds]) + "\n")
        before = len(asked)
        ask([path])
        assert len(asked) - before == again


class Packets:
    """A container of given packets: (kind of stream, time, duration) in quarter seconds."""

    def __init__(self, *packets: tuple[str, int | None, int | None]) -> None:
        self.packets = packets

    def __enter__(self) -> Packets:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def demux(self) -> Any:
        for kind, pts, duration in self.packets:
            stream = SimpleNamespace(type=kind)
            yield SimpleNamespace(stream=stream, pts=pts, duration=duration, time_base=0.25)


def test_a_file_without_a_length_ends_with_its_last_audio_or_video_packet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probing = pytest.importorskip("caeav.pipeline.media.probe")
    facts = SimpleNamespace(end_s=None, container="mov", origin_s=0.5)
    monkeypatch.setattr(probing, "probe", lambda *_: facts)
    packets = [("video", 4, 4), ("audio", 10, None), ("data", 99, 4), ("audio", None, 4), ("video", 6, 4)]
    monkeypatch.setattr(probing, "open_media", lambda *_: Packets(*packets))
    assert length_s("x") == 2.0  # from 0.5 s on to 10 quarters
    with pytest.raises(DecodeError, match="number of packets"):
        length_s("x", replace(Limits(), packets=4))
    assert length_s("x", replace(Limits(), packets=5)) == 2.0
    facts.origin_s = 2.5
    with pytest.raises(DecodeError, match="x holds no packet with a time"):
        length_s("x")
    facts.end_s = 7.0
    assert length_s("x") == 7.0
    facts.container, facts.origin_s = next(iter(probing.WITHOUT_LENGTH)), 0.0
    assert length_s("x") == 2.5
