"""What people see of a clip: its frames as one small strip, and its sound as a picture over the same seconds.

Made in killable child processes, beside the decoder, so that only the two small files travel back.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.util import usable_cores
from caeav.pipeline.media.clip import DecodedClip, Sampling
from caeav.pipeline.media.registry import DEFAULT_DECODER, decoders
from caeav.pipeline.media.workers.pool import Request, WorkerPool

DEADLINE_S = 120.0
BANDS, FFT, RATE_HZ = 48, 1024, 16_000
LOW_HZ, HIGH_HZ = 60.0, 7600.0
QUALITY = 62
"""Of the JPEG with the frames."""


_ANCHORS = np.array([(12, 14, 34), (58, 40, 112), (176, 58, 110), (245, 140, 80), (255, 244, 190)])
COLOURS: NDArray[np.float64] = np.stack(
    [np.interp(np.linspace(0, 4, 16), range(5), _ANCHORS[:, channel]) for channel in range(3)], axis=1
)
"""Sixteen colours `[16, 3]` from silent to loud."""


@dataclass(frozen=True)
class View:
    """A part of a file to look at."""

    key: str
    path: Path
    start_s: float


@dataclass(frozen=True)
class Preview:
    """`strip`: a JPEG with the `segments` frames side by side, each `size` (width, height) large; `sound`: a PNG of the
    mel spectrogram, as wide. Both may be empty: the file has no such medium. `problem`: why there is nothing."""

    key: str
    strip: bytes = b""
    sound: bytes = b""
    size: tuple[int, int] = (0, 0)
    problem: str = ""


def previews(views: Iterable[View], segments: int, segment_s: float, height: int = 64) -> Iterator[Preview]:
    """A preview of each part, in the order in which they are done; a file that cannot be read gives its reason."""
    wanted = {str(number): view for number, view in enumerate(views)}
    present = {number: view for number, view in wanted.items() if view.path.is_file()}
    for number in wanted.keys() - present.keys():
        view = wanted[number]
        yield Preview(view.key, problem=f"the file is gone: {view.path}")
    if not present:
        return
    settings = {"segments": segments, "segment_s": segment_s, "height": height}
    requests: Iterator[Request] = (
        {"id": number, "path": str(view.path), "start_s": view.start_s} for number, view in present.items()
    )
    workers = max(1, min(usable_cores(), len(present)))
    with WorkerPool(f"{__name__}:setup", settings, workers=workers, deadline_s=DEADLINE_S) as pool:
        for outcome in pool.map(requests):
            key = present[outcome.id].key
            try:
                yield _preview(key, outcome.failure.reason if outcome.failure else "", outcome)
            except (KeyError, TypeError, ValueError) as error:  # a child that a file has taken over
                yield Preview(key, problem=f"its process sent an invalid reply: {type(error).__name__}")


def _preview(key: str, failed: str, outcome: Any) -> Preview:
    if failed:
        return Preview(key, problem=failed)
    width, height = (int(side) for side in outcome.info["size"])
    strip, sound = (np.asarray(outcome.arrays[name], np.uint8).tobytes() for name in ("strip", "sound"))
    if strip[:2] not in (b"", b"\xff\xd8") or sound[:4] not in (b"", b"\x89PNG"):
        raise ValueError("no JPEG or PNG")
    return Preview(key, strip, sound, (width, height))


def setup(settings: Mapping[str, Any]) -> Callable[[Request], tuple[dict[str, Any], dict[str, Any]]]:
    """The child's job: decode `path` from `start_s` and draw it small."""
    sampling = Sampling(settings["segments"], settings["segment_s"], RATE_HZ)
    decoder = decoders[DEFAULT_DECODER]()

    def job(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
        clip = decoder.decode(request["path"], request["start_s"], sampling)
        strip, size = _strip(clip, settings["height"])
        sound = b"" if clip.wave is None else _spectrogram(clip.wave, max(size[0], 1) * sampling.segments)
        arrays = {"strip": np.frombuffer(strip, np.uint8), "sound": np.frombuffer(sound, np.uint8)}
        return arrays, {"size": list(size)}

    return job


def _strip(clip: DecodedClip, height: int) -> tuple[bytes, tuple[int, int]]:
    """The frames side by side, and the size of one of them."""
    from PIL import Image

    if clip.frames is None:
        return b"", (height, height)
    tall, wide = clip.frames.shape[1:3]
    width = max(8, min(2 * height, round(wide * height / tall)))
    strip = Image.new("RGB", (width * len(clip.frames), height))
    for t, frame in enumerate(clip.frames):
        strip.paste(Image.fromarray(frame).resize((width, height)), (t * width, 0))
    data = io.BytesIO()
    strip.save(data, "JPEG", quality=QUALITY, optimize=True)
    return data.getvalue(), (width, height)


def _spectrogram(wave: NDArray[np.float32], width: int) -> bytes:
    """A PNG of `width` columns and a row per mel band, the lowest at the bottom; 70 dB from dark to bright."""
    from PIL import Image

    columns = min(width, 400)
    starts = np.linspace(0, max(0, len(wave) - FFT), columns).astype(int)
    padded = np.pad(wave, (0, max(0, FFT - len(wave))))
    frames = np.stack([padded[s : s + FFT] for s in starts]) * np.hanning(FFT)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # [columns, FFT / 2 + 1]
    level = 10 * np.log10(power @ _mel_bands().T + 1e-10)
    shade = np.clip((level - level.max() + 70) / 70, 0, 1) if wave.any() else np.zeros_like(level)
    data = io.BytesIO()
    image = Image.fromarray((shade.T[::-1] * (len(COLOURS) - 1)).round().astype(np.uint8), "P")
    image.putpalette([int(x) for x in COLOURS.flatten()])
    image.save(data, "PNG", optimize=True, bits=4)
    return data.getvalue()


def _mel_bands() -> NDArray[np.float64]:
    """Triangles `[BANDS, FFT / 2 + 1]`, evenly spaced on the mel scale."""
    edges_mel = np.linspace(2595 * np.log10(1 + LOW_HZ / 700), 2595 * np.log10(1 + HIGH_HZ / 700), BANDS + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    hz = np.fft.rfftfreq(FFT, 1 / RATE_HZ)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))
