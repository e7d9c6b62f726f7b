"""AVSBench's two sets: counts of the real lists, and masks binarised as in the official loader."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_findings import codes

from caeav.manifests import masks
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaked_keys
from caeav.manifests.masks import pack_mask, unpack_mask
from caeav.manifests.readers import ReadOptions, readers
from caeav.manifests.readers.avsbench import OFFICIAL_CATEGORIES, read_mask

SPOT = np.zeros((224, 224), dtype=bool)
SPOT[20:90, 100:190] = True


def read(root: Path, dataset: str) -> Manifest:
    return readers[dataset](root, ReadOptions(dataset))


def save(mask: np.ndarray, path: Path, mode: str = "1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).convert(mode).save(path)
    return path


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "data" / "annotations" / "avsbench"


def test_the_real_s4_list_gives_its_counts(official: Path) -> None:
    manifest = read(official, "avs-s4")
    assert manifest.split_counts() == {"train": 3452, "val": 740, "test": 740}
    assert (manifest.segments, manifest.segment_s, len(manifest.classes)) == (5, 1.0, 23)
    sizes = Counter((clip.extra["category"], clip.split) for clip in manifest.clips)
    assert [sizes["helicopter", s] for s in ("train", "val", "test")] == [217, 47, 47]
    assert [sizes["coyote_howling", s] for s in ("train", "val", "test")] == [44, 9, 9]
    assert codes(manifest) == {"no_masks": 1, "short_source": 14, "grouped_rows": 1, "dash_id": 1}
    assert "247 of 4932" in next(f.detail for f in manifest.findings if f.code == "dash_id")
    boxes = {Path(box["audio"]).stem for box in json.loads((official / "s4_test_box.json").read_text())}
    assert boxes == {clip.extra["id"] for clip in manifest.clips if clip.split == "test"}
    paths = {
        box["audio"].partition("Single-source/")[2]
        for box in json.loads((official / "s4_test_box.json").read_text())
    }
    assert paths == {clip.media for clip in manifest.clips if clip.split == "test"}


def test_the_real_ms3_list_gives_its_counts_and_its_56_leaks(official: Path) -> None:
    manifest = read(official, "avs-ms3")
    assert manifest.split_counts() == {"train": 296, "val": 64, "test": 64}
    assert len({clip.extra["id"] for clip in manifest.clips}) == 219
    assert codes(manifest) == {"no_masks": 1, "id_in_two_splits": 56, "no_youtube_id": 1}
    leaked = leaked_keys(manifest)
    assert leaked["xv7eM6-UmkY_14"] == ("train", "val")
    assert len({key[:11] for key in leaked}) == 56
    assert "baby_dog_2_1" not in leaked


def test_s4_masks_are_packed_into_the_rows(tmp_path: Path) -> None:
    (tmp_path / "Single-source").mkdir()
    rows = "-a,0,horse_clip-clop,train\nb_b,6,race_car,test\nc,0,race_car,val\n"
    (tmp_path / "Single-source/s4_meta_data.csv").write_text(f"name,start,category,split\n{rows}")
    data = tmp_path / "Single-source/s4_data"
    save(SPOT, data / "gt_masks/train/horse_clip-clop/-a/-a_1.png")
    save(SPOT, data / "gt_masks/train/horse_clip-clop/-a/-a_2.png")  # ignored: train has one
    for number in (1, 2, 3, 5):
        save(SPOT & (number != 3), data / f"gt_masks/test/race_car/b_b/b_b_{number}.png", "L")
    (data / "gt_masks/test/race_car/b_b/b_b_5.png").write_bytes(b"nothing")
    (data / "visual_frames/test/race_car/b_b").mkdir(parents=True)
    for name in ("test/race_car/b_b.mp4", "val/race_car/c.mp4"):
        (data / "raw_videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (data / "raw_videos" / name).touch()
    manifest = read(tmp_path, "avs-s4")
    train, test, val = manifest.clips
    assert [mask is not None for mask in train.extra["masks"]] == [True, False, False, False, False]
    assert np.array_equal(unpack_mask(train.extra["masks"][0]), SPOT)
    assert [mask is not None for mask in test.extra["masks"]] == [True, True, True, False, False]
    assert not unpack_mask(test.extra["masks"][2]).any()
    assert train.media == "Single-source/s4_data/audio_wav/train/horse_clip-clop/-a.wav"
    assert test.media == "Single-source/s4_data/audio_wav/test/race_car/b_b.wav"  # it has frames
    assert val.media == "Single-source/s4_data/raw_videos/val/race_car/c.mp4"
    assert codes(manifest) == {
        "missing_mask": 1 + 5,
        "damaged_mask": 1,
        "empty_mask": 1,
        "short_source": 1,
        "raw_video": 1,
        "no_youtube_id": 3,
        "dash_id": 1,
    }


def test_ms3_has_five_masks_in_train_and_its_own_folders(tmp_path: Path) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text("video_id,split\nxv7eM6-UmkY_36,train\n")
    for number in range(1, 6):
        save(SPOT, tmp_path / f"ms3_data/gt_masks/train/xv7eM6-UmkY_36/xv7eM6-UmkY_36_{number}.png", "L")
    manifest = read(tmp_path, "avs-ms3")
    [clip] = manifest.clips
    assert all(np.array_equal(unpack_mask(mask), SPOT) for mask in clip.extra["masks"])
    assert not codes(manifest)
    wav = tmp_path / clip.media
    wav.parent.mkdir(parents=True)
    wav.touch()
    assert codes(read(tmp_path, "avs-ms3")) == {"missing_pictures": 1}
    (tmp_path / "ms3_data/visual_frames/xv7eM6-UmkY_36").mkdir(parents=True)
    assert not codes(read(tmp_path, "avs-ms3"))
    assert (clip.key, clip.extra["id"]) == ("xv7eM6-UmkY_36", "xv7eM6-UmkY")
    assert clip.media == "ms3_data/audio_wav/train/xv7eM6-UmkY_36.wav"


@pytest.mark.parametrize("mode", ["1", "P"])
@pytest.mark.parametrize("stored", ["1", "L", "P", "RGB"])
def test_a_black_and_white_mask_is_the_same_however_it_is_stored(
    tmp_path: Path, mode: str, stored: str
) -> None:
    read_ = read_mask(save(SPOT, tmp_path / "m.png", stored), mode)
    assert np.array_equal(read_.mask, SPOT) and not read_.soft
    empty = read_mask(save(np.zeros_like(SPOT), tmp_path / "e.png", stored), mode)
    assert not empty.mask.any()


def test_soft_masks_are_dithered_for_s4_and_thresholded_for_ms3_as_officially(tmp_path: Path) -> None:
    path = tmp_path / "soft.png"
    Image.fromarray(np.full((8, 8), 100, dtype=np.uint8)).save(path)
    s4, ms3 = read_mask(path, "1"), read_mask(path, "P")
    assert s4.soft and ms3.soft
    assert 0 < s4.mask.sum() < 64  # Pillow spreads the error, as the official loader does
    assert not ms3.mask.any()
    Image.fromarray(np.full((8, 8), 128, dtype=np.uint8)).save(path)
    assert read_mask(path, "P").mask.all()
    Image.fromarray(np.full((8, 8), 127, dtype=np.uint8)).save(path)
    assert not read_mask(path, "P").mask.any()
    Image.fromarray((SPOT * 3).astype(np.uint8), "P").save(path)  # palette numbers 0 and 3
    assert np.array_equal(read_mask(path, "P").mask, SPOT)


def test_real_masks_are_read_as_the_union_of_their_objects(shared: Path, tmp_path: Path) -> None:
    real = shared / "data" / "avs_masks"
    (tmp_path / "ms3_meta_data.csv").write_text("video_id,split\nJesus_tpt_vn,test\n")
    target = tmp_path / "ms3_data/gt_masks/test/Jesus_tpt_vn"
    target.parent.mkdir(parents=True)
    target.symlink_to(real / "masks_union")
    [clip] = read(tmp_path, "avs-ms3").clips
    for number, text in enumerate(clip.extra["masks"], start=1):
        both = [
            np.array(Image.open(real / f"masks_{name}/Jesus_tpt_vn_{number}.png"))
            for name in ("trumpet", "violin")
        ]
        assert np.array_equal(unpack_mask(text), (both[0] > 127) | (both[1] > 127))


def test_packed_masks_are_read_back_and_malformed_ones_refused() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 17), (224, 224)):
        mask = rng.random(shape) < 0.3
        assert np.array_equal(unpack_mask(pack_mask(mask)), mask)
    grey = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(grey, "PNG")
    wide = io.BytesIO()
    Image.fromarray(np.zeros((1, 5000), dtype=bool)).save(wide, "PNG")
    for text, why in (
        ("???", "cannot be read"),
        (base64.b64encode(b"GIF89a").decode(), "cannot identify"),
        (base64.b64encode(grey.getvalue()).decode(), "mode 'L'"),
        (base64.b64encode(wide.getvalue()).decode(), "5000 x 1"),
        (base64.b64encode(claims(60_000)).decode(), "3600000000 pixels"),
        (pack_mask(SPOT)[:-40], "cannot be read"),
    ):
        with pytest.raises(CaeavError, match=why):
            unpack_mask(text)


def claims(side: int) -> bytes:
    """A PNG of a few bytes whose header claims `side` x `side` pixels."""
    parts = (
        b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(b"\0" * 99),
    )
    chunks = (struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_mask_file_that_claims_a_huge_size_is_reported(tmp_path: Path) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text("video_id,split\nxv7eM6-UmkY_36,test\n")
    mask_folder = tmp_path / "ms3_data/gt_masks/test/xv7eM6-UmkY_36"
    for number, side in enumerate((5_000, 60_000), start=1):
        save(SPOT, mask_folder / f"xv7eM6-UmkY_36_{number}.png").write_bytes(claims(side))
    manifest = read(tmp_path, "avs-ms3")
    assert manifest.clips[0].extra["masks"] == [None] * 5
    assert codes(manifest) == {"damaged_mask": 2, "missing_mask": 3}
    path = mask_folder / "xv7eM6-UmkY_36_3.png"
    Image.fromarray(np.ones((4, 5_000), dtype=np.uint8)).save(path)
    assert codes(read(tmp_path, "avs-ms3")) == {"damaged_mask": 3, "missing_mask": 2}


@pytest.mark.parametrize(
    "order", [("train", "val", "test"), ("test", "val", "train"), ("val", "train", "test")]
)
def test_a_name_in_several_splits_counts_once_in_the_last_split_whatever_the_order(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    rows = "".join(f"xv7eM6-UmkY_36,{split}\n" for split in order) + "A7N2Japi3-A_4,train\n"
    (tmp_path / "ms3_meta_data.csv").write_text(f"video_id,split\n{rows}")
    manifest = read(tmp_path, "avs-ms3")
    assert [(clip.key, clip.split) for clip in manifest.clips] == [
        ("xv7eM6-UmkY_36", "test"),
        ("A7N2Japi3-A_4", "train"),
    ]
    assert "audio_wav/test/" in manifest.clips[0].media
    assert codes(manifest)["row_in_two_splits"] == 2 and not leaked_keys(manifest)
    (tmp_path / "ms3_meta_data.csv").write_text(
        f"video_id,split\nxv7eM6-UmkY_36,{order[0]}\nxv7eM6-UmkY_36,{order[0]}\n"
    )
    assert codes(read(tmp_path, "avs-ms3")) == {"duplicate_row": 1, "no_masks": 1}


@pytest.mark.parametrize("place", ["", "Single-source/", "AVSBench_data/Single-source/"])
def test_the_list_and_its_data_may_be_in_three_places(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / f"{place}s4_meta_data.csv").write_text("name,start,category,split\nx,0,race_car,test\n")
    [clip] = read(tmp_path, "avs-s4").clips
    assert clip.media == f"{place}s4_data/audio_wav/test/race_car/x.wav"


def test_the_folder_of_the_set_is_preferred_to_the_root(tmp_path: Path) -> None:
    for place, split in (("", "train"), ("Multi-sources/", "val"), ("AVSBench_data/Multi-sources/", "test")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{place}ms3_meta_data.csv").write_text(f"video_id,split\nx,{split}\n")
    assert [clip.split for clip in read(tmp_path, "avs-ms3").clips] == ["val"]


def test_classes_have_the_official_s4_order_else_the_order_of_appearance(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s4_meta_data.csv"
    path.write_text("name,start,category,split\na,0,zebra,test\nb,0,race_car,test\nc,0,ant,test\n")
    assert read(tmp_path, "avs-s4").classes == (*OFFICIAL_CATEGORIES, "zebra", "ant")
    path.write_text("name,start,category,split\na,0,zebra,test\nc,0,ant,test\n")
    assert read(tmp_path, "avs-s4").classes == ("zebra", "ant")


def test_a_clips_own_name_is_kept_where_it_is_not_the_video_id(tmp_path: Path) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text("video_id,split\nxv7eM6-UmkY_36,train\nA7N2Japi3-A,test\n")
    extras = [
        {k: v for k, v in clip.extra.items() if k != "masks"} for clip in read(tmp_path, "avs-ms3").clips
    ]
    assert extras == [{"id": "xv7eM6-UmkY", "name": "xv7eM6-UmkY_36"}, {"id": "A7N2Japi3-A"}]


def test_masks_of_several_sizes_are_reported(tmp_path: Path) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text("video_id,split\nxv7eM6-UmkY_36,test\n")
    folder = tmp_path / "ms3_data/gt_masks/test/xv7eM6-UmkY_36"
    for number in range(1, 6):
        save(SPOT[: 100 if number == 3 else 224], folder / f"xv7eM6-UmkY_36_{number}.png", "L")
    [detail] = [found.detail for found in read(tmp_path, "avs-ms3").findings if found.code == "mask_size"]
    assert detail == "224 x 224: 4, 224 x 100: 1"
    save(SPOT, folder / "xv7eM6-UmkY_36_3.png", "L")
    assert not codes(read(tmp_path, "avs-ms3"))


def test_only_soft_masks_are_reported(tmp_path: Path) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text("video_id,split\nxv7eM6-UmkY_36,test\n")
    folder = tmp_path / "ms3_data/gt_masks/test/xv7eM6-UmkY_36"
    for number in range(1, 6):
        path = save(SPOT, folder / f"xv7eM6-UmkY_36_{number}.png", "L")
    assert not codes(read(tmp_path, "avs-ms3"))
    Image.fromarray((SPOT * 200).astype(np.uint8)).save(path)
    assert codes(read(tmp_path, "avs-ms3")) == {"soft_mask": 1}


@pytest.mark.parametrize("place", ["avss_metadata.csv", "metadata.csv", "AVSBench_semantic/metadata.csv"])
def test_the_semantic_list_may_be_in_three_places(tmp_path: Path, place: str) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text("video_id,split\nA7N2Japi3-A_4,test\n")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(
        "vid,uid,s_min,s_sec,a_obj,split,label\nA7N2Japi3-A,A7N2Japi3-A_4,0,0,off-the-screen_dog,test,v1m\n"
        "A7N2Japi3-A,A7N2Japi3-A_4,0,0,cat,test,v2\n"
    )
    assert read(tmp_path, "avs-ms3").clips[0].extra["objects"] == ["dog"]


@pytest.mark.parametrize(("start", "short"), [("5", False), ("6", True)])
def test_a_clip_that_ends_with_its_source_is_not_short(tmp_path: Path, start: str, short: bool) -> None:
    (tmp_path / "s4_meta_data.csv").write_text(f"name,start,category,split\nA7N2Japi3-A,{start},ant,test\n")
    assert ("short_source" in codes(read(tmp_path, "avs-s4"))) is short


def test_a_row_whose_category_is_a_path_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "s4_meta_data.csv").write_text(
        "name,start,category,split\nA7N2Japi3-A,0,../ant,test\nB7N2Japi3-A,0,ant,test\nC7N2Japi3-A,0,ant,dev\n"
    )
    manifest = read(tmp_path, "avs-s4")
    assert [clip.key for clip in manifest.clips] == ["B7N2Japi3-A"]
    assert codes(manifest) == {"damaged_row": 2, "no_masks": 1}


def test_missing_and_unreadable_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match=r"Single-source/s4_meta_data\.csv not found"):
        read(tmp_path, "avs-s4")
    (tmp_path / "s4_meta_data.csv").write_text(
        f"name,start,category,split\n../a,0,cat,train\nb,x,cat,train\nc,0,cat,dev\n{'d' * 300},0,cat,test\n"
    )
    with pytest.raises(CaeavError, match="lists no clip"):
        read(tmp_path, "avs-s4")


def test_ms3_takes_its_objects_from_the_semantic_list_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text(
        "video_id,split\nxv7eM6-UmkY_36,train\nA7N2Japi3-A_4,test\nb,val\n"
    )
    assert all("objects" not in clip.extra for clip in read(tmp_path, "avs-ms3").clips)
    (tmp_path / "avss_metadata.csv").write_text(
        "vid,uid,s_min,s_sec,a_obj,split,label\n"
        "xv7eM6-UmkY,xv7eM6-UmkY_36,0,0,violin_frying-food_violin,train,v1m\n"
        "A7N2Japi3-A,A7N2Japi3-A_4,0,0,background,test,v1m\n"
        "b,b,0,0,dog,val,v2\n"
    )
    manifest = read(tmp_path, "avs-ms3")
    assert [clip.extra.get("objects") for clip in manifest.clips] == [["frying-food", "violin"], [], None]
    assert "avss_metadata.csv" in manifest.sources and manifest.classes == ()


def test_every_real_ms3_clip_is_in_the_semantic_list(official: Path) -> None:
    clips = read(official, "avs-ms3").clips
    counts = Counter(name for clip in clips for name in clip.extra["objects"])
    assert (len(counts), counts["man"], counts["emergency-car"]) == (21, 113, 1)
    assert sum(not clip.extra["objects"] for clip in clips) <= 5


def test_side_and_length_of_a_packed_mask_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    text = pack_mask(np.zeros((6, 4), bool))
    assert unpack_mask(text).shape == (6, 4)
    monkeypatch.setattr(masks, "MAX_SIDE", 5)
    with pytest.raises(CaeavError, match="it is 4 x 6, allowed are 5 pixels a side"):
        unpack_mask(text)
    monkeypatch.setattr(masks, "MAX_TEXT", len(text) - 1)
    with pytest.raises(CaeavError, match=f"it has {len(text)} characters, allowed are {len(text) - 1}"):
        unpack_mask(text)
