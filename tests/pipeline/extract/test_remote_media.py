"""Media from an object store, and stores published while they are made: the bytes of a run from a disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3, Fault
from thread_cluster import ThreadCluster, use_clusters
from waiting import wait_until

from caeav.cli.datasets import LOOKS, load, source
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.pipeline.extract.cluster.options import ClusterOptions
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.identity import verify_media
from caeav.pipeline.extract.jobs import TokenOptions
from caeav.pipeline.extract.places import Address, Place, address_of, lay_out, place_of
from caeav.pipeline.extract.spool import PREFIX, Lost, Spool, remove_left, spool_folder
from caeav.pipeline.extract.tokens import extract
from caeav.pipeline.store import StoreWriter, open_for_writing
from caeav.pipeline.store.media_record import digests, whole_digest
from caeav.pipeline.store.remote.faults import AccessRefused, Different, RemoteError
from caeav.pipeline.store.remote.inspecting import list_remote, verify_remote
from caeav.pipeline.store.remote.push import Publishing
from caeav.pipeline.store.testing_data import Toy, contents

URL = "s3://bucket/sets/AVE"
CLIPS = 10


@pytest.fixture
def uploaded(small_set: Path, s3: S3) -> Path:
    """Upload `small_set` to `URL`; its folder on the disk."""
    for path in sorted(small_set.rglob("*")):
        if path.is_file():
            s3.put(f"sets/AVE/{path.relative_to(small_set).as_posix()}", path.read_bytes())
    return small_set


def some(manifest: Manifest) -> Manifest:
    return replace(manifest, clips=manifest.clips[:CLIPS])


def made(home: Home, root: Path, **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    manifest = some(load_dataset("synthetic", root, home))
    run = RunContext(manifest, home, RunOptions(2, **options), remark=said.append)
    return extract(run, TokenOptions("classic", "classic", shard_clips=4)), said


def test_the_layout_holds_small_files_and_placeholders_of_media(
    uploaded: Path, s3: S3, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    root = lay_out(URL, home)
    assert address_of(root) == URL and isinstance(place_of(root), Address)
    assert type(place_of(uploaded)) is Place
    for path in (p for p in uploaded.rglob("*") if p.is_file()):
        here = root / path.relative_to(uploaded)
        assert here.stat().st_size == path.stat().st_size
        if path.suffix == ".mp4":
            assert here.stat().st_blocks * 512 < 4096 and not any(here.read_bytes())
        else:
            assert here.read_bytes() == path.read_bytes()
    assert (
        some(load_dataset("synthetic", root, home)).clips
        == some(load_dataset("synthetic", uploaded, home)).clips
    )
    s3.seen.clear()
    lay_out(URL, home)
    assert [method for method, _ in s3.seen] == ["GET"], "only the listing"
    s3.buckets["bucket"].pop("sets/AVE/categories.txt")
    s3.put("sets/AVE/dataset.json", b"{}")
    lay_out(URL, home)
    assert not (root / "categories.txt").exists() and (root / "dataset.json").read_bytes() == b"{}"
    s3.put("sets/AVE/../../evil.txt", b"no")
    with pytest.raises(RemoteError):
        lay_out(URL, home)
    assert not list(tmp_path.rglob("evil.txt"))
    with pytest.raises(CaeavError, match="there is nothing"):
        lay_out("s3://bucket/elsewhere", home)


def test_digests_are_those_of_the_files(uploaded: Path, s3: S3, tmp_path: Path) -> None:
    s3.put("sets/AVE/AVE/long.mp4", long := os.urandom(200_000))
    root = lay_out(URL, Home(tmp_path))
    place = place_of(root)
    copy = tmp_path / "copy"
    (copy / "AVE").mkdir(parents=True)
    names = [f"AVE/{p.name}" for p in sorted((uploaded / "AVE").iterdir())[:3]]
    for name in names:
        (copy / name).write_bytes((uploaded / name).read_bytes())
    (copy / "AVE/long.mp4").write_bytes(long)
    names.append("AVE/long.mp4")
    assert place.digests(names) == digests(copy, names, lambda path: [path])
    assert [place.whole_digest(name) for name in names] == [
        whole_digest(copy, n, lambda p: [p]) for n in names
    ]
    s3.buckets["bucket"].pop(f"sets/AVE/{names[0]}")
    assert place.digests(names)[names[0]] == b""


def test_a_run_from_an_address_gives_the_bytes_of_one_from_a_folder(
    uploaded: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a spool as large as the largest file, temporary faults, and publishing at the same time."""
    largest = max(p.stat().st_size for p in (uploaded / "AVE").iterdir())
    monkeypatch.setenv("CAEAV_SPOOL_BYTES", str(largest))
    local, _ = made(Home(tmp_path / "a"), uploaded)
    home = Home(tmp_path / "b")
    root = lay_out(URL, home)
    s3.faults = [
        Fault(500, "GET", r"\.mp4$", times=2),
        Fault("truncate", "GET", r"\.mp4$", times=2, after=3),
        Fault(503, "PUT", r"\.tar$", after=1),
    ]
    remote, said = made(home, root, publish="s3://bucket/out")
    assert contents(remote.path) == contents(local.path)
    assert not any(fault.times for fault in s3.faults)
    assert not list((home.root / "remote").glob(f"{PREFIX}*"))
    url = f"s3://bucket/out/synthetic/{local.path.name}"
    assert f"published to {url}" in said and verify_remote(url).sound
    verified = verify_media(remote.path, root)
    assert (verified.compared, verified.whole, verified.changes) == (CLIPS, CLIPS, ())
    s3.put(f"sets/AVE/{some_media(root)}", b"another")
    lay_out(URL, home)
    assert [change.what for change in verify_media(remote.path, root).changes] == ["changed"]


