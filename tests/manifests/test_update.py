"""A data set that changed: stored clips keep their place, new ones follow, and no key changes its meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.update import update_manifest


def clip(key: str, split: str = "", label: str = "") -> Clip:
    return Clip(key, f"{key}.mp4", 0.0, 10.0, split, (Event(label, 0.0, 10.0),) if label else ())


def manifest(*clips: Clip, classes: tuple[str, ...] = ()) -> Manifest:
    return Manifest("mine", 10, 1.0, classes, clips)


def test_new_clips_are_appended_whatever_place_they_have_in_the_data_set() -> None:
    grown, growth = update_manifest(
        manifest(clip("b"), clip("d")), manifest(clip("a"), clip("b"), clip("c"), clip("d"))
    )
    assert [c.key for c in grown.clips] == ["b", "d", "a", "c"]
    assert growth.added == ("a", "c")
    assert not growth.relabelled and not growth.gone


def test_labels_split_and_extra_come_from_the_data_set_as_it_is_now() -> None:
    now = replace(clip("a", "val", "bell"), extra={"id": "x"})
    grown, growth = update_manifest(
        manifest(clip("a", "train"), clip("b")), manifest(clip("b"), now, classes=("bell",))
    )
    assert grown.clips == (now, clip("b"))
    assert grown.classes == ("bell",)
    assert growth.relabelled == ("a",)


def test_a_clip_that_is_gone_stays_stored_with_its_class_but_in_no_split() -> None:
    stored = manifest(clip("a", "train", "dog"), clip("b", "train", "cat"), classes=("cat", "dog"))
    grown, growth = update_manifest(stored, manifest(clip("b", "train", "cat"), classes=("cat",)))
    assert grown.clips == (clip("a", "", "dog"), clip("b", "train", "cat"))
    assert grown.classes == ("cat", "dog")
    assert growth.gone == ("a",)
    back, growth = update_manifest(grown, stored)
    assert back.clips == stored.clips and growth.relabelled == ("a",)


def test_the_same_set_again_is_no_change() -> None:
    same = manifest(clip("a", "train", "dog"), classes=("dog",))
    grown, growth = update_manifest(same, replace(same, media_root="/new"))
    assert not growth
    assert grown.media_root == "/new"
    assert grown.clips == same.clips


@pytest.mark.parametrize("change", [{"media": "other.mp4"}, {"start_s": 1.0}, {"seconds": 5.0}])
def test_a_key_that_means_other_media_now_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(CaeavError, match=r"clip 'a' was .*a\.mp4") as raised:
        update_manifest(manifest(clip("a")), manifest(replace(clip("a"), **change)))
    assert str(next(iter(change.values()))) in str(raised.value)


@pytest.mark.parametrize("change", [{"dataset": "other"}, {"segments": 5}, {"segment_s": 0.5}])
def test_other_segments_or_another_data_set_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CaeavError, match=f"the stored manifest has {next(iter(change))}"):
        update_manifest(manifest(clip("a")), replace(manifest(clip("a")), **change))


keys = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(keys, keys)
def test_growth_keeps_the_stored_prefix_and_loses_nothing(stored: list[str], current: list[str]) -> None:
    grown, growth = update_manifest(manifest(*map(clip, stored)), manifest(*map(clip, current)))
    result = [c.key for c in grown.clips]
    assert result[: len(stored)] == stored
    assert sorted(result) == sorted({*stored, *current})
    assert set(growth.added) == set(current) - set(stored)
    assert set(growth.gone) == set(stored) - set(current)
    again, nothing = update_manifest(grown, manifest(*map(clip, current)))
    assert again == grown and not nothing.added


def test_another_order_or_number_of_classes_is_taken_over() -> None:
    stored = manifest(clip("a", "train", "dog"), classes=("dog",))
    grown, growth = update_manifest(stored, manifest(clip("a", "train", "dog"), classes=("cat", "dog")))
    assert grown.classes == ("cat", "dog") and not growth


def test_a_class_that_no_clip_uses_goes_with_the_data_set() -> None:
    stored = manifest(clip("a", "train", "dog"), classes=("cat", "cow", "dog"))
    grown, _ = update_manifest(stored, manifest(clip("b", "train", "cat"), classes=("cat",)))
    assert grown.classes == ("cat", "dog")


def test_a_removed_clip_alone_is_a_change() -> None:
    grown, growth = update_manifest(manifest(clip("a"), clip("b")), manifest(clip("a")))
    assert growth and growth.gone == ("b",) and [c.key for c in grown.clips] == ["a", "b"]


@pytest.mark.parametrize(
    ("now", "loses"),
    [
        ([clip("a"), clip("b")], True),
        ([clip("b")], True),
        ([clip("a", "train"), clip("b")], False),
        ([clip("a"), clip("b", "", "dog")], False),
        ([clip("a"), replace(clip("b"), extra={"labels": ["dog"]})], False),
        ([clip("a"), replace(clip("b"), extra={"questions": [{"split": "train"}]})], False),
        ([clip("a"), replace(clip("b"), extra={"masks": [None]})], False),
        ([clip("a"), clip("c", "train", "dog")], True),  # a new clip's labels are not those of the stored
    ],
)
def test_only_labels_lost_by_every_stored_clip_are_lost(now: list[Clip], loses: bool) -> None:
    stored = manifest(clip("a", "train", "dog"), clip("b", "train", "dog"))
    grown, growth = update_manifest(stored, manifest(*now))
    assert growth.loses_labels(stored, grown) is loses
    without = manifest(clip("a"), clip("b"))
    grown, growth = update_manifest(without, manifest(*now))
    assert not growth.loses_labels(without, grown)
