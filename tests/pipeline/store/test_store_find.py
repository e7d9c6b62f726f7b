"""Finding and listing stores, and the `caeav store` commands."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store import (
    Quarantined,
    Recipe,
    Reference,
    Slice,
    StoreError,
    find_other_recipes,
    find_slices,
    find_store,
    list_stores,
    open_for_writing,
)
from caeav.pipeline.store.find import idle_s, list_slices


@pytest.fixture
def caeav(toy, store_command):
    """Run `caeav store ...` on the toy's home."""
    return lambda *arguments: store_command(*arguments, "--home", toy.stores.parent)


@pytest.fixture
def three(toy):
    """Two token stores and a caption store of one data set."""
    toy.write(failing=["clip002"])
    other = toy.recipe(dtype="float32")
    with open_for_writing(toy.dataset, other, toy.manifest()) as writer:
        plan = writer.plan()[0]
        writer.publish(plan, {key: toy.record(key) for key in plan.missing})
    toy.write(recipe=Recipe("captions", "descriptor", {}))
    return toy.recipe(), other


def test_listing_tells_states_apart(toy, three):
    infos = {info.path.name: info for info in list_stores(toy.stores)}
    whole, part = (infos[recipe.folder_name] for recipe in three)
    assert (whole.state, whole.clips, whole.quarantined, whole.expected) == ("complete", 9, 1, 10)
    assert (part.state, part.clips, part.expected) == ("partial", 4, 10)
    assert whole.bytes == sum(p.stat().st_size for p in whole.path.glob("shards/*"))
    (part.path / "shards" / "000000.tar").unlink()
    assert [i.state for i in list_stores(toy.stores) if i.path == part.path] == ["damaged"]


def test_one_store_is_found_by_name_folder_or_fingerprint(toy, three):
    first, second = three
    assert find_store(toy.stores, "toy", "captions").name.startswith("captions-descriptor-")
    assert find_store(toy.stores, "toy", "tokens", first.fingerprint[:6]).name == first.folder_name
    assert find_store(toy.stores, "toy", "tokens", second.fingerprint).name == second.folder_name
    assert find_store(toy.stores, "toy", "tokens", second.folder_name).name == second.folder_name
    with pytest.raises(StoreError, match=rf"2 stores match[\s\S]*{second.folder_name} \(partial, 4 clips\)"):
        find_store(toy.stores, "toy", "tokens", "classic")
    with pytest.raises(StoreError, match=r"no captions store of toy called 'x'[\s\S]*there are:"):
        find_store(toy.stores, "toy", "captions", "x")
    with pytest.raises(StoreError, match="caeav extract --dataset ave"):
        find_store(toy.stores, "ave", "tokens")
    with pytest.raises(StoreError, match="fingerprint: --this X"):
        find_store(toy.stores, "toy", "tokens", "classic", by="--this X")


def test_other_recipes_are_named_by_field(toy, three):
    first, second = three
    (other,) = find_other_recipes(toy.stores, "toy", first)
    assert other.path.name == second.folder_name
    assert other.differences == ("fields.dtype: 'float32' -> 'float16'",)
    assert len(find_other_recipes(toy.stores, "toy", toy.recipe(dtype="float64"))) == 2
    assert find_other_recipes(toy.stores, "toy", Recipe("tokens", "class", {})) == []
    assert find_other_recipes(toy.stores, "nothing", first) == []


def test_ls_lists_all_stores_of_a_home(toy, three, caeav):
    rows = json.loads(caeav("ls", "--json").stdout)
    assert {row["state"] for row in rows} == {"complete", "partial"} and len(rows) == 3
    text = caeav("ls").stdout
    assert three[0].folder_name in text and "partial" in text
    assert json.loads(caeav("ls", "--json", "--dataset", "ave").stdout) == []


def test_show_says_what_is_in_a_store(toy, three, caeav):
    folder = str(toy.folder)
    text = caeav("show", folder).stdout
    for part in ("float16", "10 x 6 x 8", "visual.stage1", "no such file", "no_audio", "9 of 10"):
        assert part in text
    (shown,) = json.loads(caeav("show", "toy", "--store", three[0].fingerprint[:8], "--json").stdout)
    assert shown["arrays"]["visual.stage1"] == {"shape": [10, 6, 8], "dtype": "float16"}
    assert shown["quarantine"] == [["decode", "no such file", 1]]
    assert shown["notes"] == [["no_audio", 9]] and shown["no_audio"] == 9 and shown["missing"] == 0
    (record,) = json.loads(caeav("show", folder, "--key", "clip003", "--json").stdout)
    assert record["info"]["audio_ok"] == [False] * 10 and "audio.mask" in record["arrays"]
    assert "holds no store" in str(caeav("show", str(toy.stores / "nowhere")).exception)
    assert isinstance(caeav("show", folder, "--key", "clip002").exception, CaeavError)


