"""Names in label files that differ from the files' paths: which file each means, and when none is guessed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from reader_findings import codes, details, reported

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import warning_lines
from caeav.manifests.readers import ReadOptions, readers

ACCENT = "caf\u00e9"


def media(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(root: Path, *rows: str, head: str = "file,label,split") -> Manifest:
    (root / "labels.csv").write_text("\n".join((head, *rows)))
    return readers["folder"](root, ReadOptions("mine"))


def labelled(manifest: Manifest) -> dict[str, str]:
    return {clip.media: clip.events[0].label for clip in manifest.clips if clip.events}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("dog/a", "no extension"),
        (r"dog\a.mp4", "backslashes"),
        (r".\dog\a", "backslashes, no extension"),
        ("Dog/A.MP4", "another case"),
        ("dog/a.avi", "another extension"),
        ("videos/dog/a.mp4", "a folder more"),
        (r"C:\Users\me\videos\dog\a.mp4", "backslashes, a folder more"),
        ("/home/other/videos/dog/a.mp4", "a folder more"),
        ("../videos/dog/a.mp4", "a folder more"),
        ("file:///home/other/dog/a.mp4", "a folder more"),
        ("a.mp4", "without its folder"),
        ("a", "no extension, without its folder"),
        ("%64og/a%2Emp4", "percent signs for letters"),
    ],
)
def test_a_name_that_fits_one_file_is_resolved_and_reported(tmp_path: Path, name: str, how: str) -> None:
    manifest = read(media(tmp_path, "dog/a.mp4", "cat/b.mp4"), f"{name},dog,train")
    assert labelled(manifest) == {"dog/a.mp4": "dog"}
    assert details(manifest, "names_taken_for") == [f"{how}: {name} -> dog/a.mp4"]
    assert any(f"{name} -> dog/a.mp4" in line for line in warning_lines(manifest))
    assert "missing_media" not in codes(manifest)


def test_an_exact_path_is_taken_without_a_remark(tmp_path: Path) -> None:
    manifest = read(media(tmp_path, "dog/a.mp4", "DOG/a.mp4", "a.mp4"), "./dog//a.mp4,dog,train")
    assert labelled(manifest) == {"dog/a.mp4": "dog"}
    assert set(codes(manifest)) == {"unlabelled_file"} and warning_lines(manifest) == []


def test_an_absolute_path_into_the_folder_is_taken_though_shorter_paths_fit(tmp_path: Path) -> None:
    root = media(tmp_path / "media", "dog/a.mp4", "a.mp4")
    assert labelled(read(root, f"{root}/dog/a.mp4,dog,train")) == {"dog/a.mp4": "dog"}
    (tmp_path / "link").symlink_to(root)
    link = tmp_path / "link"
    assert labelled(read(link, f"{root}/dog/a.mp4,dog,train")) == {"dog/a.mp4": "dog"}


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_letters_are_the_same(tmp_path: Path, form: str, other: str) -> None:
    on_disk = unicodedata.normalize(form, f"{ACCENT}.mp4")  # type: ignore[arg-type]
    written = unicodedata.normalize(other, f"{ACCENT}.mp4")  # type: ignore[arg-type]
    manifest = read(media(tmp_path, on_disk), f"{written},dog,train")
    assert labelled(manifest) == {on_disk: "dog"}
    [detail] = details(manifest, "names_taken_for")
    assert detail.startswith("letters composed differently: ")


def test_blanks_around_names_are_ignored(tmp_path: Path) -> None:
    manifest = read(media(tmp_path, "dog/a.mp4"), " dog / a.mp4 ,dog,train")
    assert labelled(manifest) == {"dog/a.mp4": "dog"}


@pytest.mark.parametrize(
    ("files", "name", "says"),
    [
        (("dog/a.mp4", "cat/a.mp4"), "a.mp4", "file 'a.mp4' may be cat/a.mp4 or dog/a.mp4"),
        (("a.mp4", "a.wav"), "a", "file 'a' may be a.mp4 or a.wav"),
        (("A.mp4", "a.MP4"), "a.mp4", "file 'a.mp4' may be A.mp4 or a.MP4"),
    ],
)
def test_an_ambiguous_name_is_refused_with_all_candidates(
    tmp_path: Path, files: tuple[str, ...], name: str, says: str
) -> None:
    with pytest.raises(CaeavError, match=r"labels\.csv: 1 problem") as raised:
        read(media(tmp_path, *files), f"{name},dog,train")
    assert says in str(raised.value) and "line 2" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "files", "file"),
    [
        ("a.mp4", ("A.mp4", "a.wav"), "A.mp4"),
        ("a", ("a.mp4", "A.mp4"), "a.mp4"),
        ("dog/a", ("dog/a.mp4", "DOG/a.mp4"), "dog/a.mp4"),
    ],
)
def test_the_extension_counts_before_the_case_and_the_case_as_a_tie_break(
    tmp_path: Path, name: str, files: tuple[str, ...], file: str
) -> None:
    assert labelled(read(media(tmp_path, *files), f"{name},dog,train")) == {file: "dog"}


def test_the_longest_matching_path_is_taken(tmp_path: Path) -> None:
    root = media(tmp_path, "a.mp4", "dog/a.mp4")
    assert labelled(read(root, "/x/dog/a.mp4,dog,train")) == {"dog/a.mp4": "dog"}


def test_two_names_for_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match="2 problems") as raised:
        read(media(tmp_path, "a.mp4"), "train/a.mp4,dog,train", "test/a.mp4,cat,test")
    assert "line 3: file 'test/a.mp4' and another name both seem to be a.mp4" in str(raised.value)


def test_of_two_names_for_one_file_only_the_less_similar_one_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(CaeavError, match="1 problem") as raised:
        read(media(tmp_path, "dog/a.mp4"), "DOG/a.mp4,dog,train", "videos/dog/a.mp4,dog,train")
    assert "line 3" in str(raised.value)


def test_names_that_differ_in_slashes_are_one_file(tmp_path: Path) -> None:
    root = media(tmp_path, "dog/a.mp4")
    manifest = read(root, r"videos\dog\a.mp4,dog,train", "videos/dog/a.mp4,dog,train")
    assert labelled(manifest) == {"dog/a.mp4": "dog"}


def test_an_absolute_path_may_name_a_file_with_an_unknown_extension(tmp_path: Path) -> None:
    root = media(tmp_path, "dog/raw.dat", "dog/a.mp4")
    assert labelled(read(root, f"{root}/dog/raw.dat,dog,train")) == {"dog/raw.dat": "dog"}
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(root)
    for written in (link, root):
        assert labelled(read(link, f"{written}/dog/raw.dat,dog,train")) == {"dog/raw.dat": "dog"}
    with pytest.raises(CaeavError, match="must be a path relative"):
        read(root, f"{root}/dog/gone.dat,dog,train", "dog/a.mp4,dog,train")


def test_names_that_differ_in_case_and_slashes_are_one_file(tmp_path: Path) -> None:
    root = media(tmp_path, "dog/a.mp4")
    manifest = read(root, r"DOG\a.mp4,dog,train", "dog/A.mp4,dog,train")
    assert labelled(manifest) == {"dog/a.mp4": "dog"}


def test_a_name_similar_to_an_exact_path_means_a_missing_file(tmp_path: Path) -> None:
    manifest = read(media(tmp_path, "a.mp4"), "a.mp4,dog,train", "a.wav,cat,train")
    assert labelled(manifest) == {"a.mp4": "dog", "a.wav": "cat"}
    assert [where for where, _ in reported(manifest, "missing_media")] == ["a.wav"]


def test_a_file_of_the_same_name_in_another_folder_is_another_file(tmp_path: Path) -> None:
    manifest = read(media(tmp_path, "cat/a.mp4", "cat/b.mp4"), "dog/a.mp4,dog,train", "cat/b.mp4,cat,train")
    assert labelled(manifest) == {"cat/b.mp4": "cat", "dog/a.mp4": "dog"}
    assert [where for where, _ in reported(manifest, "missing_media")] == ["dog/a.mp4"]


def test_missing_files_lie_in_the_folder_that_the_other_names_show(tmp_path: Path) -> None:
    root = media(tmp_path, "dog/a.mp4", "dog/b.mp4")
    rows = [rf"D:\data\dog\{name}.mp4,dog,train" for name in ("a", "b", "gone")]
    manifest = read(root, *rows)
    assert set(labelled(manifest)) == {"dog/a.mp4", "dog/b.mp4", "dog/gone.mp4"}
    assert "few_names_found" not in codes(manifest)
    with pytest.raises(
        CaeavError, match=r"line 3: file is '/elsewhere/gone\.mp4', it must be a path relative"
    ):
        read(root, "/x/dog/a.mp4,dog,train", "/elsewhere/gone.mp4,dog,train")


def test_a_label_file_that_names_no_file_is_refused_with_the_likely_fix(tmp_path: Path) -> None:
    root = media(tmp_path, "dog/IMG_0001.mp4", "dog/IMG_0002.mp4")
    with pytest.raises(CaeavError, match="none of its 2 rows names a media file") as raised:
        read(root, "dog/IMG_001.mp4,dog,train", "x.mp4,dog,train")
    for part in ("'dog/IMG_001.mp4'", "holds 2", "dog/IMG_0001.mp4", "next: write each file's path"):
        assert part in str(raised.value)
    empty = media(tmp_path / "empty", "notes.txt")
    with pytest.raises(CaeavError, match=r"none of its 1 row names a file, and .* holds no media file"):
        read(empty, "a.mp4,dog,train")


def test_a_label_file_with_half_of_its_files_missing_gives_a_warning(tmp_path: Path) -> None:
    root = media(tmp_path, "a.mp4", "b.mp4")
    manifest = read(root, "a.mp4,dog,train", "c.mp4,dog,train", "d.mp4,dog,train")
    assert any("2 of 3 rows, such as line 3: c.mp4" in line for line in warning_lines(manifest))
    assert len(warning_lines(read(root, "a.mp4,dog,train", "c.mp4,dog,train"))) == 1
    manifest = read(root, "a.mp4,dog,train", "b.mp4,dog,train", "c.mp4,dog,train")
    assert warning_lines(manifest) == []


def test_many_resolved_names_are_reported_by_kind_with_examples(tmp_path: Path) -> None:
    names = [f"v{n:02}" for n in range(12)]
    manifest = read(
        media(tmp_path, *(f"{name}.mp4" for name in names)), *(f"{name},dog,train" for name in names)
    )
    [detail] = details(manifest, "names_taken_for")
    assert detail == "no extension: v00 -> v00.mp4, v01 -> v01.mp4, v02 -> v02.mp4 and 9 more"


def test_a_dot_within_a_name_begins_no_extension(tmp_path: Path) -> None:
    manifest = read(media(tmp_path, "dog/take1.5.mp4", "dog/take1.mp4"), "dog/take1.5,dog,train")
    assert labelled(manifest) == {"dog/take1.5.mp4": "dog"}


def test_the_longest_surplus_folder_is_left_out(tmp_path: Path) -> None:
    root = media(tmp_path, "dog/a.mp4", "b.mp4")
    manifest = read(root, "x/dog/a.mp4,dog,train", "x/y/b.mp4,dog,train", "x/y/gone.mp4,dog,train")
    assert set(labelled(manifest)) == {"dog/a.mp4", "b.mp4", "gone.mp4"}
