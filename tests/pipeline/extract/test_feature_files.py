"""Feature files in common formats and under common names, and the errors for others."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_pickle import Hostile

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.pipeline.extract import feature_files
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.feature_match import match_features
from caeav.pipeline.extract.features import FeatureError, FeatureOptions, import_features, read_features
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.store import StoreReader

T = 4
IDS = ("a", "b_c", "-d.e", "F", "f")
CLIPS = tuple(Clip(f"key{i}", f"videos/{x}.mp4", 0.0, 4.0, "train", (), {"id": x}) for i, x in enumerate(IDS))
MANIFEST = Manifest("toy", T, 1.0, (), CLIPS)
needs_h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="h5py is not installed")
Put = Callable[[Path, np.ndarray], None]


def values(i: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(i).normal(size=shape or (T, 5)).astype(np.float32)


def put_h5(path: Path, **arrays: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[name] = x


def put_npy3(path: Path, x: np.ndarray, version: tuple[int, int]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, x, version=version)


FORMATS: dict[str, tuple[str, Put]] = {
    "npy": (".npy", np.save),
    "npy version 2": (".npy", lambda p, x: put_npy3(p, x, (2, 0))),
    "npy version 3": (".npy", lambda p, x: put_npy3(p, x, (3, 0))),
    "Fortran order": (".npy", lambda p, x: np.save(p, np.asfortranarray(x))),
    "big-endian": (".npy", lambda p, x: np.save(p, x.astype(">f4"))),
    "float64": (".npy", lambda p, x: np.save(p, x.astype(np.float64))),
    "npz": (".npz", lambda p, x: np.savez(p, whatever=x)),
    "npz packed": (".npz", lambda p, x: np.savez_compressed(p, x)),
    "npz with more": (".npz", lambda p, x: np.savez(p, x=x, fps=np.float64(5), other=x + 1)),
    "npz beside texts": (".npz", lambda p, x: np.savez(p, feature=x, name=np.array("clip"))),
    "pt": (".pt", lambda p, x: torch.save(torch.from_numpy(x), p)),
    "pt of a gradient": (".pt", lambda p, x: torch.save(torch.from_numpy(x).requires_grad_(), p)),
    "pth with a batch": (
        ".pth",
        lambda p, x: torch.save({"feature": torch.from_numpy(x)[None], "fps": 5}, p),
    ),
    "h5": (".h5", lambda p, x: put_h5(p, features=x)),
    "hdf5 in a group": (".hdf5", lambda p, x: put_h5(p, **{"group/x": x, "fps": 5})),
    "capital ending": (".NPY", lambda p, x: p.write_bytes(npy_bytes(x))),
}


def npy_bytes(x: np.ndarray) -> bytes:
    import io

    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def imported(
    home: Path,
    remarks: list[str] | None = None,
    manifest: Manifest = MANIFEST,
    dtype: str = "float32",
    **taps: Path,
) -> StageSummary:
    options = FeatureOptions({tap.replace("_", ".", 1): path for tap, path in taps.items()}, dtype=dtype)
    said = remarks if remarks is not None else []
    return import_features(
        RunContext(manifest, Home(home), RunOptions(workers=1), lambda p: None, said.append), options
    )


def assert_all(done: StageSummary, tap: str, shape: tuple[int, ...] = (T, 1, 5)) -> None:
    assert (done.stored, done.quarantined) == (len(CLIPS), ())
    reader = StoreReader.open(done.path)
    for i, clip in enumerate(CLIPS):
        np.testing.assert_array_equal(reader.read(clip.key).arrays[tap], values(i).reshape(shape))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_tokens(form: str, tmp_path: Path) -> None:
    suffix, put = FORMATS[form]
    if "h" in suffix and "5" in suffix:
        pytest.importorskip("h5py", reason="h5py is not installed")
    (tmp_path / "f").mkdir()
    for i, name in enumerate(IDS):
        put(tmp_path / "f" / f"{name}{suffix}", values(i))
    word = "x" if "more" in form else "group/x" if "group" in form else ""
    given = tmp_path / (f"f#{word}" if word else "f")
    assert_all(imported(tmp_path / "home", visual_y=given), "visual.y")
    if form == "npz with more":  # an array with the tap's name need not be named
        assert_all(imported(tmp_path / "home2", visual_x=tmp_path / "f"), "visual.x")


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.float16])
def test_integer_features_are_read(kind: type, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20).reshape(T, 5).astype(kind))
    held = read_features(tmp_path / "x.npy", T)
    assert held.dtype == np.float32 and held.ravel().tolist() == list(range(20))


def test_bfloat16_tensors_are_read(tmp_path: Path) -> None:
    torch.save(torch.ones(T, 5, dtype=torch.bfloat16) * 3, tmp_path / "x.pt")
    assert (read_features(tmp_path / "x.pt", T) == 3).all()


def test_a_grid_is_flattened_row_by_row(tmp_path: Path) -> None:
    x = values(0, T, 2, 3, 5)
    np.save(tmp_path / "x.npy", x)
    held = read_features(tmp_path / "x.npy", T)
    assert held.shape == (T, 6, 5)
    np.testing.assert_array_equal(held[1, 4], x[1, 1, 1])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((5, T), r"shape \[5, 4\] looks transposed"),
        ((512, T), r"shape \[512, 4\] looks transposed"),
        ((T, 5, 3, 3), r"looks like \[4, F, h, w\]"),
        ((T + 1, 5), r"shape \[5, 5\] does not fit"),
        ((2, T, 5), r"shape \[2, 4, 5\] does not fit"),
        ((T, 1, 1, 1, 5), "does not fit"),
    ],
)
def test_ambiguous_shapes_are_refused(shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    with pytest.raises(FeatureError, match=said) as caught:
        read_features(tmp_path / "x.npy", T)
    assert "allowed: [4, F], [4, L, F], [4, h, w, F]" in str(caught.value)


def test_an_ending_shared_by_all_files_is_taken_and_reported(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for i, name in enumerate(IDS):
        np.save(tmp_path / "f" / f"{name}_vggish.npy", values(i))
        np.save(tmp_path / "f" / f"{name}_fps.npy", np.float64(5))
        np.save(tmp_path / "f" / f"{name}_timestamps_ms.npy", np.arange(4))
    remarks: list[str] = []
    assert_all(imported(tmp_path / "home", remarks, audio_y=tmp_path / "f"), "audio.y")
    assert "audio.y: files called NAME_vggish.npy in f" in remarks


def test_of_several_endings_only_that_of_the_tap_is_taken(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for i, name in enumerate(IDS):
        np.save(tmp_path / "f" / f"{name}_rgb.npy", values(i))
        np.save(tmp_path / "f" / f"{name}_flow.npy", values(i) + 1)
    assert_all(imported(tmp_path / "h1", visual_rgb=tmp_path / "f"), "visual.rgb")
    with pytest.raises(FeatureError) as caught:
        imported(tmp_path / "h2", visual_i3d=tmp_path / "f")
    assert "several features of a clip: NAME_flow.npy (5), NAME_rgb.npy (5)" in str(caught.value)
    assert f"--tap visual.i3d={tmp_path / 'f'}/*_flow.npy" in str(caught.value)
    assert_all(imported(tmp_path / "h2", visual_i3d=tmp_path / "f" / "*_rgb.npy"), "visual.i3d")


def test_two_formats_of_one_clip_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for i, name in enumerate(IDS):
        np.save(tmp_path / "f" / f"{name}.npy", values(i))
    np.savez(tmp_path / "f" / "a.npz", values(9))
    with pytest.raises(FeatureError, match=r"NAME\.npy \(5\), NAME\.npz \(1\)"):
        imported(tmp_path / "h", visual_y=tmp_path / "f")
    assert_all(imported(tmp_path / "h", visual_y=tmp_path / "f" / "*.npy"), "visual.y")


def test_names_match_as_a_whole_and_with_their_case(tmp_path: Path) -> None:
    """`F` and `f` are two clips, `b_c` is not clip `b` with an ending, and `a_0_4` not `a`."""
    (tmp_path / "f").mkdir()
    for name in ("F", "b_c", "a_0_4"):
        np.save(tmp_path / "f" / f"{name}.npy", values(IDS.index(name) if name in IDS else 0))
    remarks: list[str] = []
    done = imported(tmp_path / "h", remarks, visual_y=tmp_path / "f")
    assert done.stored == 2 and {q.key for q in done.quarantined} == {"key0", "key2", "key4"}
    assert "visual.y: 3 clips of 5 without features in f" in remarks
    assert "visual.y: 1 file in f not taken: a_0_4.npy" in remarks


def test_a_file_name_shared_by_several_windows_matches_none(tmp_path: Path) -> None:
    clips = tuple(Clip(f"v_{s}", "v.mp4", float(s), 4.0, "train", (), {}) for s in (0, 4))
    manifest = Manifest("toy", T, 1.0, (), clips)
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "v.npy", values(0))
    with pytest.raises(
        FeatureError, match=r"(?s)none of the 1 file.*v would stand for several times of a file"
    ):
        imported(tmp_path / "h", manifest=manifest, visual_y=tmp_path / "f")
    np.save(tmp_path / "f" / "v_4.npy", values(1))
    done = imported(tmp_path / "h", manifest=manifest, visual_y=tmp_path / "f")
    assert done.stored == 1 and [q.key for q in done.quarantined] == ["v_0"]


def test_a_refusal_names_what_was_found_and_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for name in ("one.npy", "two.npy", "notes.txt", "x.pkl"):
        (tmp_path / "f" / name).touch()
    with pytest.raises(FeatureError) as caught:
        imported(tmp_path / "h", visual_y=tmp_path / "f")
    said = str(caught.value)
    assert "none of the 4 files in" in said and "belongs to one of 5 clips" in said
    assert "2 .npy, 1 .txt, 1 .pkl: notes.txt, one.npy, two.npy, x.pkl" in said
    assert "(here key0 or a), and one of .npy, .npz, .pt" in said
    with pytest.raises(FeatureError, match=r"x\.pkl is of no known format\n  next: give one of \.npy"):
        imported(tmp_path / "h", visual_y=tmp_path / "f" / "x.pkl")


def test_several_arrays_must_be_chosen_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", rgb=values(0), flow=values(1))
    with pytest.raises(
        FeatureError, match=r"x\.npz holds rgb \[4, 5\], flow \[4, 5\]\n  next: .*TAP=PATH#NAME"
    ):
        read_features(tmp_path / "x.npz", T)
    np.testing.assert_array_equal(read_features(Path(f"{tmp_path / 'x.npz'}#flow"), T)[:, 0], values(1))
    with pytest.raises(FeatureError, match="but no 'depth'"):
        read_features(Path(f"{tmp_path / 'x.npz'}#depth"), T)


def sets(tmp_path: Path, form: str) -> Path:
    """Write all clips into one file, in another order than the manifest's and with a row of no clip."""
    order = [3, 0, 4, 2, 1]
    rows = np.stack([values(i) for i in order] + [values(9)])
    names = [IDS[i] for i in order] + ["stranger"]
    path = tmp_path / form
    match form:
        case "all.npz":
            np.savez(path, features=rows, ids=np.array(names))
        case "bytes.npz":
            np.savez(path, features=rows, names=np.array([n.encode() for n in names]))
        case "all.npy":
            np.save(path, rows)
            (tmp_path / "all_ids.txt").write_text("\n".join(names) + "\n")
        case "files.npy":
            np.save(path, rows)
            (tmp_path / "ids.txt").write_text("\r\n".join(f"{n}.mp4" for n in names))
        case "all.h5":
            put_h5(path, avadataset=rows, ids=[n.encode() for n in names])
        case "keys.npz":
            np.savez(path, **dict(zip(names, rows, strict=True)))
        case "keys.pt":
            torch.save({n: torch.from_numpy(x) for n, x in zip(names, rows, strict=True)}, path)
        case "keys.h5":
            put_h5(path, **dict(zip(names, rows, strict=True)))
    return path


