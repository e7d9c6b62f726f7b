"""What a home remembers about its data sets: given once, kept for every command, never changed silently."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from caeav.manifests import remembered
from caeav.manifests.core import atomic
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import Source
from caeav.manifests.remembered import (
    ResolvedDataset,
    dataset_name,
    last_dataset,
    media_root,
    read_memory,
    remember,
    resolve_dataset,
)


def nothing_known(stores: Path, root: Path) -> tuple[int, int]:
    return 0, 0


def same_names(stores: Path, root: Path) -> tuple[int, int]:
    """As if `recorded.json` beside the stores named the media of the set."""
    names = json.loads((stores / "recorded.json").read_text()) if stores.is_dir() else []
    return sum((root / name).is_file() for name in names), len(names)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def folder(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files or ("a.mp4",):
        (path / name).touch()
    return path


def know(home: Home, asked: str, given: Source | None = None, *, last: bool = True) -> ResolvedDataset:
    found = resolve_dataset(home, asked, given or Source(), same_names)
    remember(home, found, last=last)
    return found


def recorded(home: Home, name: str, *files: str) -> None:
    (home.stores / name).mkdir(parents=True, exist_ok=True)
    (home.stores / name / "recorded.json").write_text(json.dumps(files))


def test_options_given_once_are_filled_in_and_reported(home: Home, tmp_path: Path) -> None:
    media, labels = folder(tmp_path / "clips"), tmp_path / "l.csv"
    know(home, str(media), Source(labels=labels, segments=4, stride_s=2.0))
    for asked in ("", "clips", str(media), f"{media}/../clips"):
        again = resolve_dataset(home, asked, Source(), same_names)
        assert (again.name, again.source.labels, again.source.segments) == ("clips", labels, 4)
        assert (again.source.root, again.source.stride_s, again.changes) == (media, 2.0, ())
        assert f"--labels {labels} --segments 4 --stride-seconds 2" in again.notes[-1]
    assert (
        f"clips, the one last extracted in {home.root}"
        in resolve_dataset(home, "", Source(), same_names).notes[0]
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Source(labels=Path("/other.csv")), "--labels /l.csv, now it is /other.csv"),
        (Source(labels="folders"), "--labels /l.csv, now it is folders"),
        (Source(segments=5), "--segments 10, now it is 5"),
        (Source(segment_s=0.5), "--segment-seconds 2, now it is 0.5"),
        (Source(stride_s=1.0), "--stride-seconds 3, now it is 1"),
    ],
)
def test_another_value_is_a_change_and_the_same_value_is_not(
    home: Home, tmp_path: Path, given: Source, words: str
) -> None:
    media = folder(tmp_path / "clips")
    whole = Source(labels=Path("/l.csv"), segment_s=2.0, stride_s=3.0)
    know(home, str(media), whole)
    [change] = resolve_dataset(home, str(media), given, same_names).changes
    assert words in change
    assert resolve_dataset(home, "clips", replace(whole, segments=10), same_names).changes == ()


def test_first_labels_are_no_change_but_replacing_a_folders_own_labels_is(home: Home, tmp_path: Path) -> None:
    bare, own = folder(tmp_path / "bare"), folder(tmp_path / "own", "a.mp4", "labels.csv")
    for media in (bare, own):
        know(home, str(media))
    given = Source(labels=tmp_path / "l.csv")
    assert resolve_dataset(home, str(bare), given, same_names).changes == ()
    assert resolve_dataset(home, str(own), given, same_names).changes != ()
    assert resolve_dataset(home, str(own), Source(labels=own / "labels.csv"), same_names).changes == ()


def test_none_withdraws_labels_and_stride_and_disables_a_folders_own_label_file(
    home: Home, tmp_path: Path
) -> None:
    bare, own = folder(tmp_path / "bare"), folder(tmp_path / "own", "a.mp4", "labels.csv")
    nothing = Source(labels="none", stride_s=0.0)
    for media in (bare, own):
        know(home, str(media), Source(labels=tmp_path / "l.csv", stride_s=3.0))
        taken = resolve_dataset(home, str(media), nothing, same_names)
        assert [text.partition(", ")[2] for text in taken.changes] == ["now it is none", "now it is 0"]
        remember(home, taken, last=True)
        assert resolve_dataset(home, str(media), nothing, same_names).changes == ()
        assert read_memory(home).sources[media.name].stride_s is None
    assert read_memory(home).sources["bare"].labels is None
    assert read_memory(home).sources["own"].labels == "none"
    assert "labels.csv, now" not in str(resolve_dataset(home, str(bare), nothing, same_names).changes)
    given = Source(labels=own / "labels.csv")
    assert "--labels none, now it is" in resolve_dataset(home, str(own), given, same_names).changes[0]
    fresh = folder(tmp_path / "fresh")
    assert know(home, str(fresh), nothing).changes == ()
    assert read_memory(home).sources["fresh"] == Source(root=fresh)


def test_another_root_of_an_official_set_is_a_change_unless_its_media_are_the_same(
    home: Home, tmp_path: Path
) -> None:
    first, copy, other = folder(tmp_path / "1"), folder(tmp_path / "2"), folder(tmp_path / "3", "b.mp4")
    know(home, "ave", Source(root=first))
    assert resolve_dataset(home, "ave", Source(), same_names).root == first
    assert resolve_dataset(home, "ave", Source(root=first), same_names).changes == ()
    assert (
        "now --root" in resolve_dataset(home, "ave", Source(root=copy), same_names).changes[0]
    )  # nothing to compare
    recorded(home, "ave", "a.mp4")
    moved = resolve_dataset(home, "ave", Source(root=copy), same_names)
    assert moved.changes == () and "with the same media" in moved.notes[0]
    assert (
        "0 of 1 media files are the same"
        in resolve_dataset(home, "ave", Source(root=other), same_names).changes[0]
    )
    for path in (first, copy):
        path.rename(path.with_name(f"{path.name}-away"))
    gone = resolve_dataset(home, "ave", Source(), same_names)
    assert gone.root is None and f"{first}, where ave was read before, is not there" in gone.notes[0]


def test_an_official_set_inside_the_home_moves_with_the_home(home: Home, tmp_path: Path) -> None:
    folder(home.data("ave"))
    know(home, "ave", Source(root=home.data("ave")))
    assert read_memory(home).sources["ave"].root is None
    home.root.rename(tmp_path / "new")
    assert resolve_dataset(Home(tmp_path / "new"), "", Source(), same_names).changes == ()
    assert media_root(Home(tmp_path / "new"), "ave") == tmp_path / "new" / "data" / "ave"


def test_two_folders_of_one_name_are_two_data_sets(home: Home, tmp_path: Path) -> None:
    x, y = folder(tmp_path / "x" / "clips"), folder(tmp_path / "y" / "clips", "b.mp4")
    assert know(home, str(x)).name == "clips"
    recorded(home, "clips", "a.mp4")
    second = know(home, str(y))
    assert second.name.startswith("clips-") and len(second.name) == len("clips-") + 8
    assert f"{y} is called {second.name}" in second.notes[0]
    again = resolve_dataset(home, str(y), Source(), same_names)
    assert (again.name, again.notes) == (second.name, ())
    assert resolve_dataset(home, str(x), Source(), same_names).name == "clips"
    link = tmp_path / "z"
    link.symlink_to(y)
    assert dataset_name(home, str(link), same_names) == second.name
    assert dataset_name(home, "clips", same_names) == "clips"
    assert media_root(home, second.name) == y


def test_a_moved_or_renamed_folder_stays_the_same_data_set_with_its_labels(
    home: Home, tmp_path: Path
) -> None:
    old = folder(tmp_path / "clips", "a.mp4", "b.mp4", "mine.csv")
    know(home, str(old), Source(labels=old / "mine.csv"))
    recorded(home, "clips", "a.mp4", "b.mp4")
    for new in (tmp_path / "else" / "clips", tmp_path / "renamed"):
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
        found = know(home, str(new))
        assert (found.name, found.changes, found.source.labels) == ("clips", (), new / "mine.csv")
        assert f"clips was in {old}, it is now in {new}" in found.notes[0]
        old = new
    assert read_memory(home).sources["clips"].root == old


def test_a_copy_of_the_same_content_is_the_same_data_set(home: Home, tmp_path: Path) -> None:
    x, y = folder(tmp_path / "x" / "clips"), folder(tmp_path / "y" / "clips")
    know(home, str(x))
    recorded(home, "clips", "a.mp4")
    assert resolve_dataset(home, str(y), Source(), same_names).name == "clips"


def test_a_home_without_memory_knows_its_media_from_its_stores(home: Home, tmp_path: Path) -> None:
    x, y = folder(tmp_path / "x" / "clips"), folder(tmp_path / "y" / "clips")
    note = home.stores / "clips" / "media_root"
    note.parent.mkdir(parents=True)
    note.write_bytes(str(x).encode())
    recorded(home, "clips")
    assert resolve_dataset(home, str(x), Source(), same_names).name == "clips"
    assert resolve_dataset(home, str(y), Source(), same_names).name.startswith("clips-")
    assert media_root(home, "clips") == x
    x.rename(tmp_path / "away")
    assert resolve_dataset(home, str(y), Source(), same_names).name == "clips"


def test_without_a_last_data_set_the_only_one_is_taken_or_all_are_named(home: Home) -> None:
    with pytest.raises(CaeavError, match="none was extracted in") as raised:
        last_dataset(home)
    assert "--dataset" in raised.value.hint
    for name in ("one", "two"):
        (home.stores / name / "tokens-x").mkdir(parents=True)
        (home.stores / name / "tokens-x" / "recipe.json").touch()
        if name == "one":
            assert last_dataset(home) == "one"
    with pytest.raises(CaeavError, match="not known which was last: one, two"):
        last_dataset(home)


def test_only_an_extraction_makes_a_data_set_the_last(home: Home, tmp_path: Path) -> None:
    know(home, str(folder(tmp_path / "a")))
    know(home, str(folder(tmp_path / "b")), last=False)
    assert last_dataset(home) == "a"
    before = home.remembered.stat().st_mtime_ns
    know(home, "a")
    assert home.remembered.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "caeav-datasets", "version": 9}', "[" * 100_000, '{"format": 1}']
)
def test_a_damaged_memory_file_is_an_error_with_the_next_step(home: Home, text: str) -> None:
    home.root.mkdir()
    home.remembered.write_text(text)
    with pytest.raises(CaeavError, match="does not say what is known") as raised:
        read_memory(home)
    assert f"remove {home.remembered}" in raised.value.hint


def test_rows_of_wrong_types_are_refused(home: Home, tmp_path: Path) -> None:
    know(home, str(folder(tmp_path / "a")))
    whole = json.loads(home.remembered.read_text())
    for key, value in (("root", 3), ("labels", ["x"]), ("segments", "4"), ("segment_s", True)):
        row = {**whole["datasets"]["a"], key: value}
        home.remembered.write_text(json.dumps({**whole, "datasets": {"a": row}}))
        with pytest.raises(CaeavError, match="does not say"):
            read_memory(home)


def test_names_that_are_not_utf8_are_read_back(home: Home, tmp_path: Path) -> None:
    odd = tmp_path / "clips\udcff"
    odd.mkdir()
    (odd / "a.mp4").touch()
    name = know(home, str(odd)).name
    assert read_memory(home).sources[name].root == odd


def test_an_interrupted_write_keeps_the_old_memory(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(home, str(folder(tmp_path / "a")))
    before = read_memory(home)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("write_bytes", "sync_file", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(atomic, step, killed)
            with pytest.raises(KeyboardInterrupt):
                know(home, str(folder(tmp_path / step)))
        assert read_memory(home) == before


def test_a_name_taken_by_another_process_meanwhile_is_refused(home: Home, tmp_path: Path) -> None:
    x, y = folder(tmp_path / "x" / "clips"), folder(tmp_path / "y" / "clips", "b.mp4")
    both = [resolve_dataset(home, str(path), Source(), same_names) for path in (x, y)]
    remember(home, both[0], last=True)
    with pytest.raises(CaeavError, match="another process has just begun"):
        remember(home, both[1], last=True)
    recorded(home, "clips", "a.mp4")
    assert know(home, str(y)).name.startswith("clips-")


def _begin(home: Home, path: str) -> None:
    remember(home, resolve_dataset(home, path, Source(), nothing_known), last=True)


def test_simultaneous_processes_lose_nothing(home: Home, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    paths = [folder(tmp_path / f"set{i}") for i in range(6)]
    running = [context.Process(target=_begin, args=(home, str(path))) for path in paths]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert set(read_memory(home).sources) == {path.name for path in paths}


def test_a_built_manifest_is_used_where_the_folder_is_gone(home: Home, tmp_path: Path) -> None:
    media = folder(tmp_path / "clips")
    know(home, str(media), Source(segments=4))
    media.rename(tmp_path / "away")
    with pytest.raises(CaeavError, match=f"the media of clips was in {media}"):
        resolve_dataset(home, "clips", Source(), same_names)
    home.manifest("clips").parent.mkdir(parents=True)
    home.manifest("clips").touch()
    found = resolve_dataset(home, "clips", Source(), same_names)
    assert found.built and "the manifest that was built is taken" in found.notes[0]
    assert remembered.read_memory(home).sources["clips"].segments == 4


def test_a_folder_replaces_one_that_is_gone_if_it_has_half_of_its_media(home: Home, tmp_path: Path) -> None:
    x = folder(tmp_path / "x" / "clips", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    know(home, str(x))
    recorded(home, "clips", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    x.rename(tmp_path / "away")  # where nobody looks for it
    half = folder(tmp_path / "half" / "clips", "a.mp4", "b.mp4")
    assert resolve_dataset(home, str(half), Source(), same_names).name == "clips"
    less = folder(tmp_path / "less" / "clips", "a.mp4", "other.mp4")
    found = resolve_dataset(home, str(less), Source(), same_names)
    assert found.name.startswith("clips-") and "which holds other media" in found.notes[0]


def test_without_recorded_media_a_folder_is_not_taken_for_a_renamed_one(home: Home, tmp_path: Path) -> None:
    x = folder(tmp_path / "x")
    know(home, str(x))
    x.rename(tmp_path / "y")
    found = resolve_dataset(home, str(folder(tmp_path / "z")), Source(), same_names)
    assert found.name == "z" and not found.notes


def test_folders_with_a_common_prefix_are_different_data_sets(home: Home, tmp_path: Path) -> None:
    know(home, str(folder(tmp_path / "clips2")))
    found = resolve_dataset(home, str(folder(tmp_path / "clips")), Source(), same_names)
    assert found.name == "clips"
    assert resolve_dataset(home, str(tmp_path / "clips2"), Source(), same_names).name == "clips2"


def test_an_official_set_elsewhere_with_nothing_recorded_is_a_change(home: Home, tmp_path: Path) -> None:
    x, y = folder(tmp_path / "x"), folder(tmp_path / "y")
    know(home, "ave", Source(root=x))
    [change] = resolve_dataset(home, "ave", Source(root=y), nothing_known).changes
    assert change == f"ave was read in {x}, now --root {y} is given"
    recorded(home, "ave", "a.mp4", "b.mp4")
    [change] = resolve_dataset(home, "ave", Source(root=y), same_names).changes
    assert change.endswith("1 of 2 media files are the same there")
    (y / "b.mp4").touch()
    assert resolve_dataset(home, "ave", Source(root=y), same_names).changes == ()
