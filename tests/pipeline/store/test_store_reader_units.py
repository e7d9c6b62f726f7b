"""Reading in order, ahead and in another process; open shards; the keys that a reader holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caeav.pipeline.store import (
    DamagedStore,
    StoreReader,
)
from caeav.pipeline.store import reader as module
from caeav.pipeline.store.backend import backend_of
from caeav.pipeline.store.layout import (
    StoreFolder,
)
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


def test_a_pickled_reader_checks_records_again(toy: Toy) -> None:
    toy.write()
    reader = StoreReader.open(toy.folder)
    reader.read(reader.keys[0])
    assert reader.__dict__["_checked"] and reader.__dict__["_shards"]
    sent = reader.__getstate__()
    assert sent["_checked"] == {} and not sent["_shards"]


def test_records_are_requested_a_fixed_number_ahead(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Fetcher:
        def ask(self, shard: Any, key: str) -> None:
            asked.append(key)

        def close(self) -> None:
            """Nothing to end."""

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


def test_a_duplicate_key_is_damage(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write()
    reader = StoreReader.open(toy.folder)
    monkeypatch.setattr(module.KeyIndex, "duplicate", lambda self: 1)
    with pytest.raises(DamagedStore, match="two rows have this key"):
        reader.read(reader.keys[0])


def test_a_header_longer_than_its_payload_is_refused() -> None:
    payload = np.frombuffer((100).to_bytes(8, "little") + b"{}", np.uint8)
    with pytest.raises(BadPayload, match="header of 100 bytes in a payload of 10"):
        decode_arrays(payload)


def test_a_record_is_checked_only_at_the_first_read_of_each_reader(
    toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write()
    reader = StoreReader.open(toys.folder)
    kind, checks = type(reader._shard(0)), []
    record = kind.record
    monkeypatch.setattr(
        kind,
        "record",
        lambda self, row, *, check=True: checks.append((row, check)) or record(self, row, check=check),
    )
    for key in ("clip001", "clip001", "clip002", "clip001"):
        assert toys.same(reader.read(key))
    assert checks == [(1, True), (1, False), (2, True), (1, False)]
    StoreReader.open(toys.folder).read("clip001")
    assert checks[-1] == (1, True), "another reader checks again"


def test_the_least_recently_used_shard_is_closed(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write()
    monkeypatch.setattr("caeav.pipeline.store.reader.OPEN_FILES", 2)
    reader = StoreReader.open(toy.folder)
    for key in ("clip000", "clip004", "clip001", "clip008"):
        reader.read(key)
    assert list(reader._shards) == [0, 2]


def test_a_reader_distinguishes_held_keys_from_others(toys) -> None:
    toys.write(failing=["clip002"])
    reader = StoreReader.open(toys.folder)
    assert reader.held().tolist() == [i != 2 for i in range(10)]
    assert "clip001" in reader and "clip002" not in reader and 1 not in reader and len(reader) == 9
    assert [record.key for record in reader.read_each(["clip009", "clip000", "clip009"])] == [
        "clip009",
        "clip000",
        "clip009",
    ]
    reader.prefetch(["clip001", "clip002", "nobody"])
    sized = sum(p.stat().st_size for paths in backend_of(toys.recipe()).files(StoreFolder(toys.folder)).values()
                for p in paths)  # fmt: skip
    assert reader.shard_bytes == sized
    specs = reader.array_specs()
    assert list(specs) == ["audio.mask", "audio.stage1", "visual.stage1"]
    assert (specs["visual.stage1"].shape, specs["visual.stage1"].dtype) == ((10, 6, 8), "float16")
    other = toys.at(toys.stores.parent / "whole")
    other.write()
    assert StoreReader.open(other.folder).held().tolist() == [True] * 10