@pytest.mark.parametrize(
    "form", ["all.npz", "bytes.npz", "all.npy", "files.npy", "all.h5", "keys.npz", "keys.pt", "keys.h5"]
)
def test_one_file_can_hold_all_clips_by_name(form: str, tmp_path: Path) -> None:
    if form.endswith("h5"):
        pytest.importorskip("h5py", reason="h5py is not installed")
    path = sets(tmp_path, form)
    first = imported(tmp_path / "home", visual_y=path)
    assert_all(first, "visual.y")
    again = imported(tmp_path / "home", visual_y=path)
    assert (again.path, again.due) == (first.path, 0)


def test_a_listed_name_with_a_dot_matches_only_its_clip(tmp_path: Path) -> None:
    """The row `-d.e` belongs to the clip `-d.e` and not to `-d`, and the row `a.mp4` to the clip `a`."""
    called = ("-d", "-d.e", "a")
    clips = tuple(Clip(f"k{i}", f"{x}.mp4", 0.0, 4.0, "train", (), {}) for i, x in enumerate(called))
    np.save(tmp_path / "all.npy", np.stack([values(i) for i in range(2)]))
    (tmp_path / "ids.txt").write_text("-d.e\na.mp4\n")
    done = imported(
        tmp_path / "h", manifest=Manifest("toy", T, 1.0, (), clips), visual_y=tmp_path / "all.npy"
    )
    assert [q.key for q in done.quarantined] == ["k0"]
    reader = StoreReader.open(done.path)
    for i, key in enumerate(("k1", "k2")):
        np.testing.assert_array_equal(reader.read(key).arrays["visual.y"][:, 0], values(i))