def test_a_data_sets_name_means_all_of_its_stores(toy, three, caeav):
    mine = [folder.name for folder in toy.dataset.iterdir() if (folder / "recipe.json").is_file()]
    shown = json.loads(caeav("show", "toy", "--json").stdout)
    assert len(mine) > 1 and sorted(Path(facts["path"]).name for facts in shown) == sorted(mine)
    verified = caeav("verify", "toy", "--json")
    assert sorted(Path(verified["path"]).name for verified in json.loads(verified.stdout)) == sorted(mine)
    assert verified.exit_code == 1  # one of them is not finished
    assert isinstance(caeav("verify", "unknown").exception, CaeavError)


def test_verify_exits_1_on_damage_and_on_missing_clips(toy, three, caeav):
    assert caeav("verify", str(toy.folder)).exit_code == 0
    partial = caeav("verify", str(toy.dataset / three[1].folder_name))
    assert partial.exit_code == 1 and "not finished, 6 clips missing" in partial.stdout
    shard = toy.folder / "shards" / "000001.tar"
    data = bytearray(shard.read_bytes())
    data[800] ^= 4
    shard.write_bytes(data)
    damaged = caeav("verify", str(toy.folder), "--json")
    (verified,) = json.loads(damaged.stdout)
    assert damaged.exit_code == 1 and not verified["sound"]
    assert [(p["where"], p["key"]) for p in verified["problems"]] == [("shards/000001.tar", "clip004")]


def test_terminal_escapes_in_a_quarantine_reason_are_shown_escaped(toy, caeav):
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(1)) as writer:
        writer.quarantine(Quarantined("clip000", "decode", "\x1b[2J[red]gone[/red]", 1))
        writer.finish()
    text = caeav("show", "toy").stdout
    assert "\x1b" not in text and "\\x1b[2J[red]gone[/red]" in text


def test_a_store_is_found_by_four_or_more_digits_of_its_fingerprint(toy) -> None:
    toy.write()
    toy.write(recipe=toy.recipe(dtype="float32"))
    digits = toy.recipe().fingerprint
    for name in (digits[:4], digits[:12].upper(), digits):
        assert find_store(toy.stores, "toy", "tokens", name) == toy.folder
    with pytest.raises(StoreError, match=r"no tokens store of toy called"):
        find_store(toy.stores, "toy", "tokens", digits[:3])
    with pytest.raises(StoreError, match=r"2 stores match, one is needed"):
        find_store(toy.stores, "toy")
    with pytest.raises(StoreError, match=r"no captions store of toy") as caught:
        find_store(toy.stores, "toy", "captions")
    assert "caeav caption --dataset toy" in str(caught.value.hint)
    with pytest.raises(StoreError, match=r"no store of other in"):
        find_store(toy.stores, "other")


def test_a_listed_store_has_its_counts_and_its_size(toy) -> None:
    toy.write(failing=["clip002"])
    size = sum(path.stat().st_size for path in toy.folder.glob("shards/*"))
    (info,) = list_stores(toy.stores)
    assert (info.dataset, info.kind, info.name, info.state) == ("toy", "tokens", "classic", "complete")
    assert (info.clips, info.quarantined, info.expected, info.bytes) == (9, 1, 10, size)
    (toy.folder / "complete.json").unlink()
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(12)) as writer:
        writer.keep(toy.record("clip010"))
        journal = (toy.folder / "journal" / "000002.log").stat().st_size
    (info,) = list_stores(toy.stores)
    assert (info.state, info.clips, info.quarantined, info.expected) == ("partial", 9, 1, 12)
    assert info.bytes == size + journal and info.fingerprint12 == toy.recipe().fingerprint[:12]


def test_slices_are_found_by_the_name_of_their_store_in_order(toy) -> None:
    for number, count in ((2, 3), (1, 3), (3, 3)):
        open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), part=Slice(number, count)).close()
    wanted = [toy.dataset / f"{toy.recipe().folder_name}.slice-{n}-of-3" for n in (1, 2, 3)]
    digits = toy.recipe().fingerprint
    for name in (None, "classic", toy.recipe().folder_name, digits[:6]):
        assert find_slices(toy.stores, "toy", name) == wanted
    assert list_slices(toy.stores) == wanted and list_stores(toy.stores) == []
    with pytest.raises(StoreError, match="no matching slice of a store of 'toy'"):
        find_slices(toy.stores, "toy", "other")
    open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), part=Slice(1, 2)).close()
    with pytest.raises(StoreError, match=r"slices of 2 stores of toy in .* match[\s\S]*cut into 3"):
        find_slices(toy.stores, "toy")


def test_a_reference_means_the_store_of_its_fingerprint_in_its_data_set(toy) -> None:
    toy.write()
    (info,) = list_stores(toy.stores)
    digits = toy.recipe().fingerprint
    assert Reference("", digits).means(info) and Reference("toy", digits).means(info)
    assert not Reference("other", digits).means(info) and not Reference("", digits[::-1]).means(info)
    slice_of = replace(info, path=info.path.with_name(info.path.name + ".slice-1-of-2"))
    assert not Reference("toy", digits).means(slice_of)
    for path in (toy.folder, *toy.folder.iterdir()):
        os.utime(path, (1000, 1000), follow_symlinks=False)
    old = idle_s(toy.folder)
    os.utime(toy.folder / "index", (5000, 5000))
    assert 3900 < old - idle_s(toy.folder) < 4100, "the newest time counts"
