"""The one way a media file is opened: a regular local file, through demuxers that read nothing else.

FFmpeg happily follows playlists, concatenation scripts and URLs inside a file that is called `.mp4`; the
lists below keep it to the file it was given.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from caeav.pipeline.decode.limits import Limits
from caeav.pipeline.media.clip import DecodeError

DEMUXERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,gxf,ivf,dv,rm,m4v,h264,hevc,gif,"
    "wav,w64,flac,mp3,aac,ac3,eac3,aiff,caf,au,amr,wv,tta,ape,voc"
)
"""Demuxers that read one file and nothing beside it."""


def library_message(error: BaseException) -> str:
    """A library's error in one line without its number and argument: `Invalid data found when processing input`."""
    text = str(getattr(error, "strerror", None) or error).strip().splitlines() or [type(error).__name__]
    return text[0][:300]


def regular_file(path: str, limits: Limits) -> int:
    """Size in bytes of a regular file within limits; raises `DecodeError` for anything else."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DecodeError(f"cannot read {Path(path).name}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError(f"{Path(path).name} is not a regular file")
    if found.st_size == 0:
        raise DecodeError(f"{Path(path).name} is empty (0 bytes)")
    limits.check("file size", found.st_size, limits.file_bytes, " bytes")
    return found.st_size


@contextmanager
def opened(path: str, limits: Limits) -> Iterator[Any]:
    """An open PyAV input container of a local file; raises `DecodeError` when it is not readable media."""
    size = regular_file(path, limits)
    try:
        container = av.open(
            f"file:{Path(path).absolute()}",
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": DEMUXERS},
        )
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DecodeError(
            f"{Path(path).name} ({size} bytes) is not readable media: {library_message(error)}"
        ) from error
    try:
        limits.check("number of streams", len(container.streams), limits.streams)
        yield container
    finally:
        container.close()
