"""Verify and repair, one file and one byte at a time: what is reported, dropped and restored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.store import (
    DamagedShard,
    Record,
    StoreError,
    StoreReader,
    open_for_writing,
    repair,
    verify,
)
from caeav.pipeline.store.backend import backend_of
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.formats.webdataset import structure_differences as structure_of_tar
from caeav.pipeline.store.formats.zarr_format import structure_differences as structure_of_zarr
from caeav.pipeline.store.layout import (
    StoreFolder,
)
from caeav.pipeline.store.payload import (
    encode_info,
)
from caeav.pipeline.store.state import inspect
from caeav.pipeline.store.testing_data import Toy
from caeav.pipeline.store.verify import Verification


def test_a_store_is_sound_when_finished_complete_and_undamaged(tmp_path: Path) -> None:
    good = Verification(tmp_path, (), finished=True)
    assert good.sound
    for other in (
        replace(good, finished=False),
        replace(good, missing=1),
        replace(good, problems=(Problem("a", "b"),)),
    ):
        assert not other.sound


def flip_value(toys, key: str, value: bytes) -> None:
    """Flip one bit of `value`, which occurs only in the record of `key`."""
    number = int(key[4:]) // 4
    for path in backend_of(toys.recipe()).files(StoreFolder(toys.folder))[number]:
        data = path.read_bytes()
        if value in data:
            assert data.count(value) == 1
            path.write_bytes(data.replace(value, bytes([value[0] ^ 1]) + value[1:]))


def with_own_facts(toys) -> Any:
    """The toy with facts that differ from clip to clip."""
    record = type(toys).record

    class Own(type(toys)):
        def record(self, key: str) -> Record:
            return replace(record(self, key), info={"own": f"fact of {key}"})

    return Own(toys.stores, toys.backend)


def test_damaged_facts_are_refused_with_their_record(toys) -> None:
    toys = with_own_facts(toys)
    toys.write()
    flip_value(toys, "clip005", b"fact of clip005")
    reader = StoreReader.open(toys.folder)
    for _ in range(2):
        with pytest.raises(DamagedShard, match=r"key clip005: the (json|chunk) has crc32c"):
            reader.read("clip005")
        with pytest.raises(DamagedShard, match=r"key clip005: the (json|chunk) has crc32c"):
            reader.info("clip005")
    assert reader.read("clip004").info == {"own": "fact of clip004"}
    assert [(problem.key, problem.shard) for problem in verify(toys.folder).problems] == [("clip005", 1)]


def test_a_wrong_digest_alone_is_a_problem(toys) -> None:
    toys.write()
    number, index = next(iter(inspect(toys.folder).indexes.items()))
    wrong = (
        {"digests": ("0" * 64, *index.digests[1:])} if toys.backend == "zarr" else {"shard_sha256": "0" * 64}
    )
    (toys.folder / "complete.json").unlink()
    for place in ("index", "spare"):
        (toys.folder / place / f"{number:06d}.idx").write_bytes(replace(index, **wrong).encode())
    (problem,) = verify(toys.folder).problems
    assert problem.where == index.files[0].name and "the index says 000000000000..." in problem.what


def test_facts_that_are_no_object_are_damage_despite_a_matching_checksum(
    toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys = with_own_facts(toys)
    module = toys.backend
    bad = b'["fact of clip005"]'
    monkeypatch.setattr(
        f"caeav.pipeline.store.formats.{module}.encode_info",
        lambda info: bad if "clip005" in info["own"] else encode_info(info),
    )
    toys.write()
    (problem,) = verify(toys.folder).problems
    assert (problem.key, problem.shard) == ("clip005", 1) and "not an object" in problem.what
    reader = StoreReader.open(toys.folder)
    for read in (reader.read, reader.info):
        with pytest.raises(DamagedShard, match="key clip005: facts is a JSON list"):
            read("clip005")


def test_verify_lists_all_damage_and_reports_each_byte_once(toys) -> None:
    toys = with_own_facts(toys)
    toys.write()
    told: list[int] = []
    assert verify(toys.folder, told.append).sound
    files = [p for paths in backend_of(toys.recipe()).files(StoreFolder(toys.folder)).values() for p in paths]
    assert sum(told) == sum(path.stat().st_size for path in files)
    for key in ("clip001", "clip002", "clip009"):
        flip_value(toys, key, f"fact of {key}".encode())
    assert {problem.key for problem in verify(toys.folder).problems} == {"clip001", "clip002", "clip009"}


def test_repair_drops_every_damaged_record_and_names_the_due_clips(toys) -> None:
    toys = with_own_facts(toys)
    toys.write()
    for key in ("clip001", "clip002", "clip009"):
        flip_value(toys, key, f"fact of {key}".encode())
    told: list[int] = []
    done = repair(toys.folder, told.append)
    assert (done.due, done.finished) == (("clip001", "clip002", "clip009"), False) and sum(told)
    assert sum("; dropped" in text for text in done.said) == 3
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest()) as writer:
        writer.keep(toys.record("clip002"))
    assert repair(toys.folder).due == ("clip001", "clip009")
    toys.write()
    assert verify(toys.folder).sound
    assert repair(toys.folder) == replace(done, said=(), due=(), finished=True)


def test_verify_compares_the_bytes_outside_the_records(toys) -> None:
    toys.write(toys.manifest(3))
    ((_, index),) = inspect(toys.folder).indexes.items()
    shard = backend_of(toys.recipe()).open(StoreFolder(toys.folder), index)
    for place, facts in enumerate(index.files):
        data = np.fromfile(toys.folder / facts.name, np.uint8)
        if toys.backend == "zarr":
            spans = [shard._span(place, row) for row in range(3)]
            rows, sums = index.rows["slot"], np.array([shard._sum(place, row) for row in range(3)], np.uint32)
            seen = lambda: list(structure_of_zarr(data, rows, index.sizes(place), sums, index.slots))  # noqa: B023, E731
        else:
            spans = [shard._span(row, part) for row in range(3) for part in ("array", "info")]
            seen = lambda: list(structure_of_tar(data, index))  # noqa: B023, E731
        assert seen() == []
        around = np.ones(data.size, bool)
        for start, end in spans:
            around[start:end] = False
        for at in np.flatnonzero(around)[:: 1 if toys.backend == "zarr" else 13]:
            data[at] ^= 1
            assert len(seen()) == 1, f"byte {at} of {facts.name}"
            data[at] ^= 1
        data = np.append(data, np.uint8(0))
        assert len(seen()) == 1


KINDS = ("recipe", "manifest", "quarantine", "complete", "index", "spare", "payload")


@pytest.mark.parametrize("how", ["flip", "longer", "shorter"])
@pytest.mark.parametrize(
    ("toys", "kind"),
    [*(("webdataset", kind) for kind in KINDS), *(("zarr", kind) for kind in (*KINDS, "document"))],
    indirect=["toys"],
)
def test_a_changed_file_is_named_and_repaired(toys, contents, kind: str, how: str) -> None:
    toys.write(failing=["clip002"])
    wanted = contents(toys.folder)
    files = backend_of(toys.recipe()).files(StoreFolder(toys.folder))[1]
    documents = sorted(toys.folder.glob("shards.zarr/**/zarr.json"))
    path = {
        "index": toys.folder / "index" / "000001.idx",
        "spare": toys.folder / "spare" / "000001.idx",
        "payload": files[-1],
        "document": documents[-1] if documents else None,
    }.get(kind) or next(toys.folder.glob(f"{kind}.json*"))
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if how == "shorter" else data + b"\n" * (how == "longer"))
    name = path.relative_to(toys.folder).as_posix()
    verified = verify(toys.folder)
    assert not verified.sound and any(
        name in problem.where or name in problem.what or kind == "recipe" for problem in verified.problems
    )
    if not (kind == "payload" and how == "flip") and kind != "spare":
        with pytest.raises(StoreError):
            StoreReader.open(toys.folder)
    if kind == "recipe":
        return
    done = repair(toys.folder)
    assert done.said and (done.finished or done.due or kind in ("manifest", "quarantine", "payload"))
    toys.write(failing=["clip002"])
    assert verify(toys.folder).sound and contents(toys.folder) == wanted
    assert repair(toys.folder).said == ()


def test_a_wrong_zarr_document_is_rewritten_and_the_store_sealed_again(memory: Path, contents) -> None:
    toy = Toy(memory / "stores", "zarr")
    toy.write()
    wanted = contents(toy.folder)
    (toy.folder / "shards.zarr" / "key" / "zarr.json").write_text("{}")
    said: list[str] = []
    toy.write(seen=lambda w: said.extend(w.remarks))
    assert contents(toy.folder) == wanted and said[0].endswith("it is written anew")
    assert said[1].startswith("damage was found on opening; `caeav store verify")


def test_damage_that_comes_while_a_shard_is_rewritten_is_not_copied(toys) -> None:
    toys = with_own_facts(toys)
    toys.write()
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest(12)) as writer:
        (plan,) = writer.plan()
        flip_value(toys, "clip009", b"fact of clip009")
        with pytest.raises(DamagedShard, match="clip009"):
            writer.publish(plan, {key: toys.record(key) for key in plan.missing})
