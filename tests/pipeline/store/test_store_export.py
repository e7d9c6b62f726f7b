"""`caeav store export`: other programs read what the store holds."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from caeav.manifests.clip import Event
from caeav.pipeline.extract.feature_files import numbers
from caeav.pipeline.extract.feature_match import match_features
from caeav.pipeline.store import Quarantined, StoreError, StoreReader, open_for_writing
from caeav.pipeline.store.export import FORMATS, export, names_of
from caeav.pipeline.store.testing_data import Toy

FAILING = "clip002"
SPLITS = ("train", "train", "val", "test")


@pytest.fixture
def store(toys: Toy) -> StoreReader:
    """Twelve clips of two classes, one in quarantine; every other one has an official id."""
    manifest = toys.manifest(12)
    clips = [
        replace(
            clip,
            split=SPLITS[i % 4],
            start_s=2.0 * i,
            events=(Event("dog", 0.0, 1.0), Event("cat", 0.0, 2.0)) if i % 3 else (),
            extra={"id": f"official{i}"} if i % 2 else {},
        )
        for i, clip in enumerate(manifest.clips)
    ]
    manifest = replace(manifest, clips=tuple(clips), classes=("cat", "dog"))
    with open_for_writing(toys.dataset, toys.recipe(), manifest) as writer:
        for plan in writer.plan():
            if FAILING in plan.missing:
                writer.quarantine(Quarantined(FAILING, "decode", "no such file", 1))
            writer.publish(plan, {key: toys.record(key) for key in plan.missing if key != FAILING})
        writer.finish()
        return StoreReader.open(writer.path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(made: Any, held: Any) -> bool:
    return bool(np.array_equal(np.asarray(made), np.asarray(held), equal_nan=True))


def test_npy_holds_every_array_of_every_clip(store: StoreReader, tmp_path: Path) -> None:
    made = export(store, "npy", tmp_path / "out")
    assert (made.clips, made.quarantined) == (11, 1)
    named = {row["key"]: row for row in rows_of(tmp_path / "out/clips.csv")}
    assert named["clip001"]["name"] == "official1" and named["clip004"]["name"] == "clip004"
    assert named[FAILING]["quarantined"] == "decode: no such file"
    assert [named[clip.key]["split"] for clip in store.manifest.clips] == [
        c.split for c in store.manifest.clips
    ]
    for key in store.keys:
        for name, array in store.read(key).arrays.items():
            found = np.load(tmp_path / "out" / name / f"{named[key]['name']}.npy")
            held = array[:, 0] if array.ndim == 3 and array.shape[1] == 1 else array
            assert found.dtype == array.dtype and same(found, held)
    assert len(list((tmp_path / "out").glob("*/*.npy"))) == 11 * len(store.array_specs())


def test_exported_labels_have_the_format_of_the_labels_option(store: StoreReader, tmp_path: Path) -> None:
    """Times count from the start of the media file, and a clip without events is background."""
    export(store, "npy", tmp_path / "out")
    rows = rows_of(tmp_path / "out/labels.csv")
    of_first = [row for row in rows if row["file"] == store.manifest.clips[1].media]
    assert [(row["label"], row["start_s"], row["end_s"]) for row in of_first] == [
        ("dog", "2.0", "3.0"),
        ("cat", "2.0", "4.0"),
    ]
    assert {row["label"] for row in rows if row["file"] == store.manifest.clips[3].media} == {""}
    assert not [row for row in rows if row["file"] == store.manifest.clips[2].media]


def test_pooled_tokens_are_their_mean(store: StoreReader, tmp_path: Path) -> None:
    tap = next(
        name for name, spec in store.array_specs().items() if len(spec.shape) == 3 and spec.shape[1] > 1
    )
    export(store, "npy", tmp_path / "out", arrays=[tap], pool=True)
    assert [path.name for path in sorted((tmp_path / "out").iterdir()) if path.is_dir()] == [tap]
    held = store.read("clip004").arrays[tap]
    found = np.load(tmp_path / "out" / tap / "clip004.npy")
    np.testing.assert_allclose(found, held.astype(np.float64).mean(axis=1), rtol=2e-3)


def test_h5_is_what_code_for_ave_reads(store: StoreReader, tmp_path: Path, needs: Any) -> None:
    needs("h5py")
    import h5py

    export(store, "h5", tmp_path / "out")
    names = (tmp_path / "out/ids.txt").read_text().split()
    keys = list(store.keys)
    known = names_of([clip for clip in store.manifest.clips if clip.key in store])
    assert names == [known[key] for key in keys]
    for name in store.array_specs():
        with h5py.File(tmp_path / "out" / f"{name}.h5") as file:
            rows = file["avadataset"][()]
        held = np.stack([store.read(key).arrays[name] for key in keys])
        assert rows.dtype == held.dtype and same(rows.reshape(held.shape), held)
    with h5py.File(tmp_path / "out/labels.h5") as file:
        labels = file["avadataset"][()]
    segments = store.manifest.segments
    assert labels.shape == (11, segments, 3)
    assert labels[keys.index("clip001")].argmax(axis=1).tolist() == [0, 0, *[2] * (segments - 2)]
    assert labels[keys.index("clip003")].argmax(axis=1).tolist() == [2] * segments
    assert (labels.sum(axis=2) == 1).all()
    for split in ("train", "val", "test"):
        with h5py.File(tmp_path / "out" / f"{split}_order.h5") as file:
            rows = file["order"][()].tolist()
        assert [keys[row] for row in rows] == [
            clip.key for clip in store.manifest.clips if clip.split == split and clip.key in store
        ]


@pytest.mark.parametrize("to", ["npy", "h5"])
def test_exported_features_can_be_imported(store: StoreReader, tmp_path: Path, to: str, needs: Any) -> None:
    needs("h5py")
    tap = next(name for name, spec in store.array_specs().items() if len(spec.shape) == 3)
    export(store, to, tmp_path / "out", arrays=[tap])
    place = tmp_path / "out" / (tap if to == "npy" else f"{tap}.h5")
    matched = match_features(store.manifest, tap, place)
    assert sorted(matched.entries) == sorted(store.keys)
    for key, entry in matched.entries.items():
        held = store.read(key).arrays[tap]
        assert same(numbers(entry.find(), entry.name).reshape(held.shape), held)


@pytest.mark.parametrize("to", ["parquet", "hf"])
def test_tables_hold_arrays_labels_and_facts(store: StoreReader, tmp_path: Path, to: str, needs: Any) -> None:
    needs("pyarrow")
    import pyarrow.parquet

    export(store, to, tmp_path / "out")
    place = tmp_path / "out" / "data" if to == "hf" else tmp_path / "out"
    assert sorted(path.stem for path in place.glob("*.parquet")) == ["test", "train", "val"]
    clips = {clip.key: clip for clip in store.manifest.clips}
    found = [row for path in place.glob("*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()]
    assert sorted(row["key"] for row in found) == sorted(store.keys)
    for row in found:
        record, clip = store.read(row["key"]), clips[row["key"]]
        for name, array in record.arrays.items():
            held = array[:, 0] if array.ndim == 3 and array.shape[1] == 1 else array
            assert same(np.array(row[name], array.dtype), held)
        assert json.loads(row["info"]) == record.info
        assert [event["label"] for event in row["events"]] == [event.label for event in clip.events]


def test_the_data_set_card_and_types_match_the_tables(store: StoreReader, tmp_path: Path, needs: Any) -> None:
    needs("pyarrow")
    import pyarrow.parquet

    export(store, "hf", tmp_path / "out")
    head = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    files = {each["split"]: each["path"] for each in head["configs"][0]["data_files"]}
    assert files == {split: f"data/{split}.parquet" for split in ("train", "val", "test")}
    schema = pyarrow.parquet.read_schema(tmp_path / "out" / files["val"])
    told = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(told) == schema.names
    for name, spec in store.array_specs().items():
        shape = [n for i, n in enumerate(spec.shape) if not (len(spec.shape) == 3 and i == 1 and n == 1)]
        if len(shape) > 1:
            assert told[name] == {"shape": shape, "dtype": spec.dtype, "_type": f"Array{len(shape)}D"}


def test_the_command_writes_and_counts(store: StoreReader, tmp_path: Path, store_command: Any) -> None:
    ran = store_command("export", store.path, tmp_path / "out", "--to", "npy", "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout) == {"folder": str(tmp_path / "out"), "clips": 11, "quarantined": 1}


def test_the_datasets_library_loads_it(store: StoreReader, tmp_path: Path, needs: Any) -> None:
    needs("pyarrow")
    needs("datasets")
    import datasets

    export(store, "hf", tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 6, "val": 2, "test": 3}
    row = loaded["val"].with_format("numpy")[0]
    for name, array in store.read(row["key"]).arrays.items():
        held = array[:, 0] if array.ndim == 3 and array.shape[1] == 1 else array
        assert same(np.asarray(row[name], np.float32), held.astype(np.float32))


@pytest.mark.parametrize("to", FORMATS)
def test_the_folder_appears_only_when_it_is_complete(
    store: StoreReader, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch, needs: Any
) -> None:
    needs({"h5": "h5py", "npy": "numpy"}.get(to, "pyarrow"))
    seen = 0

    def stop(clips: int) -> None:
        nonlocal seen
        seen += clips
        if seen == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(store, to, tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert export(store, to, tmp_path / "out").clips == 11
    with pytest.raises(StoreError, match="is not empty"):
        export(store, to, tmp_path / "out")


def test_unknown_formats_and_arrays_are_refused_naming_the_known_ones(
    store: StoreReader, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="npy, h5, parquet, hf"):
        export(store, "csv", tmp_path / "out")
    with pytest.raises(StoreError, match=next(iter(store.array_specs()))):
        export(store, "npy", tmp_path / "out", arrays=["visual.stage9"])
    assert list(tmp_path.iterdir()) == []


def test_unsafe_and_ambiguous_ids_are_not_used_as_names(store: StoreReader) -> None:
    clips = [
        replace(clip, extra={"id": name})
        for clip, name in zip(
            store.manifest.clips, ("../up", "twice", "twice", "clip000", "fine"), strict=False
        )
    ]
    assert list(names_of(clips).values())[:5] == ["clip000", "clip001", "clip002", "clip003", "fine"]


@pytest.mark.parametrize("toys", ["webdataset"], indirect=True)
def test_the_reader_in_the_docs_yields_tokens_and_labels(
    store: StoreReader, repository: Path, needs: Any
) -> None:
    needs("webdataset")
    code = re.findall(r"```python\n(.*?)```", (repository / "docs/STORES.md").read_text(), re.DOTALL)[0]
    held: dict[str, Any] = {"STORE": str(store.path), "seen": {}}
    exec(code + "\n    seen[clip['key']] = (tokens, clip)\n", held)
    assert sorted(held["seen"]) == sorted(store.keys)
    for key, (tokens, clip) in held["seen"].items():
        assert all(same(tokens[name], array) for name, array in store.read_stored(key).arrays.items())
        assert clip["split"] in SPLITS and "events" in clip
