"""LLP's files: counts of the real ones, and every oddity a copy has or could have."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from reader_findings import codes, reported

from caeav.manifests.baselines import segment_labels
from caeav.manifests.clip import Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaked_keys
from caeav.manifests.readers import ReadOptions, readers

WEAK = ("AVVP_train.csv", "AVVP_val_pd.csv", "AVVP_test_pd.csv")
TIMED = ("AVVP_eval_audio.csv", "AVVP_eval_visual.csv")
A, B, C = "-aaaaaaaaaa_0_10", "b_bbbbbbbbb_5_15", "ccccccccccc_101.8_111.8"


def read(root: Path) -> Manifest:
    return readers["llp"](root, ReadOptions("llp"))


def report_lines(manifest: Manifest, code: str) -> list[str]:
    return [f"{where}: {detail}" for where, detail in reported(manifest, code)]


def layout(root: Path, train: str, val: str = "", test: str = "", audio: str = "", visual: str = "") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in zip(WEAK, (train, val, test), strict=True):
        (root / name).write_text(f"filename\tevent_labels\n{text}")
    for name, text in zip(TIMED, (audio, visual), strict=True):
        (root / name).write_text(f"filename\tonset\toffset\tevent_labels\n{text}")
    return root


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "data" / "annotations" / "llp"


@pytest.fixture(scope="module")
def real(official: Path) -> Manifest:
    return read(official)


def test_the_real_files_give_their_counts(real: Manifest) -> None:
    assert real.split_counts() == {"train": 10000, "val": 649, "test": 1200}
    assert (len(real.classes), real.classes[0], real.classes[-1]) == (25, "Speech", "Clapping")
    sizes = Counter(label for clip in real.clips if clip.split == "train" for label in clip.labels())
    assert (sizes["Speech"], sizes["Violin_fiddle"], sizes["Telephone_bell_ringing"]) == (4988, 1457, 99)
    assert len({clip.key for clip in real.clips}) == 11849
    assert all(clip.media == f"LLP_dataset/video/{clip.extra['name'][:11]}.mp4" for clip in real.clips)
    assert not any(clip.events for clip in real.clips if clip.split == "train")


def test_the_real_oddities_are_found_and_counted(real: Manifest) -> None:
    assert codes(real) == {
        "repeated_label": 1,
        "orphan_event": 25,  # 14 audible rows of 8 names, 11 visible ones of 7
        "duplicate_row": 8,
        "backwards_event": 1,
        "overlapping_events": 11,
        "nothing_heard": 4 + 5,
        "nothing_seen": 70 + 121,
        "weak_labels_differ": 30 + 51 + 1,  # the one more has its label only in the backwards event
        "dash_id": 1,
        "decimal_times": 5,
        "zero_length_event": 4,
    }
    meant = {
        line.partition(" is meant")[0].split("; ")[-1]
        for line in report_lines(real, "orphan_event")
        if "meant" in line
    }
    assert {"19jWnmYnlD8_30_40", "1-VMTJRpjbE_150_160"} <= meant
    assert any("0-3, 1-5, 4-6, 8-10 s" in line for line in report_lines(real, "overlapping_events"))


def test_ground_truth_of_every_second_is_that_of_the_official_code(real: Manifest, official: Path) -> None:
    """Its slices `[onset:offset] = 1`, row by row, for every clip of val and test."""
    for name, modality in zip(TIMED, ("audio", "visual"), strict=True):
        truth: dict[str, np.ndarray] = {}
        for line in (official / name).read_text().splitlines()[1:]:
            video, onset, offset, label = line.split("\t")
            truth.setdefault(video, np.zeros((25, 10)))[
                real.classes.index(label), int(onset) : int(offset)
            ] = 1
        for clip in real.clips:
            if clip.split in ("val", "test"):
                found = np.zeros((25, 10))
                kept = [event for event in clip.events if event.modality == modality]
                for event in kept:
                    found[real.classes.index(event.label), int(event.start_s) : int(event.end_s)] = 1
                assert np.array_equal(found, truth.get(clip.extra["name"], np.zeros((25, 10))))


def test_the_damaged_copy_of_other_projects_is_reported(
    official: Path, tmp_path: Path, real: Manifest
) -> None:
    for name in (*WEAK, "AVVP_eval_visual.csv"):
        shutil.copy(official / name, tmp_path)
    shutil.copy(official / "AVVP_eval_audio.dgsct_variant.csv", tmp_path / "AVVP_eval_audio.csv")
    damaged = read(tmp_path)
    new = [
        line
        for line in report_lines(damaged, "orphan_event")
        if line not in report_lines(real, "orphan_event")
    ]
    assert len(new) == 3
    assert sum("damaged copy" in line for line in new) == 2
    assert sum("KvIjsmANkxI_10_20 is meant" in line for line in new) == 1
    assert sum(len(c.events) for c in real.clips) - sum(len(c.events) for c in damaged.clips) == 3


def test_oddities_are_handled_one_by_one(tmp_path: Path) -> None:
    manifest = read(
        layout(
            tmp_path / "data",
            train=f"{C}\tDog,Dog\n",
            val=f"{A}\tSpeech,Howling\n",
            test=f"{B}\tCat\nbroken\n{B}\tCat\n",
            audio=f"{A}\t8\t12\tSpeech\n{A}\t11\t12\tSpeech\n{A}\t1.5\t3\tSpeech\n{B}\t9\t2\tCat\n{C}\t0\t1\tDog\n",
            visual=f"{B}\tx\t3\tCat\n{B}\t0\t4\tHowling\n{B}\t2\t4\tCat\n{B}\t4\t6\tCat\n",
        ).parent
    )
    first, second, third = manifest.clips
    assert first.key.startswith("ccccccccccc_101_8_111_8-") and first.labels() == ("Dog",)
    assert second.key == A and second.extra["id"] == "-aaaaaaaaaa" and second.labels() == ("Speech",)
    assert second.events == (Event("Speech", 8, 10, "audio"), Event("Speech", 1, 3, "audio"))
    assert third.events == (Event("Cat", 2, 4, "visual"), Event("Cat", 4, 6, "visual"))
    assert codes(manifest) == {
        "repeated_label": 1,
        "damaged_row": 2,
        "duplicate_row": 1,
        "unknown_label": 2,
        "time_outside": 2,
        "fractional_time": 1,
        "backwards_event": 1,
        "orphan_event": 1,  # a train clip has no timed events
        "nothing_heard": 1,
        "nothing_seen": 1,
        "dash_id": 1,
        "decimal_times": 1,
    }
    assert [sorted(labels) for labels in segment_labels(second, 10)][:3] == [[], ["Speech"], ["Speech"]]


def test_media_are_found_by_the_id_or_by_the_whole_name(tmp_path: Path) -> None:
    root = layout(tmp_path, train=f"{A}\tDog\n{B}\tCat\n")
    (root / "video").mkdir()
    (root / "video" / f"{A}.mkv").touch()
    (root / "video" / f"{B[:11]}.mp4").touch()
    assert [clip.media for clip in read(root).clips] == [f"video/{A}.mkv", f"video/{B[:11]}.mp4"]


def test_a_video_in_two_splits_is_a_leak_though_its_names_differ(tmp_path: Path) -> None:
    other = f"{A[:11]}_20_30"
    manifest = read(layout(tmp_path, train=f"{A}\tDog\n{C}\tDog\n", test=f"{other}\tDog\n{A}\tDog\n"))
    assert leaked_keys(manifest) == {}  # the same name in both is in test alone
    assert report_lines(manifest, "row_in_two_splits") == [f"AVVP_test_pd.csv:3: {A}: also in train"]
    manifest = read(layout(tmp_path, train=f"{A}\tDog\n{C}\tDog\n", test=f"{other}\tDog\n"))
    assert leaked_keys(manifest) == {A: ("test",), other: ("train",)}


def test_a_repeated_name_keeps_its_first_labels_and_its_last_split(tmp_path: Path) -> None:
    manifest = read(layout(tmp_path, train=f"{A}\tDog\n", val=f"{A}\tCat\n{A}\tSpeech\n"))
    assert [(clip.split, clip.labels()) for clip in manifest.clips] == [("val", ("Dog",))]
    assert [codes(manifest)[code] for code in ("row_in_two_splits", "duplicate_row")] == [1, 1]


def test_a_file_with_the_whole_name_is_preferred_to_one_with_the_id(tmp_path: Path) -> None:
    root = layout(tmp_path, train=f"{A}\tDog\n{A[:11]}_20_30\tDog\n")
    (root / "video").mkdir()
    for name in (A, A[:11]):
        (root / "video" / f"{name}.mp4").touch()
    assert [clip.media for clip in read(root).clips] == [f"video/{A}.mp4", f"video/{A[:11]}.mp4"]


def test_an_event_that_begins_at_the_end_of_its_clip_is_skipped(tmp_path: Path) -> None:
    manifest = read(layout(tmp_path, train="", val=f"{A}\tDog\n", audio=f"{A}\t10\t11\tDog\n"))
    assert manifest.clips[0].events == () and "skipped" in report_lines(manifest, "time_outside")[0]


def test_files_in_the_root_are_preferred_to_those_in_data(tmp_path: Path) -> None:
    layout(tmp_path / "data", train=f"{A}\tDog\n{B}\tDog\n")
    assert len(read(tmp_path).clips) == 2
    assert len(read(layout(tmp_path, train=f"{A}\tDog\n")).clips) == 1


def test_a_set_with_classes_of_its_own_takes_them_from_categories_txt(tmp_path: Path) -> None:
    root = layout(tmp_path, train=f"{A}\tzebra,Dog\n")
    (root / "categories.txt").write_text("zebra\nant\n")
    manifest = read(root)
    assert manifest.classes == ("zebra", "ant") and manifest.clips[0].labels() == ("zebra",)
    assert report_lines(manifest, "unknown_label") == [f"AVVP_train.csv:2: {A}: 'Dog'"]


@pytest.mark.parametrize(
    ("onset", "offset", "event"),
    [("1.9", "3.9", (1, 3)), ("2", "3.0", (2, 3)), ("-1", "3", None), ("0", "inf", None), ("nan", "3", None)],
)
def test_times_are_cut_to_whole_seconds_and_rows_without_times_are_skipped(
    tmp_path: Path, onset: str, offset: str, event: tuple[int, int] | None
) -> None:
    manifest = read(
        layout(tmp_path, "", val=f"{A}\tDog\n", audio=f"{A}\t{onset}\t{offset}\tDog\n{A}\t8\t9\tDog\n")
    )
    kept = [(found.start_s, found.end_s) for found in manifest.clips[0].events]
    assert kept == [*([event] if event else []), (8, 9)]
    assert len(report_lines(manifest, "damaged_row")) == (event is None)
    assert len(report_lines(manifest, "fractional_time")) == (event == (1, 3))


def test_unusual_names_are_reported_and_a_dot_in_an_id_is_no_decimal(
    tmp_path: Path,
) -> None:
    long = "\u00e9" * 130  # 260 bytes, more than a file's name has
    manifest = read(layout(tmp_path, train=f"{long}\tDog\nfilm\tDog\n{A}\tDog\na.aaaaaaaaa_0_10\tDog\n"))
    assert report_lines(manifest, "unusual_name") == [
        "AVVP_train.csv:3: film: not <11 characters>_<start>_<end>"
    ]
    assert report_lines(manifest, "decimal_times") == [] and len(report_lines(manifest, "damaged_row")) == 1


def test_byte_order_marks_line_ends_and_blanks_make_no_difference(tmp_path: Path) -> None:
    root = layout(tmp_path, train="")
    (root / WEAK[0]).write_bytes(f"\ufefffilename\tevent_labels\r\n\r\n {A} \t Dog, Cat \r\n".encode())
    manifest = read(root)
    assert [(clip.key, clip.labels()) for clip in manifest.clips] == [(A, ("Dog", "Cat"))]
    assert set(codes(manifest)) == {"dash_id"}


def test_rows_with_an_empty_field_or_another_encoding_are_skipped(tmp_path: Path) -> None:
    root = layout(tmp_path, train="")
    lines = (f"{A}\tDog", f"{B}\t", "caf\xe9_bbbbbb_0_10\tDog")
    (root / WEAK[0]).write_bytes("\n".join(("filename\tevent_labels", *lines)).encode("latin-1"))
    manifest = read(root)
    assert [clip.key for clip in manifest.clips] == [A]
    assert [line.partition(":")[2][:18] for line in report_lines(manifest, "damaged_row")] == [
        "3: no event_labels",
        "4: not UTF-8: caf\\",
    ]
    (root / WEAK[0]).write_text(f"filename\tevent_labels\n{B}\t\n")
    with pytest.raises(CaeavError, match="none of its 1 lines can be read"):
        read(root)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match=r"AVVP_train\.csv, .*AVVP_eval_visual\.csv not found") as raised:
        read(tmp_path)
    assert "github.com/YapengTian/AVVP-ECCV20" in str(raised.value)
    (layout(tmp_path, train=f"{A}\tDog\n") / WEAK[0]).write_text("filename,event_labels\n")
    with pytest.raises(CaeavError, match="the first line is 'filename,event_labels'"):
        read(tmp_path)
