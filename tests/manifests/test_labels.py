"""The label csv: what spreadsheets write is read, and what is wrong is told all at once with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from caeav.manifests.errors import CaeavError
from caeav.manifests.readers.labels import LabelRow, read_labels

HEAD = b"file,start_s,end_s,label,split\n"


def read(folder: Path, data: bytes) -> list[LabelRow]:
    (folder / "l.csv").write_bytes(data)
    return read_labels(folder / "l.csv", {})


def test_byte_order_mark_crlf_quotes_blanks_and_column_order_are_ordinary(tmp_path: Path) -> None:
    data = '\ufefflabel,file,end_s,start_s\r\n\r\n"Frying, ""hot""", ./a b.mp4 ,2,1.5\r\n,c.mp4,,'
    assert read(tmp_path, data.encode()) == [
        LabelRow(3, "a b.mp4", (1.5, 2.0), 'Frying, "hot"', ""),
        LabelRow(4, "c.mp4", None, "", ""),
    ]


def test_columns_that_may_be_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, b"file,label\na.mp4,dog\n") == [LabelRow(2, "a.mp4", None, "dog", "")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"file|start_s|end_s|label|split\n", "separated by commas"),
        (b"file,start,end,label\n", "allowed are file, start_s, end_s, label, split"),
        (b"file,file,label\n", "the columns are 'file', 'file', 'label'"),
        (b"a.mp4,0,1,dog,train\n", "the columns are 'a.mp4'"),
        (b"label,split\n", "needed file and label"),
        (HEAD + b"caf\xe9.mp4,0,1,dog,\n", "l.csv:2: not UTF-8"),
        (HEAD.decode().encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(CaeavError, match=r"l\.csv") as raised:
        read(tmp_path, data)
    assert says in str(raised.value)


def test_an_absent_label_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match=r"none\.csv: label file cannot be read"):
        read_labels(tmp_path / "none.csv", {})


def test_all_that_is_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    bad = [
        b"../a.mp4,0,1,dog,train",
        b"/a.mp4,0,1,dog,train",
        b",0,1,dog,train",
        b"a.mp4,x,1,dog,train",
        b"a.mp4,-1,nan,dog,train",
        b"a.mp4,0,1e9,dog,train",
        b"a.mp4,5,4,dog,train",
        b"a.mp4,,4,dog,train",
        b"a.mp4,0,1,dog,valid",
        b"a.mp4,0,1,Background,val",
        b"a.mp4,0,1,dog",
        b"a.mp4,0,1,dog,train,x",
    ]
    with pytest.raises(CaeavError) as raised:
        read(tmp_path, HEAD + b"ok.mp4,0,1,dog,train\n" + b"\n".join(bad))
    text = str(raised.value)
    assert "13 problems" in text
    for line in range(3, 15):
        assert f"line {line}: " in text
    assert "line 2: " not in text
    for said in ("end_s is '1e9'", "from 0 to 86400", "'valid', it must be train, val, test or empty"):
        assert said in text
    assert "line 9: end_s 4 is before start_s 5" in text
    assert "background is written as an empty label" in text
    assert "line 13: 4 fields instead of 5" in text


def test_a_long_list_of_errors_is_cut_but_counted(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="1000 problems") as raised:
        read(tmp_path, HEAD + b"a.mp4,x,1,dog,\n" * 1000)
    assert "and 980 more" in str(raised.value)
    assert len(str(raised.value).splitlines()) < 30


@pytest.mark.parametrize("tail", [b'"a.mp4,0,1,dog,\n', b'"a"x,0,1,dog,\n', b"a" * 200_000 + b",0,1,dog,\n"])
def test_broken_quotes_and_endless_fields_are_errors_with_a_line(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(CaeavError, match=r"line \d+: not csv"):
        read(tmp_path, HEAD + b"ok.mp4,0,1,dog,train\n" + tail)
