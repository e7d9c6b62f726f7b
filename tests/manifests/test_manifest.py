"""Manifest files: what is written is read back; what is torn, damaged or unsafe is refused with its place."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caeav.manifests.clip import Clip, Event, Finding, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.manifest import manifest_digest, read_manifest, source_digest, write_manifest
from caeav.manifests.rows import ManifestError

CLASSES = ("Church bell", "Frying (food)", "naïve & 'quoted'")
SMALL = Manifest(
    dataset="ave",
    segments=10,
    segment_s=1.0,
    classes=CLASSES,
    clips=(
        Clip("-a__b", "AVE/-a.mp4", 0.0, 10.0, "train", (Event("Church bell", 0.0, 10.0),), {"id": "-a"}),
        Clip("b", "x y/ü.mkv", 2.5, 10.0, "test", (Event("Frying (food)", 0.0, 0.0),)),
        Clip("c", "c.mp4", 0.0, 10.0),
    ),
    media_root="/data/ave",
    sources={"Annotations.txt": "ab" * 32},
    findings=(Finding("zero_length_event", "b", "no length"),),
)

names = st.text(alphabet="abcXYZ019_+-", min_size=1, max_size=12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def clips(draw: st.DrawFn, key: str) -> Clip:
    seconds = draw(st.floats(0.1, 1e4))
    times = st.lists(st.floats(0, seconds), min_size=2, max_size=2).map(sorted)
    events = draw(st.lists(st.tuples(st.sampled_from(CLASSES), times), max_size=3))
    parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1).filter(
        lambda part: part.strip(".") != ""
    )
    return Clip(
        key=key,
        media="/".join(draw(st.lists(parts, min_size=1, max_size=3))),
        start_s=draw(st.floats(0, 1e6)),
        seconds=seconds,
        split=draw(st.sampled_from(["train", "val", "test", ""])),
        events=tuple(Event(label, *span) for label, span in events),
        extra=draw(st.dictionaries(st.text(max_size=5), json_values, max_size=3)),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    keys = draw(st.lists(names, unique=True, max_size=6))
    return replace(
        SMALL, clips=tuple(draw(clips(key)) for key in keys), media_root=draw(st.text(max_size=20))
    )


@given(manifests())
def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.jsonl"
        write_manifest(manifest, path)
        assert read_manifest(path) == manifest


def written(folder: Path, manifest: Manifest = SMALL) -> Path:
    path = folder / "manifest.jsonl"
    write_manifest(manifest, path)
    return path


def damage(path: Path, line: int, change: dict[str, Any]) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | change)
    path.write_text("\n".join(lines) + "\n")


def test_line_one_is_the_header_and_each_further_line_a_clip(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path).read_text().splitlines()]
    assert lines[0]["format"] == "caeav-manifest"
    assert lines[0]["splits"] == {"train": 1, "test": 1, "": 1}
    assert [line["key"] for line in lines[1:]] == ["-a__b", "b", "c"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": "a.b"}, "key is 'a.b', it must be 1 to 200 of the characters"),
        ({"key": ""}, "key is ''"),
        ({"key": "x" * 201}, "key is 'xxx"),
        ({"key": "c"}, "key is 'c', it must be in no other row"),
        ({"key": 7}, "key is 7, it must be a string"),
        ({"media": "/etc/passwd"}, "media is '/etc/passwd', it must be a path relative"),
        ({"media": "a/../../b.mp4"}, "without '..'"),
        ({"media": ""}, "media is ''"),
        ({"media": "a\0b"}, "media is"),
        ({"media": "\ud800.mp4"}, "media is"),
        ({"start_s": -1}, "start_s is -1.0, it must be 0 or more"),
        ({"start_s": True}, "start_s is True, it must be a number"),
        ({"seconds": 0}, "seconds is 0.0, it must be more than 0"),
        ({"seconds": "10"}, "seconds is '10', it must be a number"),
        ({"seconds": 10**400}, "it must be a finite number"),
        ({"split": "valid"}, "split is 'valid', it must be one of train, val, test, or empty"),
        ({"events": {}}, "events is {}, it must be a list"),
        (
            {"events": [{"label": "Dog", "start_s": 0, "end_s": 1}]},
            "label is 'Dog', it must be one of the 3 classes",
        ),
        ({"events": [{"label": "Church bell", "start_s": 5, "end_s": 4}]}, "range is (5.0, 4.0)"),
        ({"events": [{"label": "Church bell", "start_s": 0, "end_s": 11}]}, "within 0 to 10 s"),
        ({"events": [{"label": "Church bell", "start_s": 0}]}, "event 0: the event is"),
        ({"extra": []}, "extra is [], it must be an object"),
        ({"more": 1}, "an object with the fields key, media"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_value(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = written(tmp_path)
    damage(path, 3, change)
    with pytest.raises(ManifestError) as raised:
        read_manifest(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
    if "no other row" not in says:
        assert f"{path}:3" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "this is not a manifest"),
        ({"version": 0}, "manifest version is 0, this caeav reads 1"),
        ({"version": 2}, "manifest version is 2, this caeav reads 1"),
        ({"segments": 0}, "segments is 0"),
        ({"segments": True}, "segments is True"),
        ({"segment_s": 0.0}, "segment_s is 0.0, it must be more than 0"),
        ({"segment_s": -1}, "segment_s is -1.0"),
        ({"classes": ["a", "a"]}, "different, non-empty names"),
        ({"classes": [*CLASSES, ""]}, "different, non-empty names"),
        ({"classes": "abc"}, "classes is 'abc', it must be a list"),
        ({"dataset": "../x"}, "dataset is '../x'"),
        ({"findings": [{"code": "x"}]}, "a finding is ['code']"),
        ({"clips": 4}, "3 clips {'train': 1, 'test': 1, '': 1} in the file, its header says 4"),
        ({"splits": {"train": 3}}, "rows were lost or added"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = written(tmp_path)
    damage(path, 1, change)
    with pytest.raises(ManifestError, match=r"manifest\.jsonl") as raised:
        read_manifest(path)
    assert says in str(raised.value)


def test_a_truncated_file_is_never_read_as_a_shorter_set(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ManifestError, match=r"manifest\.jsonl"):
            read_manifest(path)


@pytest.mark.parametrize("text", ['{"key": NaN}', '{"key": Infinity}', "[" * 100_000, "\xff", "null", "[]"])
def test_rows_that_are_no_json_objects_are_refused_with_their_line(tmp_path: Path, text: str) -> None:
    path = written(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[2] = text.encode("latin-1")
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:3"):
        read_manifest(path)


def test_a_missing_manifest_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="manifest build"):
        read_manifest(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "clip",
    [
        Clip("a/b", "a.mp4", 0.0, 10.0),
        Clip("a", "../a.mp4", 0.0, 10.0),
        Clip("b", "a.mp4", 0.0, 10.0),
        Clip("a", "a.mp4", float("nan"), 10.0),
        Clip("a", "a.mp4", 0.0, float("inf")),
        Clip("a", "a.mp4", 0.0, 10.0, extra={"x": float("nan")}),
        Clip("a", "a.mp4", 0.0, 10.0, extra={"x": {1, 2}}),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, clip: Clip) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ManifestError):
        write_manifest(replace(SMALL, clips=(*SMALL.clips, clip)), path)
    assert path.read_bytes() == before


def test_whole_numbers_and_floats_are_the_same_time() -> None:
    whole = replace(SMALL, clips=(*SMALL.clips[:2], Clip("c", "c.mp4", 0, 10)))
    assert source_digest(whole) == source_digest(SMALL)
    assert manifest_digest(whole) == manifest_digest(SMALL)


def test_the_modality_of_an_event_is_read_back_and_rows_without_it_do_not_name_it(tmp_path: Path) -> None:
    both = Clip("x", "x.mp4", 0.0, 10.0, "val", (Event("Frying (food)", 1.0, 2.0),))
    audio_only = replace(both, events=(Event("Frying (food)", 1.0, 2.0, "audio"),))
    path = tmp_path / "manifest.jsonl"
    for clip in (both, audio_only):
        manifest = replace(SMALL, clips=(clip,))
        write_manifest(manifest, path)
        assert read_manifest(path).clips == (clip,)
        assert ("modality" in path.read_text().splitlines()[1]) == bool(clip.events[0].modality)
    assert manifest_digest(replace(SMALL, clips=(both,))) != manifest_digest(
        replace(SMALL, clips=(audio_only,))
    )
    path.write_text(path.read_text().replace('"audio"', '"smell"'))
    with pytest.raises(ManifestError, match="'smell', it must be audio, visual or left out"):
        read_manifest(path)
