"""MUSIC-AVQA's questions: counts of the real files, and every oddity they have or could have."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from reader_findings import codes

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaked_keys
from caeav.manifests.readers import ReadOptions, readers
from caeav.manifests.readers.common import ReadLog
from caeav.manifests.readers.music_avqa import OFFICIAL_ANSWERS, read_questions


def read(root: Path) -> Manifest:
    return readers["music-avqa"](root, ReadOptions("music-avqa"))


def questions(manifest: Manifest, split: str) -> list[dict[str, Any]]:
    return [q for clip in manifest.clips for q in clip.extra["questions"] if q["split"] == split]


def item(number: int, answer: str = "yes", video: str = "00000001", **other: Any) -> dict[str, Any]:
    made = {
        "video_id": video,
        "question_id": number,
        "type": '["Audio", "Counting"]',
        "question_content": "Is there a <Object> sound?",
        "templ_values": '["violin"]',
        "question_deleted": 0,
        "anser": answer,
    }
    return {**made, **other}


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "data" / "annotations" / "music_avqa"


@pytest.fixture(scope="module")
def real(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The corrected val and test questions, and the train questions that are public."""
    root = tmp_path_factory.mktemp("avqa")
    (root / "json").mkdir()
    (root / "json/avqa-train.json").symlink_to(official / "derived/avqa-train_partial.json")
    (root / "json_update").symlink_to(official / "json_update")
    return read(root)


def test_the_real_files_give_their_counts(real: Manifest) -> None:
    assert [len(questions(real, s)) for s in ("train", "val", "test")] == [14005, 4568, 9129]
    kinds = Counter(" ".join(q["type"]) for q in questions(real, "test"))
    assert kinds == {
        "Audio-Visual Counting": 1265,
        "Visual Location": 1225,
        "Visual Counting": 1197,
        "Audio-Visual Comparative": 1101,
        "Audio Counting": 1017,
        "Audio-Visual Existential": 988,
        "Audio-Visual Location": 920,
        "Audio-Visual Temporal": 822,
        "Audio Comparative": 594,
    }
    videos = {
        s: {c.key for c in real.clips if any(q["split"] == s for q in c.extra["questions"])}
        for s in ("val", "test")
    }
    assert (len(videos["val"]), len(videos["test"]), len(videos["val"] & videos["test"])) == (
        3815,
        6399,
        2296,
    )
    assert len({template for q in questions(real, "test") if (template := q["template"])}) == 33
    leaked = leaked_keys(real)
    assert sum({"val", "test"} <= set(splits) for splits in leaked.values()) == 2296


def test_real_words_and_answers_are_those_of_the_official_lists(real: Manifest, official: Path) -> None:
    listed = (official / "ques_vocab.txt").read_text().splitlines()
    answers = tuple((official / "ans_vocab.txt").read_text().splitlines())
    words = {word for s in ("train", "val", "test") for q in questions(real, s) for word in q["words"]}
    assert words <= set(listed)
    assert max(len(q["words"]) for q in questions(real, "test")) == 14
    assert (
        real.classes
        == answers
        == tuple(json.loads((official / "answer2idx_qa-tiger.json").read_text())["ans2ix"])
    )
    assert {q["answer"] for q in questions(real, "test")} == set(answers) - {"ten"}


def test_the_real_oddities_are_counted(real: Manifest, official: Path) -> None:
    assert codes(real) == {
        "full_width_mark": 3,
        "blank_at_end": 3,
        "unseen_words": 1,
        "video_in_two_splits": 3,
    }
    details = {(f.code, f.where): f.detail for f in real.findings}
    assert details["full_width_mark", "avqa-test.json"].startswith("427 questions")
    assert details["blank_at_end", "avqa-test.json"].startswith("589 questions")
    older = read(official / "json")
    assert [len(questions(older, s)) for s in ("train", "val", "test")] == [0, 4595, 9185]
    assert codes(older)["contradictory_answers"] == 27 + 55
    assert codes(older)["no_split_file"] == 1


def write(root: Path, train: list[Any], test: list[Any] = [], folder: str = "json") -> Path:  # noqa: B006
    (root / folder).mkdir(exist_ok=True)
    for name, items in (("train", train), ("val", []), ("test", test)):
        (root / folder / f"avqa-{name}.json").write_text(json.dumps(items))
    return root


