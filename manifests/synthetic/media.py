"""Frames and samples as media files in memory: MP4 (H.264 and AAC), PNG and WAV.

Equal input gives equal bytes: encoders run on one thread with fixed settings, and the container gets no time stamps or
version tags. PyAV and Pillow are imported on first use.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

VIDEO_OPTIONS = {"preset": "superfast", "crf": "27", "threads": "1"}
AUDIO_OPTIONS = {"aac_coder": "fast", "flags": "+bitexact"}
AUDIO_BITS_PER_S = 64_000
PNG_LEVEL = 3


def mp4(
    frames: Iterable[NDArray[np.uint8]], samples: NDArray[np.float32], *, size_px: int, fps: int, rate_hz: int
) -> bytes:
    """An MP4 file of `frames` (uint8 [H, W, 3] RGB) and mono `samples` (float32 [n] in -1..1)."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=fps, options=VIDEO_OPTIONS)
        video.width = video.height = size_px
        video.pix_fmt = "yuv420p"
        video.gop_size = 2 * fps  # a seek decodes two seconds at most
        video.thread_count = 1
        audio = container.add_stream("aac", rate=rate_hz, layout="mono", options=AUDIO_OPTIONS)
        audio.bit_rate = AUDIO_BITS_PER_S
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(video.encode(frame))
        track = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        track.sample_rate = rate_hz
        track.pts = 0
        container.mux(audio.encode(track))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return out.getvalue()


def png(pixels: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    """A PNG file of a grey or RGB image, or of a mask."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", compress_level=PNG_LEVEL)
    return data.getvalue()


def wav(samples: NDArray[np.float32], rate_hz: int) -> bytes:
    """A WAV file (16 bits) of mono samples [n] in -1..1."""
    data = io.BytesIO()
    with wave.open(data, "wb") as out:
        out.setparams((1, 2, rate_hz, 0, "NONE", "not compressed"))
        out.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return data.getvalue()
