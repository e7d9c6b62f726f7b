"""The label csv: what spreadsheets write is read, and all errors are reported at once with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.readers.common import ReadLog
from caeav.manifests.readers.labels import LabelRow, read_labels
from caeav.manifests.readers.names import MediaNames
from caeav.manifests.readers.times import (
    Range,
    describe_past_end,
    doubt_seconds,
    farthest_ranges,
    past_the_end,
)

HEAD = b"file,start_s,end_s,label,split\n"


def read(folder: Path, data: bytes) -> list[LabelRow]:
    (folder / "l.csv").write_bytes(data)
    return read_labels(folder / "l.csv", ReadLog())


def test_byte_order_mark_crlf_quotes_blanks_and_any_column_order_are_accepted(tmp_path: Path) -> None:
    data = '\ufefflabel,file,end_s,start_s\r\n\r\n"Frying, ""hot""", ./a b.mp4 ,2,1.5\r\n,c.mp4,,'
    assert read(tmp_path, data.encode()) == [
        LabelRow(3, "a b.mp4", (1.5, 2.0), 'Frying, "hot"', ""),
        LabelRow(4, "c.mp4", None, "", ""),
    ]


def test_columns_of_times_and_split_are_optional(tmp_path: Path) -> None:
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
def test_a_file_that_is_no_label_csv_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(CaeavError, match=r"l\.csv") as raised:
        read(tmp_path, data)
    assert says in str(raised.value)


def test_a_label_file_without_rows_is_refused(tmp_path: Path) -> None:
    for text, words in (("", "is empty"), ("file,label\n\n", "has a header and no rows")):
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(CaeavError, match=f"l.csv: the label file {words}"):
            read_labels(tmp_path / "l.csv", ReadLog())


def test_a_missing_label_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match=r"none\.csv cannot be read"):
        read_labels(tmp_path / "none.csv", ReadLog())


def test_all_errors_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
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


def read_with_remarks(folder: Path, text: str) -> tuple[list[LabelRow], list[str]]:
    """Rows of files that exist, and what is reported about how they were read."""
    for name in ("a.mp4", "b.mp4"):
        (folder / name).touch()
    (folder / "l.csv").write_text(text)
    log = ReadLog()
    rows = read_labels(folder / "l.csv", log, MediaNames(folder, ["a.mp4", "b.mp4"]))
    return rows, [found.detail for found in log.findings if found.code == "labels_read_as"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "file;start_s;end_s;label\na.mp4;1,5;2;dog, barking\n",
            "separated by semicolons; commas in times as",
        ),
        ("sep=;\nfile;start_s;end_s;label\na.mp4;1.5;2;dog, barking\n", "separated by semicolons"),
        ("file\tstart_s\tend_s\tlabel\na.mp4\t1.5\t2\tdog, barking\n", "separated by tabs"),
        ('File,START_S,End_s,Label\na.mp4,1.5,2,"dog, barking"\n', "column names in another case"),
        (
            'file,start_s,end_s,label\na.mp4,"1,5","2,00","dog, barking"\n',
            "commas in times as decimal points",
        ),
        (
            'file,start_s,end_s,label\na.mp4,0:01.5,00:00:02,"dog, barking"\n',
            "times as [hours:]minutes:seconds",
        ),
        ('file,start_ms,end_ms,label\na.mp4,1500,2000,"dog, barking"\n', "start_ms, end_ms as milliseconds"),
        ('file, start_s, end_s, label\na.mp4, 1.5, 2, "dog, barking"\n', ""),
    ],
)
def test_other_ways_to_write_a_row_are_read_and_reported(tmp_path: Path, text: str, said: str) -> None:
    rows, details = read_with_remarks(tmp_path, text)
    assert [(row.file, row.times, row.label) for row in rows] == [("a.mp4", (1.5, 2.0), "dog, barking")]
    assert len(details) == bool(said)
    assert all(said in detail for detail in details)


def test_line_numbers_count_the_sep_line_of_excel(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="line 3: label is 'Background'"):
        read(tmp_path, b"sep=;\nfile;label\na.mp4;Background\n")


