"""Joining stores and labels: every clip accounted for, everything told, batches that depend on nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caeav.manifests.clip import Event
from caeav.manifests.errors import CaeavError
from caeav.manifests.home import Home
from caeav.manifests.jsonl import write_manifest
from caeav.model.data import SplitData, batches, clip_bytes, epoch_order, fits
from caeav.model.join import Joined, JoinError, join, join_stores, store_facts
from caeav.model.sample import ClipSamples, Sample
from caeav.pipeline.store import Recipe, StoreReader, find_store, open_for_writing, random_parts
from caeav.pipeline.store.media_record import Facts, write_record


@pytest.fixture(scope="module")
def joined(tiny_home: Home) -> Joined:
    return join_stores(tiny_home, "tiny")


def some_targets(clips: tuple[Sample, ...]) -> dict[str, torch.Tensor]:
    return {"labels": torch.arange(len(clips), dtype=torch.float32).unsqueeze(1)}


def test_spec_and_splits(joined: Joined) -> None:
    assert joined.spec.segments == 6
    assert [(tap.name, tap.tokens, tap.channels) for tap in joined.spec.visual] == [
        ("visual.stage1", 16, 8),
        ("visual.stage2", 4, 16),
    ]
    assert (joined.spec.audio_caption.tokens, joined.spec.audio_caption.channels) == (5, 16)
    assert {name: len(clips) for name, clips in joined.splits.items()} == {"train": 35, "val": 12, "test": 12}


def test_quarantined_clips_are_left_out_and_said(joined: Joined) -> None:
    assert joined.left_out["train"] == ("clip035",)
    assert any("1 clip (clip035) left out, in quarantine" in remark for remark in joined.remarks)


def test_stores_made_of_different_versions_of_a_file_are_told_apart(make_home: Callable[..., Home]) -> None:
    home = make_home()
    for kind, new in (("tokens", b"2" * 16), ("captions", b"1" * 16)):
        path = find_store(home.stores, "tiny", kind)
        media = [clip.media for clip in StoreReader.open(path).manifest.clips]
        seen = {name: Facts(9, 5, b"1" * 16) for name in media}
        assert not any("another version" in remark for remark in join_stores(home, "tiny").remarks)
        write_record(path, seen | {media[3]: Facts(9, 5, new)})
    [remark] = [remark for remark in join_stores(home, "tiny").remarks if "another version" in remark]
    assert remark.startswith("1 clip (clip003): captions-tinycaptions-")
    assert "caeav caption --dataset tiny" in remark


def test_missing_captions_are_an_error_with_the_next_step(make_home: Callable[..., Home]) -> None:
    home = make_home(uncaptioned=7)
    with pytest.raises(
        JoinError,
        match=r"7 clips \(clip000, clip001, clip002, clip003, clip004, ...\) of 36 have no captions",
    ) as error:
        join_stores(home, "tiny")
    assert "caeav caption --dataset tiny" in str(error.value)
    assert join_stores(home, "tiny", captions=False).splits["train"]


def test_no_store_at_all_names_the_command(make_home: Callable[..., Home]) -> None:
    home = make_home(captions=False)
    with pytest.raises(CaeavError, match="caeav caption --dataset tiny"):
        join_stores(home, "tiny")
    with pytest.raises(CaeavError, match="caeav extract --dataset other"):
        join_stores(home, "other")


def test_of_several_stores_one_is_named_by_a_setting(make_home: Callable[..., Home]) -> None:
    home = make_home()
    (first,) = home.stores.glob("tiny/tokens-*")
    shutil.copytree(first, first.with_name(first.name[:-12] + "0123456789ab"))
    with pytest.raises(CaeavError, match=r"--set stores\.tokens=\[FOLDER\]"):
        join_stores(home, "tiny")
    joined = join_stores(home, "tiny", [first.name])
    assert [store.path for store in joined.tokens] == [first]


def test_labels_that_changed_since_extraction_are_said(make_home: Callable[..., Home]) -> None:
    home = make_home()
    store = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    write_manifest(store.manifest, home.manifest("tiny"))
    assert not any("differs" in remark for remark in join_stores(home, "tiny").remarks)
    first = replace(store.manifest.clips[0], events=(Event("dog", 0.0, 1.0),))
    write_manifest(replace(store.manifest, clips=(first, *store.manifest.clips[1:])), home.manifest("tiny"))
    assert any("caeav extract --dataset tiny" in remark for remark in join_stores(home, "tiny").remarks)


def test_a_source_video_in_two_splits_is_said(tiny_home: Home) -> None:
    store = StoreReader.open(find_store(tiny_home.stores, "tiny", "tokens"))
    clips = list(store.manifest.clips)
    train, test = clips[0], next(i for i, clip in enumerate(clips) if clip.split == "test")
    clips[0] = replace(train, extra={"id": "abc"})
    clips[test] = replace(clips[test], extra={"id": "abc"})
    found = join(replace(store.manifest, clips=tuple(clips)), [store], None)
    assert (
        "1 source video lies in both splits of train/test; --drop-leaks leaves such clips out"
        in found.remarks
    )


def test_stores_that_cut_clips_differently_are_refused(make_home: Callable[..., Home]) -> None:
    store = StoreReader.open(find_store(make_home().stores, "tiny", "tokens"))
    with pytest.raises(JoinError, match=r"has shape \[6, 16, 8\] a clip; allowed: \[5, L, C\]"):
        join(replace(store.manifest, segments=5), [store], None)


def test_one_tap_in_two_stores_is_refused(tiny_home: Home) -> None:
    store = StoreReader.open(find_store(tiny_home.stores, "tiny", "tokens"))
    with pytest.raises(
        JoinError, match=r"tap 'visual.stage1' is in two token stores|tap 'audio.stage1' is in two"
    ):
        join(store.manifest, [store, store], None)


def test_keys_that_mean_other_media_are_refused(make_home: Callable[..., Home]) -> None:
    home = make_home(captions=False)
    tokens = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    moved = tuple(
        replace(clip, start_s=1.0) if i == 0 else clip for i, clip in enumerate(tokens.manifest.clips)
    )
    recipe = Recipe("captions", "elsewhere", {})
    with open_for_writing(home.stores / "tiny", recipe, replace(tokens.manifest, clips=moved)) as writer:
        path = writer.path
    captions = StoreReader.open(path, allow_partial=True)
    with pytest.raises(JoinError, match="1 clip \\(clip000\\) mean other media or times"):
        join(tokens.manifest, [tokens], captions)


def test_random_weights_behind_a_store_are_said(make_home: Callable[..., Home]) -> None:
    home = make_home(captions=False, quarantined=0)
    tokens = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    fields = {
        "visual": {"name": "swin", "weights": {"source": "random:0", "digest": "random:0"}},
        "shard_clips": 16,
    }
    with open_for_writing(
        home.stores / "tiny", Recipe("tokens", "random", fields), tokens.manifest
    ) as writer:
        for plan in writer.plan():
            writer.publish(plan, {key: tokens.read(key) for key in plan.missing})
        writer.finish()
    remarks = join(tokens.manifest, [StoreReader.open(writer.path)], None).remarks
    assert f"{writer.path.name}: swin HAD RANDOM WEIGHTS; scores say nothing of that model" in remarks
    assert not any("RANDOM" in remark for remark in join(tokens.manifest, [tokens], None).remarks)


def test_whatever_stands_in_a_recipe_is_looked_through_for_random_weights() -> None:
    fields = {
        "visual": {"weights": "random:0"},
        "audio": {"weights": {"digest": "random:1"}, "taps": [1]},
        "n": 3,
    }
    assert random_parts(fields) == ["audio"]


def test_facts_of_a_store_are_relative_to_home(joined: Joined, tiny_home: Home) -> None:
    facts = store_facts(joined, tiny_home)
    assert [fact["kind"] for fact in facts] == ["tokens", "captions"]
    assert all(fact["folder"].startswith("stores/tiny/") for fact in facts)
    assert facts[0]["fingerprint"] == joined.tokens[0].recipe.fingerprint


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_hold_the_right_clips_whatever_way_they_are_read(
    joined: Joined, preload: bool, workers: int
) -> None:
    clips = joined.splits["train"]
    data = SplitData(joined, clips, some_targets(clips), preload=preload)
    rows = epoch_order(len(clips), seed=3, epoch=1)
    seen: list[str] = []
    for batch in batches(data, rows, 8, workers):
        for i, key in enumerate(batch.keys):
            record = joined.tokens[0].read(key)
            assert np.array_equal(batch.visual["visual.stage2"][i].numpy(), record.arrays["visual.stage2"])
            assert np.array_equal(batch.audio["audio.stage1"][i].numpy(), record.arrays["audio.stage1"])
            assert batch.targets["labels"][i].item() == data.keys.index(key)
            assert batch.visual_caption_mask is not None and batch.visual_caption_mask[i].sum() == 3
        seen += batch.keys
    assert seen == [clips[row].key for row in rows]


def test_segments_without_real_media_are_marked(make_home: Callable[..., Home]) -> None:
    home = make_home(captions=False)
    joined = join_stores(home, "tiny", captions=False)
    data = SplitData(joined, joined.splits["val"], some_targets(joined.splits["val"]))
    batch = data.batch([0, 1])
    assert (
        batch.frames_ok.shape == (2, 6)
        and batch.frames_ok.dtype == torch.bool
        and bool(batch.frames_ok.all())
    )
    assert batch.visual_caption is None


def test_a_consumer_that_stops_early_leaves_no_thread(joined: Joined) -> None:
    import threading

    clips = joined.splits["train"]
    stream = batches(SplitData(joined, clips, some_targets(clips)), range(len(clips)), 2, workers=2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [epoch_order(50, *which).tolist() for which in ((1, 2), (1, 2), (1, 3), (2, 3))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3]
    assert sorted(epoch_order(50, 1, 2)) == list(range(50))


def test_the_ram_budget_counts_all_arrays(joined: Joined) -> None:
    each = 2 * 6 * (16 * 8 + 4 * 16 + 16 * 8 + 4 * 12) + 2 * (2 * 5 * 16 + 5)
    assert clip_bytes(joined) == each
    assert fits(joined, (1 << 20) // each, 1) and not fits(joined, (1 << 20) // each + 1, 1)


def test_a_manifest_left_in_its_file_joins_alike(
    tiny_home: Home, joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caeav.manifests.jsonl.FILED_BYTES", 1)
    filed = join_stores(tiny_home, "tiny")
    assert all(isinstance(samples, ClipSamples) for samples in filed.splits.values())
    assert {split: tuple(samples) for split, samples in filed.splits.items()} == joined.splits
    assert filed.left_out == joined.left_out
    assert filed.remarks == joined.remarks
    assert [filed.clips(split) for split in filed.splits] == [joined.clips(split) for split in joined.splits]
    train = filed.splits["train"]
    one = SplitData(filed, train, some_targets(train)).batch([3, 0])
    other = SplitData(joined, joined.splits["train"], some_targets(train)).batch([3, 0])
    assert one.keys == other.keys
    assert torch.equal(one.visual["visual.stage2"], other.visual["visual.stage2"])


def test_missing_captions_of_a_manifest_left_in_its_file(
    make_home: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caeav.manifests.jsonl.FILED_BYTES", 1)
    with pytest.raises(JoinError, match=r"7 clips \(clip000, .*\) of 36 have no captions"):
        join_stores(make_home(uncaptioned=7), "tiny")


def begin_store(home: Home, like: Path, mark: str) -> Path:
    """A store that was begun as another recipe of the same name, and killed before its first shard."""
    recipe = StoreReader.open(like).recipe
    other = replace(recipe, fields={**recipe.fields, "made": mark})
    with open_for_writing(home.stores / "tiny", other, StoreReader.open(like).manifest) as writer:
        return writer.path


@pytest.mark.parametrize("kind", ["tokens", "captions"])
def test_a_finished_store_is_meant_beside_one_that_was_only_begun(
    make_home: Callable[..., Home], kind: str
) -> None:
    home = make_home()
    (whole,) = home.stores.glob(f"tiny/{kind}-*")
    begun = begin_store(home, whole, "killed")
    for joined in (join_stores(home, "tiny"), join_stores(home, "tiny", ["tinytokens"], "tinycaptions")):
        assert whole in [store.path for store in joined.stores]
        [said] = [remark for remark in joined.remarks if begun.name in remark]
        assert "is not finished (0 of 60 clips), not used" in said and "delete its folder" in said


def test_of_stores_that_were_only_begun_the_way_out_is_told(make_home: Callable[..., Home]) -> None:
    home = make_home()
    (whole,) = home.stores.glob("tiny/tokens-*")
    names = [begin_store(home, whole, mark).name for mark in ("one", "two")]
    shutil.rmtree(whole)
    with pytest.raises(CaeavError, match="is finished") as raised:
        join_stores(home, "tiny")
    assert all(f"{name} is not finished (0 of 60 clips)" in str(raised.value) for name in names)
    assert "finish one by the `caeav extract` that began it" in str(raised.value)
