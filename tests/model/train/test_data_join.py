"""Joining stores and labels: every clip is accounted for, and batches depend on rows and epoch only."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caeav.manifests.clip import Event
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.lazy_clips import LazyClips
from caeav.manifests.manifest import write_manifest
from caeav.model.adapters.batch import BatchTransform, Epoch, TokenBatch
from caeav.model.tasks.sample import Sample
from caeav.model.train.data import SplitData, batches, clip_bytes, epoch_order, fits
from caeav.model.train.join import Joined, JoinError, join, join_stores, store_facts
from caeav.model.train.store_choice import OneModality
from caeav.pipeline.store import (
    Quarantined,
    Recipe,
    Record,
    StoreReader,
    find_store,
    open_for_writing,
    random_parts,
)
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


def test_quarantined_clips_are_left_out_and_reported(joined: Joined) -> None:
    assert joined.left_out["train"] == ("clip035",)
    assert any("1 clip (clip035) left out, in quarantine" in remark for remark in joined.remarks)


def test_stores_made_from_different_versions_of_a_file_are_reported(make_home: Callable[..., Home]) -> None:
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
        match=r"7 clips \(clip000, clip001, clip002, clip003, clip004 and 2 more\) of 36 have no captions",
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


def test_labels_that_changed_since_extraction_are_reported(make_home: Callable[..., Home]) -> None:
    home = make_home()
    store = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    write_manifest(store.manifest, home.manifest("tiny"))
    assert not any("differs" in remark for remark in join_stores(home, "tiny").remarks)
    first = replace(store.manifest.clips[0], events=(Event("dog", 0.0, 1.0),))
    write_manifest(replace(store.manifest, clips=(first, *store.manifest.clips[1:])), home.manifest("tiny"))
    assert any("caeav extract --dataset tiny" in remark for remark in join_stores(home, "tiny").remarks)


def test_a_source_video_in_two_splits_is_reported(tiny_home: Home) -> None:
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
    with pytest.raises(JoinError, match=r"has shape \[6, 16, 8\] per clip; allowed: \[5, L, C\]"):
        join(replace(store.manifest, segments=5), [store], None)


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


def test_random_weights_behind_a_store_are_reported(make_home: Callable[..., Home]) -> None:
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


def test_random_weights_are_found_anywhere_in_a_recipe() -> None:
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


def copied(
    home: Home,
    like: StoreReader,
    name: str,
    change: Callable[[Record], Record] = lambda record: record,
    broken: tuple[str, ...] = (),
    **fields: object,
) -> StoreReader:
    """Another store beside `like` with other records; the clips `broken` are in quarantine."""
    recipe = replace(like.recipe, name=name, fields={**like.recipe.fields, "copy": name, **fields})
    with open_for_writing(home.stores / "tiny", recipe, like.manifest) as writer:
        for key in (*broken, *(item.key for item in like.quarantined)):
            writer.quarantine(Quarantined(key, "decode", "made to fail by the tests", 1))
        for plan in writer.plan():
            writer.publish(plan, {key: change(like.read(key)) for key in plan.missing})
        writer.finish()
    return StoreReader.open(writer.path)


def flagged(record: Record) -> Record:
    """Each clip lacks frames in one segment and audio in two others, in places of its own."""
    at = int(record.key.removeprefix("clip"))
    frames, audio = ([t != (at + k) % 6 for t in range(6)] for k in (0, 1))
    audio[(at + 2) % 6] = False
    return replace(record, info={**record.info, "frames_ok": frames, "audio_ok": audio})


@pytest.mark.parametrize("preload", [True, False])
def test_segments_without_real_media_are_marked(make_home: Callable[..., Home], preload: bool) -> None:
    home = make_home(captions=False)
    whole = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    marked = copied(home, whole, "marked", flagged)
    joined = join(marked.manifest, [marked], None)
    data = SplitData(joined, joined.splits["val"], {}, preload=preload)
    rows = [3, 0, 7]
    for batch in (data.batch(rows), data.batch(rows).to(torch.device("cpu"), torch.float32)):
        assert batch.frames_ok.shape == batch.audio_ok.shape == (3, 6)
        assert batch.frames_ok.dtype == batch.audio_ok.dtype == torch.bool
        for i, key in enumerate(batch.keys):
            info = marked.read(key).info
            assert batch.frames_ok[i].tolist() == info["frames_ok"] != [True] * 6
            assert batch.audio_ok[i].tolist() == info["audio_ok"] != info["frames_ok"]
        assert batch.visual_caption is None


@pytest.mark.parametrize("first", [0, 1])
def test_a_segment_is_real_where_all_joined_stores_say_so(make_home: Callable[..., Home], first: int) -> None:
    home = make_home(captions=False)
    whole = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    stores = [
        OneModality(whole, "visual"),
        OneModality(copied(home, whole, "marked", flagged), "audio"),
    ]
    joined = join(whole.manifest, [stores[first], stores[1 - first]], None)
    batch = SplitData(joined, joined.splits["val"], {}).batch([2])
    info = stores[1].read(batch.keys[0]).info
    assert batch.frames_ok[0].tolist() == info["frames_ok"]
    assert batch.audio_ok[0].tolist() == info["audio_ok"]


@pytest.mark.parametrize("filed", [False, True], ids=["in-memory", "in-its-file"])
def test_a_clip_in_quarantine_of_any_joined_store_is_left_out(
    make_home: Callable[..., Home], monkeypatch: pytest.MonkeyPatch, filed: bool
) -> None:
    """The first, a middle and the last store each lack a different clip."""
    home = make_home()
    tokens, captions = (StoreReader.open(find_store(home.stores, "tiny", k)) for k in ("tokens", "captions"))
    names = [
        f"{tokens.path.name}:visual",
        f"{copied(home, tokens, 'b', broken=('clip003',)).path.name}:audio",
    ]
    caption = copied(home, captions, "c", broken=("clip005", "clip037")).path.name
    if filed:
        monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    found = join_stores(home, "tiny", names, caption)
    assert isinstance(found.manifest.clips, LazyClips) == filed
    assert tuple(found.left_out["train"]) == ("clip003", "clip005", "clip035")
    assert tuple(found.left_out["val"]) == ("clip037",) and tuple(found.left_out["test"]) == ()
    assert [sample.key for sample in found.splits["train"]] == [
        f"clip{i:03d}" for i in range(35) if i not in (3, 5)
    ]
    assert [fact["quarantined"] for fact in store_facts(found, home)] == [1, 2, 3]
    assert [fact["clips"] for fact in store_facts(found, home)] == [59, 58, 57]


def test_captions_and_their_masks_are_each_modalitys_own(make_home: Callable[..., Home]) -> None:
    home = make_home()
    captions = StoreReader.open(find_store(home.stores, "tiny", "captions"))

    def masked(record: Record) -> Record:
        own = {"visual_caption_mask": np.arange(5) < 2, "audio_caption_mask": np.arange(5) < 4}
        return replace(record, arrays={**record.arrays, **own})

    other = copied(home, captions, "masked", masked)
    found = join_stores(home, "tiny", caption_name=other.path.name)
    read = SplitData(found, found.splits["val"], {}).batch([1])
    for batch in (read, read.to(torch.device("cpu"), torch.float32)):
        held = other.read(batch.keys[0]).arrays
        for name in ("visual_caption", "audio_caption", "visual_caption_mask", "audio_caption_mask"):
            value = getattr(batch, name)
            assert value is not None
            assert np.array_equal(value[0].numpy(), held[name])
    assert batch.visual_caption is not None and batch.visual_caption.dtype == torch.float32


def test_taps_come_in_the_order_of_the_recipe_from_shallow_to_deep(make_home: Callable[..., Home]) -> None:
    home = make_home(captions=False)
    whole = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    taps = {
        modality: {"taps": [{"name": f"{modality}.stage2"}, {"name": f"{modality}.stage1"}]}
        for modality in ("visual", "audio")
    }
    found = join(whole.manifest, [copied(home, whole, "turned", **taps)], None)
    assert [tap.name for tap in found.spec.visual] == ["visual.stage2", "visual.stage1"]
    assert [tap.name for tap in found.spec.audio] == ["audio.stage2", "audio.stage1"]
    few = join(whole.manifest, [whole], None, taps=["visual.stage2", "audio.stage1"])
    assert [tap.name for tap in (*few.spec.visual, *few.spec.audio)] == ["visual.stage2", "audio.stage1"]
    assert set(SplitData(few, few.splits["val"], {}).clip_arrays([0])) == {
        "visual.stage2", "audio.stage1", "frames_ok", "audio_ok"
    }  # fmt: skip
    with pytest.raises(JoinError, match=r"stores\.taps names visual\.stage9; the joined stores hold"):
        join(whole.manifest, [whole], None, taps=["visual.stage9"])


def test_a_store_used_for_one_modality_shows_only_that(make_home: Callable[..., Home]) -> None:
    home = make_home(captions=False)
    whole = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    both = copied(home, whole, "both", visual={"name": "seen"}, audio={"name": "heard"})
    for modality, other in (("visual", "audio"), ("audio", "visual")):
        picked = OneModality(both, modality)
        assert picked.recipe.fields == {k: v for k, v in both.recipe.fields.items() if k != other}
        assert all(name.startswith(f"{modality}.") for name in picked.read("clip000").arrays)
        assert picked.whole == both.recipe


def test_a_digest_of_a_store_changes_with_what_it_holds(make_home: Callable[..., Home]) -> None:
    home = make_home(captions=False)
    whole = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    before = store_facts(join(whole.manifest, [whole], None), home)[0]
    seal = whole.path / "complete.json"
    seal.write_bytes(seal.read_bytes() + b" ")
    after = store_facts(join(whole.manifest, [whole], None), home)[0]
    assert before["digest"] != after["digest"]
    assert {k: v for k, v in before.items() if k != "digest"} == {
        k: v for k, v in after.items() if k != "digest"
    }


def test_transforms_are_applied_in_order_with_the_rows_and_the_epoch_of_the_batch(joined: Joined) -> None:
    told: list[tuple[str, list[int], object]] = []

    def named(name: str) -> BatchTransform:
        def change(
            batch: TokenBatch, rows: Sequence[int], data: SplitData, epoch: Epoch | None
        ) -> TokenBatch:
            assert batch.keys == [data.keys[row] for row in rows]
            told.append((name, list(rows), epoch))
            return batch

        return change

    data = SplitData(joined, joined.splits["val"], {}, transforms=(named("a"), named("b")))
    data.transformed(named("first")).batch([4, 2], Epoch(3, 5))
    assert told == [(name, [4, 2], (3, 5)) for name in ("first", "a", "b")]
    told.clear()
    data.batch([1])
    assert told == [("a", [1], None), ("b", [1], None)]


@pytest.mark.parametrize("preload", [True, False])
def test_single_segments_of_any_clips(joined: Joined, preload: bool) -> None:
    samples = joined.splits["val"]
    data = SplitData(joined, samples, {}, preload=preload)
    clips, segments = torch.tensor([[5, 2], [2, 9]]), torch.tensor([[0, 5], [3, 1]])
    found = data.segments("visual.stage2", clips, segments)
    assert found.shape == (2, 2, 4, 16)
    for i in range(2):
        for j in range(2):
            held = joined.tokens[0].read(samples[int(clips[i, j])].key).arrays["visual.stage2"]
            assert np.array_equal(found[i, j].numpy(), held[int(segments[i, j])])


def test_a_consumer_that_stops_early_leaves_no_thread(joined: Joined) -> None:
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


def test_a_manifest_left_in_its_file_joins_the_same_way(
    tiny_home: Home, joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    filed = join_stores(tiny_home, "tiny")
    assert isinstance(filed.manifest.clips, LazyClips)
    for split, samples in filed.splits.items():
        assert tuple(samples) == tuple(joined.splits[split])
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
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    with pytest.raises(JoinError, match=r"7 clips \(clip000, .*\) of 36 have no captions"):
        join_stores(make_home(uncaptioned=7), "tiny")


def begin_store(home: Home, like: Path, mark: str) -> Path:
    """A store of another recipe with the same name, killed before its first shard."""
    recipe = StoreReader.open(like).recipe
    other = replace(recipe, fields={**recipe.fields, "made": mark})
    with open_for_writing(home.stores / "tiny", other, StoreReader.open(like).manifest) as writer:
        return writer.path


@pytest.mark.parametrize("kind", ["tokens", "captions"])
def test_a_finished_store_is_preferred_to_an_unfinished_one(
    make_home: Callable[..., Home], kind: str
) -> None:
    home = make_home()
    (whole,) = home.stores.glob(f"tiny/{kind}-*")
    begun = begin_store(home, whole, "killed")
    for joined in (join_stores(home, "tiny"), join_stores(home, "tiny", ["tinytokens"], "tinycaptions")):
        assert whole in [store.path for store in joined.stores]
        [said] = [remark for remark in joined.remarks if begun.name in remark]
        assert "is not finished (0 of 60 clips), not used" in said and "delete its folder" in said


def test_several_unfinished_stores_are_refused_with_the_next_step(make_home: Callable[..., Home]) -> None:
    home = make_home()
    (whole,) = home.stores.glob("tiny/tokens-*")
    names = [begin_store(home, whole, mark).name for mark in ("one", "two")]
    shutil.rmtree(whole)
    with pytest.raises(CaeavError, match="is finished") as raised:
        join_stores(home, "tiny")
    assert all(f"{name} is not finished (0 of 60 clips)" in str(raised.value) for name in names)
    assert "finish one with the same `caeav extract`" in str(raised.value)
