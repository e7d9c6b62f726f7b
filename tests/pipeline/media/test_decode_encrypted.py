"""Encrypted Matroska and scrambled MPEG-TS are refused as encrypted, each stream separately."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from caeav.pipeline.media.clip import DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

SAMPLING = Sampling(2, 1.0, 16000)
TS_PACKET = 188
KEY_ID = bytes(range(16))


def _sized(number: str, body: bytes) -> bytes:
    """A Matroska element with a length of eight bytes."""
    return bytes.fromhex(number) + (len(body) | 1 << 56).to_bytes(8, "big") + body


ENCRYPTION = _sized("6D80", _sized("6240", _sized("5031", b"\0") + _sized("5032", b"\1") + _sized("5033", b"\1")
                    + _sized("5035", _sized("47E1", b"\5") + _sized("47E2", KEY_ID))))  # fmt: skip


def _elements(data: bytes) -> list[tuple[str, bytes, int]]:
    """Number, body and end of each element in `data`."""
    found, at = [], 0
    while at < len(data):
        width = 9 - data[at].bit_length()
        number = data[at : at + width].hex().upper()
        at += width
        width = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
        at += width
        size = len(data) - at if size == (1 << 7 * width) - 1 else size  # unknown length
        found.append((number, data[at : at + size], at + size))
        at += size
    return found


def _encrypted_matroska(path: Path, out: Path, tracks: set[int]) -> None:
    """Write the same file with these tracks (numbered from 1) marked as encrypted."""
    head, segment = _elements(path.read_bytes())
    parts = []
    for number, body, _ in _elements(segment[1]):
        if number == "1654AE6B":
            entries = [entry for n, entry, _ in _elements(body) if n == "AE"]
            entries = [_sized("AE", e + ENCRYPTION * (at in tracks)) for at, e in enumerate(entries, 1)]
            body = b"".join(entries)
        if number not in ("114D9B74", "1C53BB6B", "EC"):  # indexes of positions
            parts.append(_sized(number, body))
    out.write_bytes(_sized(head[0], head[1]) + _sized(segment[0], b"".join(parts)))


def _plain(write: Any, name: str) -> Path:
    tone = np.random.default_rng(0).integers(-9000, 9000, 4 * 16000, dtype=np.int16)
    codec = "aac" if name.endswith("ts") else "pcm_s16le"
    path: Path = write(
        name, frame_s=[n / 25 for n in range(100)], audio=tone, rate_hz=16000, audio_codec=codec
    ).path
    return path


def test_encrypted_matroska_is_refused_as_such(write: Any, tmp_path: Path, decoder: Any) -> None:
    path = tmp_path / "encrypted.mkv"
    _encrypted_matroska(_plain(write, "plain.mkv"), path, {1, 2})
    with pytest.raises(DecodeError, match=r"video: it is encrypted, and there is no key.*it is encrypted"):
        decoder.decode(str(path), 0.0, SAMPLING)


def test_the_audio_of_a_file_with_encrypted_video_is_kept(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "half.mkv"
    _encrypted_matroska(_plain(write, "plain.mkv"), path, {1})
    clip = decoders["pyav"]().decode(str(path), 0.0, SAMPLING)
    assert clip.frames is None and clip.audio_ok == (True, True)
    assert any(n.code == "damaged" and "encrypted" in n.detail for n in clip.notes)
    _encrypted_matroska(_plain(write, "plain.mkv"), path, set())
    assert all(decoders["pyav"]().decode(str(path), 0.0, SAMPLING).frames_ok)


@pytest.mark.parametrize("before", [0, 4])
def test_scrambled_mpeg_ts_is_refused_as_such(write: Any, tmp_path: Path, before: int) -> None:
    """Also with four bytes of clock before each packet (m2ts)."""
    plain = _plain(write, "plain.ts")
    with av.open(str(plain)) as container:
        pids = {stream.id for stream in container.streams}
    data = plain.read_bytes()
    rng, packets = np.random.default_rng(1), []
    for at in range(0, len(data), TS_PACKET):
        packet = bytearray(data[at : at + TS_PACKET])
        if int.from_bytes(packet[1:3], "big") & 0x1FFF in pids:
            body = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
            packet[body:] = rng.bytes(TS_PACKET - body)
            packet[3] |= 0x80
        packets.append(bytes(before) + bytes(packet))
    path = tmp_path / "scrambled.ts"
    path.write_bytes(b"".join(packets))
    with pytest.raises(DecodeError, match="it is encrypted, and there is no key"):
        decoders["pyav"]().decode(str(path), 0.0, SAMPLING)
    assert all(decoders["pyav"]().decode(str(plain), 0.0, SAMPLING).frames_ok)
