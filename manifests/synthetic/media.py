"""One clip as a real media file: H.264 and AAC in MP4, made in memory.

Encoders run on one thread with fixed settings and without time stamps or version tags of the container, so
that equal frames and samples give equal bytes. PyAV is imported on first use.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

VIDEO_OPTIONS = {"preset": "superfast", "crf": "27", "threads": "1"}
AUDIO_OPTIONS = {"aac_coder": "fast", "flags": "+bitexact"}
AUDIO_BITS_PER_S = 64_000


def mp4(
    frames: Iterable[NDArray[np.uint8]], samples: NDArray[np.float32], *, size_px: int, fps: int, rate_hz: int
) -> bytes:
    """The file's content. `frames` are uint8 [H, W, 3] RGB, `samples` mono float32 [n] in -1..1."""
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
        sound = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        sound.sample_rate = rate_hz
        sound.pts = 0
        container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return out.getvalue()
