"""How files become clips: clips that rows name, windows by a stride, labels compared with the media's length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from reader_findings import details

from caeav.manifests.clip import Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaked_keys, warning_lines
from caeav.manifests.manifest import manifest_digest, read_manifest, source_digest, write_manifest
from caeav.manifests.readers import Lengths, ReadOptions, readers
from caeav.manifests.readers.windows import window_count

CLIPS = "file,clip_start_s,clip_end_s,start_s,end_s,label,split\n"
HEAD = "file,start_s,end_s,label,split\n"


def lengths(**seconds: float | None) -> Lengths:
    """Lengths by the file's name without extension; asking for a file that is not listed is an error."""

    def ask(paths: Sequence[Path]) -> list[float | None]:
        assert len(set(paths)) == len(paths)
        return [seconds[path.stem] for path in paths]

    return ask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    root.mkdir()
    (root / "a.mp4").touch()
    return root


def read(root: Path, labels: str = "", **options: object) -> Manifest:
    if labels:
        (root / "labels.csv").write_text(labels)
    manifest = readers["folder"](root, ReadOptions("mine", **options))  # type: ignore[arg-type]
    write_manifest(manifest, root.parent / "round.jsonl")
    assert read_manifest(root.parent / "round.jsonl") == manifest
    return manifest


def rows(manifest: Manifest) -> list[tuple[str, float, str, tuple[Event, ...]]]:
    return [(clip.key, clip.start_s, clip.split, clip.events) for clip in manifest.clips]


# --- clips that rows name -----------------------------------------------------------------------------


def test_a_clip_may_begin_anywhere_and_events_stay_times_of_the_media(folder: Path) -> None:
    manifest = read(folder, CLIPS + "a.mp4,37,47,,,violin,train\na.mp4,3.5,13.5,5,7,dog,train\n")
    assert rows(manifest) == [
        ("a__3500ms", 3.5, "train", (Event("dog", 1.5, 3.5),)),
        ("a__37000ms", 37.0, "train", (Event("violin", 0.0, 10.0),)),
    ]
    assert {clip.seconds for clip in manifest.clips} == {10.0} and warning_lines(manifest) == []


def test_several_rows_of_one_clip_are_its_events_and_clips_may_overlap(folder: Path) -> None:
    text = "a.mp4,37,47,38,39,dog,\na.mp4,37,47,40,41,cat,val\na.mp4,40,,,,dog,val\na.mp4,60,,,,,val\n"
    assert rows(read(folder, CLIPS + text)) == [
        ("a__37000ms", 37.0, "val", (Event("dog", 1.0, 2.0), Event("cat", 3.0, 4.0))),
        ("a__40000ms", 40.0, "val", (Event("dog", 0.0, 10.0),)),
        ("a__60000ms", 60.0, "val", ()),
    ]


def test_a_clip_without_split_takes_the_split_of_its_file(folder: Path) -> None:
    manifest = read(folder, CLIPS + "a.mp4,37,47,,,dog,val\na.mp4,60,70,,,dog,\n")
    assert [clip.split for clip in manifest.clips] == ["val", "val"]


def test_rounding_errors_at_a_window_edge_add_no_window(folder: Path) -> None:
    manifest = read(folder, HEAD + "a.mp4,19.9999999,25,dog,\na.mp4,45,50.0000001,dog,\n")
    assert [(clip.start_s, clip.events) for clip in manifest.clips] == [
        (20.0, (Event("dog", 0.0, 5.0),)),
        (40.0, (Event("dog", 5.0, 10.0),)),
    ]


def test_a_clip_in_two_splits_counts_for_test_only(folder: Path) -> None:
    manifest = read(folder, CLIPS + "a.mp4,37,47,,,dog,test\na.mp4,37,47,,,cat,train\n")
    assert [clip.split for clip in manifest.clips] == ["test"]
    assert details(manifest, "row_in_two_splits") == ["from 37 s on: test, train"]


def test_clips_of_another_length_are_refused_with_the_options_that_fit(folder: Path) -> None:
    with pytest.raises(CaeavError, match="line 2: the clip lasts 5 s, the data set's clips 10 s") as raised:
        read(folder, CLIPS + "a.mp4,37,42,,,dog,train\n")
    assert "--segments 5 --segment-seconds 1" in str(raised.value)
    manifest = read(folder, CLIPS + "a.mp4,37,42,,,dog,train\n", segments=5)
    assert [(clip.seconds, clip.events) for clip in manifest.clips] == [(5.0, (Event("dog", 0.0, 5.0),))]
    with pytest.raises(CaeavError, match="line 3: the clip lasts 12 s"):
        read(folder, CLIPS + "a.mp4,37,47,,,dog,train\na.mp4,0,12,,,dog,train\n")
    with pytest.raises(CaeavError, match="line 3: the clip lasts 12 s"):
        read(folder, CLIPS + "a.mp4,37,,,,dog,train\na.mp4,0,12,,,dog,train\n")
    with pytest.raises(CaeavError, match=r"--segments 1 --segment-seconds 2\.5"):
        read(folder, CLIPS + "a.mp4,37,39.5,,,dog,train\n")
    one_frame_more = CLIPS + "a.mp4,37,47.03,,,dog,train\n"
    assert len(read(folder, one_frame_more).clips) == 1


