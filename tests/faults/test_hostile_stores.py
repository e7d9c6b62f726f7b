"""Untrusted stores and manifests: their content is never obeyed, only compared, escaped or refused.

Hostile indexes, payload headers, seals and layouts are tested beside the formats (`tests/pipeline/store`).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caeav.cli.app import build, run
from caeav.cli.console import say
from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.manifest import read_manifest, write_manifest
from caeav.pipeline.store import Quarantined, Record, StoreError, StoreReader, open_for_writing, verify
from caeav.pipeline.store.formats.webdataset import decode_index
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.testing_data import Toy

EVIL = "</script><img src=x onerror=alert(1)>\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe`|$(id)"
BAD_CHARACTERS = "\x1b\x07\x9b\u202e"
OUTSIDE = r"without '\.\.'"


@pytest.fixture(params=["webdataset", "zarr"])
def toys(tmp_path: Path, request: pytest.FixtureRequest) -> Toy:
    toy = Toy(tmp_path / "stores", request.param)
    toy.write()
    return toy


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail when the block takes longer: reading must not block."""

    def late(*_: object) -> None:
        raise TimeoutError("reading blocked")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def as_fifo(path: Path) -> None:
    os.mkfifo(path)


def as_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_loop(path: Path) -> None:
    path.symlink_to(path)


def as_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [as_fifo, as_endless, as_loop, as_folder])
@pytest.mark.parametrize(
    "name",
    ["recipe.json", "manifest.jsonl", "quarantine.jsonl", "complete.json", "index/000001.idx", "payload"],
)
def test_pipes_devices_loops_and_folders_are_refused_without_reading(
    name: str, make: Callable[[Path], None], toys: Toy
) -> None:
    payload = {"webdataset": "shards/000001.tar", "zarr": "shards.zarr/visual.stage1/c.1.0.0.0"}[toys.backend]
    path = toys.folder / (payload if name == "payload" else name)
    path.unlink()
    make(path)
    with within(10):
        with pytest.raises((StoreError, OSError)):
            StoreReader.open(toys.folder)
        try:
            assert not verify(toys.folder).sound
        except StoreError:
            assert name in ("recipe.json", "manifest.jsonl")


def make_link(member: tarfile.TarInfo, kind: bytes) -> None:
    member.type, member.linkname = kind, "/etc/passwd"


