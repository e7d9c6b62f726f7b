"""Payloads and checksums at their bounds: sizes, orders, headers that misdescribe their arrays."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import google_crc32c
import numpy as np
import pytest

from caeav.pipeline.store.payload import (
    MAX_HEADER_BYTES,
    MAX_INFO_BYTES,
    READ_BYTES,
    BadPayload,
    crc32c,
    decode_arrays,
    digest,
    encode_arrays,
    encode_info,
)


def test_checksums_do_not_depend_on_block_boundaries() -> None:
    data = np.frombuffer(np.random.default_rng(0).bytes(2 * READ_BYTES + 777), np.uint8)
    whole = google_crc32c.value(data.tobytes())
    assert crc32c([data]) == whole
    assert crc32c([data[:1000], data[1000:].tobytes()]) == whole and crc32c([]) == 0
    told: list[int] = []
    spans = [(3, 10), (10, 10), (100, READ_BYTES + 150), (2 * READ_BYTES, data.size)]
    sha256, sums = digest(data, spans, told.append)
    assert sha256 == hashlib.sha256(data).hexdigest() and sum(told) == data.size
    assert sums == [google_crc32c.value(data[a:b].tobytes()) for a, b in spans]


def test_facts_and_headers_have_a_largest_size() -> None:
    bare = len(encode_info({"a": ""}))
    assert len(encode_info({"a": "x" * (MAX_INFO_BYTES - bare)})) == MAX_INFO_BYTES
    with pytest.raises(ValueError, match=f"facts of {MAX_INFO_BYTES + 1} bytes; at most {MAX_INFO_BYTES}"):
        encode_info({"a": "x" * (MAX_INFO_BYTES - bare + 1)})
    with pytest.raises(ValueError, match="Out of range"):
        encode_info({"a": float("nan")})
    with pytest.raises(ValueError, match=f"at most {MAX_HEADER_BYTES}"):
        encode_arrays({"x" * MAX_HEADER_BYTES: np.zeros(1, np.int8)})


def test_arrays_are_ordered_by_item_size_then_name_behind_an_aligned_header() -> None:
    arrays = {"b": np.arange(3, dtype=np.int8), "c": np.zeros(2, "<f8"), "a": np.ones(5, np.int8)}
    chunks = encode_arrays(arrays)
    assert sum(map(len, chunks[:1])) % 64 == 0
    header = json.loads(chunks[0][8:].tobytes())
    assert [(name, row["data_offsets"]) for name, row in header.items()] == [
        ("c", [0, 16]),
        ("a", [16, 21]),
        ("b", [21, 24]),
    ]
    read = decode_arrays(np.concatenate(chunks))
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    for size in (0, 7):
        with pytest.raises(BadPayload, match=f"{size} bytes, at least 8"):
            decode_arrays(np.zeros(size, np.uint8))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "I8", "shape": [1] * 17, "data_offsets": [0, 1]}, "no proper shape"),
        ({"dtype": "I8", "shape": [-1], "data_offsets": [0, 1]}, "no proper shape"),
        ({"dtype": "I8", "shape": [True], "data_offsets": [0, 1]}, "no proper shape"),
        ({"dtype": "I8", "shape": [1], "data_offsets": [0, 2]}, "outside the 1 bytes"),
        ({"dtype": "I8", "shape": [1], "data_offsets": [1, 0]}, "outside the 1 bytes"),
        ({"dtype": "I8", "shape": [1], "data_offsets": [0, 1, 1]}, "outside the 1 bytes"),
        ({"dtype": "I16", "shape": [1], "data_offsets": [0, 1]}, "does not fill 1 bytes"),
        ({"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}, "arrays end at byte 0 of 1"),
        ({"dtype": "I8", "shape": [0], "data_offsets": [1, 1]}, "hole or overlap at byte 0"),
        ({"dtype": "C8", "shape": [1], "data_offsets": [0, 1]}, "no dtype out of"),
    ],
)
def test_a_header_that_misdescribes_its_array_is_refused(entry: dict[str, Any], says: str) -> None:
    head = json.dumps({"x": entry}).encode()
    data = np.frombuffer(len(head).to_bytes(8, "little") + head + b"\0", np.uint8)
    with pytest.raises(BadPayload, match=says):
        decode_arrays(data)
    most = {"dtype": "I8", "shape": [1] * 16, "data_offsets": [0, 1]}
    head = json.dumps({"__metadata__": {"a": "b"}, "x": most}).encode()
    read = decode_arrays(np.frombuffer(len(head).to_bytes(8, "little") + head + b"\5", np.uint8))
    assert {*read} == {"x"} and read["x"].shape == (1,) * 16 and read["x"].item() == 5
