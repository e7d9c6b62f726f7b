"""AVE's files: the real ones row by row, and every oddity a copy has or could have."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from reader_findings import codes, reported

from caeav.manifests.clip import Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.manifest import manifest_digest, read_manifest, write_manifest
from caeav.manifests.readers import MEDIA_EXTENSIONS, ReadOptions, readers
from caeav.manifests.readers.ave import OFFICIAL_CLASSES

NAMES = ("Annotations.txt", "trainSet.txt", "valSet.txt", "testSet.txt")


def read(root: Path, dataset: str = "ave") -> Manifest:
    return readers[dataset](root, ReadOptions(dataset))


def layout(root: Path, annotations: str | bytes, train: str = "", val: str = "", test: str = "") -> Path:
    root.mkdir(exist_ok=True)
    for name, content in zip(NAMES, (annotations, train, val, test), strict=True):
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "data" / "annotations" / "ave"


@pytest.fixture(scope="module")
def real(official: Path) -> Manifest:
    return read(official)


def test_the_real_files_give_4143_rows_in_their_order(real: Manifest, official: Path) -> None:
    assert len(real.clips) == 4143
    assert real.split_counts() == {"train": 3339, "val": 402, "test": 402}
    rows = [line.split("&") for line in (official / "Annotations.txt").read_text().splitlines()[1:]]
    expected = [(row[1], Event(row[0], float(row[3]), float(row[4]))) for row in rows]
    assert [(clip.extra["id"], clip.events[0]) for clip in real.clips] == expected
    assert all(len(clip.events) == 1 and clip.seconds == 10 and clip.start_s == 0 for clip in real.clips)


def test_each_real_row_is_in_the_split_whose_file_has_it(real: Manifest, official: Path) -> None:
    for split in ("train", "val", "test"):
        lines = (official / f"{split}Set.txt").read_text().splitlines()
        expected = {(line.split("&")[1], line.split("&")[0]) for line in lines}
        assert {(c.extra["id"], c.events[0].label) for c in real.clips if c.split == split} == expected


def test_the_real_classes_are_in_the_official_order(real: Manifest, official: Path) -> None:
    assert list(real.classes) == (official / "categories.txt").read_text().splitlines()
    assert len(real.classes) == 28


def test_the_real_oddities_are_reported(real: Manifest) -> None:
    assert codes(real) == {"repeated_id": 45, "id_in_two_splits": 18, "zero_length_event": 1, "dash_id": 1}
    leaks = [detail for _, detail in reported(real, "id_in_two_splits")]
    assert sum("train: " in text and "val: " in text for text in leaks) == 10
    assert sum("train: " in text and "test: " in text for text in leaks) == 8
    assert reported(real, "zero_length_event") == [
        ("VWi2ENBuTbw__church_bell", "'Church bell' from 0 s to 0 s")
    ]
    assert reported(real, "dash_id")[0][1].startswith("1030 of 4143 clips")
    (thrice,) = (detail for where, detail in reported(real, "repeated_id") if where == "0f_iTO5t3hU")
    assert thrice.count(";") == 2


def test_the_real_copy_without_header_gives_the_same_clips(
    real: Manifest, official: Path, tmp_path: Path
) -> None:
    for name in NAMES[1:]:
        shutil.copyfile(official / name, tmp_path / name)
    data = (official / "Annotations.upstream_noheader.txt").read_bytes()
    (tmp_path / NAMES[0]).write_bytes(data.rstrip(b"\n"))
    bare = read(tmp_path)
    assert bare.clips == real.clips
    assert manifest_digest(bare) == manifest_digest(real)
    assert bare.sources["Annotations.txt"] != real.sources["Annotations.txt"]


def test_the_real_manifest_is_read_back_equal(real: Manifest, tmp_path: Path) -> None:
    write_manifest(real, tmp_path / "m.jsonl")
    assert read_manifest(tmp_path / "m.jsonl") == real


BELL = "Church bell&-x_1&good&0&10"
SPEECH = "Male speech, man speaking&-x_1&good&2&7"


@pytest.mark.parametrize(
    "header", ["", "Category&VideoID&Quality&StartTime&EndTime\n", "category & videoid\n"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_header_line_ends_and_byte_order_mark_make_no_difference(
    tmp_path: Path, header: str, end: str, mark: str
) -> None:
    text = mark + (header + f"{BELL}\n\n{SPEECH}").replace("\n", end)
    manifest = read(layout(tmp_path, text, train=f"{BELL}{end}{SPEECH}"))
    assert [clip.key for clip in manifest.clips] == ["-x_1__church_bell", "-x_1__male_speech_man_speaking"]
    assert manifest.clips[1].events == (Event("Male speech, man speaking", 2.0, 7.0),)
    assert manifest.clips[1].extra == {"id": "-x_1", "quality": "good"}
    assert manifest.split_counts() == {"train": 2}


def test_media_is_found_by_id_whatever_its_extension(tmp_path: Path) -> None:
    rows = "".join(f"Bark&{name}&good&0&5\n" for name in ("a", "b", "c", "d"))
    root = layout(tmp_path, rows, train=rows)
    (root / "AVE").mkdir()
    for name in ("a.mkv", "b.webm", "b.mp4", "c.mp4.part", "c.jpg"):
        (root / "AVE" / name).touch()
    manifest = read(root)
    assert [clip.media for clip in manifest.clips] == ["AVE/a.mkv", "AVE/b.mp4", "AVE/c.mp4", "AVE/d.mp4"]
    assert reported(manifest, "several_media") == [("AVE/b", "b.mp4, b.webm")]
    assert manifest.media_root == str(root)


def test_a_set_with_classes_of_its_own_takes_their_order_from_categories_txt(tmp_path: Path) -> None:
    rows = "blue disc&v1&good&0&2\nred square&v2&good&1&3\n"
    root = layout(tmp_path, rows, train=rows)
    assert read(root, "synthetic").classes == ("blue disc", "red square")
    (root / "categories.txt").write_text("red square\r\n\n green cross \nred square\nblue disc\n")
    manifest = read(root, "synthetic")
    assert manifest.dataset == "synthetic"
    assert manifest.classes == ("red square", "green cross", "blue disc")
    assert codes(manifest) == {"empty_split": 2}


def test_an_unknown_class_follows_the_official_28_and_is_reported(tmp_path: Path) -> None:
    rows = f"{BELL}\nchurch bell&v&good&0&1\n"
    manifest = read(layout(tmp_path, rows, train=rows))
    assert manifest.classes == (*OFFICIAL_CLASSES, "church bell")
    assert reported(manifest, "unknown_class") == [("Annotations.txt", "'church bell'")]
    assert len({clip.key for clip in manifest.clips}) == 2


def test_a_class_list_that_shares_a_name_with_ave_keeps_its_own_order(tmp_path: Path) -> None:
    rows = "Cat&v1&good&0&2\nunlisted&v2&good&1&3\n"
    root = layout(tmp_path, rows, train=rows)
    (root / "categories.txt").write_text("disc\nCat\n")
    manifest = read(root)
    assert manifest.classes == ("disc", "Cat", "unlisted")
    assert reported(manifest, "unknown_class") == [("Annotations.txt", "'unlisted'")]


def test_aves_own_classes_keep_the_official_order_however_they_are_listed(tmp_path: Path) -> None:
    rows = "zebra&v1&good&0&2\n"
    root = layout(tmp_path, rows, train=rows)
    (root / "categories.txt").write_text("\n".join(sorted(OFFICIAL_CLASSES)))
    assert read(root).classes == (*OFFICIAL_CLASSES, "zebra")
    rows = "Shofar&v1&good&0&2\n"
    assert read(layout(tmp_path, rows, train=rows)).classes == OFFICIAL_CLASSES


def test_blanks_around_fields_are_ignored_and_a_header_counts_only_at_the_top(tmp_path: Path) -> None:
    header = "Category&VideoID&Quality&StartTime&EndTime\n"
    rows = " Church bell & -x_1 & good & 0 & 10 \n"
    manifest = read(layout(tmp_path, header + rows + header, train=BELL))
    assert [(clip.extra, clip.events) for clip in manifest.clips] == [
        ({"id": "-x_1", "quality": "good"}, (Event("Church bell", 0.0, 10.0),))
    ]
    assert [where for where, _ in reported(manifest, "damaged_row")] == ["Annotations.txt:3"]
    manifest = read(layout(tmp_path, rows + header, train=BELL))
    assert [where for where, _ in reported(manifest, "damaged_row")] == ["Annotations.txt:2"]


def test_dataset_json_sets_the_number_and_length_of_segments(tmp_path: Path) -> None:
    rows = "disc&v&good&0&12\n"
    root = layout(tmp_path, rows, train=rows)
    (root / "dataset.json").write_text('{"segments": 24, "segment_s": 0.5, "seed": 1}')
    manifest = read(root, "synthetic")
    assert (manifest.segments, manifest.segment_s, manifest.clips[0].seconds) == (24, 0.5, 12.0)
    assert codes(manifest) == {"empty_split": 2}
    assert "dataset.json" in manifest.sources


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"segments": 0}', "segments is 0, it must be 1 to 3600"),
        ('{"segments": true}', "segments is True"),
        ('{"segment_s": "1"}', "segment_s is '1'"),
        ('{"segment_s": NaN}', "segment_s is nan"),
        ("[]", "it must hold an object"),
        ("{", "not JSON"),
    ],
)
def test_wrong_segments_in_dataset_json_are_an_error(tmp_path: Path, text: str, says: str) -> None:
    root = layout(tmp_path, BELL, train=BELL)
    (root / "dataset.json").write_text(text)
    with pytest.raises(CaeavError, match=r"dataset\.json") as raised:
        read(root)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"Church bell&v", "2 fields instead of 5"),
        (b"Church bell&v&good&0&10&x", "6 fields instead of 5"),
        (b"&v&good&0&10", "no category"),
        (b"Church bell&&good&0&10", "'' is no video id"),
        (b"Church bell&../v&good&0&10", "'../v' is no video id"),
        (b"Church bell&a/b&good&0&10", "'a/b' is no video id"),
        (b"Church bell&a\x1b[31m&good&0&10", "is no video id"),
        (b"Church bell&v&good&x&10", "StartTime 'x' is no number"),
        (b"Church bell&v&good&0&inf", "EndTime 'inf' is no number"),
        (b"Church b\xffll&v&good&0&10", "not UTF-8"),
        (b"\0\0\0\0", "1 fields instead of 5"),
    ],
)
def test_a_damaged_row_is_skipped_and_reported(tmp_path: Path, line: bytes, why: str) -> None:
    manifest = read(
        layout(tmp_path, b"\n".join((BELL.encode(), line, SPEECH.encode())), train=f"{BELL}\n{SPEECH}")
    )
    assert len(manifest.clips) == 2
    ((where, detail),) = reported(manifest, "damaged_row")
    assert where == "Annotations.txt:2"
    assert why in detail


def test_a_file_without_a_single_readable_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="none of its 2 lines can be read") as raised:
        read(layout(tmp_path, "<html>\n404\n", train=BELL))
    assert "Category&VideoID&Quality&StartTime&EndTime" in str(raised.value)


def test_empty_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="has no usable row"):
        read(layout(tmp_path, "Category&VideoID&Quality&StartTime&EndTime\n"))


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "Annotations.txt").write_text(BELL)
    with pytest.raises(CaeavError, match=r"trainSet\.txt, valSet\.txt, testSet\.txt not found") as raised:
        read(tmp_path)
    assert "AVE-ECCV18" in raised.value.hint
    with pytest.raises(CaeavError, match="caeav synthesise"):
        read(tmp_path, "synthetic")


def test_times_outside_the_clip_are_cut_and_backwards_ones_skipped(tmp_path: Path) -> None:
    rows = "Bark&a&good&-1&4\nBark&b&good&8&12\nBark&c&good&9&3\nBark&d&good&10&11\nBark&e&good&3&3\nBark&f&good&-2&0\n"
    manifest = read(layout(tmp_path, rows, train=rows))
    assert [(c.extra["id"], c.events) for c in manifest.clips] == [
        ("a", (Event("Bark", 0.0, 4.0),)),
        ("b", (Event("Bark", 8.0, 10.0),)),
        ("e", (Event("Bark", 3.0, 3.0),)),
    ]
    in_annotations = [(f.code, f.where) for f in manifest.findings if f.where.startswith("Annotations")]
    assert in_annotations == [
        ("time_outside", "Annotations.txt:1"),
        ("time_outside", "Annotations.txt:2"),
        ("backwards_event", "Annotations.txt:3"),
        ("time_outside", "Annotations.txt:4"),
        ("time_outside", "Annotations.txt:6"),
    ]
    assert reported(manifest, "zero_length_event") == [("e__bark", "'Bark' from 3 s to 3 s")]


def test_duplicate_rows_count_once_and_several_ranges_make_one_clip(tmp_path: Path) -> None:
    rows = "Bark&a&good&0&2\nBark&a&good&0&2\nBark&a&bad&5&6\n"
    manifest = read(layout(tmp_path, rows, train="Bark&a&good&0&2\n"))
    (clip,) = manifest.clips
    assert clip.events == (Event("Bark", 0.0, 2.0), Event("Bark", 5.0, 6.0))
    assert reported(manifest, "duplicate_row") == [("Annotations.txt:2", "Bark in a, as Annotations.txt:1")]
    assert codes(manifest)["several_events"] == 1
    assert clip.extra["quality"] == "good"  # that of the first row


def test_disagreements_of_split_files_and_annotations_are_reported(tmp_path: Path) -> None:
    annotations = "Bark&a&good&0&2\nBark&b&good&0&2\nBark&c&good&0&2\n"
    root = layout(
        tmp_path,
        annotations,
        train="Bark&a&good&0&3\nBark&c&good&0&2\n",
        test="Bark&new&good&1&2\nBark&c&good&0&2\n",
    )
    manifest = read(root)
    assert {c.extra["id"]: c.split for c in manifest.clips} == {
        "a": "train",
        "b": "",
        "c": "test",
        "new": "test",
    }
    assert manifest.clips[0].events == (Event("Bark", 0.0, 2.0),)
    assert reported(manifest, "split_row_differs") == [("trainSet.txt:1", "Bark in a: 0 to 3 s")]
    assert reported(manifest, "no_split") == [("Annotations.txt:2", "Bark in b")]
    assert reported(manifest, "row_in_two_splits") == [("testSet.txt:2", "Bark in c: also in train")]
    assert reported(manifest, "not_annotated") == [("testSet.txt:1", "Bark in new")]
    assert reported(manifest, "empty_split") == [("valSet.txt", "no clip is in val")]


def test_one_video_in_two_splits_under_two_classes_is_a_leak(tmp_path: Path) -> None:
    manifest = read(layout(tmp_path, f"{BELL}\n{SPEECH}\n", train=BELL, val=SPEECH))
    assert [clip.split for clip in manifest.clips] == ["train", "val"]
    detail = "train: -x_1__church_bell; val: -x_1__male_speech_man_speaking"
    assert reported(manifest, "id_in_two_splits") == [("-x_1", detail)]


def test_labels_and_segments_of_an_official_set_cannot_be_given(tmp_path: Path) -> None:
    root = layout(tmp_path, BELL, train=BELL)
    for given in ({"labels": tmp_path / "x.csv"}, {"segments": 5}, {"segment_s": 0.5}, {"stride_s": 5.0}):
        options = replace(ReadOptions("ave"), **given)  # type: ignore[arg-type]
        with pytest.raises(CaeavError, match="official files fix them"):
            readers["ave"](root, options)


def test_of_several_files_for_a_clip_the_first_known_extension_is_taken(tmp_path: Path) -> None:
    root = layout(tmp_path / "ave", "Bark&abc&good&0&10\n")
    (root / "AVE").mkdir()
    names = [f"abc{extension}" for extension in MEDIA_EXTENSIONS]
    for name in names:
        (root / "AVE" / name).touch()
    while len(names) > 1:  # the others in the order of the extensions, not of the alphabet
        manifest = read(root)
        assert manifest.clips[0].media == f"AVE/{names[0]}"
        assert reported(manifest, "several_media") == [("AVE/abc", ", ".join(names))]
        (root / "AVE" / names.pop(0)).unlink()
