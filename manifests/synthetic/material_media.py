"""Pictures, recordings and backgrounds read from files of the user's, within limits. PyAV and Pillow are imported late.

FFmpeg is let to read the one file it is given, through demuxers that follow nothing: no playlist, no URL inside it.
Everything that is wrong with a file is an `UnusableFile` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from caeav.manifests.synthetic.recordings import Wave, loud_stretches

Image = NDArray[np.float32]

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_DEMUXERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,gif,m4v,"
    "wav,w64,flac,mp3,aac,ac3,eac3,aiff,caf,au,amr"
)
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 4_000_000_000
MAX_SOUND_S = 60
"""Of a longer recording the first minute is used."""
MAX_CHANNELS = 2
MAX_SKIPPED_FRAMES = 600
CHECK_RATE_HZ = 16_000
VISIBLE = 0.5
"""A pixel belongs to what a picture shows where its alpha is at least this."""


class UnusableFile(ValueError):
    """A file that cannot be material; its text is the reason."""


def read_picture(path: Path) -> Image:
    """A picture with its colours multiplied by alpha, cropped to what is not transparent: float32 [h, w, 4], colours in
    0..255 and alpha in 0..1."""
    rgba = _pixels(path, "RGBA")
    alpha = rgba[..., 3:] / np.float32(255)
    if not (alpha >= VISIBLE).any():
        raise UnusableFile("it is transparent all over")
    rows, columns = np.flatnonzero(alpha.any(axis=(1, 2))), np.flatnonzero(alpha.any(axis=(0, 2)))
    whole = np.concatenate((rgba[..., :3] * alpha, alpha), axis=2)
    return np.ascontiguousarray(whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _pixels(path: Path, mode: str) -> Image:
    """An image file as float32 [H, W, channels of `mode`] in 0..255."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path, formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableFile(
                    f"it is {image.width}x{image.height} pixels; at most {MAX_PIXELS // 10**6} million are read"
                )
            return np.asarray(image.convert(mode), dtype=np.float32)
    except (OSError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise UnusableFile(f"it is not a readable picture ({_short(error)})") from error


@lru_cache(maxsize=64)
def read_sound(path: Path, rate_hz: int) -> Wave:
    """A recording mixed to mono and resampled: float64 [n], full scale 1; read-only, since it is remembered."""
    import av

    pieces: list[NDArray[np.float32]] = []
    left = MAX_SOUND_S * rate_hz
    with _opened(path) as container:
        if not container.streams.audio:
            raise UnusableFile("it has no sound")
        stream = container.streams.audio[0]
        if not 0 < stream.channels <= MAX_CHANNELS:
            raise UnusableFile(f"it has {stream.channels} channels; mono and stereo are read")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
        for frame in container.decode(stream):
            for out in resampler.resample(frame):
                pieces.append(out.to_ndarray()[0])
                left -= pieces[-1].size
            if left <= 0:
                break
        for out in resampler.resample(None):
            pieces.append(out.to_ndarray()[0])
    wave = np.concatenate([np.zeros(0, np.float32), *pieces])[: MAX_SOUND_S * rate_hz].astype(np.float64)
    if not np.isfinite(wave).all() or not loud_stretches(wave, rate_hz):
        raise UnusableFile("it is silent" if np.isfinite(wave).all() else "its samples are not numbers")
    wave.flags.writeable = False
    return wave


def read_background(path: Path, size_px: int, rng: Generator) -> Image:
    """A square of a picture, or of a random frame of a video, at random and perhaps mirrored: float32 [n, n, 3]."""
    moment, place, mirrored = rng.random(), rng.random(), rng.random() < 0.5
    if path.suffix.lower() in IMAGE_EXTENSIONS:
        whole = _pixels(path, "RGB")
    else:
        whole = _frame(path, moment)
    height, width = whole.shape[:2]
    side = min(height, width)
    top, left = round(place * (height - side)), round(place * (width - side))
    square = resized(whole[top : top + side, left : left + side], size_px, size_px)
    return np.ascontiguousarray(square[:, ::-1] if mirrored else square)


def _frame(path: Path, moment: float) -> Image:
    """The frame at or after the key frame before `moment` (0..1 of the video's length), else the first."""
    with _opened(path) as container:
        if not container.streams.video:
            raise UnusableFile("it has no frames")
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise UnusableFile(f"its frames are {stream.width}x{stream.height} pixels")
        stream.thread_count = 1
        for at in (int(moment * 0.9 * (container.duration or 0)), 0):
            container.seek((container.start_time or 0) + at)
            for frame, _ in zip(container.decode(stream), range(MAX_SKIPPED_FRAMES), strict=False):
                return np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.float32)
    raise UnusableFile("none of its frames can be decoded")


def resized(image: Image, height: int, width: int) -> Image:
    """An image [h, w, C] at another size, smoothly: float32 [height, width, C]."""
    from PIL import Image as Pillow

    planes = [
        Pillow.fromarray(np.ascontiguousarray(image[..., c])).resize(
            (width, height), Pillow.Resampling.BILINEAR
        )
        for c in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in planes], axis=2)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        if not path.is_file() or not 0 < path.stat().st_size <= MAX_FILE_BYTES:
            raise UnusableFile("it is empty, too large or not a regular file")
        with av.open(
            f"file:{path.absolute()}",
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": _DEMUXERS},
        ) as container:
            yield container
    except (av.FFmpegError, OSError, MemoryError) as error:
        raise UnusableFile(f"it is not readable media ({_short(error)})") from error


def _short(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or error).strip().splitlines() or [type(error).__name__]
    return text[0][:120]


def problem_of(kind: str, path: Path) -> str:
    """Why a file cannot be a `picture`, a `sound` or a `background`; empty if it can. The file is read."""
    try:
        if kind == "picture":
            read_picture(path)
        elif kind == "sound":
            read_sound.__wrapped__(path, CHECK_RATE_HZ)
        else:
            read_background(path, 64, np.random.default_rng(0))
    except UnusableFile as error:
        return str(error)
    return ""
