"""Any folder of media: which files become clips, and how a label file cuts and labels them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from reader_findings import reported

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.manifest import read_manifest, write_manifest
from caeav.manifests.readers import ReadOptions, readers

HEAD = "file,start_s,end_s,label,split\n"


def read(root: Path, labels: Path | None = None, **options: object) -> Manifest:
    manifest = readers["folder"](root, ReadOptions("mine", labels=labels, **options))  # type: ignore[arg-type]
    write_manifest(manifest, root.parent / "round.jsonl")  # every manifest a reader makes can be written
    assert read_manifest(root.parent / "round.jsonl") == manifest
    return manifest


def rows(manifest: Manifest) -> list[tuple[str, float, str, tuple[Event, ...]]]:
    return [(clip.key, clip.start_s, clip.split, clip.events) for clip in manifest.clips]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    root.mkdir()
    (root / "a.mp4").touch()
    (root / "b.MKV").touch()
    return root


def label(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(HEAD + text)
    return folder


def test_the_real_media_give_20_clips(shared: Path, tmp_path: Path) -> None:
    root = tmp_path / "media"
    root.symlink_to(shared / "data" / "media")
    manifest = read(root)
    assert len(manifest.clips) == 20
    assert {clip.media for clip in manifest.clips} == {p.name for p in root.iterdir()} - {"MEDIA.csv"}
    assert all(clip.key == Path(clip.media).stem for clip in manifest.clips)
    assert all(
        (clip.start_s, clip.seconds, clip.split, clip.events) == (0, 10, "", ()) for clip in manifest.clips
    )
    assert [found.code for found in manifest.findings] == ["skipped_files"]
    assert "MEDIA.csv" in manifest.findings[0].detail


def test_files_are_found_at_any_depth_in_a_fixed_order_and_hidden_ones_are_not(folder: Path) -> None:
    for name in ("z/deep/c.webm", ".hidden/x.mp4", "z/.y.mp4", "z/notes.txt", "-d.mov"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    manifest = read(folder)
    assert [(c.key, c.media) for c in manifest.clips] == [
        ("-d", "-d.mov"),
        ("a", "a.mp4"),
        ("b", "b.MKV"),
        ("z__deep__c", "z/deep/c.webm"),
    ]
    assert reported(manifest, "skipped_files") == [("media", "z/notes.txt")]
    assert manifest.classes == ()


def test_names_that_read_alike_or_are_unsafe_get_a_hash(folder: Path) -> None:
    (folder / "a.mkv").touch()
    (folder / "b c.mp4").touch()
    keys = {clip.media: clip.key for clip in read(folder).clips}
    assert keys["b.MKV"] == "b"
    assert keys["a.mp4"].startswith("a-") and keys["a.mkv"].startswith("a-")
    assert keys["b c.mp4"].startswith("b_c-")
    assert len(set(keys.values())) == 4


def test_link_loops_end_and_dangling_links_are_kept_as_missing_media(folder: Path, tmp_path: Path) -> None:
    (folder / "up").symlink_to(folder)
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.mp4").touch()
    (other / "back").symlink_to(folder)
    (folder / "in").symlink_to(other)
    assert [clip.media for clip in read(folder).clips] == [
        "a.mp4",
        "b.MKV",
        "gone.mp4",
        "in/c.mp4",
        "self.mp4",
    ]


def test_a_name_that_is_not_utf8_is_left_out_and_reported(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.mp4")).touch()
    manifest = read(folder)
    assert len(manifest.clips) == 2
    ((where, _),) = reported(manifest, "unreadable_name")
    assert where.endswith("caf\\xe9.mp4")


def test_a_folder_that_cannot_be_listed_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "locked").mkdir()
    listing = Path.iterdir

    def refuse(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    manifest = read(folder)
    assert len(manifest.clips) == 2
    assert reported(manifest, "unreadable_folder") == [(str(folder / "locked"), "Permission denied")]


def test_the_home_folder_inside_the_media_folder_is_no_media(folder: Path) -> None:
    (folder / "home" / "data").mkdir(parents=True)
    (folder / "home" / "data" / "x.mp4").touch()
    assert len(read(folder, exclude=folder / "home").clips) == 2


def test_a_folder_without_media_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(CaeavError, match=r"no media file in this folder \(looked for \.mp4 "):
        readers["folder"](tmp_path, ReadOptions("mine"))


def test_number_and_length_of_segments_can_be_chosen(folder: Path) -> None:
    manifest = read(folder, segments=5, segment_s=0.5)
    assert (manifest.segments, manifest.segment_s, manifest.clips[0].seconds) == (5, 0.5, 2.5)
    with pytest.raises(CaeavError, match=r"0 x 1\.0 s"):
        read(folder, segments=0)


# --- with a label file ------------------------------------------------------------------------------


def test_each_row_is_an_event_and_classes_are_sorted(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,4,6,dog,train\na.mp4,0,2.5,bell,train\nb.MKV,1,2,dog,val\n"))
    assert manifest.classes == ("bell", "dog")
    assert rows(manifest) == [
        ("a", 0, "train", (Event("bell", 0.0, 2.5), Event("dog", 4.0, 6.0))),
        ("b", 0, "val", (Event("dog", 1.0, 2.0),)),
    ]
    assert not manifest.findings
    assert set(manifest.sources) == {"labels.csv"}


def test_an_event_across_windows_becomes_one_clip_per_window_with_relative_times(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,8,31,dog,train\n"))
    assert rows(manifest)[:4] == [
        ("a", 0, "train", (Event("dog", 8.0, 10.0),)),
        ("a__10000ms", 10, "train", (Event("dog", 0.0, 10.0),)),
        ("a__20000ms", 20, "train", (Event("dog", 0.0, 10.0),)),
        ("a__30000ms", 30, "train", (Event("dog", 0.0, 1.0),)),
    ]


def test_only_overlapped_windows_become_clips(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,20,30,dog,\n"))
    assert rows(manifest)[0] == ("a__20000ms", 20, "", (Event("dog", 0.0, 10.0),))
    assert [clip.media for clip in manifest.clips] == ["a.mp4", "b.MKV"]


def test_an_empty_label_is_background_and_missing_times_mean_the_first_window(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,10,20,,test\na.mp4,,,dog,test\nb.MKV,,,,test\n"))
    assert rows(manifest) == [
        ("a", 0, "test", (Event("dog", 0.0, 10.0),)),
        ("a__10000ms", 10, "test", ()),
        ("b", 0, "test", ()),
    ]
    assert manifest.classes == ("dog",)


def test_a_row_without_split_takes_the_split_of_its_file(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,0,1,dog,val\na.mp4,12,13,dog,\n"))
    assert [clip.split for clip in manifest.clips if clip.media == "a.mp4"] == ["val", "val"]


def test_a_file_in_two_splits_is_kept_and_reported_as_a_leak(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,0,1,dog,train\na.mp4,12,13,dog,test\n"))
    assert [clip.split for clip in manifest.clips if clip.media == "a.mp4"] == ["train", "test"]
    assert reported(manifest, "id_in_two_splits") == [("a.mp4", "train: a; test: a__10000ms")]


def test_one_window_in_two_splits_is_not_trained_on(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,0,1,dog,test\na.mp4,2,3,dog,train\n"))
    assert manifest.clips[0].split == "test"
    assert reported(manifest, "row_in_two_splits") == [("a.mp4", "from 0 s on: test, train")]


def test_rows_of_missing_and_unusual_files_are_kept(folder: Path) -> None:
    (folder / "raw.dat").touch()
    manifest = read(
        label(folder, f"no/such.mp4,0,1,dog,train\nraw.dat,0,1,dog,train\n{'x' * 300}.mp4,,,dog,\n")
    )
    assert [clip.media for clip in manifest.clips][:4] == ["a.mp4", "b.MKV", "no/such.mp4", "raw.dat"]
    assert [where for where, _ in reported(manifest, "missing_media")] == ["no/such.mp4", f"{'x' * 300}.mp4"]
    assert [where for where, _ in reported(manifest, "unlabelled_file")] == ["a.mp4", "b.MKV"]


def test_duplicate_rows_and_events_without_length_are_reported(folder: Path) -> None:
    manifest = read(label(folder, "a.mp4,3,3,dog,\na.mp4,3,3,dog,\nb.MKV,,,dog,\n"))
    assert manifest.clips[0].events == (Event("dog", 3.0, 3.0),)
    assert reported(manifest, "duplicate_row") == [("line 3", "as line 2: a.mp4")]
    assert reported(manifest, "zero_length_event") == [("a", "'dog' from 3 s to 3 s")]


@pytest.mark.parametrize("segment_s", [0.1, 0.3, 0.7, 1 / 3, 0.96])
def test_windows_of_odd_lengths_keep_every_event_inside_its_clip(folder: Path, segment_s: float) -> None:
    manifest = read(label(folder, "a.mp4,0.25,9.3,dog,\n"), segments=7, segment_s=segment_s)
    clips: list[Clip] = [clip for clip in manifest.clips if clip.media == "a.mp4"]
    covered = sum(event.end_s - event.start_s for clip in clips for event in clip.events)
    assert covered == pytest.approx(9.05, abs=1e-3)
    assert Counter(len(clip.events) for clip in clips) == {1: len(clips)}


def test_official_files_in_the_folder_are_pointed_out(folder: Path) -> None:
    for name in ("Annotations.txt", "trainSet.txt", "valSet.txt", "testSet.txt"):
        (folder / name).touch()
    ((where, detail),) = reported(read(folder), "official_files_ignored")
    assert where == "Annotations.txt"
    assert "--dataset ave --root" in detail


def test_clips_are_sorted_by_path_and_events_by_time(tmp_path: Path) -> None:
    root = tmp_path / "media"
    (root / "a").mkdir(parents=True)
    names = ["a-x.mp4", "a.mp4", "a/x.mp4", "a0.mp4"]
    for name in reversed(names):
        (root / name).touch()
    assert [clip.media for clip in read(root).clips] == names
    label(root, "a.mp4,4,5,ant,\na.mp4,1,3,zebra,\na.mp4,1,3,bee,\na.mp4,1,2,cat,\n")
    [found] = [clip.events for clip in read(root).clips if clip.events]
    assert [(e.label, e.start_s, e.end_s) for e in found] == [
        ("cat", 1, 2),
        ("bee", 1, 3),
        ("zebra", 1, 3),
        ("ant", 4, 5),
    ]
