"""Decodes for the differential test in a separate process, since some files crash the process that decodes them.

    python child.py DECODER      one request per line: {"path": ..., "start_s": ...}

It writes `READY` once its decoder is imported, then for each request the answer's length in 8 bytes and the answer, an
npz (no pickle). `Child` is the other end of the pipe.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

SEGMENTS = 3
READY = b"r"
START_S = 600.0  # importing a decoder takes long on a busy machine and says nothing about decoding
DEADLINE_S = 60.0


@dataclass
class Ours:
    """One clip decoded by caeav. refused: the error, or empty; thumbs `[T, 48, 64, 3]`; shape: width over height."""

    refused: str = ""
    crashed: str = ""
    thumbs: Any = None
    shape: float = 0.0
    wave: Any = None
    frames_ok: tuple[bool, ...] = ()
    audio_ok: tuple[bool, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


class Child:
    """A decoder in a process that may crash; the next request then starts another."""

    def __init__(self, decoder: str) -> None:
        self.decoder = decoder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def decode(self, path: Path, start_s: float) -> Ours:
        """caeav's answer for the clip of `SEGMENTS` seconds from `start_s` on."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin and self._process.stdout
        try:
            with _killed_after(DEADLINE_S, self._process):
                self._process.stdin.write(
                    json.dumps({"path": str(path), "start_s": start_s}).encode() + b"\n"
                )
                self._process.stdin.flush()
                length = self._process.stdout.read(8)
                body = self._process.stdout.read(int.from_bytes(length, "big"))
        except BrokenPipeError:
            length = body = b""
        if len(length) < 8:
            code = self._process.wait()
            return Ours(crashed=f"the process ended with {code}")
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            said = json.loads(str(found["said"]))
            return Ours(
                refused=said["refused"],
                thumbs=found.get("thumbs"),
                shape=said["shape"],
                wave=found.get("wave"),
                frames_ok=tuple(said["frames_ok"]),
                audio_ok=tuple(said["audio_ok"]),
                notes=tuple((code, detail) for code, detail in said["notes"]),
            )

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, __file__, self.decoder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout
        with _killed_after(START_S, process):
            process.stdout.read(len(READY))
        return process


@contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[None]:
    late = threading.Timer(seconds, process.kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _answer(decoder: Any, path: str, start_s: float) -> bytes:
    from PIL import Image
    from truth import HEIGHT, RATE_HZ, WIDTH

    from caeav.manifests.core.errors import CaeavError
    from caeav.pipeline.media.clip import Sampling

    arrays: dict[str, Any] = {}
    said: dict[str, Any] = {"refused": "", "shape": 0.0, "frames_ok": [], "audio_ok": [], "notes": []}
    try:
        clip = decoder.decode(path, start_s, Sampling(SEGMENTS, 1.0, RATE_HZ))
    except CaeavError as error:
        said["refused"] = str(error)
    else:
        said |= {"frames_ok": list(clip.frames_ok), "audio_ok": list(clip.audio_ok)}
        said["notes"] = [[note.code, note.detail] for note in clip.notes]
        if clip.frames is not None:
            said["shape"] = clip.frames.shape[2] / clip.frames.shape[1]
            small = [Image.fromarray(f).resize((WIDTH, HEIGHT), Image.Resampling.BOX) for f in clip.frames]
            arrays["thumbs"] = np.stack([np.asarray(image) for image in small])
        if clip.wave is not None:
            arrays["wave"] = clip.wave
    out = io.BytesIO()
    np.savez(out, said=np.array(json.dumps(said)), **arrays)
    return out.getvalue()


def _serve(name: str, requests: IO[str], answers: IO[bytes]) -> None:
    from caeav.pipeline.media.registry import decoders

    decoder = decoders[name]()
    decoder.version()  # imports its library
    answers.write(READY)
    answers.flush()
    for line in requests:
        answer = _answer(decoder, **json.loads(line))
        answers.write(len(answer).to_bytes(8, "big") + answer)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.stdin, sys.stdout.buffer)
