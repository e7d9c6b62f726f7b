"""The cache of shards from object stores: bounded, shared between processes, verified, filled ahead of reading."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest
from s3_server import S3, Fault
from waiting import wait_until

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.store import StoreReader
from caeav.pipeline.store.backend import FileFacts
from caeav.pipeline.store.errors import DamagedShard
from caeav.pipeline.store.remote.ahead import Ahead
from caeav.pipeline.store.remote.cache import ShardCache, cache_limit, parse_bytes
from caeav.pipeline.store.remote.push import push
from caeav.pipeline.store.remote.reading import open_remote, share_room
from caeav.pipeline.store.testing_data import Toy

SIZE = 1000


def facts(number: int) -> FileFacts:
    return FileFacts(f"shards/{number}.tar", SIZE, hashlib.sha256(content(number)).hexdigest())


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


class Source:
    """A source of files that records which were fetched."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, wanted: FileFacts, out: BinaryIO) -> None:
        self.given.append(wanted.name)
        out.write(content(int(wanted.name[7:-4])))


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    """Room for three files."""
    return ShardCache(tmp_path / "cache", 3 * SIZE)


def cached_numbers(cache: ShardCache) -> list[int]:
    return [number for number in range(20) if cache.has(facts(number))]


def use(cache: ShardCache, source: Source, number: int) -> None:
    with cache.holding([facts(number)], source):
        assert cache.path(facts(number)).read_bytes() == content(number)
    moment = time.time_ns() + number  # as if time passed between two uses
    os.utime(cache.path(facts(number)), ns=(moment, moment))


def test_the_least_recently_used_file_is_removed_and_the_size_stays_bounded(cache: ShardCache) -> None:
    source = Source()
    for number in (1, 2, 3):
        use(cache, source, number)
    old = [(1, 30), (2, 10), (3, 20)]
    for number, age in old:
        os.utime(cache.path(facts(number)), (1000 - age, 1000 - age))
    use(cache, source, 4)
    assert cached_numbers(cache) == [2, 3, 4], "1 was used longest ago"
    cache.touch([facts(3)])
    use(cache, source, 5)
    assert cached_numbers(cache) == [3, 4, 5] and cache.used() == 3 * SIZE
    use(cache, source, 3)
    assert source.given == [f"shards/{n}.tar" for n in (1, 2, 3, 4, 5)], "cached files are not fetched again"


def test_files_larger_than_the_cache_are_refused(cache: ShardCache) -> None:
    files = [facts(n) for n in range(4)]
    with (
        pytest.raises(CaeavError, match=r"3.0 kB, too few for 4.0 kB that") as raised,
        cache.holding(files, Source()),
    ):
        raise AssertionError
    assert "--cache-bytes" in raised.value.hint


def test_files_that_are_needed_together_do_not_displace_each_other(cache: ShardCache) -> None:
    source = Source()
    use(cache, source, 9)
    later = time.time() + 100  # used last, yet removed
    os.utime(cache.path(facts(9)), (later, later))
    with cache.holding([facts(n) for n in (1, 2, 3)], source):
        assert cached_numbers(cache) == [1, 2, 3]
    assert source.given == [facts(n).name for n in (9, 1, 2, 3)], "each once"


def test_a_failed_fetch_leaves_no_file(cache: ShardCache) -> None:
    def breaks(wanted: FileFacts, out: BinaryIO) -> None:
        out.write(b"half")
        raise CaeavError("no")

    with pytest.raises(CaeavError), cache.holding([facts(1)], breaks):
        raise AssertionError
    assert cache.used() == 0 and [path.name for path in cache.folder.iterdir()] == [".lock"]


def test_partial_files_of_killed_processes_are_removed_and_those_of_others_count(cache: ShardCache) -> None:
    cache.folder.mkdir()
    left = cache.folder / f".part-{facts(7).sha256}"
    left.write_bytes(bytes(3 * SIZE))
    source = Source()
    use(cache, source, 1)
    assert not left.exists()
    with (cache.folder / f".part-{facts(8).sha256}").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(SIZE)
        use(cache, source, 2)
        use(cache, source, 3)
        assert cached_numbers(cache) == [2, 3] and cache.used() == 3 * SIZE