def test_templates_are_filled_and_split_into_words_as_officially(tmp_path: Path) -> None:
    wide = "How many sounding <Object> in the video\uff1f"
    blank = "Is the <Object> on the <LR> louder than the <Object> on the <LR>? "
    values = '["acoustic_guitar", "left", "piano", "right"]'
    two = [
        item(1, "two", question_content=wide),
        item(2, "no", question_content=blank, templ_values=values, type='["Audio-Visual", "Comparative"]'),
    ]
    [clip] = read(write(tmp_path, two)).clips
    first, second = clip.extra["questions"]
    assert first["text"] == "How many sounding violin in the video\uff1f"
    assert first["words"] == ["How", "many", "sounding", "violin", "in", "the", "video"]
    assert second["text"] == "Is the acoustic_guitar on the left louder than the piano on the right?"
    assert second["words"][-3:] == ["on", "the", "right"] and second["type"] == [
        "Audio-Visual",
        "Comparative",
    ]
    assert (clip.key, clip.split, clip.seconds, second["answer"]) == ("00000001", "", 60.0, "no")


def test_the_corrected_files_are_preferred_and_videos_found(tmp_path: Path) -> None:
    write(tmp_path, [item(1, "no")])
    write(tmp_path, [item(1, "yes", "va00000002")], folder="json_update")
    (tmp_path / "video").mkdir()
    (tmp_path / "video/va00000002.webm").touch()
    [clip] = read(tmp_path).clips
    assert (clip.media, clip.extra["questions"][0]["answer"]) == ("video/va00000002.webm", "yes")


def test_oddities_are_handled_one_by_one(tmp_path: Path) -> None:
    train = [
        item(1),
        item(1),
        item(1, "no"),
        item(2, "often"),
        item(3, templ_values="[]"),
        item(4, type="Audio"),
        item(5, anser=None),
        "nothing",
        item(6, video="../x"),
        item(7, question_content="Is there a <Object>"),
    ]
    manifest = read(write(tmp_path, train, [item(9, templ_values='["tuba"]')]))
    [clip] = manifest.clips
    assert [(q["id"], q["answer"]) for q in clip.extra["questions"]] == [
        (1, "yes"),
        (1, "no"),
        (2, "often"),
        (7, "yes"),
        (9, "yes"),
    ]
    assert codes(manifest) == {
        "damaged_row": 5,
        "duplicate_row": 1,
        "contradictory_answers": 1,
        "unknown_class": 1,
        "no_question_mark": 1,
        "unseen_words": 1,
        "video_in_two_splits": 1,
    }
    assert manifest.classes[-1] == "often" and len(manifest.classes) == 43
    assert leaked_keys(manifest) == {"00000001": ("train", "test")}


PLACES = ("json_update", "data/json_update", "json", "data/json", ".", "data")


def test_question_files_are_looked_for_in_order_of_preference(tmp_path: Path) -> None:
    for number, place in enumerate(PLACES):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "avqa-train.json").write_text(json.dumps([item(number)]))
    for number, place in enumerate(PLACES):
        [question] = questions(read(tmp_path), "train")
        assert question["id"] == number, place
        (tmp_path / place / "avqa-train.json").unlink()


def test_answers_follow_the_list_else_the_official_order_else_their_appearance(tmp_path: Path) -> None:
    write(tmp_path, [item(1, "often"), item(2, "yes")])
    assert read(tmp_path).classes == (*OFFICIAL_ANSWERS, "often")
    (tmp_path / "json" / "ans_vocab.txt").write_text("yes\nzero\n")
    assert read(tmp_path).classes == ("yes", "zero", "often")
    (tmp_path / "json" / "ans_vocab.txt").unlink()
    write(tmp_path, [item(1, "often"), item(2, "rarely")])
    assert read(tmp_path).classes == ("often", "rarely")


def test_a_clip_is_a_minute_of_ten_segments(tmp_path: Path) -> None:
    manifest = read(write(tmp_path, [item(1)]))
    assert (manifest.segments, manifest.segment_s, manifest.clips[0].seconds) == (10, 6.0, 60.0)


