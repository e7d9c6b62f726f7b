"""The copy of each index: what it saves, what is lost without it, and when it is not trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caeav.pipeline.store import DamagedStore, StoreReader, repair, verify
from caeav.pipeline.store.state import inspect


@pytest.fixture
def store(toys) -> Path:
    toys.write(failing=["clip002"])
    return toys.folder


def damage_index(store: Path, how: str) -> None:
    index = store / "index" / "000001.idx"
    if how == "folder":
        shutil.rmtree(store / "index")
    elif how == "file":
        index.unlink()
    elif how == "bits":
        data = index.read_bytes()
        index.write_bytes(data[:60] + bytes([data[60] ^ 4]) + data[61:])
    else:
        shutil.copy(store / "index" / "000000.idx", index)


@pytest.mark.parametrize("sealed", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("what", ["folder", "file", "bits", "another"])
@pytest.mark.parametrize("by", ["repair", "the next run"])
def test_a_lost_index_is_restored_from_its_copy(toys, store, contents, what, by, sealed):
    wanted = contents(store)
    if not sealed:
        (store / "complete.json").unlink()
    damage_index(store, what)
    if sealed:
        with pytest.raises(DamagedStore, match="store repair"):
            StoreReader.open(store)
    if by == "repair":
        done = repair(store)
        assert done.due == () and done.finished
        assert sum("taken from its copy" in text for text in done.said) == (3 if what == "folder" else 1)
        assert any(text.startswith("index/000001.idx: ") for text in done.said)
    else:
        seen = []
        toys.write(failing=["clip002"], seen=lambda writer: seen.extend([*writer.plan(), *writer.remarks]))
        assert all("taken from its copy" in text for text in seen) and seen, "nothing may be planned"
    assert contents(store) == wanted


def test_with_the_index_lost_only_damaged_records_are_made_again(toys, store, contents):
    wanted = contents(store)
    value = toys.record("clip006").arrays["visual.stage1"].tobytes()
    (path,) = [store / file.name for file in inspect(store).indexes[1].files if value in wanted[file.name]]
    at = path.read_bytes().index(value) + 9
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    shutil.rmtree(store / "index")
    done = repair(store)
    assert done.due == ("clip006",)
    reader = StoreReader.open(store, allow_partial=True)
    assert len(reader) == 8 and all(map(toys.same, reader))
    toys.write(failing=["clip002"])
    assert contents(store) == wanted


@pytest.mark.parametrize("sealed", [True, False], ids=["finished", "unfinished"])
def test_without_a_copy_all_records_of_the_shard_are_made_again(toys, store, contents, sealed):
    """As in stores older than the copies: that a record can be parsed does not prove it right."""
    wanted = contents(store)
    if not sealed:
        (store / "complete.json").unlink()
    damage_index(store, "file")
    shutil.rmtree(store / "spare")
    done = repair(store)
    assert done.due == tuple(f"clip00{n}" for n in range(4, 8))
    files = {text.partition(":")[0] for text in done.said if "nothing tells which records are whole" in text}
    assert files and all("000001.tar" in name or "c.1" in name for name in files)
    toys.write(failing=["clip002"])
    assert contents(store) == wanted, "the next run writes all copies"


def test_a_missing_or_wrong_copy_is_a_problem_but_a_store_without_copies_is_sound(toys, store, contents):
    wanted = contents(store)
    copy = store / "spare" / "000001.idx"
    for spoil, says in (
        (copy.unlink, "missing"),
        (lambda: copy.write_bytes(wanted["spare/000000.idx"]), "not the same as the index"),
        (lambda: shutil.copy(copy, store / "spare" / "000007.idx"), "does not belong"),
    ):
        spoil()
        (problem,) = verify(store).problems
        assert problem.where.startswith("spare/") and says in problem.what
        assert all(map(toys.same, StoreReader.open(store))), "readers do not need it"
        done = repair(store)
        assert done.due == () and len(done.said) == 1 and problem.where in done.said[0]
        assert contents(store) == wanted
    shutil.rmtree(store / "spare")
    assert verify(store).sound and repair(store).said == ()
    assert not (store / "spare").exists(), "a sound store is not changed"


def test_a_copy_of_another_recipe_or_shard_is_not_used(toys, store):
    other = toys.recipe(dtype="float32")
    toys.write(recipe=other)
    foreign = (toys.dataset / other.folder_name / "spare" / "000001.idx").read_bytes()
    for bad in (foreign, (store / "spare" / "000000.idx").read_bytes(), b"", foreign[:50]):
        (store / "complete.json").unlink(missing_ok=True)
        (store / "index" / "000001.idx").unlink()
        (store / "spare" / "000001.idx").write_bytes(bad)
        done = repair(store)
        assert done.due == tuple(f"clip00{n}" for n in range(4, 8))
        assert not any("taken from its copy" in text for text in done.said)
        toys.write(failing=["clip002"])
        assert verify(store).sound and all(map(toys.same, StoreReader.open(store)))


def test_the_seal_decides_between_an_index_and_a_different_copy(toys, store, contents):
    wanted = contents(store)
    other = toys.at(toys.stores.parent / "turned")
    other.write(failing=["clip002", "clip005"])
    shutil.copy(other.folder / "index" / "000001.idx", store / "index" / "000001.idx")
    done = repair(store)
    assert done.due == () and any("not the index the seal names" in text for text in done.said)
    assert contents(store) == wanted


def test_a_completely_damaged_shard_is_dropped_and_repair_continues(toys, store, contents):
    wanted = contents(store)
    for file in inspect(store).indexes[1].files:
        (store / file.name).write_bytes(bytes(file.bytes))
    done = repair(store)
    assert set(done.due) == {"clip004", "clip005", "clip006", "clip007"} and not done.finished
    assert not (store / "index" / "000001.idx").exists() and not (store / "spare" / "000001.idx").exists()
    assert not verify(store).problems
    toys.write(failing=["clip002"])
    assert contents(store) == wanted