def test_split_names_may_have_another_case(tmp_path: Path) -> None:
    rows, details = read_with_remarks(tmp_path, "file,label,split\na.mp4,dog,Train\nb.mp4,dog,TEST\n")
    assert [row.split for row in rows] == ["train", "test"] and details == ["split names in another case"]


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("1:30", "2:00", (90, 120)),
        ("90:00", "90:01", (5400, 5401)),
        ("1:59:00", "1:59:01", (7140, 7141)),
        ("1:02:03", "01:02:04.5", (3723, 3724.5)),
        ("90", "1:31,25", (90, 91.25)),
    ],
)
def test_clock_times_are_minutes_and_seconds_with_optional_hours(
    tmp_path: Path, start: str, end: str, seconds: tuple[float, float]
) -> None:
    assert read(tmp_path, HEAD + f'a.mp4,{start},"{end}",dog,\n'.encode())[0].times == seconds


@pytest.mark.parametrize("time", ["1:60", "1:2:3:4", "1:60:00", "1:", ":30", "-1:30"])
def test_malformed_clock_times_are_refused(tmp_path: Path, time: str) -> None:
    with pytest.raises(CaeavError, match=f"start_s is '{time}'"):
        read(tmp_path, HEAD + f"a.mp4,{time},5000,dog,\n".encode())


def test_a_comma_that_may_separate_thousands_is_refused(tmp_path: Path) -> None:
    rows = b'a.mp4,"1,500","2,000",dog,\n'
    with pytest.raises(CaeavError, match=r"'1,500' may be 1\.500 or 1500"):
        read(tmp_path, HEAD + rows)
    assert read(tmp_path, HEAD + b'a.mp4,"0,500","2,000",dog,\n')[0].times == (0.5, 2.0)
    assert read(tmp_path, HEAD + rows + b'a.mp4,"2,5",3,dog,\n')[0].times == (1.5, 2.0)
    assert read(tmp_path, HEAD.replace(b",", b";") + b"a.mp4;1,500;2,000;dog;\n")[0].times == (1.5, 2.0)
    with pytest.raises(CaeavError, match=r"both '1,5' and '2\.500': one of comma and point must go"):
        read(tmp_path, HEAD + b'a.mp4,"1,5",2.500,dog,\n')


def test_times_past_a_day_hint_at_milliseconds(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="if these are milliseconds, name the columns start_ms,end_ms"):
        read(tmp_path, HEAD + b"a.mp4,90000,100000,dog,\n")
    with pytest.raises(CaeavError) as raised:
        read(tmp_path, HEAD + b"a.mp4,2e8,3e8,dog,\n")
    assert "start_ms" not in str(raised.value)
    with pytest.raises(CaeavError, match=r"a number of milliseconds from 0 to 8\.64e"):
        read(tmp_path, b"file,start_ms,end_ms,label\na.mp4,9e12,9e13,dog\n")


def test_several_ends_before_their_starts_hint_at_lengths(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="not a length: write start plus length"):
        read(tmp_path, HEAD + b"a.mp4,20,10,dog,\nb.mp4,30,10,dog,\nb.mp4,0,10,dog,\n")


def test_a_single_end_before_its_start_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="next: fix these lines"):
        read(tmp_path, HEAD + b"a.mp4,20,10,dog,\nb.mp4,30,40,dog,\nb.mp4,0,10,dog,\n")


def test_a_day_is_the_latest_time(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD + b"a.mp4,0,86400,dog,\n")[0].times == (0.0, 86400.0)


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    assert read(tmp_path, b"file,label,,\na.mp4,dog,x,\n")[0].columns == ()


def test_other_columns_are_kept_with_their_rows(tmp_path: Path) -> None:
    text = ",file,label,annotator,id,note\n0,a.mp4,dog,Ann,7,\n1,b.mp4,cat,Bo,8,loud\n"
    rows, _ = read_with_remarks(tmp_path, text)
    assert [row.columns for row in rows] == [
        (("annotator", "Ann"), ("id", "7")),
        (("annotator", "Bo"), ("id", "8"), ("note", "loud")),
    ]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("filename,label", "no file; 'filename' is most likely file|call the column 'filename' file"),
        ("video,class", "'video' is most likely file; 'class' is most likely label"),
        ("file,label,start,end", "call the column 'start' start_s (seconds) or start_ms, 'end' end_s"),
        ("file,label,onset,offset", "'onset' is most likely start_s; 'offset' is most likely end_s"),
        ("file,label,start_s", "start_s without end_s"),
        ("file,label,end_ms", "end_s without start_s"),
        ("file,label,clip_end_s", "clip_end_s without clip_start_s"),
        ("file,label,start_s,end_s,start_ms", "start_s twice"),
        ("file,label,note,note", "note twice"),
    ],
)
def test_misnamed_columns_are_refused_with_the_likely_name(tmp_path: Path, header: str, says: str) -> None:
    with pytest.raises(CaeavError) as raised:
        read(tmp_path, f"{header}\na.mp4,dog,0,1,2\n".encode())
    for said in says.split("|"):
        assert said in str(raised.value)


