"""What reading in order, ahead and in another process is made of, and a payload that promises too much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caeav.pipeline.store import DamagedStore, StoreReader
from caeav.pipeline.store import reader as module
from caeav.pipeline.store.payload import BadPayload, decode_arrays
from caeav.pipeline.store.testing_data import Toy


def test_reading_in_order_gives_floats_as_reading_by_key_does(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write()
    monkeypatch.setattr(module, "_as_floats", lambda record: ("floats", record.key))
    reader = StoreReader.open(toy.folder)
    assert [*reader] == [("floats", key) for key in reader.keys]
    assert reader.read(reader.keys[1]) == ("floats", reader.keys[1])


def test_another_process_checks_what_it_reads_anew(toy: Toy) -> None:
    toy.write()
    reader = StoreReader.open(toy.folder)
    reader.read(reader.keys[0])
    assert reader.__dict__["_checked"] and reader.__dict__["_shards"]
    sent = reader.__getstate__()
    assert sent["_checked"] == {} and not sent["_shards"]


def test_so_many_records_are_asked_for_before_the_first_and_one_with_each(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Fetcher:
        def ask(self, shard: Any, key: str) -> None:
            asked.append(key)

        def close(self) -> None:
            """Nothing under way."""

    toy.write()
    monkeypatch.setattr(module, "Fetcher", Fetcher)
    monkeypatch.setattr(module, "AHEAD", 2)
    monkeypatch.setattr(StoreReader, "_unread", lambda self, keys: [(None, key) for key in keys])
    reader = StoreReader.open(toy.folder)
    keys, seen = [*reader.keys], []
    for record in reader:
        seen.append(record.key)
        assert asked == keys[: len(seen) + 2]
    assert seen == keys


def test_a_key_that_stands_twice_is_damage_and_not_the_first_of_them(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write()
    reader = StoreReader.open(toy.folder)
    monkeypatch.setattr(module.KeyIndex, "duplicate", lambda self: 1)
    with pytest.raises(DamagedStore, match="two rows have this key"):
        reader.read(reader.keys[0])


def test_a_header_longer_than_its_payload_is_refused_though_what_is_there_reads() -> None:
    payload = np.frombuffer((100).to_bytes(8, "little") + b"{}", np.uint8)
    with pytest.raises(BadPayload, match="header of 100 bytes in a payload of 10"):
        decode_arrays(payload)