def test_rows_without_names_and_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", np.stack([values(i) for i in range(5)]))
    with pytest.raises(
        FeatureError, match=r"(?s)one array \[5, 4, 5\], and no names of its 5 rows.*all_ids\.txt"
    ):
        imported(tmp_path / "h", visual_y=tmp_path / "all.npy")
    (tmp_path / "ids.txt").write_text("a\nb_c\n")
    with pytest.raises(FeatureError, match=r"ids\.txt names 2 rows, all\.npy has 5"):
        imported(tmp_path / "h", visual_y=tmp_path / "all.npy")
    (tmp_path / "ids.txt").write_text("a\nb_c\na\nF\nf\n")
    with pytest.raises(FeatureError, match=r"ids\.txt names a twice"):
        imported(tmp_path / "h", visual_y=tmp_path / "all.npy")
    assert not (tmp_path / "h").exists()


@needs_h5py
def test_aves_own_files_are_rows_in_the_order_of_its_annotations(shared: Path, tmp_path: Path) -> None:
    manifest = load_dataset("ave", shared / "data" / "annotations" / "ave", Home(tmp_path / "home"))
    count = len(manifest.clips)
    rows = np.arange(count * 10 * 2, dtype=np.float32).reshape(count, 10, 2)
    put_h5(tmp_path / "audio_feature.h5", avadataset=rows)
    place = {clip.key: i for i, clip in enumerate(manifest.clips)}
    orders = {s: [place[c.key] for c in manifest.clips if c.split == s] for s in ("train", "val", "test")}
    for split, order in orders.items():
        put_h5(tmp_path / f"{split}_order.h5", order=np.array(order[::-1]))
    taken = tmp_path / "audio_feature.h5"
    found = match_features(manifest, "audio.vggish", taken)
    assert found.remarks == ("audio.vggish: rows of audio_feature.h5 by the order of Annotations.txt",)
    assert list(found.entries) == [clip.key for clip in manifest.clips]
    for i in (0, 1, 2000, count - 1):
        np.testing.assert_array_equal(found.entries[manifest.clips[i].key].find().read(), rows[i])
    put_h5(tmp_path / "test_order.h5", order=np.array(orders["train"][:1] + orders["test"][1:]))
    with pytest.raises(
        FeatureError, match=r"test_order\.h5 and the data set differ: 1 clips are not in test"
    ):
        match_features(manifest, "audio.vggish", taken)
    put_h5(tmp_path / "audio_feature.h5", avadataset=rows[1:])
    with pytest.raises(FeatureError, match=rf"{count - 1} rows .* Annotations\.txt has {count} clips"):
        match_features(manifest, "audio.vggish", taken)