def test_words_of_val_and_test_that_train_lacks_are_reported(tmp_path: Path) -> None:
    other = item(2, templ_values='["tuba"]')
    write(tmp_path, [item(1)], [other])
    (tmp_path / "json" / "avqa-val.json").write_text(json.dumps([other]))
    found = [(f.where, f.detail) for f in read(tmp_path).findings if f.code == "unseen_words"]
    assert found == [("avqa-val.json", "tuba"), ("avqa-test.json", "tuba")]
    (tmp_path / "json" / "avqa-train.json").unlink()
    assert codes(read(tmp_path)) == {"no_split_file": 1, "video_in_two_splits": 1}


def test_blanks_make_empty_words_and_a_slot_replaces_its_whole_word_as_officially(tmp_path: Path) -> None:
    template = " Is  the <Object>-like sound loud?"
    [question] = questions(read(write(tmp_path, [item(1, question_content=template)])), "train")
    assert question["words"] == ["", "Is", "", "the", "violin", "sound", "loud"]
    assert question["text"] == "Is  the violin-like sound loud?"


def test_answers_are_read_from_anser_as_officially_else_from_answer(tmp_path: Path) -> None:
    other = item(2)
    del other["anser"]
    rows = [{**item(1, "yes"), "answer": "no"}, {**other, "answer": "no"}]
    found = questions(read(write(tmp_path, rows)), "train")
    assert [question["answer"] for question in found] == ["yes", "no"]


def test_two_questions_with_one_number_are_reported_and_kept(tmp_path: Path) -> None:
    manifest = read(write(tmp_path, [item(1), item(1, templ_values='["tuba"]')]))
    assert len(questions(manifest, "train")) == 2 and codes(manifest) == {"repeated_number": 1}


def test_the_first_folder_that_holds_a_video_is_taken(tmp_path: Path) -> None:
    write(tmp_path, [item(1)])
    for folder in ("MUCIS-AVQA-videos-Real", "videos", "video"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "00000001.mp4").touch()
        assert [clip.media for clip in read(tmp_path).clips] == [f"{folder}/00000001.mp4"]


def test_files_without_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match=r"none of avqa-train\.json"):
        read(tmp_path)
    (tmp_path / "avqa-test.json").write_text("{}")
    with pytest.raises(CaeavError, match="it must hold a list of questions"):
        read(tmp_path)
    (tmp_path / "avqa-test.json").write_text("[")
    with pytest.raises(CaeavError, match="not JSON"):
        read(tmp_path)
    (tmp_path / "avqa-test.json").write_text('[{"video_id": 3}]')
    with pytest.raises(CaeavError, match="none of its 1 questions can be read"):
        read(tmp_path)


ITEM = {
    "video_id": "v",
    "question_id": 3,
    "type": '["Audio", "Counting"]',
    "question_content": "How many <Object> sound<x>? ",
    "templ_values": '["flutes", "ing"]',
    "anser": "two",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"video_id": 3}, "video_id 3 is no file name"),
        ({"video_id": "a/b"}, "video_id 'a/b' is no file name"),
        ({"question_id": "3"}, "question_id '3' is no whole number"),
        ({"question_id": True}, "question_id True is no whole number"),
        ({"question_content": " "}, "no question_content"),
        ({"type": '["Audio"]'}, "is not a modality and a kind"),
        ({"type": "Audio"}, "type 'Audio' is not a list of strings"),
        ({"templ_values": '["flutes"]'}, "1 templ_values for 2 slots"),
        ({"templ_values": '["a", "b", "c"]'}, "3 templ_values for 2 slots"),
        ({"templ_values": "[1, 2]"}, "is not a list of strings"),
        ({"question_content": "How <a><b>?"}, "two slots in one word"),
        ({"anser": ""}, "anser is ''"),
        ({"anser": 2}, "anser is 2"),
    ],
)
def test_a_wrong_question_is_skipped_and_reported_with_the_reason(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path, log = tmp_path / "q.json", ReadLog()
    path.write_text(json.dumps([ITEM | change, ITEM]))
    [question] = read_questions(path, tmp_path, log)
    assert (question.text(), question.where) == ("How many flutes sounding?", "q.json[1]")
    assert question.words() == ["How", "many", "flutes", "ing"]  # the word with a slot is replaced whole
    [found] = log.findings
    assert (found.code, found.where) == ("damaged_row", "q.json[0]") and reason in found.detail
    path.write_text(json.dumps([ITEM | change]))
    with pytest.raises(CaeavError, match="none of its 1 questions can be read"):
        read_questions(path, tmp_path, ReadLog())
