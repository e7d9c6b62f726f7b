"""What `check` says of a manifest: counts, missing media, leaks, and the score of a constant answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caeav.manifests.baselines import segment_labels
from caeav.manifests.checks import check, missing_media
from caeav.manifests.clip import Clip, Event, Finding, Manifest
from caeav.manifests.findings import CODES, WARNINGS, finding, warning_lines
from caeav.manifests.masks import pack_mask
from caeav.manifests.readers import ReadOptions, readers


def clip(key: str, split: str, *events: Event, media: str = "", video: str = "") -> Clip:
    return Clip(key, media or f"AVE/{key}.mp4", 0.0, 10.0, split, events, {"id": video} if video else {})


def manifest(*clips: Clip, root: Path | str = "", findings: tuple[Finding, ...] = ()) -> Manifest:
    return Manifest("mine", 10, 1.0, ("bell", "dog"), clips, str(root), findings=findings)


def test_counts_by_split_and_class() -> None:
    checked = check(
        manifest(
            clip("a", "train", Event("dog", 0, 10)),
            clip("b", "train", Event("dog", 0, 1), Event("dog", 2, 3), Event("bell", 0, 1)),
            clip("c", "test", Event("dog", 0, 1)),
            clip("d", ""),
        )
    )
    assert checked.clips == 4
    assert checked.splits == {"train": 2, "test": 1, "": 1}
    assert checked.classes == {"bell": {"train": 1}, "dog": {"train": 2, "test": 1}}


def test_baselines_count_seconds_and_name_the_best_constant_answer() -> None:
    checked = check(
        manifest(
            clip("a", "train", Event("dog", 2, 10)),
            clip("b", "train", Event("bell", 0, 3)),
            clip("c", "test", Event("bell", 9, 10)),
        )
    )
    train, test = checked.shares["train"], checked.shares["test"]
    assert (train.seconds, train.event_share) == (20, pytest.approx(11 / 20))
    assert (train.majority_label, train.majority_accuracy) == ("background", pytest.approx(9 / 20))
    assert (test.event_share, test.majority_accuracy) == (pytest.approx(0.1), pytest.approx(0.9))
    dogs = check(manifest(clip("a", "train", Event("dog", 0, 8), Event("bell", 7, 10)))).shares["train"]
    assert (dogs.majority_label, dogs.majority_accuracy, dogs.event_share) == ("dog", pytest.approx(0.8), 1)


def test_baselines_of_the_real_set_follow_from_its_annotation_lines(shared: Path) -> None:
    root = shared / "data" / "annotations" / "ave"
    checked = check(readers["ave"](root, ReadOptions("ave")))
    for split in ("train", "val", "test"):
        rows = [line.split("&") for line in (root / f"{split}Set.txt").read_text().splitlines()]
        seconds = sum(int(row[4]) - int(row[3]) for row in rows)
        assert checked.shares[split].event_share == pytest.approx(seconds / (10 * len(rows)))
        assert checked.shares[split].majority_label == "background"
    counted = sum(sum(of_class.values()) for of_class in checked.classes.values())
    assert counted == 4143
    assert sum(checked.classes["Church bell"].values()) == 188


def test_the_real_annotations_without_media_are_reported_not_refused(shared: Path) -> None:
    checked = check(readers["ave"](shared / "data" / "annotations" / "ave", ReadOptions("ave")))
    assert len(checked.missing) == 4143
    assert {group.code: group.count for group in checked.findings} == {
        "missing_media": 4143,
        "id_in_two_splits": 18,
        "zero_length_event": 1,
        "repeated_id": 45,
        "dash_id": 1,
    }
    assert all(len(group.examples) <= 3 for group in checked.findings)


def test_segments_are_labelled_as_start_inclusive_end_exclusive() -> None:
    labels = segment_labels(
        clip("a", "", Event("dog", 2, 4), Event("bell", 3, 3), Event("bell", 3.4, 4.6)), 10
    )
    dog, bell = frozenset({"dog"}), frozenset({"bell"})
    assert labels == (frozenset(), frozenset(), dog, dog | bell, bell, *[frozenset()] * 5)


def test_missing_media_is_looked_up_anew_and_listed_by_key(tmp_path: Path) -> None:
    (tmp_path / "AVE" / "b.mp4").mkdir(parents=True)  # a folder is no media file
    (tmp_path / "AVE" / "a.mp4").touch()
    (tmp_path / "c.mp4").touch()  # not where clip c has it
    rows = manifest(
        clip("a", ""), clip("b", ""), clip("c", ""), clip("d", "", media="gone/d.mp4"), root=tmp_path
    )
    assert missing_media(rows) == ("b", "c", "d")
    (tmp_path / "AVE" / "c.mp4").touch()
    assert missing_media(rows) == ("b", "d")


def test_missing_media_that_a_reader_reported_is_counted_once_and_only_while_missing(tmp_path: Path) -> None:
    noted = (finding("missing_media", "a.mp4", "named in labels.csv"),)
    rows = manifest(clip("a", "", media="a.mp4"), root=tmp_path, findings=noted)
    assert [(group.code, group.count) for group in check(rows).findings] == [("missing_media", 1)]
    (tmp_path / "a.mp4").touch()
    assert check(rows).findings == ()


def test_one_video_in_two_splits_is_found_by_id_or_media(tmp_path: Path) -> None:
    by_id = manifest(clip("a", "train", video="x"), clip("b", "test", video="x"), clip("c", "", video="x"))
    by_media = manifest(clip("a", "train", media="m.mp4"), clip("b", "val", media="m.mp4"))
    fine = manifest(clip("a", "train", video="x"), clip("b", "train", video="x"))
    for rows, leaks in ((by_id, True), (by_media, True), (fine, False)):
        assert ("id_in_two_splits" in {group.code for group in check(rows).findings}) is leaks
    assert check(by_id).findings[1].examples[0].detail == "train: a; test: b"


def test_the_report_is_json(tmp_path: Path) -> None:
    rows = manifest(clip("a", "train", Event("dog", 1, 1)), root=tmp_path)
    checked = json.loads(json.dumps(check(rows).as_json(), allow_nan=False))
    assert checked["missing"] == ["a"]
    assert checked["splits"] == {"train": 1}
    assert [group["code"] for group in checked["findings"]] == ["missing_media", "zero_length_event"]
    assert checked["shares"]["train"]["majority_label"] == "background"


def test_an_empty_manifest_gives_an_empty_report() -> None:
    checked = check(manifest())
    assert (checked.clips, checked.splits, checked.shares) == (0, {}, {})


def test_unknown_finding_codes_are_kept() -> None:
    rows = replace(manifest(), findings=(Finding("future_code", "x", "y"),))
    assert [group.code for group in check(rows).findings] == ["future_code"]


def test_warnings_come_first_and_are_shown_where_data_is_used() -> None:
    found = (finding("no_split", "a", "x"), finding("names_taken_for", "l.csv", "a -> a.mp4"))
    found = (*found, finding("doubtful_times", "l.csv", "2000 to 5000"))
    rows = replace(manifest(clip("k", "")), findings=found)
    codes = [group.code for group in check(rows).findings]
    assert codes == ["doubtful_times", "names_taken_for", "missing_media", "no_split"]
    assert [line.partition(" (")[2] for line in warning_lines(rows)] == [
        "l.csv: 2000 to 5000)",
        "l.csv: a -> a.mp4)",
    ]
    assert set(WARNINGS) <= set(CODES)


def test_a_finding_needs_a_listed_code() -> None:
    assert all(meaning for meaning in CODES.values())
    with pytest.raises(ValueError, match="not listed"):
        finding("typo", "", "")


def test_events_are_counted_per_modality() -> None:
    events = (Event("dog", 0, 4, "audio"), Event("dog", 2, 5, "audio"), Event("bell", 8, 10, "visual"))
    checked = check(manifest(clip("a", "test", *events), clip("b", "test"), clip("c", "train")))
    audio, visual = checked.modalities["test"]["audio"], checked.modalities["test"]["visual"]
    assert (audio.events, audio.event_share, audio.clips_without) == (2, 5 / 20, 1)
    assert (visual.events, visual.event_share, visual.clips_without) == (1, 2 / 20, 1)
    assert "train" not in checked.modalities


def test_masks_give_their_area_and_the_score_of_a_constant_mask() -> None:
    half = np.zeros((4, 4), dtype=bool)
    half[:2] = True
    corner = np.zeros((4, 4), dtype=bool)
    corner[0, 0] = True
    packed = [pack_mask(mask) for mask in (half, half, corner, np.zeros((4, 4), dtype=bool))]
    rows = Clip("a", "a.wav", 0.0, 5.0, "val", (), {"masks": [*packed, None], "category": "dog"})
    share = check(manifest(rows)).masks["val"]
    assert (share.frames, share.masks, share.empty) == (5, 4, 1)
    assert share.area == pytest.approx((8 + 8 + 1) / 16 / 4)
    # of the upper half, which is in two of four frames, only the corner is in more than half of them
    assert share.constant_iou == pytest.approx(
        max((0.5 + 0.5 + 1 / 16) / 4, (1 / 8 + 1 / 8 + 1 + 15 / 16) / 4)
    )
    assert check(manifest(rows)).classes["dog"] == {"val": 1}


def test_leaked_clips_are_counted_by_the_split_they_leak_into() -> None:
    rows = manifest(
        clip("a", "train", video="v"),
        clip("b", "train", video="v"),
        clip("c", "test", video="v"),
        clip("d", "test", video="w"),
    )
    assert check(rows).leaked == {"train": {"test": 2}, "test": {"train": 1}}


def test_of_equally_frequent_answers_background_comes_first_then_the_order_of_classes() -> None:
    even = check(manifest(clip("a", "train", Event("dog", 0, 5))))
    assert even.shares["train"].majority_label == "background"
    both = check(manifest(clip("a", "train", Event("dog", 0, 5), Event("bell", 5, 10))))
    assert both.shares["train"].majority_label == "bell"


def test_seconds_follow_from_the_segment_length() -> None:
    halves = replace(manifest(clip("a", "train")), segments=20, segment_s=0.5)
    assert check(halves).shares["train"].seconds == 10
    labels = segment_labels(clip("a", "train", Event("dog", 0.3, 0.7)), 20)
    assert [bool(found) for found in labels[:3]] == [False, False, False]
    labels = segment_labels(clip("a", "train", Event("dog", 0.25, 0.75)), 20)
    assert [bool(found) for found in labels[:3]] == [True, False, False]


def test_a_clip_with_audio_events_alone_counts_as_without_visual_events() -> None:
    checked = check(
        manifest(
            clip("a", "val", Event("dog", 0, 5, "audio")),
            clip("b", "val", Event("dog", 0, 2, "audio"), Event("dog", 0, 1, "visual")),
        )
    )
    audio, visual = checked.modalities["val"]["audio"], checked.modalities["val"]["visual"]
    assert (audio.events, audio.event_share, audio.clips_without) == (2, pytest.approx(7 / 20), 0)
    assert (visual.events, visual.event_share, visual.clips_without) == (1, pytest.approx(1 / 20), 1)


def asked(key: str, *questions: tuple[str, str, str]) -> Clip:
    rows = [{"split": s, "answer": a, "type": ["Audio", kind]} for s, kind, a in questions]
    return replace(clip(key, ""), extra={"id": key, "questions": rows, "labels": ["bell"]})


def test_questions_are_counted_one_by_one_and_videos_once() -> None:
    checked = check(
        manifest(
            asked(
                "a", ("train", "Counting", "dog"), ("train", "Counting", "dog"), ("test", "Counting", "dog")
            ),
            asked(
                "b", ("test", "Comparative", "bell"), ("test", "Counting", "dog"), ("test", "Counting", "dog")
            ),
            asked("c", ("test", "Counting", "bell")),
        )
    )
    test = checked.questions["test"]
    assert list(test) == ["all", "Audio Comparative", "Audio Counting"]
    assert (test["all"].questions, test["all"].videos) == (5, 3)
    assert (test["all"].majority_answer, test["all"].majority_accuracy) == ("dog", pytest.approx(3 / 5))
    assert (test["Audio Counting"].questions, test["Audio Counting"].videos) == (4, 3)
    assert checked.classes == {"bell": {"test": 2}, "dog": {"train": 2, "test": 3}}
    assert checked.leaked == {"train": {"test": 2}, "test": {"train": 1}}  # questions, not videos
    [leak] = [group for group in checked.findings if group.code == "video_in_two_splits"]
    assert leak.examples[0].detail.startswith("1 of the 3 videos of test are in train too, such as a")


def masks_of(*masks: np.ndarray | None) -> Clip:
    packed = [None if mask is None else pack_mask(mask) for mask in masks]
    return replace(clip("m", "train"), extra={"masks": packed})


def test_the_best_constant_mask_and_empty_masks() -> None:
    left, none = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :2] = True
    share = check(manifest(masks_of(left, none, None))).masks["train"]
    assert (share.frames, share.masks, share.empty) == (3, 2, 1)
    assert share.area == pytest.approx(0.25)
    # nothing: (0 + 1) / 2; everything: (0.5 + 0) / 2; no pixel is in more than half of the frames
    assert (share.constant, share.constant_iou) == ("nothing", pytest.approx(0.5))
    share = check(manifest(masks_of(left, left, ~left))).masks["train"]
    assert share.constant == "the pixels that sound in half of the frames"
    assert share.constant_iou == pytest.approx(2 / 3) and share.empty == 0
    share = check(manifest(masks_of(left, np.ones((3, 3), bool)))).masks["train"]  # of two sizes
    assert (share.constant, share.constant_iou) == ("everything", pytest.approx(0.75))


def test_a_report_shows_three_examples_per_finding_and_counts_all() -> None:
    many = tuple(finding("damaged_row", f"x:{i}", "d") for i in range(5))
    groups = check(manifest(clip("a", ""), findings=(*many, Finding("of_another", "w", "d")))).findings
    by_code = {group.code: group for group in groups}
    assert (by_code["damaged_row"].count, len(by_code["damaged_row"].examples)) == (5, 3)
    assert by_code["of_another"].meaning == "" and groups[-1].code == "of_another"


def test_clips_of_one_video_leak_only_between_splits() -> None:
    same = (clip("a", "train", video="v"), clip("b", "train", video="v"), clip("c", "", video="v"))
    checked = check(manifest(*same))
    assert checked.leaked == {} and "id_in_two_splits" not in {g.code for g in checked.findings}
    checked = check(manifest(*same, clip("d", "val", video="v"), clip("e", "test", video="v")))
    assert checked.leaked == {
        "train": {"val": 2, "test": 2},
        "val": {"train": 1, "test": 1},
        "test": {"train": 1, "val": 1},
    }
    by_media = (clip("a", "train", media="x.mp4"), clip("b", "test", media="x.mp4"))
    assert check(manifest(*by_media)).leaked == {"train": {"test": 1}, "test": {"train": 1}}
    numbered = tuple(replace(c, extra={"id": 7}) for c in by_media)  # an id that is no text is none
    assert check(manifest(*numbered)).leaked == {"train": {"test": 1}, "test": {"train": 1}}


def test_only_an_event_that_ends_where_it_starts_has_zero_length() -> None:
    checked = check(manifest(clip("a", "train", Event("dog", 2, 2), Event("bell", 2, 2.5))))
    [group] = [g for g in checked.findings if g.code == "zero_length_event"]
    assert group.count == 1 and group.examples[0].detail == "'dog' from 2 s to 2 s"


def test_warnings_come_in_a_fixed_order() -> None:
    codes = ["unmerged_streams", "past_the_end", "damaged_row", "few_names_found", "clip_cut_in_two"]
    lines = warning_lines(manifest(findings=tuple(finding(code, "w", code) for code in codes)))
    order = ["few_names_found", "past_the_end", "clip_cut_in_two", "unmerged_streams"]
    assert [line.rsplit(" ", 1)[1] for line in lines] == [f"{code})" for code in order]
    assert lines[1] == f"{CODES['past_the_end']} (w: past_the_end)"