def test_hdf5_without_its_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(FeatureError, match=r"HDF5 needs h5py\n  next: pip install 'caeav\[hdf5\]'"):
        read_features(tmp_path / "x.h5", T)


@needs_h5py
def test_hdf5_that_leads_into_other_files_is_refused(tmp_path: Path) -> None:
    import h5py

    (tmp_path / "secret").write_bytes(bytes(4 * 20))
    put_h5(tmp_path / "other.h5", x=values(0))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink("other.h5", "/x")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("x", (T, 5), "<f4", external=[("secret", 0, 80)])
    with h5py.File(tmp_path / "soft.h5", "w") as file:
        file["x"] = h5py.SoftLink("/x")
    layout = h5py.VirtualLayout((T, 5), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (T, 5))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    for name in ("link", "raw", "soft", "virtual"):
        with pytest.raises(FeatureError, match=r"leads into another|lies in another"):
            read_features(tmp_path / f"{name}.h5", T)


def test_no_object_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = np.array([Hostile()], dtype=object)
    np.savez(tmp_path / "x.npz", held)
    np.save(tmp_path / "x.npy", held, allow_pickle=True)
    torch.save(Hostile(), tmp_path / "x.pt")
    torch.save(values(0), tmp_path / "y.pt")
    for name, said in {
        "x.npz": "holds no array of numbers",
        "x.npy": "cannot be read",
        "x.pt": r"cannot be read as plain weights: it holds objects of builtins\.print",
        "y.pt": "holds no array of numbers",
    }.items():
        with pytest.raises(FeatureError, match=said):
            read_features(tmp_path / name, T)
    assert "executed" not in capsys.readouterr().out