MEMBERS: dict[str, Callable[[tarfile.TarInfo], object]] = {
    "parent": lambda member: setattr(member, "name", "../../../../evil.safetensors"),
    "absolute": lambda member: setattr(member, "name", "/evil.safetensors"),
    "pickle": lambda member: setattr(member, "name", "clip000.pyd"),
    "link": lambda member: make_link(member, tarfile.SYMTYPE),
    "hard link": lambda member: make_link(member, tarfile.LNKTYPE),
    "device": lambda member: make_link(member, tarfile.CHRTYPE),
    "fifo": lambda member: make_link(member, tarfile.FIFOTYPE),
    "huge": lambda member: setattr(member, "size", 8**11 - 1),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_tar_headers_of_a_forged_shard_are_not_obeyed(kind: str, tmp_path: Path) -> None:
    """All digests match. Names, types and sizes in the tar are never used, only compared by `verify`."""
    toy = Toy(tmp_path / "stores")
    toy.write()
    folder = StoreFolder(toy.folder)
    shard = toy.folder / "shards" / "000000.tar"
    data = bytearray(shard.read_bytes())
    member = tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict")
    MEMBERS[kind](member)
    data[:512] = member.tobuf(tarfile.GNU_FORMAT)[:512]
    shard.write_bytes(data)
    index = decode_index(folder.index(0).read_bytes())
    forged = replace(index, shard_sha256=hashlib.sha256(data).hexdigest())
    folder.index(0).write_bytes(forged.encode())
    folder.seal.unlink()
    before = set(tmp_path.rglob("*"))
    reader = StoreReader.open(toy.folder, allow_partial=True)
    assert all(map(toy.same, reader))
    assert any(
        "tar header" in problem.what and problem.key == "clip000" for problem in verify(toy.folder).problems
    )
    assert set(tmp_path.rglob("*")) == before and not Path("/evil.safetensors").exists()


def test_a_compression_bomb_in_the_place_of_a_shard_is_not_unpacked(toys: Toy) -> None:
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", mtime=0) as out:
        out.write(bytes(64 << 20))
    name = {"webdataset": "shards/000000.tar", "zarr": "shards.zarr/visual.stage1/c.0.0.0.0"}[toys.backend]
    (toys.folder / name).write_bytes(bomb.getvalue())
    tracemalloc.start()
    with pytest.raises(StoreError, match="bytes, its index says"):
        StoreReader.open(toys.folder)
    assert verify(toys.folder).problems
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_zarr_metadata_is_compared_and_not_used(tmp_path: Path) -> None:
    """Codecs, sizes and storage transformers of the documents are compared, not used."""
    toy = Toy(tmp_path / "stores", "zarr")
    toy.write()
    document = toy.folder / "shards.zarr" / "visual.stage1" / "zarr.json"
    value = json.loads(document.read_text())
    value |= {"shape": [1 << 62, 10, 6, 8], "codecs": [{"name": "pickle"}], "attributes": {"path": "../../x"}}
    value["storage_transformers"] = [{"name": "exec", "configuration": {"command": "id"}}]
    document.write_text(json.dumps(value))
    with pytest.raises(StoreError, match="not the document that belongs to the shards"):
        StoreReader.open(toy.folder)
    (toy.folder / "complete.json").unlink()
    assert all(map(toy.same, StoreReader.open(toy.folder, allow_partial=True)))


@pytest.mark.parametrize(
    "key", ["../x", "a/b", "/etc/passwd", "a\\b", ".", "a.b", "", "x" * 201, "a\0b", "é", "a b"]
)
def test_unsafe_keys_are_refused_in_manifests_and_stores(key: str, tmp_path: Path) -> None:
    toy = Toy(tmp_path / "stores")
    manifest = toy.manifest(2)
    bad = replace(manifest, clips=(replace(manifest.clips[0], key=key), manifest.clips[1]))
    with pytest.raises(CaeavError, match="key is"):
        write_manifest(bad, tmp_path / "m.jsonl")
    with pytest.raises(CaeavError, match="key is"):
        toy.write(bad)
    write_manifest(manifest, tmp_path / "m.jsonl")
    text = (tmp_path / "m.jsonl").read_text().replace('"clip000"', json.dumps(key))
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(CaeavError, match="key is"):
        read_manifest(tmp_path / "m.jsonl")


@pytest.mark.parametrize("media", ["../secret.mp4", "a/../../secret.mp4", "/etc/passwd", "", "a\0.mp4", ".."])
def test_manifests_cannot_point_outside_the_media_folder(media: str, tmp_path: Path) -> None:
    toy = Toy(tmp_path / "stores")
    manifest = toy.manifest(2)
    bad = replace(manifest, clips=(replace(manifest.clips[0], media=media), manifest.clips[1]))
    with pytest.raises(CaeavError, match=OUTSIDE):
        toy.write(bad)
    write_manifest(manifest, tmp_path / "m.jsonl")
    text = (tmp_path / "m.jsonl").read_text().replace('"media/0.mp4"', json.dumps(media))
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(CaeavError, match=OUTSIDE):
        read_manifest(tmp_path / "m.jsonl")


def test_annotations_cannot_point_outside_the_media_folder(small: Any, tmp_path: Path) -> None:
    """A row of AVE's official layout whose id leads out of the folder is left out and reported."""
    (tmp_path / "AVE").mkdir()
    first = Path(small.manifest.clips[0].media).stem
    for path in small.media.iterdir():
        if path.is_file():
            text = path.read_text().replace(first, "../../../../etc/passwd")
            (tmp_path / path.name).write_text(text)
    manifest = load_dataset("synthetic", tmp_path, Home(tmp_path / "home"))
    assert manifest.clips and not any(".." in clip.media for clip in manifest.clips)
    assert any("'../../../../etc/passwd' is no video id" in finding.detail for finding in manifest.findings)


@pytest.fixture
def hostile_home(tmp_path: Path) -> Path:
    """A home with a store in which labels, notes, facts, quarantine reasons and class names are hostile text."""
    toy = Toy(tmp_path / "stores")
    clips = tuple(
        Clip(f"clip{i}", f"{i}.mp4", 0.0, 10.0, "train", (Event(EVIL, 1.0, 2.0),)) for i in range(3)
    )
    manifest = Manifest("toy", 10, 1.0, (EVIL,), clips, media_root=f"/{EVIL}", sources={EVIL: EVIL})
    with open_for_writing(toy.dataset, toy.recipe(note=EVIL), manifest) as writer:
        [plan] = writer.plan()
        writer.quarantine(Quarantined("clip1", EVIL, EVIL, 1))
        notes = {"notes": [{"code": EVIL, "detail": EVIL}], EVIL: EVIL}
        records = {key: Record(key, toy.record(key).arrays, notes) for key in ("clip0", "clip2")}
        writer.publish(plan, records)
        writer.finish()
    return tmp_path


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        ["store", "ls"],
        ["store", "show", "toy"],
        ["store", "show", "toy", "--key", "clip0"],
        ["store", "show", "toy", "--key", "clip1"],
        ["store", "verify", "toy"],
        ["store", "show", EVIL],
        ["runs", "show", EVIL],
    ],
)
def test_terminal_escapes_in_a_store_reach_no_terminal(
    command: list[str],
    as_json: bool,
    hostile_home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ["caeav", *command, "--home", str(hostile_home), *(["--json"] if as_json else [])]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit):
        run()
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not any(c in text for c in BAD_CHARACTERS), repr(text)
    if as_json and printed.out:
        assert json.loads(printed.out)


def test_messages_keep_line_breaks_and_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"error: {EVIL}\n  next: é")
    text = capsys.readouterr().err
    assert text.count("\n") == 2 and "next: é" in text and "\\x1b]0;owned" in text
    assert not any(c in text for c in BAD_CHARACTERS)


def test_json_output_keeps_hostile_text_intact(
    hostile_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["store", "show", "toy", "--key", "clip0", "--home", str(hostile_home), "--json"]
    build()(line, standalone_mode=False)
    [record] = json.loads(capsys.readouterr().out)
    assert record["info"][EVIL] == EVIL
