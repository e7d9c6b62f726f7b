"""Imported features become a store like an extracted one; files that do not fit are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import features
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.feature_files import FileArray
from caeav.pipeline.extract.feature_match import file_entry
from caeav.pipeline.extract.features import (
    FeatureError,
    FeatureOptions,
    _check_values,
    features_of,
    import_features,
    imported_taps,
    is_imported,
    read_features,
    tokens_shape,
)
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.store import Recipe, StoreReader

T = 4
CLIPS = tuple(
    Clip(f"abc{i}_0_4", f"videos/abc{i}.mp4", 0.0, 4.0, "train", (), {"id": f"id{i}", "name": f"-abc{i}.5"})
    for i in range(7)
)
MANIFEST = Manifest("toy", T, 1.0, (), CLIPS)
RUN = RunOptions(workers=1)
NAMES = ("abc0_0_4", "-abc1.5", "id2", "abc3", "abc4", "abc5_0_4", "id6")
"""Files named by key, official name, official id and media file."""


def values(i: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(i).normal(size=shape).astype(np.float32)


def folder_of(root: Path, *shape: int) -> Path:
    root.mkdir()
    for i, name in enumerate(NAMES):
        np.save(root / f"{name}.npy", values(i, *shape))
    return root


def run_import(home: Path, **folders: Path) -> StageSummary:
    options = FeatureOptions(
        {tap.replace("_", ".", 1): path for tap, path in folders.items()}, dtype="float32"
    )
    return import_features(RunContext(MANIFEST, Home(home), RUN, lambda progress: None), options)


def test_files_are_found_by_key_name_id_and_media_and_stored_unchanged(tmp_path: Path) -> None:
    motion, frames = folder_of(tmp_path / "r2plus1d_18", T, 5), folder_of(tmp_path / "res152", 8 * T, 3)
    done = run_import(tmp_path / "home", motion_r2plus1d=motion, visual_res152=frames)
    assert (done.stored, done.quarantined) == (7, ())
    reader = StoreReader.open(done.path)
    assert reader.recipe.name == "r2plus1d-res152"
    for i, clip in enumerate(CLIPS):
        held = reader.read(clip.key)
        np.testing.assert_array_equal(held.arrays["motion.r2plus1d"], values(i, T, 5)[:, None])
        np.testing.assert_array_equal(held.arrays["visual.res152"], values(i, 8 * T, 3).reshape(T, 8, 3))
        assert held.info["frames_ok"] == [True] * T
    assert is_imported(reader.recipe)
    assert imported_taps(reader.recipe)[0] == {"name": "motion.r2plus1d", "tokens": 1, "channels": 5}


def test_the_store_depends_on_the_files_content_and_not_on_their_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T, 5)
    first = run_import(tmp_path / "home", motion_x=folder)
    again = run_import(tmp_path / "home", motion_x=folder.rename(tmp_path / "moved"))
    assert (again.path, again.due) == (first.path, 0)
    np.save(tmp_path / "moved" / "id2.npy", values(9, T, 5))
    assert run_import(tmp_path / "home", motion_x=tmp_path / "moved").path != first.path


def test_a_file_that_does_not_fit_quarantines_its_clip_with_the_reason(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T, 5)
    (folder / "abc0_0_4.npy").unlink()
    np.save(folder / "-abc1.5.npy", values(1, T + 1, 5))
    np.save(folder / "id2.npy", values(2, T, 6))
    np.save(folder / "abc3.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "abc4.npy").write_bytes(b"\x93NUMPY\x01\x00\x00")
    np.save(folder / "abc5_0_4.npy", np.full((T, 5), np.nan, np.float32))
    (folder / "abc5_0_4.npy").rename(folder / "abc5.npy")
    np.save(folder / "abc5_0_4.npy", values(5, T, 5))
    done = run_import(tmp_path / "home", motion_x=folder)
    reasons = {entry.key: entry.reason for entry in done.quarantined}
    assert done.stored == 2 and set(reasons) == {clip.key for clip in CLIPS[:5]}
    assert reasons["abc0_0_4"] == "no file: in feats for motion.x"
    assert reasons["abc1_0_4"].startswith("shape [5, 5] does not fit")
    assert reasons["abc2_0_4"].startswith("shape [4, 1, 6] is not that of most clips, [4, 1, 5]")
    assert "cannot be read" in reasons["abc3_0_4"] and "cannot be read" in reasons["abc4_0_4"]
    assert {entry.stage for entry in done.quarantined} == {"features"}


def test_non_finite_features_are_not_stored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T, 5)
    np.save(folder / "id2.npy", np.full((T, 5), np.inf, np.float32))
    [entry] = run_import(tmp_path / "home", motion_x=folder).quarantined
    assert entry.key == "abc2_0_4" and "not finite" in entry.reason


@pytest.mark.parametrize(
    ("shape", "found"),
    [((T, 5), (T, 1, 5)), ((2 * T, 5), (T, 2, 5)), ((T, 3, 5), (T, 3, 5)), ((8, 3, 5), None), ((5,), None),
     ((T, 0), None), ((T, 2, 2, 5), (T, 4, 5)), ((), None)],
)  # fmt: skip
def test_shapes_become_tokens_or_are_refused(
    tmp_path: Path, shape: tuple[int, ...], found: tuple[int, ...] | None
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones(shape, np.float64))
    if found is None:
        with pytest.raises(FeatureError, match=r"does not fit"):
            read_features(path, T)
    else:
        held = read_features(path, T)
        assert held.shape == found and held.dtype == np.float32


@pytest.mark.parametrize("claim", ["(4, 500000000)", "(4, 99999999999999999999)", "(4, -1)", "(True, 4)"])
def test_a_header_with_a_false_shape_is_refused(tmp_path: Path, claim: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((T, 5), np.float32))
    data = path.read_bytes()
    path.write_bytes(data.replace(f"{'(4, 5), }':<{len(claim) + 3}}".encode(), f"{claim}, }}".encode()))
    assert path.read_bytes() != data and len(path.read_bytes()) == len(data)
    with pytest.raises(FeatureError, match="cannot be read"):
        read_features(path, T)


@pytest.mark.parametrize(
    ("folders", "said"),
    [({"r2plus1d": "feats"}, "is not a tap's name"), ({"motion_x": "nowhere"}, "no folder"),
     ({"motion_x": "empty"}, "none of the 0 files")],
)  # fmt: skip
def test_wrong_sources_are_refused_before_a_store_is_made(
    tmp_path: Path, folders: dict[str, str], said: str
) -> None:
    folder_of(tmp_path / "feats", T, 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match=said):
        run_import(tmp_path / "home", **{tap: tmp_path / name for tap, name in folders.items()})
    assert not (tmp_path / "home").exists()


def test_outside_a_data_set_each_imported_tap_needs_a_file_and_each_file_a_tap(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T, 5)
    recipe = StoreReader.open(run_import(tmp_path / "home", motion_x=folder).path).recipe
    given: dict[str, Any] = {"motion.x": folder / "id2.npy"}
    found = features_of([recipe], given, "new")
    assert found is not None and found.key == "new" and found.info["audio_ok"] == [True] * T
    np.testing.assert_array_equal(found.arrays["motion.x"][:, 0], values(2, T, 5))
    assert features_of([], {}, "new") is None
    with pytest.raises(FeatureError, match=r"reads motion\.x, imported"):
        features_of([recipe], {}, "new")
    with pytest.raises(FeatureError, match=r"no imported motion\.y"):
        features_of([recipe], {**given, "motion.y": folder / "id2.npy"}, "new")


def claimed(shape: tuple[int, ...], kind: str = "f") -> FileArray:
    """An array whose shape may be examined but whose values must not be read."""

    def unread(*_: int) -> np.ndarray:
        raise AssertionError("its values are read")

    return FileArray(shape, kind, unread, unread)


@pytest.mark.parametrize(
    ("shape", "segments", "found"),
    [
        ((1, T, 5), T, (T, 1, 5)),
        ((1, T, 3, 5), T, (T, 3, 5)),
        ((1, T, 2, 3, 5), T, (T, 6, 5)),
        ((1, 3, 5), 1, (1, 3, 5)),
        ((1, 5), 1, (1, 1, 5)),
        ((T, 3, 2, 5), T, (T, 6, 5)),
        ((T, 5, 5, 5), T, (T, 25, 5)),
        ((T, T), T, (T, 1, T)),
        ((T, 3, 5, 5), T, "looks like [4, F, h, w], features before places"),
        ((5, T), T, "looks transposed, [F, 4]"),
        ((2 * T, T), T, "looks transposed, [F, 4]"),
        ((2 * T, 3, 5), T, "does not fit"),
        ((1, 1, T, 5), T, "does not fit"),
    ],
)
def test_a_batch_axis_of_one_is_removed_and_transposed_axes_are_refused(
    shape: tuple[int, ...], segments: int, found: tuple[int, ...] | str
) -> None:
    if not isinstance(found, str):
        assert tokens_shape(claimed(shape), segments, "x.npy") == found
        return
    with pytest.raises(FeatureError) as caught:
        tokens_shape(claimed(shape), segments, "x.npy")
    assert caught.value.problem == f"shape {list(shape)} {found}: x.npy"
    assert ("turn its axes" in caught.value.hint) == ("looks" in found)


def test_an_array_too_large_or_not_numeric_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MAX_BYTES", T * 2 * 5 * 4)
    assert tokens_shape(claimed((T, 2, 5)), T, "x") == (T, 2, 5)
    with pytest.raises(FeatureError, match="x cannot be read: larger than 160 bytes"):
        tokens_shape(claimed((T, 3, 5)), T, "x")
    for kind in "iu":
        assert tokens_shape(claimed((T, 5), kind), T, "x") == (T, 1, 5)
    with pytest.raises(FeatureError, match="x cannot be read: it holds no numbers"):
        tokens_shape(claimed((T, 5), "U"), T, "x")


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float16", 65_504.0, True),
        ("float16", -65_505.0, False),
        ("int8", 65_504.0, True),
        ("int8", 65_600.0, False),
        ("bfloat16", 70_000.0, True),
        ("float32", -70_000.0, True),
    ],
)
def test_values_too_large_for_the_dtype_are_refused(dtype: str, value: float, fits: bool) -> None:
    array = np.array([[0.0, value]], np.float32)
    if fits:
        _check_values(array, "visual.x", dtype)
        return
    with pytest.raises(FeatureError, match=f"visual.x has values too large for {dtype}"):
        _check_values(array, "visual.x", dtype)


def test_the_store_has_the_requested_name_and_dtype(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T, 5)
    sources = {"motion.i3d_rgb": folder}

    def made(**how: Any) -> StageSummary:
        return import_features(
            RunContext(MANIFEST, Home(tmp_path / "home"), RUN, lambda progress: None),
            FeatureOptions(sources, **how),
        )

    for how, name in (({}, "i3d-rgb"), ({"name": "My_own"}, "my-own")):
        recipe = made(**how).recipe
        assert (recipe.name.lower(), recipe.fields["dtype"], recipe.fields["segments"]) == (
            name,
            "float16",
            T,
        )
    with pytest.raises(CaeavError, match=r"unknown dtype 'float61'\n  next: .*float16"):
        made(dtype="float61")
    with pytest.raises(FeatureError, match="no tap is asked for"):
        import_features(RunContext(MANIFEST, Home(tmp_path), RUN, lambda progress: None), FeatureOptions({}))
    sources["sound.x"] = folder
    with pytest.raises(FeatureError, match=r"'sound\.x' is not a tap's name"):
        made()


def test_if_no_file_can_be_read_the_last_reason_is_given(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T + 1, 5)
    with pytest.raises(FeatureError, match=r"shape \[5, 5\] does not fit: id6\.npy"):
        run_import(tmp_path / "home", motion_x=folder)


def recipe(name: str, segments: int) -> Recipe:
    part = {"name": "features", "taps": [{"name": name, "tokens": 1, "channels": 2}], "files": {}}
    return Recipe("tokens", "x", {"motion": part, "segments": segments, "dtype": "float32"})


def test_a_tap_without_file_and_a_file_without_tap_are_named() -> None:
    both = [recipe("motion.a", 2), recipe("motion.b", 4)]
    assert [tap["name"] for r in both for tap in imported_taps(r)] == ["motion.a", "motion.b"]
    with pytest.raises(FeatureError, match=r"this run reads motion\.a, imported") as caught:
        features_of(both, {"motion.b": Path("b.npy")}, "new")
    assert caught.value.hint == "give the clip's: --features motion.a=FILE.npy"
    with pytest.raises(
        FeatureError, match=r"reads no imported visual\.c\n  next: it reads motion\.a, motion\.b"
    ):
        features_of(both, {"visual.c": Path("c.npy")}, "new")
    with pytest.raises(FeatureError, match="next: leave out --features"):
        features_of([], {"visual.c": Path("c.npy")}, "new")


def test_each_tap_takes_its_file_and_the_array_of_its_name(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones((2, 2)), b=np.zeros((4, 2)))
    given = {"motion.a": tmp_path / "a.npz", "motion.b": tmp_path / "a.npz"}
    found = features_of([recipe("motion.a", 2), recipe("motion.b", 4)], given, "new")
    assert found is not None and found.info["frames_ok"] == [True] * 4
    assert found.arrays["motion.a"].tolist() == [[[1, 1]]] * 2
    assert found.arrays["motion.b"].tolist() == [[[0, 0]]] * 4


def test_which_clip_has_which_file_is_part_of_the_digest(tmp_path: Path) -> None:
    for name in "xy":
        np.save(tmp_path / f"{name}.npy", np.full((T, 3), ord(name), np.float32))
    x, y = (file_entry(tmp_path / f"{name}.npy") for name in "xy")
    made = [features._digest(files) for files in ({"a": x, "b": y}, {"a": y, "b": x}, {"a": x, "c": y})]
    assert len(set(made)) == 3 and made[0] == features._digest({"a": x, "b": y})