def test_files_that_claim_or_unpack_to_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_files, "MAX_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((T, 1 << 16), np.float32))
    header = npy_bytes(values(0)).replace(
        f"{'(4, 5), }':<40}".encode(), f"{'(4, 99999999999999), }':<40}".encode()
    )
    assert b"999" in header
    with zipfile.ZipFile(tmp_path / "claim.npz", "w") as archive:
        archive.writestr("x.npy", header)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "bomb.npz").read_bytes()[:-30])
    os.mkfifo(tmp_path / "fifo.npy")
    for name, said in {
        "bomb.npz": "larger than",
        "claim.npz": "larger than|read",
        "empty.npy": "it is empty",
        "cut.npz": "cannot be read",
        "fifo.npy": "cannot be read",
    }.items():
        with pytest.raises(FeatureError, match=said):
            read_features(tmp_path / name, T)


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (
            70_000.0,
            "float16",
            "visual.y has values too large for float16, give --dtype bfloat16 or float32: up to 70000",
        ),
        (
            -70_000.0,
            "int8",
            "visual.y has values too large for int8, give --dtype bfloat16 or float32: up to 70000",
        ),
        (np.nan, "float32", "visual.y has values not finite: 1 of 20"),
        (np.inf, "float16", "visual.y has values not finite: 1 of 20"),
        (70_000.0, "bfloat16", ""),
        (65_504.0, "float16", ""),
    ],
)
def test_values_that_do_not_fit_name_a_dtype_that_does(
    value: float, dtype: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    for i, name in enumerate(IDS):
        np.save(tmp_path / "f" / f"{name}.npy", values(i))
    bad = values(0)
    bad[2, 3] = value
    np.save(tmp_path / "f" / "a.npy", bad)
    done = imported(tmp_path / "h", dtype=dtype, visual_y=tmp_path / "f")
    assert [q.reason for q in done.quarantined] == ([said] if said else [])


def test_digests_of_plain_folders_have_not_changed(tmp_path: Path) -> None:
    """A store made when only `.npy` was supported keeps its fingerprint."""
    import hashlib

    (tmp_path / "f").mkdir()
    whole = hashlib.sha256()
    for i, (clip, name) in enumerate(zip(CLIPS, IDS, strict=True)):
        np.save(tmp_path / "f" / f"{name}.npy", values(i))
        whole.update(f"{clip.key} {hashlib.sha256(npy_bytes(values(i))).hexdigest()}\n".encode())
    fields = imported(tmp_path / "h", visual_y=tmp_path / "f").recipe.fields
    assert fields["visual"]["files"]["visual.y"] == {"source": "f", "digest": f"sha256:{whole.hexdigest()}"}
    assert fields["visual"]["taps"] == [{"name": "visual.y", "tokens": 1, "channels": 5}]