def test_an_alias_beside_the_real_column_is_an_extra_column(tmp_path: Path) -> None:
    [row] = read(tmp_path, b"file,label,video,subset,start_s,end_s,start\na.mp4,dog,v1,train-clean,0,1,x\n")
    assert row.columns == (("video", "v1"), ("subset", "train-clean"), ("start", "x"))


def test_a_column_of_splits_under_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CaeavError, match="the column 'subset' holds test, train, and there is no column"
    ) as e:
        read(tmp_path, b"file,label,subset\na.mp4,dog,train\nb.mp4,dog,Test\n")
    assert "next: call it split" in str(e.value)
    assert len(read(tmp_path, b"file,label,subset,split\na.mp4,dog,train,test\n")) == 1


def test_rows_may_name_clips_that_begin_anywhere(tmp_path: Path) -> None:
    head = b"file,clip_start_s,clip_end_s,label\n"
    rows = read(tmp_path, head + b"a.mp4,37,47,dog\na.mp4,0:50,,cat\n")
    assert [(row.clip, row.times) for row in rows] == [((37.0, 47.0), None), ((50.0, None), None)]
    with pytest.raises(CaeavError, match=r"line 2: clip_start_s is '', it must be a number of seconds"):
        read(tmp_path, head + b"a.mp4,,,dog\n")
    with pytest.raises(CaeavError, match="line 2: clip_end_s 3 is before clip_start_s 4"):
        read(tmp_path, head + b"a.mp4,4,3,dog\n")


# --- times that can hardly be seconds ----------------------------------------------------------------


def ranges(*times: tuple[float, float]) -> list[Range]:
    return [Range(n + 2, f"{n}.mp4", float(start), float(end)) for n, (start, end) in enumerate(times)]


def test_only_long_ranges_in_whole_numbers_are_questioned() -> None:
    question = doubt_seconds(ranges((2000, 5000), (0, 2000)))
    assert "last 2500 s (42 minutes) at the median, such as line 2, 2000 to 5000: seconds?" in question
    assert "start_ms" in question
    assert not doubt_seconds(ranges((2000, 2005), (3000, 3010)))
    assert not doubt_seconds(ranges((2000.5, 5000), (0, 2000)))
    assert not doubt_seconds([])


def test_labels_are_compared_with_the_length_of_their_media() -> None:
    rows = ranges((0, 10), (20, 30), (5, 10.4))
    past, hopeless = past_the_end(rows, {"0.mp4": 10.0, "1.mp4": 12.0, "2.mp4": 10.0})
    assert [(row.file, length) for row, length in past] == [("1.mp4", 12.0)] and not hopeless
    assert past_the_end(rows[1:2], {"1.mp4": 12.0})[1]
    assert past_the_end(ranges((0, 3000)), {"0.mp4": 10.0})[1]
    assert not past_the_end(ranges((0, 99)), {"0.mp4": 10.0})[1]
    assert "(as milliseconds: 0 to 3 s)" in describe_past_end([(ranges((0, 3000))[0], 10.0)])
    assert "milliseconds" not in describe_past_end([(ranges((0, 30_000))[0], 10.0)])
    assert "milliseconds" not in describe_past_end([(ranges((0, 20))[0], 10.0)])
    assert past_the_end(rows[1:2], {"1.mp4": None}) == ([], False)
    assert past_the_end([], {}) == ([], False)


def test_the_farthest_rows_and_a_sample_of_the_others_are_checked() -> None:
    rows = [Range(n, f"{n}.mp4", 0, n) for n in range(1000)] + [Range(5000, "999.mp4", 5, 999)]
    checked = farthest_ranges(rows)
    assert [row.line for row in checked[:17]] == [5000, *range(998, 983, -1), 983]
    assert 24 < len(checked) <= 32 and checked[-1].line < 60
    assert farthest_ranges(rows[:3]) == rows[2::-1]
