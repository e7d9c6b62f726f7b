"""Features made elsewhere become a store as good as an extracted one, and say what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.home import Home
from caeav.pipeline.features import (
    FeatureError,
    FeatureOptions,
    features_of,
    import_features,
    imported_taps,
    is_imported,
    read_features,
)
from caeav.pipeline.store import StoreReader
from caeav.pipeline.summary import RunOptions, StageSummary

T = 4
CLIPS = tuple(
    Clip(f"abc{i}_0_4", f"videos/abc{i}.mp4", 0.0, 4.0, "train", (), {"id": f"id{i}", "name": f"-abc{i}.5"})
    for i in range(7)
)
MANIFEST = Manifest("toy", T, 1.0, (), CLIPS)
RUN = RunOptions(workers=1)
NAMES = ("abc0_0_4", "-abc1.5", "id2", "abc3", "abc4", "abc5_0_4", "id6")
"""By key, official name, official id and media file."""


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
    return import_features(MANIFEST, Home(home), options, RUN, lambda progress: None)


def test_files_are_found_by_key_name_id_and_media_and_stored_as_they_are(tmp_path: Path) -> None:
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


def test_the_same_files_are_the_same_store_wherever_they_lie_and_others_another(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T, 5)
    first = run_import(tmp_path / "home", motion_x=folder)
    again = run_import(tmp_path / "home", motion_x=folder.rename(tmp_path / "moved"))
    assert (again.path, again.due) == (first.path, 0)
    np.save(tmp_path / "moved" / "id2.npy", values(9, T, 5))
    assert run_import(tmp_path / "home", motion_x=tmp_path / "moved").path != first.path


def test_a_clip_whose_file_does_not_fit_costs_itself_with_the_reason(tmp_path: Path) -> None:
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


def test_values_that_are_no_numbers_are_not_stored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "feats", T, 5)
    np.save(folder / "id2.npy", np.full((T, 5), np.inf, np.float32))
    [entry] = run_import(tmp_path / "home", motion_x=folder).quarantined
    assert entry.key == "abc2_0_4" and "not finite" in entry.reason


@pytest.mark.parametrize(
    ("shape", "found"),
    [((T, 5), (T, 1, 5)), ((2 * T, 5), (T, 2, 5)), ((T, 3, 5), (T, 3, 5)), ((8, 3, 5), None), ((5,), None),
     ((T, 0), None), ((T, 2, 2, 5), (T, 4, 5)), ((), None)],
)  # fmt: skip
def test_shapes(tmp_path: Path, shape: tuple[int, ...], found: tuple[int, ...] | None) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones(shape, np.float64))
    if found is None:
        with pytest.raises(FeatureError, match=r"does not fit"):
            read_features(path, T)
    else:
        held = read_features(path, T)
        assert held.shape == found and held.dtype == np.float32


@pytest.mark.parametrize("claim", ["(4, 500000000)", "(4, 99999999999999999999)", "(4, -1)", "(True, 4)"])
def test_a_header_that_claims_what_the_file_does_not_hold_is_refused(tmp_path: Path, claim: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((T, 5), np.float32))
    data = path.read_bytes()
    path.write_bytes(data.replace(f"{'(4, 5), }':<{len(claim) + 3}}".encode(), f"{claim}, }}".encode()))
    assert path.read_bytes() != data and len(path.read_bytes()) == len(data)
    with pytest.raises(FeatureError, match="cannot be read"):
        read_features(path, T)


@pytest.mark.parametrize(
    ("folders", "said"),
    [({"r2plus1d": "feats"}, "is no name of a tap"), ({"motion_x": "nowhere"}, "no folder"),
     ({"motion_x": "empty"}, "none of the 0 files")],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused_before_there_is_a_store(
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
