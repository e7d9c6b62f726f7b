"""Media written for these tests: frames that show their own number, audio known to the sample."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from caeav.pipeline.media.clip import DecodedClip, DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

BITS, BLOCK = 10, 16
SIZE = (BITS * BLOCK, 4 * BLOCK)  # width, height


def number_frame(number: int) -> np.ndarray[Any, Any]:
    """A grey frame whose upper half shows `number` as black and white blocks, highest bit left."""
    frame = np.full((SIZE[1], SIZE[0], 3), 90, dtype=np.uint8)
    for bit in range(BITS):
        at = BLOCK * (BITS - 1 - bit)
        frame[: 2 * BLOCK, at : at + BLOCK] = 235 if number >> bit & 1 else 16
    return frame


@dataclass(frozen=True)
class Written:
    """A written file and its content; times are on the container's clock."""

    path: Path
    frame_s: tuple[float, ...]
    audio: np.ndarray[Any, Any]
    rate_hz: int


Write = Callable[..., Written]
PLAIN = {".mp3": {"write_xing": "0", "id3v2_version": "0"}}
"""An mp3 without the header frame that says how long it is."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, frame_s=..., audio=...)`: write a file in the format of its suffix; audio is int16 `[C, n]`."""

    def make(
        name: str,
        *,
        frame_s: Sequence[float] | None = None,
        audio: np.ndarray[Any, Any] | None = None,
        rate_hz: int = 32000,
        audio_from_s: float = 0.0,
        video_codec: str = "libx264",
        audio_codec: str = "pcm_s16le",
        layout: str = "mono",
        rotation: int = 0,
        mirrored: tuple[bool, bool] = (False, False),
        pixel: tuple[int, int] = (1, 1),
        clock: int = 30000,
        bit_rate: int | None = None,
    ) -> Written:
        path = tmp_path / name
        pcm = np.zeros((1, 0), dtype=np.int16) if audio is None else np.atleast_2d(audio)
        with av.open(str(path), "w", options=PLAIN.get(path.suffix, {})) as out:
            todo: list[tuple[float, Any, Any]] = []
            if frame_s is not None:
                video = out.add_stream(video_codec, rate=30)
                video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
                video.codec_context.time_base = video.time_base = Fraction(1, clock)
                if rotation or any(mirrored):
                    video.set_display_rotation(rotation, hflip=mirrored[0], vflip=mirrored[1])
                if pixel != (1, 1):
                    video.codec_context.sample_aspect_ratio = Fraction(*pixel)
                if video_codec == "libx264":
                    video.options = {"crf": "18", "preset": "veryfast", "g": "25", "bf": "2"}
                todo += [(at, video, number) for number, at in enumerate(frame_s)]
            if pcm.size:
                audio_stream = out.add_stream(audio_codec, rate=rate_hz, layout=layout)
                if bit_rate:
                    audio_stream.bit_rate = bit_rate
                step = 1024
                todo += [
                    (audio_from_s + at / rate_hz, audio_stream, at) for at in range(0, pcm.shape[1], step)
                ]
            for at_s, stream, item in sorted(todo, key=lambda entry: entry[0]):
                if stream.type == "video":
                    frame = av.VideoFrame.from_ndarray(number_frame(item), format="rgb24")
                    frame.pts, frame.time_base = round(at_s * clock), Fraction(1, clock)
                else:
                    part = pcm[:, item : item + 1024]
                    frame = av.AudioFrame.from_ndarray(
                        np.ascontiguousarray(part.T).reshape(1, -1), format="s16", layout=layout
                    )
                    frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
                    frame.pts = round(audio_from_s * rate_hz) + item
                out.mux(stream.encode(frame))
            for stream in out.streams:
                out.mux(stream.encode(None))
        return Written(path, tuple(frame_s or ()), pcm, rate_hz)

    return make


@pytest.fixture(scope="session")
def read_number() -> Callable[[np.ndarray[Any, Any]], int]:
    """`read_number(frame)`: the number that a `number_frame` shows."""

    def read(frame: np.ndarray[Any, Any]) -> int:
        number = 0
        for bit in range(BITS):
            at = BLOCK * (BITS - 1 - bit) + BLOCK // 2
            number |= int(frame[BLOCK, at].mean() > 120) << bit
        return number

    return read


@pytest.fixture(params=sorted(decoders))
def decoder(request: pytest.FixtureRequest, needs: Callable[[str], None]) -> Any:
    """Each decoder in turn; skipped where its library is missing or does not load."""
    needs({"pyav": "av"}.get(request.param, request.param))
    return decoders[request.param]()


@pytest.fixture(scope="session")
def media_rows(shared: Path) -> list[dict[str, str]]:
    """The rows of MEDIA.csv: what each real file contains."""
    table = shared / "data" / "media" / "MEDIA.csv"
    if not table.is_file():
        pytest.skip(f"no {table}")
    with table.open(newline="") as lines:
        return list(csv.DictReader(lines))


MEDIA_SAMPLING = Sampling(segments=10, segment_s=1.0, rate_hz=16000)
Decoded = Callable[[str, str], DecodedClip | DecodeError]


@pytest.fixture(scope="session")
def decoded(shared: Path) -> Decoded:
    """`decoded(decoder name, file)`: the first 10 s of a real file, decoded once, or the error."""
    known: dict[tuple[str, str], DecodedClip | DecodeError] = {}

    def get(name: str, file: str) -> DecodedClip | DecodeError:
        if (name, file) not in known:
            try:
                clip = decoders[name]().decode(str(shared / "data" / "media" / file), 0.0, MEDIA_SAMPLING)
                known[name, file] = clip
            except DecodeError as error:
                known[name, file] = error
        return known[name, file]

    return get
