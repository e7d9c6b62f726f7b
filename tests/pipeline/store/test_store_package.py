"""A store as a data set repository: the same bytes come back, `datasets` loads it, and nothing else comes in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_client import HubClient
from typer.testing import CliRunner, Result

from caeav.cli.app import build
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store import StoreReader
from caeav.pipeline.store.remote import hub
from caeav.pipeline.store.remote.faults import WrongBytes
from caeav.pipeline.store.remote.package import FolderFiles, pack_store, unpack_store
from caeav.pipeline.store.testing_data import Toy, contents


@pytest.fixture(params=["webdataset", "zarr"])
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Toy:
    made = Toy(tmp_path / "home" / "stores", request.param)
    made.write(failing=["clip003"])
    return made


@pytest.fixture
def tars(tmp_path: Path) -> Toy:
    made = Toy(tmp_path / "home" / "stores")
    made.write()
    return made


def run(*words: object) -> Result:
    return CliRunner().invoke(build(), [str(word) for word in words])


def test_the_bytes_that_were_packed_come_back(toy: Toy, tmp_path: Path) -> None:
    package = pack_store(toy.folder, tmp_path / "package")
    assert {"README.md", "clips.csv", "labels.csv", "complete.json"} <= {
        path.name for path in package.iterdir()
    }
    told: list[int] = []
    done = unpack_store(FolderFiles(package), tmp_path / "other", told.append)
    assert done.path == tmp_path / "other" / "toy" / toy.folder.name and sum(told) == done.bytes > 0
    assert contents(done.path) == contents(toy.folder)
    again = unpack_store(FolderFiles(package), tmp_path / "other")
    assert (again.came, again.there) == (0, done.came)
    with pytest.raises(CaeavError, match="is not empty"):
        pack_store(toy.folder, package)


def test_shards_are_linked_and_the_store_stays_as_it_was(tars: Toy, tmp_path: Path) -> None:
    before = contents(tars.folder)
    package = pack_store(tars.folder, tmp_path / "package")
    for shard in (tars.folder / "shards").iterdir():
        assert shard.samefile(package / "shards" / shard.name)
    shutil.rmtree(package)
    assert contents(tars.folder) == before


def test_datasets_loads_clips_and_arrays(
    tars: Toy, tmp_path: Path, needs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset
    from safetensors.numpy import load

    place, cache = str(pack_store(tars.folder, tmp_path / "package")), str(tmp_path / "cache")
    rows = load_dataset("csv", data_files=f"{place}/clips.csv", split="train", cache_dir=cache)
    clips = {row["key"]: row for row in rows}
    store = StoreReader.open(tars.folder)
    assert list(clips) == list(store.keys) and {row["split"] for row in clips.values()} == {"train"}
    assert {row["labels"] for row in clips.values()} == {"bark"}
    for rows in (
        load_dataset(place, split="clips", streaming=True, cache_dir=cache),
        load_dataset(place, split="clips", cache_dir=cache),
    ):
        found = {row["__key__"]: load(row["safetensors"]) for row in rows}
        assert found.keys() == clips.keys()
        for key, arrays in found.items():
            for name, array in store.read(key).arrays.items():
                np.testing.assert_array_equal(arrays[name], array)


def test_what_is_not_the_store_is_refused(tars: Toy, tmp_path: Path) -> None:
    package, other = pack_store(tars.folder, tmp_path / "package"), tmp_path / "other"
    shutil.copytree(package, tmp_path / "bad")
    shard = tmp_path / "bad" / "shards" / "000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(WrongBytes, match=r"000001\.tar: not the bytes that were packed"):
        unpack_store(FolderFiles(tmp_path / "bad"), other)
    folder = other / "toy" / tars.folder.name
    assert not (folder / "complete.json").exists() and not (folder / "shards" / "000001.tar").exists()
    again = unpack_store(FolderFiles(package), other)  # it goes on from a sound one
    assert (
        again.there >= 1 and again.came + again.there == 3
    )  # the third may have been given up with the bad one
    with pytest.raises(CaeavError, match="holds no store"):
        unpack_store(FolderFiles(tmp_path), other)
    (package / "manifest.jsonl").write_text((package / "manifest.jsonl").read_text().replace("bark", "meow"))
    with pytest.raises(WrongBytes, match=r"manifest\.jsonl"):
        unpack_store(FolderFiles(package), tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_name_that_leads_elsewhere_is_refused(tars: Toy, tmp_path: Path) -> None:
    package = pack_store(tars.folder, tmp_path / "package")
    recipe = json.loads((package / "recipe.json").read_text()) | {"name": "../../x"}
    (package / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
    with pytest.raises(CaeavError, match="no name of a store"):
        unpack_store(FolderFiles(package), tmp_path / "other")


def test_a_store_that_is_not_whole_is_not_packed(tars: Toy, tmp_path: Path) -> None:
    part = tars.write_slices(2, tars.manifest())[0]
    with pytest.raises(CaeavError, match="is a slice of a store"):
        pack_store(part, tmp_path / "package")
    (tars.folder / "complete.json").unlink()
    with pytest.raises(CaeavError, match="not finished"):
        pack_store(tars.folder, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_to_the_hub_and_back_by_the_commands(
    tars: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = HubClient(tmp_path / "hub")
    monkeypatch.setattr(hub, "_client", lambda: client)
    beside = sorted(tars.dataset.iterdir())
    sent = run("store", "push", tars.folder, "hub:me/toy", "--private")
    assert sent.exit_code == 0 and sent.stdout == "https://example.org/datasets/me/toy\n"
    assert client.made == [("me/toy", "dataset", True)] and "shards/*" in (client.replaced or ())
    assert sorted(tars.dataset.iterdir()) == beside
    brought = run("store", "pull", "hub:me/toy", "--home", tmp_path / "other")
    folder = tmp_path / "other" / "stores" / "toy" / tars.folder.name
    assert brought.stdout == f"fetched      3 shards, 38.9 kB\nstore        {folder}\n"
    assert contents(folder) == contents(tars.folder)
    offline = run("store", "push", tars.folder, tmp_path / "package")
    assert offline.stdout == f"{tmp_path / 'package'}\n"
    again = run("store", "pull", tmp_path / "package", "--home", tmp_path / "third")
    assert again.exit_code == 0
    assert contents(tmp_path / "third" / "stores" / "toy" / tars.folder.name) == contents(tars.folder)
    wrong = run("store", "push", tars.folder, tmp_path / "new", "--replace")
    assert isinstance(wrong.exception, CaeavError) and "--replace is for addresses" in str(wrong.exception)
