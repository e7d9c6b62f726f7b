"""Slices: each holds its own shards, and together they are the store of a single run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Manifest
from caeav.pipeline.store import (
    Quarantined,
    Recipe,
    Record,
    Slice,
    StoreError,
    StoreReader,
    StoreWriter,
    find_store,
    open_for_writing,
    verify,
)

MANIFEST = Manifest("d", 1, 1.0, (), tuple(Clip(f"k{i:02}", "m", float(i), 1.0) for i in range(11)))
RECIPE = Recipe("tokens", "x", {"dtype": "float32", "shard_clips": 2})


def fill(writer: StoreWriter) -> None:
    for plan in writer.plan():
        if "k07" in plan.keys:
            writer.quarantine(Quarantined("k07", "decode", "broken", 1))
        writer.publish(
            plan, {k: Record(k, {"a": np.full(3, int(k[1:]), "f4")}) for k in plan.keys if k != "k07"}
        )
    writer.finish()


def test_the_shards_of_the_slices_are_those_of_the_whole(tmp_path: Path) -> None:
    with open_for_writing(tmp_path / "whole", RECIPE, MANIFEST) as whole:
        fill(whole)
    shards: dict[str, bytes] = {}
    for number in (1, 2, 3, 4):
        with open_for_writing(tmp_path / "d", RECIPE, MANIFEST, part=Slice(number, 4)) as writer:
            fill(writer)
        assert writer.path.name == f"{RECIPE.folder_name}.slice-{number}-of-4"
        assert verify(writer.path).sound
        reader = StoreReader.open(writer.path)
        assert len(reader) + len(reader.quarantined) == len(writer.plan()) + sum(
            len(keys) for n, keys in enumerate(writer._planned) if n % 4 == number - 1
        )
        made = {path.name: path.read_bytes() for path in writer.path.glob("*/*.*")}
        assert not set(made) & set(shards)
        shards |= made
    assert shards == {path.name: path.read_bytes() for path in whole.path.glob("*/*.*")}
    with pytest.raises(StoreError, match="no tokens store"):
        find_store(tmp_path, "d", "tokens")


def test_a_slice_is_resumed_and_kept_apart_from_the_store(tmp_path: Path) -> None:
    with open_for_writing(tmp_path, RECIPE, MANIFEST, part=Slice(2, 3)) as writer:
        [first, *_] = writer.plan()
        writer.publish(first, {k: Record(k, {"a": np.zeros(1, "f4")}) for k in first.keys})
        with pytest.raises(ValueError, match="another slice"):
            writer.quarantine(Quarantined("k00", "decode", "broken", 1))
    with open_for_writing(tmp_path, RECIPE, MANIFEST, part=Slice(2, 3)) as again:
        assert [plan.number for plan in again.plan()] == [4]
    with open_for_writing(tmp_path, RECIPE, MANIFEST) as whole:
        assert len(whole.plan()) == 6


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "-1/4", "1/4/2", "", "1/999999"])
def test_invalid_slices_are_refused(text: str) -> None:
    with pytest.raises(StoreError, match="slice"):
        Slice.parse(text)


def test_names_of_slices_are_parsed() -> None:
    assert Slice.parse("3/12") == Slice(3, 12)
    assert Slice.of_folder("tokens-x-0123.slice-3-of-12") == ("tokens-x-0123", Slice(3, 12))
    assert Slice.of_folder("tokens-x-0123.slice-0-of-12") == ("tokens-x-0123.slice-0-of-12", Slice())
    assert Slice(1, 1).suffix == ""