def test_a_shorter_clip_among_full_ones_is_reported_and_its_event_ends_with_it(folder: Path) -> None:
    manifest = read(folder, CLIPS + "a.mp4,37,47,,,dog,train\na.mp4,47,50,48,52,dog,train\n")
    assert [clip.events for clip in manifest.clips] == [(Event("dog", 0.0, 10.0),), (Event("dog", 1.0, 3.0),)]
    assert details(manifest, "time_outside") == ["1 event cut to the clip"]
    manifest = read(folder, CLIPS + "a.mp4,37,47,,,dog,train\na.mp4,47,50,,,dog,train\n")
    assert [clip.events for clip in manifest.clips] == [(Event("dog", 0.0, 10.0),), (Event("dog", 0.0, 3.0),)]
    assert details(manifest, "short_clip") == ["1 row, such as line 3: 3 s from 47 s on"]
    assert len(warning_lines(manifest)) == 1


@pytest.mark.parametrize("times", ["2,5", "47,48", "30,36", "0,0"])
def test_events_outside_their_clip_are_refused(folder: Path, times: str) -> None:
    with pytest.raises(CaeavError, match="lies outside its clip, which begins at 37 s") as raised:
        read(folder, CLIPS + f"a.mp4,37,47,{times},dog,train\n")
    assert "seconds of the media, not of the clip" in str(raised.value)


def test_an_event_without_length_at_the_very_start_of_a_clip_lies_inside(folder: Path) -> None:
    manifest = read(folder, CLIPS + "a.mp4,37,47,37,37,dog,train\n")
    assert manifest.clips[0].events == (Event("dog", 0.0, 0.0),)


def test_events_that_reach_out_of_their_clip_are_cut_and_counted(folder: Path) -> None:
    manifest = read(folder, CLIPS + "a.mp4,37,47,36,38,dog,train\na.mp4,37,47,46,48,dog,train\n")
    assert manifest.clips[0].events == (Event("dog", 0.0, 1.0), Event("dog", 9.0, 10.0))
    assert details(manifest, "time_outside") == ["2 events cut to the clip"]


def test_an_event_as_long_as_a_clip_across_two_clips_hints_at_the_clip_columns(folder: Path) -> None:
    manifest = read(folder, HEAD + "a.mp4,37,47,violin,train\na.mp4,0,10,dog,train\na.mp4,2,4,dog,train\n")
    assert details(manifest, "clip_cut_in_two") == [
        "1 of 3 rows last just 10 s and lie across two clips, such as line 2, 37 to 47 s of a.mp4"
    ]
    assert len(manifest.clips) == 3
    assert (
        warning_lines(
            read(folder, HEAD + "a.mp4,38,42,dog,train\na.mp4,0,25,dog,train\na.mp4,60,70,cat,train\n")
        )
        == []
    )


def test_other_columns_are_kept_in_extra_under_columns(folder: Path) -> None:
    text = "file,label,id,masks,labels\na.mp4,dog,7,x,\na.mp4,cat,8,x,\na.mp4,dog,9,x,\n"
    manifest = read(folder, text)
    assert manifest.clips[0].extra == {"columns": {"id": ["7", "8", "9"], "masks": ["x"]}}
    assert manifest.clips[0].labels() == ("cat", "dog")
    other = read(folder, text.replace("9,x", "9,y"))
    assert source_digest(other) == source_digest(manifest)  # tokens do not depend on them
    assert manifest_digest(other) != manifest_digest(manifest)


# --- windows by a stride ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "stride", "count"),
    [
        (60, 10, 6),
        (64.9, 10, 6),  # less than half a clip is left over
        (65, 10, 7),
        (9.9, 10, 1),
        (0.3, 10, 1),
        (14.9, 10, 1),
        (15, 10, 2),
        (25, 5, 4),  # all seconds are in whole windows
        (26, 5, 5),
        (25, 1, 16),
        (25.4, 1, 17),
        (100, 30, 4),
        (99, 30, 4),
        (94.9, 30, 3),
        (30 * 0.1 * 10, 0.1, 201),
    ],
)
def test_how_many_windows_a_file_has(length: float, stride: float, count: int) -> None:
    assert window_count(length, 10.0, stride) == count


