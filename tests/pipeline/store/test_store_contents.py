"""A store described in numbers, the differences of two stores, and the check of a conversion."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.store import (
    Quarantined,
    Record,
    StoreError,
    StoreReader,
    convert,
)
from caeav.pipeline.store.contents import Differences, compare_records, describe
from caeav.pipeline.store.convert import converted_recipe
from caeav.pipeline.store.media_record import Facts, read_record, write_record


def test_differences_of_two_records_are_reported_by_array_and_fact() -> None:
    def record(key: str, info: dict[str, Any], **arrays: Any) -> Record:
        return Record(key, arrays, info)

    found = Differences()
    one = np.array([1.0, 2.0], np.float32)
    compare_records(record("a", {"x": 1}, v=one, w=one), record("a", {"x": 1}, v=one, w=one), found)
    assert found.same_content
    compare_records(record("b", {"x": 1}, v=one), record("b", {"y": 1}, v=one + 0.5, w=one), found)
    compare_records(record("c", {"x": 1}, v=one, u=one), record("c", {"x": 2}, v=one - 3.0), found)
    compare_records(record("d", {}, v=one[:1]), record("d", {}, v=one), found)
    compare_records(record("e", {}, t=one), record("e", {}, t=one.astype(np.float64)), found)
    compare_records(record("f", {}, s=np.array([0.0])), record("f", {}, s=np.array([-0.0])), found)
    seen = {name: (x.clips, x.largest, x.key, x.form) for name, x in found.arrays.items()}
    assert seen == {
        "v": (3, 3.0, "c", "[1] -> [2]"),
        "w": (1, 0.0, "b", "only in the second"),
        "u": (1, 0.0, "c", "only in the first"),
        "t": (1, 0.0, "e", "float32 -> float64"),
        "s": (1, 0.0, "f", ""),
    }
    assert found.facts == {"x": 2, "y": 1} and not found.same_content
    for changed in ({"only_a": ("k",)}, {"only_b": ("k",)}, {"quarantine": ("k",)}, {"facts": {"x": 1}}):
        assert not Differences(**changed).same_content
    assert Differences(recipe=("fields.dtype",)).same_content


def test_a_description_counts_clips_by_note_and_quarantine_reason() -> None:
    facts = {
        "a": {"notes": [{"code": "short"}, {"code": "short"}, "plain"], "frames_ok": [False, True]},
        "b": {"notes": [{"code": "short"}], "frames_ok": [False, False], "audio_ok": [False]},
        "c": {"audio_ok": [False, False]},
    }
    failed = [Quarantined(k, "decode", why, 1) for k, why in (("d", "x"), ("e", "y"), ("f", "y"))]
    reader = SimpleNamespace(
        keys=list(facts),
        info=facts.__getitem__,
        quarantined=failed,
        shard_bytes=100,
        manifest=SimpleNamespace(clips=range(8)),
        missing=("g", "h"),
        array_specs=lambda: {"v": 1},
        __len__=None,
    )
    seen = describe(type("Reader", (SimpleNamespace,), {"__len__": lambda self: 3})(**vars(reader)))
    assert (seen.clips, seen.expected, seen.missing, seen.bytes, seen.bytes_a_clip) == (3, 8, 2, 100, 33)
    assert seen.notes == (("short", 2), ("plain", 1)) and (seen.no_video, seen.no_audio) == (1, 2)
    assert seen.quarantine == (("decode", "y", 2), ("decode", "x", 1)) and seen.arrays == {"v": 1}


def test_a_conversion_reports_each_clip_and_keeps_the_media_record(toy) -> None:
    toy.write(failing=["clip002"])
    write_record(toy.folder, {"media/1.mp4": Facts(1, 2, bytes(range(16)))})
    told: list[int] = []
    path, summary = convert(toy.folder, "zarr", told.append)
    assert sum(told) == 2 * 9 and (summary.stored, summary.quarantined) == (9, 1)
    assert read_record(path) == read_record(toy.folder)
    assert StoreReader.open(path).recipe == toy.recipe(backend="zarr")
    assert StoreReader.open(path).quarantined == StoreReader.open(toy.folder).quarantined
    assert converted_recipe(toy.recipe(backend="zarr"), "webdataset") == toy.recipe()


@pytest.mark.parametrize(
    ("found", "failed", "said"),
    [
        (Differences(), (), ""),
        (Differences(facts={"notes": 1}), (), r"\(the facts notes\)"),
        (Differences(only_a=("k1",)), (), "k1 first"),
        (Differences(only_b=("k3",)), (), "k3 first"),
        (Differences(), (Quarantined("k2", "decode", "x", 1),), "k2 first"),
    ],
)
def test_a_conversion_that_differs_from_its_source_is_refused(
    found: Any, failed: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = importlib.import_module(
        "caeav.pipeline.store.convert"
    )  # the package has a function of that name
    monkeypatch.setattr(transfer, "compare", lambda a, b, progress: found)
    made = SimpleNamespace(keys=(), quarantined=(), path=Path("made"))
    source = SimpleNamespace(keys=(), quarantined=failed, path=Path("source"))
    if not said:
        transfer._check_same(source, made, lambda n: None)
        return
    with pytest.raises(StoreError, match=said):
        transfer._check_same(source, made, lambda n: None)
