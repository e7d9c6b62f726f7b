"""The tests that every store backend must pass, for authors of backends.

    from caeav.pipeline.store.testing import StoreContract

    class TestMine(StoreContract):
        @pytest.fixture
        def backend(self) -> str:
            return "mine"  # registered by backends.register("mine")

Needs pytest; only tests import it. Damage is only sampled here: a backend's own tests know where its bytes lie.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.store.backend import BadIndex, backend_of
from caeav.pipeline.store.contents import same_arrays
from caeav.pipeline.store.convert import convert
from caeav.pipeline.store.dtypes import stored
from caeav.pipeline.store.errors import DamagedShard, IncompleteStore, StoreError
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.payload import DTYPES
from caeav.pipeline.store.reader import StoreReader
from caeav.pipeline.store.record import Quarantined, Record
from caeav.pipeline.store.state import inspect
from caeav.pipeline.store.testing_data import Toy, contents
from caeav.pipeline.store.verify import repair, verify


class StoreContract:
    """Subclass it with a fixture `backend` that returns the name of a registered backend."""

    @pytest.fixture
    def toy(self, tmp_path: Path, backend: str) -> Toy:
        """The data set on the backend under test."""
        return Toy(tmp_path / "stores", backend)

    def test_everything_comes_back_as_it_was(self, toy: Toy) -> None:
        summary = toy.write(failing=["clip002", "clip009"])
        assert (summary.stored, summary.quarantined, summary.expected) == (8, 2, 10)
        reader = StoreReader.open(toy.folder)
        wanted = [clip.key for clip in toy.manifest().clips if clip.key not in ("clip002", "clip009")]
        assert list(reader.keys) == wanted and all(toy.same(record) for record in reader)
        assert all(toy.same(reader.read(key)) for key in reversed(wanted))
        fresh = StoreReader.open(toy.folder)
        fresh.prefetch(["clip002", "nobody", "clip001"])
        back = list(fresh.read_each(wanted[::-1]))
        assert [record.key for record in back] == wanted[::-1] and all(map(toy.same, back))
        assert reader.info("clip001") == dict(toy.record("clip001").info)
        assert [entry.key for entry in reader.quarantined] == ["clip002", "clip009"]
        with pytest.raises(StoreError, match="quarantined"):
            reader.read("clip002")

    def test_arrays_are_aligned_read_only_and_outlive_the_reader(self, toy: Toy) -> None:
        toy.write()
        reader = StoreReader.open(toy.folder)
        reader.read("clip001")
        travelled = copy.deepcopy(reader)
        record = travelled.read("clip007")
        del reader, travelled
        assert toy.same(record)
        assert all(x.flags.aligned and not x.flags.writeable for x in record.arrays.values())

    @pytest.mark.parametrize("shape", [(), (3,), (2, 3, 5)])
    def test_every_dtype_comes_back(self, toy: Toy, shape: tuple[int, ...]) -> None:
        arrays: dict[str, Any] = {
            f"x.{name}": np.arange(np.prod(shape, dtype=int)).reshape(shape).astype("u2").view("V2")
            if name == "BF16"
            else np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(code)
            for name, code in DTYPES.items()
        }
        self._write_one(toy, Record("clip000", arrays))
        assert same_arrays(StoreReader.open(toy.folder).read_stored("clip000").arrays, arrays)

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
    def test_formats_of_tokens_come_back_as_floats(self, toy: Toy, dtype: str) -> None:
        tokens = np.random.default_rng(0).standard_normal((4, 9, 16)).astype(np.float32)
        self._write_one(toy, Record("clip000", stored({"visual.a": tokens}, dtype)))
        (back,) = StoreReader.open(toy.folder).read("clip000").arrays.values()
        np.testing.assert_allclose(back.astype(np.float32), tokens, atol=0.03)

    def test_bytes_do_not_depend_on_the_order_of_anything(self, toy: Toy) -> None:
        toy.write(failing=["clip001", "clip008"])
        other = toy.at(toy.stores.parent / "other")
        with open_for_writing(other.dataset, toy.recipe(), toy.manifest()) as writer:
            for key in ("clip008", "clip001"):
                writer.quarantine(Quarantined(key, "decode", "no such file", 1))
            for plan in reversed(writer.plan()):
                writer.publish(plan, {key: _turned(toy.record(key)) for key in reversed(plan.missing)})
            writer.finish()
        assert contents(other.folder) == contents(toy.folder)

    def test_a_run_that_is_taken_up_gives_the_undisturbed_bytes(self, toy: Toy) -> None:
        calm = toy.at(toy.stores.parent / "calm")
        calm.write()
        with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
            plan = writer.plan()[1]
            writer.publish(plan, {key: toy.record(key) for key in plan.missing})
            with pytest.raises(IncompleteStore):
                writer.finish()
        with pytest.raises(IncompleteStore):
            StoreReader.open(toy.folder)
        assert StoreReader.open(toy.folder, allow_partial=True).keys == plan.keys
        toy.write(seen=lambda w: [plan.number for plan in w.plan()] == [0, 2] or pytest.fail("made twice"))
        assert contents(toy.folder) == contents(calm.folder)

    def test_a_finished_store_is_left_alone(self, toy: Toy) -> None:
        toy.write(failing=["clip002"])
        before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in toy.folder.rglob("*") if p.is_file()}
        toy.write()
        after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in toy.folder.rglob("*") if p.is_file()}
        before.pop(toy.folder / ".lock")
        after.pop(toy.folder / ".lock")
        assert after == before

    def test_growth_and_retries_give_the_bytes_of_a_fresh_run(self, toy: Toy) -> None:
        toy.write(failing=["clip004", "clip008", "clip009"])
        first = contents(toy.folder)["index/000000.idx"]
        toy.write(toy.manifest(15), retry_failed=True)
        fresh = toy.at(toy.stores.parent / "fresh")
        fresh.write(toy.manifest(15))
        assert contents(toy.folder) == contents(fresh.folder)
        assert contents(toy.folder)["index/000000.idx"] == first

    def test_a_failed_write_leaves_the_store_as_it_was(self, toy: Toy) -> None:
        toy.write()
        with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(12)) as writer:
            (plan,) = writer.plan()
            records = {key: toy.record(key) for key in plan.missing}
            bad = Record("clip011", records["clip011"].arrays, {"bad": {1, 2}})
            with pytest.raises(TypeError):
                writer.publish(plan, {**records, "clip011": bad})
            assert writer.plan() == [plan]
            assert not list(toy.folder.rglob(".part-*"))
        assert all(toy.same(record) for record in StoreReader.open(toy.folder, allow_partial=True))

    def test_no_damage_is_ever_handed_out_and_repair_makes_a_hole_that_is_filled(self, toy: Toy) -> None:
        toy.write(failing=["clip002"])
        wanted = contents(toy.folder)
        rng = random.Random(0)
        for name in [name for name in wanted if name != ".lock"]:
            path, data = toy.folder / name, wanted[name]
            at = rng.randrange(len(data))
            flipped = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            for damaged in (flipped, data[:at], b"", None):
                path.unlink() if damaged is None else path.write_bytes(damaged)
                if damaged != data:
                    self._never_silent(toy, name)
                path.write_bytes(data)
            if name not in ("recipe.json", "manifest.jsonl"):
                path.write_bytes(flipped)
                repair(toy.folder)
                toy.write(failing=["clip002"])
                assert contents(toy.folder) == wanted, name

    def test_no_bytes_are_an_index_but_those_written(self, toy: Toy) -> None:
        toy.write()
        backend, data = backend_of(toy.recipe()), (toy.folder / "index" / "000001.idx").read_bytes()
        assert backend.decode_index(data).encode() == data
        rng = random.Random(1)
        for _ in range(200):
            at = rng.randrange(len(data))
            for bad in (data[:at], data[:at] + rng.randbytes(4) + data[at + 4 :], rng.randbytes(at)):
                if bad != data:
                    with pytest.raises(BadIndex):
                        backend.decode_index(bad)

    def test_open_files_are_bounded(self, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        toy.write(toy.manifest(40))
        files = max(len(index.files) for index in inspect(toy.folder).indexes.values())
        monkeypatch.setattr("caeav.pipeline.store.reader.OPEN_FILES", 2 * files)
        reader = StoreReader.open(toy.folder)
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert all(toy.same(reader.read(key)) for key in sorted(reader.keys, key=lambda key: key[::-1]))
        assert len(list(Path("/proc/self/fd").iterdir())) - before <= 2 * files

    def test_converting_there_and_back_gives_the_same_bytes(self, toy: Toy) -> None:
        other = next(name for name in ("webdataset", "zarr") if name != toy.backend)
        toy.write(failing=["clip002"])
        wanted = contents(toy.folder)
        made, summary = convert(toy.folder, other)
        assert summary.stored == 9 and all(toy.same(record) for record in StoreReader.open(made))
        toy.folder.rename(toy.stores / "away")
        convert(made, toy.backend)
        assert contents(toy.folder) == wanted

    def _write_one(self, toy: Toy, record: Record) -> None:
        with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(1)) as writer:
            writer.publish(writer.plan()[0], {record.key: record})
            writer.finish()

    def _never_silent(self, toy: Toy, name: str) -> None:
        """A store whose file `name` is damaged says so, and never returns a record other than the one written."""
        if (toy.folder / "recipe.json").exists():
            assert not verify(toy.folder).sound, name
        try:
            reader = StoreReader.open(toy.folder)
        except StoreError as error:
            assert str(toy.folder) in str(error) and "next:" in str(error)
            return
        for key in reader.keys:
            try:
                assert toy.same(reader.read(key)), f"{name}: {key} is not what was written"
            except DamagedShard as error:
                assert key in str(error) and name in str(error)


def _turned(record: Record) -> Record:
    """The same record with everything in another order."""
    return Record(
        record.key, dict(reversed([*record.arrays.items()])), dict(reversed([*record.info.items()]))
    )