def test_actors_fetch_media_into_spools_of_their_own(
    uploaded: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file each on their own machine, with a fault that passes; one that stays ends the run."""
    use_clusters(monkeypatch, ThreadCluster)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("CAEAV_SPOOL_BYTES", str(max(p.stat().st_size for p in (uploaded / "AVE").iterdir())))
    used: set[Path] = set()
    enter = Spool.__enter__
    monkeypatch.setattr(Spool, "__enter__", lambda spool: (enter(spool), used.add(spool.folder))[0])
    local, _ = made(Home(tmp_path / "a"), uploaded)
    home = Home(tmp_path / "b")
    root = lay_out(URL, home)
    s3.faults = [Fault("truncate", "GET", r"\.mp4$", times=2, after=3)]
    remote, _ = made(home, root, cluster=ClusterOptions())
    assert contents(remote.path) == contents(local.path)
    assert len(used) == 3 and {folder.parent for folder in used} == {tmp_path / "scratch"}
    assert not list(tmp_path.rglob(f"{PREFIX}*")) and not any(fault.times for fault in s3.faults)
    assert verify_media(remote.path, root).whole == CLIPS
    s3.faults = [Fault(403, "GET", r"\.mp4$", times=1000, after=CLIPS)]  # not while digests are taken
    with pytest.raises(CaeavError, match=f"{URL}.*access is refused"):
        made(Home(tmp_path / "other"), root, cluster=ClusterOptions())
    assert not list(tmp_path.rglob(f"{PREFIX}*"))


def test_files_at_an_address_are_cut_like_those_in_a_folder(
    small_set: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes once to tell its length, through the spool; afterwards its length is known."""
    folder, url = tmp_path / "own", "s3://bucket/own"
    folder.mkdir()
    for path in sorted((small_set / "AVE").iterdir())[:3]:
        shutil.copy(path, folder)
        s3.put(f"own/{path.name}", path.read_bytes())
    s3.put("own/no.mp4", b"no media")
    (folder / "no.mp4").write_bytes(b"no media")
    monkeypatch.setenv("CAEAV_SPOOL_BYTES", str(max(p.stat().st_size for p in folder.iterdir())))
    cut = {"segments": 2, "segment_s": 1.0, "stride_s": 1.0}
    there = load(str(folder), source(None, "none", **cut), Home(tmp_path / "a"), LOOKS).manifest
    home, given = Home(tmp_path / "b"), source(None, "none", **cut)
    found = load(url, given, home, LOOKS).manifest
    rows = lambda manifest: [(clip.media, clip.start_s, clip.seconds) for clip in manifest.clips]  # noqa: E731
    assert rows(found) == rows(there) and len(found.clips) == 10
    assert not list(home.root.rglob(f"{PREFIX}*"))
    s3.seen.clear()
    assert rows(load(url, given, home, LOOKS).manifest) == rows(there)
    assert not [key for _, key in s3.seen if key.endswith(".mp4")]
    s3.put("own/more.mp4", (folder / "no.mp4").read_bytes())
    s3.faults = [Fault(403, "GET", r"more\.mp4$", times=1000)]
    with pytest.raises(AccessRefused, match=r"own/more\.mp4"):
        load(url, given, home, LOOKS)


def some_media(root: Path) -> str:
    return load_dataset("synthetic", root, Home(root)).clips[0].media


def test_a_vanished_object_quarantines_its_clip_and_refused_access_ends_the_run(
    uploaded: Path, s3: S3, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    root = lay_out(URL, home)
    gone = some_media(root)
    s3.faults = [Fault("vanish", "GET", gone, after=1)]  # after its digest was taken
    done, _ = made(home, root, max_failed="1")
    (entry,) = done.quarantined
    assert entry.stage == "media" and entry.reason == f"object not found: {URL}/{gone}"
    s3.faults = [Fault(403, "GET", r"\.mp4$", times=1000)]
    with pytest.raises(AccessRefused, match=URL):
        made(Home(tmp_path / "other"), root)
    assert not list((tmp_path / "other/remote").glob(f"{PREFIX}*"))


def test_an_object_that_changed_since_the_listing_ends_the_run(
    uploaded: Path, s3: S3, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    root = lay_out(URL, home)
    s3.put(f"sets/AVE/{some_media(root)}", b"shorter")
    with pytest.raises(RemoteError, match=r"is another object now than when it was listed|bytes came of"):
        made(home, root)


@pytest.fixture
def spooled(s3: S3, tmp_path: Path) -> Callable[..., Spool]:
    """`spooled(keys, limit)`: a spool of files of 1000 bytes; the media of `a1` and `a2` are `a.mp4`."""
    for name in "abcdefgh":
        s3.put(f"m/{name}.mp4", name.encode() * 1000)
    place = place_of(lay_out("s3://bucket/m", Home(tmp_path)))
    assert isinstance(place, Address)

    def make(keys: list[str], limit: int) -> Spool:
        return Spool(
            place, spool_folder(Home(tmp_path)), keys, lambda key: f"{key[0]}.mp4", lambda: None, limit
        )

    return make


def wait_for(spool: Spool, key: str) -> str:
    paths: list[str | None] = []
    wait_until(lambda: paths.append(spool.path(key)) or paths[-1])
    assert paths[-1] is not None
    return paths[-1]


def test_spooled_files_never_exceed_the_limit(spooled: Callable[..., Spool], s3: S3) -> None:
    keys = ["a1", "a2", "b1", "c1", "a3", "d1", "e1"]
    most, over = [0], threading.Event()
    with spooled(keys, 2000) as spool:

        def watch() -> None:
            while not over.is_set():
                sizes = [p.stat().st_size for p in spool.folder.rglob("*.mp4") if p.exists()]
                most.append(sum(sizes))
                time.sleep(0.001)

        watching = threading.Thread(target=watch)
        watching.start()
        for key in keys:
            assert Path(wait_for(spool, key)).read_bytes() == key[0].encode() * 1000
            if key != "a1":  # its clip is still being decoded
                spool.done(key)
        over.set()
        watching.join()
        spool.done("a1")
        assert spool.bytes == 0 and not list(spool.folder.rglob("*.mp4"))
    assert not spool.folder.exists() and 0 < max(most) <= 2000
    assert [key for method, key in s3.seen if key.endswith("a.mp4")] == ["m/a.mp4"], (
        "clips of one file share it"
    )


def test_a_file_larger_than_the_spool_is_an_error(spooled: Callable[..., Spool]) -> None:
    with spooled(["a1"], 999) as spool, pytest.raises(CaeavError, match="the spool may hold 999 B") as raised:
        wait_for(spool, "a1")
    assert "CAEAV_SPOOL_BYTES" in raised.value.hint


def test_a_vanished_file_is_lost_and_the_next_one_is_fetched(spooled: Callable[..., Spool], s3: S3) -> None:
    s3.faults = [Fault("vanish", "GET", "b.mp4")]
    with spooled(["a1", "b1", "c1"], 1000) as spool:
        wait_for(spool, "a1")
        spool.done("a1")
        with pytest.raises(Lost, match=r"object not found: s3://bucket/m/b\.mp4"):
            wait_for(spool, "b1")
        spool.done("b1")
        assert Path(wait_for(spool, "c1")).is_file()


def test_the_spool_of_a_killed_run_is_removed(spooled: Callable[..., Spool], tmp_path: Path) -> None:
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / ".lock").touch()
    with spooled(["a1"], 1000) as spool:
        wait_for(spool, "a1")
        remove_left(tmp_path)
        remove_left(spool.folder.parent)
        assert not left.exists() and spool.folder.exists()


def writing(toy: Toy) -> StoreWriter:
    return open_for_writing(toy.dataset, toy.recipe(), toy.manifest())


def published(toy: Toy, url: str, stop: int | None = None) -> list[str]:
    """Make a store and publish it at the same time; with `stop`, interrupt after that many shards."""
    said: list[str] = []
    with writing(toy) as writer, Publishing(url, [writer], said.append) as publishing:
        for number, plan in enumerate(writer.plan()):
            if number == stop:
                raise KeyboardInterrupt
            writer.publish(plan, {key: toy.record(key) for key in plan.missing})
        writer.finish()
        publishing.finish()
    return said


def test_an_interrupted_run_that_publishes_continues(tmp_path: Path, s3: S3) -> None:
    toy = Toy(tmp_path / "stores")
    with pytest.raises(KeyboardInterrupt):
        published(toy, "s3://bucket/out", stop=2)
    (info,) = list_remote("s3://bucket/out").values()
    assert info.state == "partial"
    before = {key: data for key, data in s3.objects().items() if key.endswith((".tar", ".idx"))}
    s3.seen.clear()
    published(toy, "s3://bucket/out")
    puts = [key for method, key in s3.seen if method == "PUT"]
    assert not [
        key
        for key in puts
        if key in before
        and key.endswith(".tar")
        and key.replace("shards", "index").replace(".tar", ".idx") in before
    ], "a shard with its index is not sent again"
    (address,) = list_remote("s3://bucket/out")
    assert verify_remote(address).sound
    held = {
        name: data for name, data in contents(toy.folder).items() if not name.startswith((".lock", "spare/"))
    }
    prefix = address.removeprefix("s3://bucket/") + "/"
    assert {key.removeprefix(prefix): data for key, data in s3.objects().items()} == held


def test_shards_are_sent_while_others_are_made(tmp_path: Path, s3: S3) -> None:
    toy = Toy(tmp_path / "stores")
    with writing(toy) as writer, Publishing("s3://bucket/out", [writer], print):
        plan = writer.plan()[0]
        writer.publish(plan, {key: toy.record(key) for key in plan.missing})
        wait_until(lambda: any(key.endswith("000000.idx") for key in s3.objects()))


def test_a_fault_while_publishing_is_reported_at_once_and_raised_at_the_end(tmp_path: Path, s3: S3) -> None:
    """The store on the disk is still finished."""
    toy = Toy(tmp_path / "stores")
    s3.faults = [Fault(500, "PUT", r"000001\.tar", times=1000)]
    said: list[str] = []
    with writing(toy) as writer, Publishing("s3://bucket/out", [writer], said.append) as publishing:
        for plan in writer.plan():
            writer.publish(plan, {key: toy.record(key) for key in plan.missing})
        writer.finish()
        with pytest.raises(RemoteError, match=r"s3://bucket/out/toy/.*/shards/000001\.tar: 500"):
            publishing.finish()
    assert len(said) == 1 and "publishing shard 1 failed" in said[0]
    assert toy.folder.joinpath("complete.json").is_file()
    s3.faults.clear()
    assert verify_remote(published(toy, "s3://bucket/out")[0].removeprefix("published to ")).sound


def test_another_store_at_the_address_is_not_touched(tmp_path: Path, s3: S3) -> None:
    toy = Toy(tmp_path / "a")
    published(toy, "s3://bucket/out")
    before = s3.objects()
    other = Toy(tmp_path / "b")
    other.write(other.manifest(label="another"))
    with (
        pytest.raises(Different, match="another state of this store"),
        open_for_writing(other.dataset, other.recipe(), other.manifest(label="another")) as writer,
        Publishing("s3://bucket/out", [writer], print) as publishing,
    ):
        publishing.finish()
    assert s3.objects() == before
