"""What the `caeav store` commands print, and their exit status, for given findings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import invoke
from typer.testing import Result

from caeav.cli import store, store_care
from caeav.cli.store_care import find_target, find_targets, is_store
from caeav.pipeline.extract.identity import MediaVerification
from caeav.pipeline.store import Differences, StoreInfo, Verification
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.media_record import MediaChange
from caeav.pipeline.store.verify import Repair

A, B = Path("h/stores/mine/tokens-a-0123456789ab"), Path("h/stores/mine/tokens-b-0123456789ab")
SOUND = Verification(A, (), finished=True, stored=3, shards=1, bytes=1500)
CHANGE = MediaChange("s", "k", "k.mp4", "gone", "k.mp4 is no file")


def call(*arguments: str) -> Result:
    return invoke([store], "store", *arguments)


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAEAV_HOME", str(tmp_path))
    for module in (store, store_care):
        monkeypatch.setattr(module, "find_targets", lambda target, name, home: [A, B])


def info(path: Path, dataset: str = "mine", **other: Any) -> StoreInfo:
    return StoreInfo(
        path, dataset, "tokens", "a", "0123456789ab", **{"state": "complete", "bytes": 1500, **other}
    )


@pytest.mark.parametrize(
    ("verifications", "status", "said"),
    [
        ((SOUND, SOUND), 0, "sound: 3 clips in 1 shard, 1.5 kB, 0 quarantined"),
        ((SOUND, Verification(B, (), missing=2)), 1, "not finished, 2 clips missing"),
        ((Verification(A, (Problem("f", "torn", shard=0),), finished=True), SOUND), 1, "DAMAGED, 1 problem"),
    ],
)
def test_verify_exits_with_1_unless_all_is_sound(
    verifications: tuple[Verification, ...], status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict(zip((A, B), verifications, strict=True))
    monkeypatch.setattr(store, "verify", lambda path, progress: found[path])
    result = call("verify", "mine")
    assert result.exit_code == status and said in result.stdout
    assert ("caeav store repair" in result.stderr) is ("DAMAGED" in said)
    result = call("verify", "mine", "--json")
    assert result.exit_code == status
    assert [row["sound"] for row in json.loads(result.stdout)] == [
        verified.sound for verified in verifications
    ]


@pytest.mark.parametrize(("changes", "status"), [((), 0), ((CHANGE,), 1)])
def test_verify_with_media_reports_what_changed(
    changes: tuple[MediaChange, ...], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path]] = []

    def verify_media(path: Path, root: Path) -> MediaVerification:
        asked.append((path, root))
        return MediaVerification(path, 5, 3, 1, changes)

    monkeypatch.setattr("caeav.pipeline.extract.identity.verify_media", verify_media)
    monkeypatch.setattr(store, "verify", lambda path, progress: Verification(path, (), finished=True))
    result = call("verify", "mine", "--media", "--root", "r")
    assert result.exit_code == status and asked == [(A.resolve(), Path("r")), (B.resolve(), Path("r"))]
    said = (
        "MEDIA CHANGED: 1 of 5 clips"
        if changes
        else "media as it was: 5 clips, 3 by all bytes and 2 by length and both ends of the file"
    )
    assert said in result.stdout and "media not recorded: 1 clip" in result.stdout
    found = json.loads(call("verify", "mine", "--media", "--root", "r", "--json").stdout)
    assert [found[0]["media"][name] for name in ("compared", "whole", "unknown")] == [5, 3, 1]
    assert len(found[1]["media"]["changes"]) == len(changes)
    assert call("verify", "mine", "--root", "r").exit_code == 1  # --root goes with --media


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (Differences(recipe=("fields.dtype: a, b",), compared=3), 0),
        (Differences(only_a=("k",)), 1),
        (Differences(only_b=("k",)), 1),
        (Differences(quarantine=("k",)), 1),
        (Differences(facts={"fps": 2}), 1),
    ],
)
def test_diff_ends_with_1_unless_the_content_is_the_same(
    found: Differences, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_care, "StoreReader", SimpleNamespace(open=lambda path, allow_partial: []))
    monkeypatch.setattr(store_care, "compare", lambda a, b, progress: found)
    for extra in ([], ["--json"]):
        result = call("diff", "a", "b", *extra)
        assert result.exit_code == status
    assert json.loads(result.stdout)["same_content"] is (status == 0)


def test_repair_repairs_every_store_and_lists_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tuple(f"k{i}" for i in range(9))
    done = {A: Repair(A, ("shard 0 dropped",), keys, False), B: Repair(B, (), (), True)}
    monkeypatch.setattr(store_care, "repair", lambda path, progress: done[path])
    lines = call("repair", "mine").stdout.splitlines()
    assert lines == [
        str(A),
        "  shard 0 dropped",
        f"9 clips due: {', '.join(keys[:8])} and 1 more; run the command that made the store again",
        str(B),
        "sound: nothing to repair",
    ]
    done[A] = Repair(A, ("shard 0 dropped",), (), True)
    assert "sound and finished" in call("repair", "mine").stdout
    assert len(json.loads(call("repair", "mine", "--json").stdout)) == 2


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, list[Path]]]:
    """`gc` where A was written long ago and B within the day."""
    gone: list[Path] = []
    monkeypatch.setattr("caeav.model.train.runs.referenced_stores", lambda home: set())
    monkeypatch.setattr(store_care, "unreferenced", lambda stores, referenced, named: [info(A), info(B)])
    monkeypatch.setattr(store_care, "idle_s", lambda path: 86400.0 if path == A else 86399.0)
    monkeypatch.setattr(store_care, "remove_store", gone.append)

    def run(*arguments: str) -> tuple[Result, list[Path]]:
        gone.clear()
        return call("gc", *arguments), list(gone)

    return run


def test_gc_lists_and_removes_only_when_told(
    unused: Callable[..., tuple[Result, list[Path]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, gone = unused()
    assert (result.exit_code, gone) == (0, [])
    assert "1.5 kB in stores no run refers to; --delete removes them" in result.stdout
    assert "spared: 1 store written within the last day" in result.stderr
    result, gone = unused("--delete", "--yes")
    assert (result.exit_code, gone) == (0, [A]) and "removed: 1.5 kB" in result.stdout
    result, gone = unused("--delete", "--yes", "--recent", "--json")
    assert gone == [A, B]
    assert [(row["spared"], row["deleted"]) for row in json.loads(result.stdout)] == [(False, True)] * 2
    result, _ = unused("--json")
    assert [(row["spared"], row["deleted"]) for row in json.loads(result.stdout)] == [
        (False, False),
        (True, False),
    ]
    monkeypatch.setattr(store_care, "confirmed", lambda question, yes: False)
    result, gone = unused("--delete")
    assert (result.exit_code, gone) == (1, []) and "nothing is removed" in result.stderr


def test_ls_shows_one_data_set_and_reports_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [info(A), info(B, "other", state="damaged", problem="its index is torn")]
    monkeypatch.setattr(store, "list_stores", lambda stores: infos)
    monkeypatch.setattr(
        store,
        "list_slices",
        lambda stores: [
            A.with_name(f"{A.name}.slice-1-of-2"),
            B.with_name("tokens-c-0123456789ab.slice-1-of-2"),
        ],
    )
    monkeypatch.setattr(store.datasets, "name", lambda dataset, home: dataset)
    result = call("ls")
    assert A.name in result.stdout and B.name in result.stdout and "its index is torn" in result.stderr
    assert (
        "not merged yet, 1 slice (caeav store merge joins them): mine" in result.stderr
    )  # A itself is whole
    result = call("ls", "--dataset", "mine")
    assert A.name in result.stdout and B.name not in result.stdout and "torn" not in result.stderr
    assert [row["dataset"] for row in json.loads(call("ls", "--dataset", "other", "--json").stdout)] == [
        "other"
    ]
    infos.clear()
    assert "no store in" in call("ls").stderr


def test_a_store_is_named_by_folder_or_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store_care, "list_stores", lambda stores: [info(A), info(B), info(A, "other")])
    monkeypatch.setattr(
        store_care, "find_store", lambda stores, dataset, name=None: Path(f"{dataset}:{name}")
    )
    monkeypatch.setattr(store_care.datasets, "name", lambda target, home: target)
    assert find_targets("mine", None, tmp_path) == [A, B]
    assert find_targets("mine", "a", tmp_path) == [Path("mine:a")]
    assert find_targets("none", None, tmp_path) == [Path("none:None")]
    assert find_target("mine", None, tmp_path) == Path("mine:None")
    assert find_targets(str(A), "a", tmp_path) == [A] and find_target(str(A), None, tmp_path) == A
    (tmp_path / "recipe.json").touch()
    assert is_store(str(tmp_path)) and is_store("no/such/folder") and is_store(A.name)
    assert is_store(f"{A.name}.slice-1-of-2")
    assert not is_store("mine") and not is_store(str(tmp_path.parent))
