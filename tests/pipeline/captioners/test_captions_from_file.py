"""Captions from files: both formats, invalid rows named with their line, texts kept unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners import audio_captioners, from_file, visual_captioners
from caeav.pipeline.captioners.export import Row, render
from caeav.pipeline.captioners.from_file import CaptionFileError, FileCaptioner, read_captions
from caeav.pipeline.media.clip import DecodedClip

CSV = 'key,visual,audio\na,"a dog, barking",woof\n-b_1,,"=HYPERLINK(""x"")"\n'


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_csv_table_is_read(tmp_path: Path) -> None:
    found = read_captions(write(tmp_path, "captions.csv", "\ufeff" + CSV.replace("\n", "\r\n")))
    assert found.texts == {
        "visual": {"a": "a dog, barking", "-b_1": ""},
        "audio": {"a": "woof", "-b_1": '=HYPERLINK("x")'},
    }
    assert found.missing(["a", "c", "-b_1"]) == ["c"]
    assert found.unknown(["a"]) == ["-b_1"]


def test_json_lines_are_read(tmp_path: Path) -> None:
    rows = [
        {"key": "a", "visual": "Ein Hund", "audio": None, "score": 3},
        {"audio": "  ", "visual": "x\ny", "key": "b"},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows)
    assert read_captions(write(tmp_path, "captions.jsonl", text)).texts == {
        "visual": {"a": "Ein Hund", "b": "x\ny"},
        "audio": {"a": "", "b": ""},
    }


def test_one_column_is_enough_for_its_modality(tmp_path: Path) -> None:
    path = write(tmp_path, "only.csv", "audio,key\nwoof,a\n")
    captioner = audio_captioners["file"](ModelChoice("file", str(path)))
    assert isinstance(captioner, FileCaptioner)
    assert captioner.text("a") == "woof"
    assert captioner.modality == "audio"
    with pytest.raises(CaptionFileError, match=r"only\.csv has no 'visual' field; it has key and audio"):
        visual_captioners["file"](ModelChoice("file", str(path)))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "", r"names the columns \(none\)"),
        ("x.csv", "key,visual,audio\n", "has no rows"),
        ("x.csv", "id,visual\na,b\n", "names the columns 'id', 'visual'"),
        ("x.csv", "key,caption\na,b\n", "key and visual or audio"),
        ("x.csv", "key,visual,key\na,b,c\n", "each once"),
        ("x.csv", "key,visual\na,a dog, a cat\n", "line 2: 3 cells instead of 2"),
        ("x.csv", "key,visual\na,b\na,c\n", "line 3: 'a' again, first in line 2"),
        ("x.csv", "key,visual\n,b\n", "line 2: the key is ''"),
        ("x.csv", 'key,visual\na,"b\n', "unexpected end of data"),
        ("x.csv", b"key,visual\na,\xff\xfe\n", "not UTF-8"),
        ("x.csv", "\x1b[2Jkey,visual\na,b\n", r"'\\x1b\[2Jkey'"),
        ("x.jsonl", '{"key": "a", "visual": "b"}\nnonsense\n', "line 2: not JSON"),
        ("x.jsonl", '["a", "b"]\n', "line 1: list, not an object"),
        ("x.jsonl", '{"key": 7, "visual": "b"}\n', "line 1: the key is 7"),
        ("x.jsonl", '{"key": "a", "visual": 1}\n', "line 1: visual is 1"),
        ("x.jsonl", '{"key": "a", "text": "b"}\n', "neither 'visual' nor 'audio'; there is 'key', 'text'"),
        ("x.jsonl", '{"key": "a", "visual": "\\ud800"}\n', "half a character"),
        ("x.jsonl", '{"key": "a", "visual": "b"}\n{"key": "c", "audio": "d"}\n', "no 'visual' for 'c'"),
        ("x.jsonl", "[" * 100_000 + "\n", "not JSON"),
    ],
)
def test_invalid_rows_are_named_with_their_line(
    tmp_path: Path, name: str, text: str | bytes, said: str
) -> None:
    with pytest.raises(CaptionFileError, match=said):
        read_captions(write(tmp_path, name, text))


def test_a_recipe_names_the_file_by_its_digest(tmp_path: Path) -> None:
    first = visual_captioners["file"](ModelChoice("file", str(write(tmp_path, "c.csv", CSV)))).describe()
    assert first["weights"]["source"] == "c.csv"
    assert str(tmp_path) not in json.dumps(first)
    again = visual_captioners["file"](ModelChoice("file", str(write(tmp_path, "c.csv", CSV + "z,1,2\n"))))
    assert again.describe()["weights"]["digest"] != first["weights"]["digest"]
    assert isinstance(again, FileCaptioner)
    assert again.text("z") == "1"
    found = visual_captioners["file"](ModelChoice("file", again.describe()["weights"]["digest"]))
    assert isinstance(found, FileCaptioner)
    assert found.text("z") == "1"  # the home remembers where the file is


def test_a_file_captioner_needs_a_file_with_a_row_for_the_clip(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="--audio-weights FILE"):
        audio_captioners["file"](ModelChoice("file"))
    with pytest.raises(CaeavError, match="no weights of file at"):
        audio_captioners["file"](ModelChoice("file", str(tmp_path / "none.csv")))
    with pytest.raises(CaeavError, match="no setting 'beams'"):
        audio_captioners["file"](ModelChoice("file", "x", {"beams": 3}))
    captioner = audio_captioners["file"](ModelChoice("file", str(write(tmp_path, "c.csv", CSV))))
    assert isinstance(captioner, FileCaptioner)
    with pytest.raises(CaptionFileError, match="no row for 'c'"):
        captioner.text("c")
    empty, known = DecodedClip(None, None, (), ()), DecodedClip(None, None, (), (), key="a")
    assert captioner.caption([empty, known]) == ["", "woof"]


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_+-]{1,8}", fullmatch=True),
        st.tuples(st.text(max_size=12), st.text(max_size=12)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["csv", "jsonl"]),
)
def test_exported_captions_are_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, tuple[str, str]], form: str
) -> None:
    kept = {key: tuple(t if t.strip() else "" for t in pair) for key, pair in texts.items()}
    path = tmp_path_factory.mktemp("round") / f"captions.{form}"
    rows = [Row(key, *pair) for key, pair in kept.items()]
    path.write_bytes(render(rows, "csv" if form == "csv" else "jsonl").encode())
    found = read_captions(path)
    assert {key: (found.texts["visual"][key], found.texts["audio"][key]) for key in kept} == kept


def test_hostile_text_is_quoted_in_exported_files_and_unchanged() -> None:
    rows = [Row("a", "=1+1", 'say "x"\n\x1b[31m\x9b')]
    assert render(rows, "csv") == '"key","visual","audio"\n"a","=1+1","say ""x""\n\x1b[31m\x9b"\n'
    assert render(rows, "jsonl") == (
        '{"key": "a", "visual": "=1+1", "audio": "say \\"x\\"\\n\\u001b[31m\\u009b"}\n'
    )


def test_a_file_larger_than_allowed_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b"key,visual\na,b\n")
    monkeypatch.setattr(from_file, "MAX_BYTES", 15)
    assert from_file.read_captions(path).texts == {"visual": {"a": "b"}}
    monkeypatch.setattr(from_file, "MAX_BYTES", 14)
    with pytest.raises(CaeavError, match=r"c\.csv has 15 bytes, allowed are 14"):
        from_file.read_captions(path)


@pytest.mark.parametrize("value", [0, False, [], {}, 3, ["x"]])
def test_values_that_are_no_text_are_refused_even_if_empty(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, "c.jsonl", json.dumps({"key": "a", "visual": value}))
    with pytest.raises(CaptionFileError, match="line 1: visual is "):
        read_captions(path)
