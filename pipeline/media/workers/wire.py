"""Messages between the program and its child processes: a JSON header and raw array bytes, nothing executable.

A hostile file that takes over a decoder owns the child process and may send anything. So a message is parsed as plain
data, with known dtypes only and sizes that must add up. Layout: 8 bytes total length, 4 bytes header length, header
(JSON, UTF-8), array bytes in header order; each part is padded to 64 bytes so that arrays are aligned. Little-endian.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64"),
)
HEADER_BYTES = 16 * 2**20
_PREFIX = struct.Struct("<QI")
_ALIGN = 64

Arrays = Mapping[str, NDArray[Any]]


class WireError(Exception):
    """Bytes that are not a message."""


@dataclass(frozen=True)
class Message:
    """`kind`: what the message is. `data`: JSON values. `arrays`: writable, and they own their memory."""

    kind: str
    data: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def pack(kind: str, data: Mapping[str, Any], arrays: Arrays | None = None) -> list[Any]:
    """The buffers of a message, to be sent in order; arrays are not copied."""
    parts = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    for name, array in parts.items():
        if array.dtype.name not in DTYPES:
            raise TypeError(f"array {name!r} has dtype {array.dtype}, which cannot be sent")
    described = [[name, array.dtype.name, list(array.shape)] for name, array in parts.items()]
    header = json.dumps({"kind": kind, "data": data, "arrays": described}).encode()
    header += b" " * _padding(len(header))
    buffers: list[Any] = []
    size = len(header)
    for array in parts.values():
        padding = _padding(array.nbytes)
        size += array.nbytes + padding
        buffers += [array.reshape(-1).view(np.uint8).data] if array.nbytes else []
        buffers += [bytes(padding)] if padding else []
    return [_PREFIX.pack(size, len(header)) + header, *buffers]


def _padding(size: int) -> int:
    return -size % _ALIGN


def send(sock: socket.socket, kind: str, data: Mapping[str, Any], arrays: Arrays | None = None) -> None:
    """Send one message on a blocking socket."""
    for buffer in pack(kind, data, arrays):
        sock.sendall(buffer)


def unpack(header_bytes: int, body: bytearray) -> Message:
    """Parse the bytes after the prefix; raises `WireError`."""
    try:
        header = json.loads(bytes(body[:header_bytes]).decode())
        kind, data, described = header["kind"], header["data"], header["arrays"]
        arrays: dict[str, NDArray[Any]] = {}
        at = header_bytes
        for name, dtype, shape in described:
            if dtype not in DTYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
                raise WireError(f"array {name!r} claims dtype {dtype!r} and shape {shape!r}")
            count = math.prod(shape)
            arrays[str(name)] = np.frombuffer(body, dtype=dtype, count=count, offset=at).reshape(shape)
            size = count * np.dtype(dtype).itemsize
            at += size + _padding(size)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"not a message: {error}") from error
    if at != len(body) or not isinstance(data, dict) or not isinstance(kind, str):
        raise WireError(f"a message of {len(body)} bytes describes {at}")
    return Message(kind, data, arrays)


class Inbox:
    """Assembles one socket's bytes into messages, without ever waiting for more."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prefix = bytearray()
        self._header_bytes = 0
        self._body: bytearray | None = None
        self._filled = 0

    def read(self, sock: socket.socket) -> Message | None:
        """Take what a non-blocking socket holds: a message when one is complete, else None.

        Raises EOFError when the other side is gone, `WireError` when it sends anything but a message.
        """
        while True:
            try:
                if self._body is None:
                    self._read_prefix(sock)
                else:
                    self._filled += self._take(sock, memoryview(self._body)[self._filled :])
            except BlockingIOError:
                return None
            if self._body is not None and self._filled == len(self._body):
                body, self._body = self._body, None
                return unpack(self._header_bytes, body)

    def _take(self, sock: socket.socket, into: memoryview) -> int:
        count = sock.recv_into(into)
        if not count:
            raise EOFError
        return count

    def _read_prefix(self, sock: socket.socket) -> None:
        got = sock.recv(_PREFIX.size - len(self._prefix))
        if not got:
            raise EOFError
        self._prefix += got
        if len(self._prefix) < _PREFIX.size:
            return
        size, self._header_bytes = _PREFIX.unpack(self._prefix)
        self._prefix.clear()
        if size > self._max_bytes or not 2 <= self._header_bytes <= min(size, HEADER_BYTES):
            raise WireError(f"a message of {size} bytes; at most {self._max_bytes} are allowed")
        self._body, self._filled = bytearray(size), 0


def receive(sock: socket.socket, max_bytes: int) -> Message:
    """Wait for one message on a blocking socket; raises EOFError, `WireError`."""
    inbox = Inbox(max_bytes)
    while (message := inbox.read(sock)) is None:
        pass
    return message