def test_threads_that_want_the_same_file_fetch_it_once(cache: ShardCache) -> None:
    source = Source()

    def slowly(wanted: FileFacts, out: BinaryIO) -> None:
        time.sleep(0.05)
        source(wanted, out)

    threads = [threading.Thread(target=cache.bring, args=([facts(1)], slowly)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.given == ["shards/1.tar"]


READ = """
import sys; from pathlib import Path; from caeav.manifests.core.home import Home
from caeav.pipeline.store.remote.reading import open_remote; from caeav.pipeline.store.testing_data import Toy
store = open_remote(sys.argv[1], Home(Path(sys.argv[2]))); toy = Toy(Path("x"))
for turn in range(3):
    for key in store.keys if turn != 1 else reversed(store.keys):
        assert toy.same(store.read(key)), key
    assert store.files.cache.used() <= store.files.cache.limit
"""


def test_processes_share_a_cache_that_is_smaller_than_the_store(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(tmp_path / "stores")
    toy.write(toy.manifest(24))
    url = push(toy.folder, "s3://bucket").url
    largest = max(StoreReader.open(toy.folder).shard_sizes())
    monkeypatch.setenv("CAEAV_CACHE_BYTES", str(2 * largest))
    command = [sys.executable, "-c", READ, url, str(tmp_path / "home")]
    children = [subprocess.Popen(command) for _ in range(2)]
    most = 0
    while any(child.poll() is None for child in children):
        folder = tmp_path / "home/cache/shards"
        sizes = []
        for path in folder.glob("*") if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # files come and go meanwhile
                sizes.append(path.stat().st_size)
        most = max(most, sum(sizes))
        time.sleep(0.002)
    assert [child.returncode for child in children] == [0, 0]
    assert 0 < most <= 2 * largest


def opened(toy: Toy, home: Path) -> StoreReader:
    return open_remote(push(toy.folder, "s3://bucket").url, Home(home))


@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
def test_a_store_is_read_through_a_cache_of_one_shard(
    backend: str, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(tmp_path / "stores", backend)
    toy.write(toy.manifest(20))
    local = StoreReader.open(toy.folder)
    limit = max(local.shard_sizes())
    monkeypatch.setenv("CAEAV_CACHE_BYTES", str(limit))
    store = opened(toy, tmp_path / "home")
    assert store.keys == local.keys and store.array_specs() == local.array_specs()
    order = [*store.keys[::3], *store.keys[::-1]]
    assert [toy.same(record) for record in store.read_each(order)] == [True] * len(order)
    # without the lock and files that are being fetched ahead
    files = [path for path in store.files.cache.folder.iterdir() if not path.name.startswith(".")]
    assert sum(path.stat().st_size for path in files) <= limit
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    monkeypatch.setenv("CAEAV_CACHE_BYTES", str(limit - 1))
    with pytest.raises(CaeavError, match="too few for"):
        share_room([opened(toy, tmp_path / "home")])


def test_arrays_stay_valid_after_their_shard_left_the_cache(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(tmp_path / "stores")
    toy.write(toy.manifest(20))
    monkeypatch.setenv("CAEAV_CACHE_BYTES", str(max(StoreReader.open(toy.folder).shard_sizes())))
    store = opened(toy, tmp_path / "home")
    records = [store.read_stored(key) for key in store.keys]
    assert all(map(toy.same, records))


def test_a_damaged_cached_file_is_fetched_again(tmp_path: Path, s3: S3) -> None:
    toy = Toy(tmp_path / "stores")
    toy.write()
    store = opened(toy, tmp_path / "home")
    assert toy.same(store.read("clip001"))
    (path,) = (p for p in store.files.cache.folder.iterdir() if p.name != ".lock")
    data = bytearray(path.read_bytes())
    at = data.index(toy.record("clip002").arrays["visual.stage1"].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    fresh = open_remote(store.url, Home(tmp_path / "home"))
    assert toy.same(fresh.read("clip002"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    data[at + 1] ^= 1
    path.write_bytes(data)
    s3.faults = [Fault(500, "GET", r"\.tar$", times=100)]
    with pytest.raises((DamagedShard, CaeavError)):
        open_remote(store.url, Home(tmp_path / "home")).read("clip002")


def test_a_pickled_remote_reader_connects_again(tmp_path: Path, s3: S3) -> None:
    toy = Toy(tmp_path / "stores")
    toy.write()
    store = opened(toy, tmp_path / "home")
    toy.same(store.read("clip000"))
    other = pickle.loads(pickle.dumps(store))
    assert toy.same(other.read("clip009")) and other.url == store.url


def test_the_next_shards_are_fetched_while_the_first_is_read(tmp_path: Path, s3: S3) -> None:
    toy = Toy(tmp_path / "stores")
    toy.write(toy.manifest(20))
    store = opened(toy, tmp_path / "home")
    s3.seen.clear()
    keys = [*store.keys[16:20], *store.keys[0:4], *store.keys[8:12]]
    store.expect(keys)
    wait_until(lambda: sum(store.files.soon(n) for n in (4, 0, 2)) == 3)
    fetched = sorted(key[-10:] for _, key in s3.seen if key.endswith(".tar"))
    assert fetched == ["000000.tar", "000002.tar", "000004.tar"], "no other shard is fetched"
    s3.seen.clear()
    assert all(map(toy.same, map(store.read, keys))) and not s3.seen


def test_fetching_ahead_stays_within_its_room() -> None:
    brought: list[int] = []
    ahead = Ahead(brought.append, lambda number: 10, room=25)
    ahead.expect([5, 5, 6, 6, 7, 8])
    wait_until(lambda: brought == [5, 6])
    time.sleep(0.02)
    assert brought == [5, 6], "a third shard does not fit"
    ahead.read(5)
    time.sleep(0.02)
    assert brought == [5, 6], "5 is not yet read to its end"
    ahead.read(5)
    wait_until(lambda: brought == [5, 6, 7])
    ahead.expect([1])  # replaces the order given before
    wait_until(lambda: brought == [5, 6, 7, 1])
    ahead.soon(3)
    wait_until(lambda: brought[-1] == 3)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("50GB", 50 * 10**9), ("1.5t", 15 * 10**11), ("2000", 2000), ("7 MB", 7 * 10**6)]
)
def test_sizes_in_bytes_are_parsed(text: str, bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_bytes(text) == bytes_
    monkeypatch.setenv("CAEAV_CACHE_BYTES", text)
    assert cache_limit() == bytes_


@pytest.mark.parametrize("text", ["", "0", "many", "-5", "5 EB", "nan", "inf"])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(CaeavError, match="no number of bytes"):
        parse_bytes(text)