def test_a_stride_cuts_each_file_over_its_whole_length(folder: Path) -> None:
    (folder / "b.mp4").touch()
    manifest = read(folder, stride_s=10.0, lengths=lengths(a=34.0, b=7.0))
    assert [(clip.key, clip.media, clip.start_s) for clip in manifest.clips] == [
        ("a", "a.mp4", 0.0),
        ("a__10000ms", "a.mp4", 10.0),
        ("a__20000ms", "a.mp4", 20.0),
        ("b", "b.mp4", 0.0),
    ]
    assert details(manifest, "tail_left_out") == [
        "4.0 s at the ends of 1 file, such as the last 4.0 s of a.mp4"
    ]
    assert warning_lines(manifest) == []


def test_windows_may_overlap_or_leave_gaps(folder: Path) -> None:
    manifest = read(folder, stride_s=2.5, lengths=lengths(a=15.0))
    assert [clip.start_s for clip in manifest.clips] == [0.0, 2.5, 5.0]
    assert [clip.key for clip in manifest.clips] == ["a", "a__2500ms", "a__5000ms"]
    manifest = read(folder, stride_s=30.0, lengths=lengths(a=70.0))
    assert [clip.start_s for clip in manifest.clips] == [0.0, 30.0, 60.0]


def test_each_window_has_the_events_inside_it_and_the_split_of_its_file(folder: Path) -> None:
    text = HEAD + "a.mp4,8,12,dog,\na.mp4,25,25,bell,val\na.mp4,20,30,,val\na.mp4,29.5,30,dog,val\n"
    manifest = read(folder, text, stride_s=10.0, lengths=lengths(a=40.0))
    assert rows(manifest) == [
        ("a", 0.0, "val", (Event("dog", 8.0, 10.0),)),
        ("a__10000ms", 10.0, "val", (Event("dog", 0.0, 2.0),)),
        ("a__20000ms", 20.0, "val", (Event("bell", 5.0, 5.0), Event("dog", 9.5, 10.0))),
        ("a__30000ms", 30.0, "val", ()),
    ]


def test_an_event_is_in_every_window_it_touches_where_they_overlap(folder: Path) -> None:
    manifest = read(folder, HEAD + "a.mp4,10,11,dog,\n", stride_s=5.0, lengths=lengths(a=25.0))
    assert [(clip.start_s, clip.events) for clip in manifest.clips] == [
        (0.0, ()),
        (5.0, (Event("dog", 5.0, 6.0),)),
        (10.0, (Event("dog", 0.0, 1.0),)),
        (15.0, ()),
    ]


def test_an_event_without_length_where_a_window_begins_is_in_that_window_alone(folder: Path) -> None:
    manifest = read(folder, HEAD + "a.mp4,20,20,bell,\n", stride_s=10.0, lengths=lengths(a=40.0))
    assert [clip.events for clip in manifest.clips] == [(), (), (Event("bell", 0.0, 0.0),), ()]


def test_a_row_without_times_holds_for_all_windows_of_its_file(folder: Path) -> None:
    manifest = read(folder, "file,label\na.mp4,dog\n", stride_s=10.0, lengths=lengths(a=25.0))
    assert [clip.events for clip in manifest.clips] == [(Event("dog", 0.0, 10.0),)] * 3


def test_windows_of_one_file_never_lie_in_two_splits(folder: Path) -> None:
    text = HEAD + "a.mp4,0,1,dog,test\na.mp4,12,13,dog,train\n"
    manifest = read(folder, text, stride_s=10.0, lengths=lengths(a=30.0))
    assert {clip.split for clip in manifest.clips} == {"test"} and not leaked_keys(manifest)
    assert details(manifest, "row_in_two_splits") == ["all of it: test, train"]


def test_rows_outside_every_window_are_reported(folder: Path) -> None:
    manifest = read(folder, HEAD + "a.mp4,12,15,dog,\n", stride_s=30.0, lengths=lengths(a=70.0))
    assert details(manifest, "event_in_no_clip") == ["1 row, such as line 2 of a.mp4"]
    assert len(warning_lines(manifest)) == 1 and not any(clip.events for clip in manifest.clips)


def test_a_file_of_unknown_length_is_cut_up_to_its_last_row_and_reported(folder: Path) -> None:
    (folder / "b.mp4").touch()
    text = HEAD + "a.mp4,21,28,dog,\ngone.mp4,11,15,dog,\ngone.mp4,2,3,dog,\n"
    manifest = read(folder, text, stride_s=10.0, lengths=lengths(a=None, b=None))
    starts = [(clip.media, clip.start_s) for clip in manifest.clips]
    assert starts == [
        ("a.mp4", 0.0),
        ("a.mp4", 10.0),
        ("a.mp4", 20.0),
        ("b.mp4", 0.0),
        ("gone.mp4", 0.0),
        ("gone.mp4", 10.0),
    ]
    assert details(manifest, "unknown_length") == ["2 files, such as a.mp4"]
    assert any("2 files, such as a.mp4" in line for line in warning_lines(manifest))


