"""VGGSound's and AudioSet's lists as label files, and the many names under which their clips are downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from reader_findings import details

from caeav.manifests.clip import Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaked_keys, warning_lines
from caeav.manifests.readers import Lengths, ReadOptions, readers
from caeav.manifests.readers.lists import list_format

A, B = "-0_Jh4kDv5A", "ZZZZZZZZZZ9"
VGG = f'{A},30,"mouse, clicking",test\n{B},0,people whistling,train\n'
AUDIOSET = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    f'{A}, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
    f'{B}, 2.500, 12.500, "/m/09x0r"\n'
)


def read(
    root: Path, text: str, *files: str, name: str = "list.csv", lengths: Lengths | None = None
) -> Manifest:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    (root / name).write_text(text)
    return readers["folder"](root, ReadOptions("mine", labels=root / name, lengths=lengths))


def measured(**seconds: float | None) -> Lengths:
    def ask(paths: Sequence[Path]) -> list[float | None]:
        return [seconds[path.stem.replace("-", "m")] for path in paths]

    return ask


def test_vggsounds_list_is_read_and_its_cut_clips_begin_at_0(tmp_path: Path) -> None:
    # no length is measured for a file named with its start
    manifest = read(tmp_path, VGG, f"{A}_000030.mp4", f"{B}_000000.mp4", lengths=measured())
    assert [(c.key, c.media, c.start_s, c.split, c.events) for c in manifest.clips] == [
        (f"{A}_000030", f"{A}_000030.mp4", 0.0, "test", (Event("mouse, clicking", 0.0, 10.0),)),
        (f"{B}_000000", f"{B}_000000.mp4", 0.0, "train", (Event("people whistling", 0.0, 10.0),)),
    ]
    assert manifest.clips[0].extra == {"id": A, "name": f"{A}_000030"}
    assert manifest.classes == ("mouse, clicking", "people whistling")
    assert details(manifest, "labels_read_as") == ["VGGSound's list"] and "list.csv" in manifest.sources


@pytest.mark.parametrize(
    "file",
    [
        f"{A}_000030.mp4",
        f"test/{A}_000030.webm",
        f"{A}_30000_40000.mp4",
        f"{A}_30.000_40.000.mp4",
        f"{A}_30.0_40.0.mp4",
        f"{A}_30_40.mkv",
        f"{A}_30.mp4",
        f"{A}_30000.mp4",
        f"Y{A}_30000_40000.wav",
    ],
)
@pytest.mark.parametrize("text", [VGG, AUDIOSET])
def test_a_file_named_with_its_start_is_the_clip(tmp_path: Path, text: str, file: str) -> None:
    clips = {clip.extra["id"]: clip for clip in read(tmp_path, text, file).clips}
    assert (clips[A].media, clips[A].start_s, clips[A].key) == (file, 0.0, f"{A}_000030")


def test_audiosets_list_is_read_with_its_comments_and_labels(tmp_path: Path) -> None:
    name = "balanced_train_segments.csv"
    manifest = read(tmp_path, AUDIOSET, f"{A}_30000_40000.mp4", f"{B}_2500_12500.mp4", name=name)
    assert [(c.key, c.start_s, c.split, c.labels()) for c in manifest.clips] == [
        (f"{A}_000030", 0.0, "train", ("/m/09x0r", "/t/dd00088")),
        (f"{B}_2500ms", 0.0, "train", ("/m/09x0r",)),
    ]
    assert details(manifest, "labels_read_as") == ["AudioSet's list; all rows are in train"]
    assert [clip.split for clip in read(tmp_path, AUDIOSET, name="eval_segments.csv").clips] == [
        "test",
        "test",
    ]
    for name in ("segments.csv", "constrained.csv"):
        assert [clip.split for clip in read(tmp_path, AUDIOSET, name=name).clips] == ["", ""]


def test_audiosets_display_names_replace_its_label_ids(tmp_path: Path) -> None:
    (tmp_path / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/09x0r,"Speech, any"\n')
    manifest = read(tmp_path, AUDIOSET, f"{A}_30000_40000.mp4")
    assert manifest.classes == ("/t/dd00088", "Speech, any")
    assert "class_labels_indices.csv" in manifest.sources


def test_a_file_named_by_its_id_alone_is_clip_or_whole_video_by_its_length(tmp_path: Path) -> None:
    files = (f"{A}.mp4", f"{B}.mp4")
    text = f"{A},30,dog,test\n{B},40,cat,train\n"
    known = {"m0_Jh4kDv5A": 10.03, B: 200.0}
    manifest = read(tmp_path, text, *files, lengths=measured(**known))
    assert [(clip.media, clip.start_s) for clip in manifest.clips] == [(files[0], 0.0), (files[1], 40.0)]
    [detail] = details(manifest, "named_by_id")
    assert (
        "1 are no longer than the clip and begin at 0, 1 are longer and begin at the list's second" in detail
    )
    manifest = read(tmp_path, text, *files)
    assert [clip.start_s for clip in manifest.clips] == [30.0, 40.0]
    assert "2 of unknown length are taken for whole videos" in details(manifest, "named_by_id")[0]
    assert (
        len([line for line in warning_lines(manifest) if "may hold the clip or the whole video" in line]) == 1
    )


def test_a_cut_clip_with_two_labels_begins_at_0_and_is_counted_once(tmp_path: Path) -> None:
    text = f"{A},5,dog,test\n{A},5,cat,test\n"
    manifest = read(tmp_path, text, f"Y{A}.mp4", lengths=lambda paths: [10.0] * len(paths))
    [clip] = manifest.clips
    assert (clip.media, clip.start_s, clip.labels()) == (f"Y{A}.mp4", 0.0, ("cat", "dog"))
    assert ": 1 are no longer than the clip" in details(manifest, "named_by_id")[0]


def test_two_clips_of_one_file_need_a_whole_video(tmp_path: Path) -> None:
    text = f"{A},30,dog,test\n{A},60,cat,train\n"
    manifest = read(tmp_path, text, f"{A}.mp4", lengths=measured(m0_Jh4kDv5A=200.0))
    assert [(clip.start_s, clip.labels()) for clip in manifest.clips] == [(30.0, ("dog",)), (60.0, ("cat",))]
    assert leaked_keys(manifest) == {f"{A}_000030": ("train",), f"{A}_000060": ("test",)}
    with pytest.raises(
        CaeavError, match=r"lasts 10\.0 s, and the list has two clips of that video"
    ) as raised:
        read(tmp_path, text, lengths=measured(m0_Jh4kDv5A=10.0))
    assert f"{A}_000060.mp4" in str(raised.value)


def test_clips_of_one_video_in_two_splits_leak_though_their_files_differ(tmp_path: Path) -> None:
    text = f"{A},30,dog,test\n{A},60,cat,train\n"
    assert set(leaked_keys(read(tmp_path, text, f"{A}_000030.mp4"))) == {f"{A}_000030", f"{A}_000060"}


def test_several_files_of_one_clip_are_one_clip(tmp_path: Path) -> None:
    manifest = read(tmp_path, VGG, f"{A}_000030.wav", f"video/{A}_000030.mp4", f"{A}.mp4")
    assert [clip.media for clip in manifest.clips if clip.extra.get("id") == A] == [f"video/{A}_000030.mp4"]
    assert len(manifest.clips) == 2
    assert details(manifest, "several_media")[0].startswith(
        f"{A}_000030: video/{A}_000030.mp4, {A}_000030.wav"
    )


def test_missing_files_are_counted_and_a_list_without_any_file_is_refused(tmp_path: Path) -> None:
    manifest = read(tmp_path, VGG, f"{A}_000030.mp4")
    assert details(manifest, "missing_media") == ["1 of 2 clips"]
    assert any("1 of 2 rows" in line for line in warning_lines(manifest))
    several = read(tmp_path / "several", AUDIOSET, f"{B}_2500_12500.mp4")
    assert details(several, "missing_media")[0] == "1 of 2 clips"  # though it has two labels
    (tmp_path / f"{A}_000030.mp4").unlink()
    with pytest.raises(CaeavError, match="none of its 2 clips has a media file") as raised:
        read(tmp_path, VGG)
    assert f"{A}_000030.mp4" in str(raised.value) and f"{A}.mp4" in str(raised.value)


def test_case_matters_in_youtube_ids(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="none of its 2 clips"):
        read(tmp_path, VGG, f"{A.lower()}_000030.mp4")


def test_all_wrong_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    bad = f"{A},x,dog,test\n{A},30,dog,valid\n{A},30,dog\na/b,30,dog,test\n{A},30,dog,\n"
    with pytest.raises(CaeavError, match="5 problems") as raised:
        read(tmp_path, VGG + bad, f"{A}_000030.mp4")
    for part in (
        "line 3: from 'x'",
        "line 4: split is 'valid'",
        "line 5: 3 fields",
        "line 6: 'a/b' is no YouTube id",
        "line 7: split is ''",
    ):
        assert part in str(raised.value)
    for start, end in (("40", "30"), ("40", "40"), ("-1", "9"), ("0", "inf"), ("nan", "3"), ("1", "1e300")):
        with pytest.raises(CaeavError, match=f"line 6: from '{start}' to '{end}' are no seconds"):
            read(tmp_path, f"{AUDIOSET}{A}, {start}, {end}, /m/a\n", f"{A}_000030.mp4")


def test_shorter_audioset_clips_get_the_set_length_and_are_reported(tmp_path: Path) -> None:
    text = AUDIOSET + f'{A}, 50.000, 57.000, "/m/09x0r"\n'
    manifest = read(tmp_path, text, f"{A}_30000_40000.mp4", f"{A}_50000_57000.mp4")
    assert [(c.seconds, c.events[0].end_s) for c in manifest.clips if c.extra["id"] == A] == [
        (10, 10),
        (10, 7),
    ]
    assert len(details(manifest, "short_clip")) == 1


def test_a_clip_of_audioset_without_labels_is_background(tmp_path: Path) -> None:
    manifest = read(tmp_path, f'{A}, 30, 40, "/m/a"\n{B}, 0, 10, " , "\n', f"{A}.mp4", f"{B}.mp4")
    assert [[event.label for event in clip.events] for clip in manifest.clips] == [["/m/a"], []]
    assert [clip.extra["id"] for clip in manifest.clips] == [A, B] and not details(
        manifest, "unlabelled_file"
    )


def test_a_line_of_column_names_changes_nothing(tmp_path: Path) -> None:
    manifest = read(tmp_path, "youtube_id,start,label,split\n" + VGG, f"{A}_000030.mp4")
    assert len(manifest.clips) == 2


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (VGG, "VGGSound"),
        (AUDIOSET, "AudioSet"),
        (f'{A}, 30.000, 40.000, "/m/09x0r"\n', "AudioSet"),
        ("file,label\na.mp4,dog\n", ""),
        (f"{A},30,dog,valid\n", ""),
        (f"{A}x,30,dog,train\n", ""),
        (f"{A},30.5,dog,train\n", ""),
        ("", ""),
        ('"', ""),
    ],
)
def test_lists_are_recognised_by_their_rows(text: str, form: str) -> None:
    assert list_format(text) == form