@pytest.mark.parametrize("stride", [0.0, -1.0, float("inf"), float("nan")])
def test_a_stride_must_be_positive_and_finite(folder: Path, stride: float) -> None:
    with pytest.raises(CaeavError, match="--stride-seconds must be more than 0"):
        read(folder, stride_s=stride, lengths=lengths(a=30.0))


def test_a_stride_that_makes_too_many_clips_is_refused(folder: Path) -> None:
    with pytest.raises(CaeavError, match="makes more than 2000000 clips"):
        read(folder, stride_s=1e-6, lengths=lengths(a=3600.0))


def test_a_stride_is_refused_where_rows_name_clips(folder: Path) -> None:
    with pytest.raises(
        CaeavError, match=r"labels\.csv: its rows say where clips begin, and a clip every 5 s"
    ):
        read(folder, CLIPS + "a.mp4,37,47,,,dog,train\n", stride_s=5.0, lengths=lengths(a=60.0))


def test_official_data_sets_take_no_stride(tmp_path: Path) -> None:
    for name in ("ave", "llp", "avs-s4", "music-avqa"):
        with pytest.raises(CaeavError, match="whose official files fix them"):
            readers[name](tmp_path, ReadOptions(name, stride_s=5.0))


# --- labels compared with the media --------------------------------------------------------------------


def test_milliseconds_are_refused_by_the_media_length_and_questioned_without_one(
    folder: Path,
) -> None:
    text = HEAD + "a.mp4,2000,5000,dog,train\n"
    with pytest.raises(CaeavError, match=r"all rows looked at \(1\) lie past") as raised:
        read(folder, text, lengths=lengths(a=10.0))
    for part in (
        "line 2: 2000 to 5000 s of a.mp4, which ends at 10.000 s",
        "as milliseconds: 2 to 5 s",
        "start_ms",
    ):
        assert part in str(raised.value)
    manifest = read(folder, text)
    assert any("2000 to 5000: seconds?" in line for line in warning_lines(manifest))
    assert warning_lines(read(folder, text, lengths=lengths(a=7200.0))) == []
    assert details(read(folder, text, lengths=lengths(a=None)), "doubtful_times")


def test_some_labels_past_the_end_give_a_warning_with_the_first(folder: Path) -> None:
    (folder / "b.mp4").touch()
    text = HEAD + "a.mp4,5,10,dog,train\nb.mp4,20,30,dog,train\nb.mp4,0,5,dog,train\n"
    manifest = read(folder, text, lengths=lengths(a=10.0, b=12.0))
    [detail] = details(manifest, "past_the_end")
    assert detail == "1 of 2 rows looked at, line 3: 20 to 30 s of b.mp4, which ends at 12.000 s"
    assert len(warning_lines(manifest)) == 1
    with pytest.raises(CaeavError, match="times are seconds of the media file as it lies here"):
        read(folder, HEAD + "b.mp4,20,30,dog,train\n", lengths=lengths(b=12.0))


def test_clips_that_rows_name_are_compared_with_the_media_too(folder: Path) -> None:
    with pytest.raises(CaeavError, match=r"line 2: 37 to 47 s of a\.mp4, which ends at 10\.000 s"):
        read(folder, CLIPS + "a.mp4,37,47,,,dog,train\n", lengths=lengths(a=10.0))
    text = CLIPS + "a.mp4,37,,,,dog,train\n"
    assert details(read(folder, text, lengths=lengths(a=45.0)), "past_the_end") == [
        "1 of 1 row looked at, line 2: 37 to 47 s of a.mp4, which ends at 45.000 s"
    ]
    assert details(read(folder, text, lengths=lengths(a=46.6)), "past_the_end") == []


def test_missing_media_is_not_measured(folder: Path) -> None:
    text = HEAD + "a.mp4,5,10,dog,train\ngone.mp4,20,30,dog,train\n"
    assert details(read(folder, text, lengths=lengths(a=10.0)), "past_the_end") == []


# --- streams that were not merged -----------------------------------------------------------------------


def test_separate_video_and_audio_files_are_reported_with_the_command_that_joins_them(folder: Path) -> None:
    for name in (
        "my film.f137.mp4",
        "my film.f140.m4a",
        "sub/other.f248-1.webm",
        "sub/other.f251.webm",
        "c.f1.mp4",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    manifest = read(folder)
    [line] = warning_lines(manifest)
    assert "my film.f137.mp4, my film.f140.m4a (2 such videos)" in line
    assert f"ffmpeg -i '{folder}/my film.f137.mp4' -i '{folder}/my film.f140.m4a' -c copy" in line
    (folder / "my film.mp4").touch()
    assert "my film lies there whole, too: remove the parts" in warning_lines(read(folder))[0]
