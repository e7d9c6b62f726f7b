"""Putting a store into an object store: payload first, then the index, if none is there yet, and the seal last.

So a shard exists there when all of it is there, and a store is finished there when all of it is. A kill at any point
leaves what the next attempt goes on with: shards whose index is there are not sent again, the payload of one without an
index is. An index or a seal that is there with other bytes is left as it is and refused, unless it is to be replaced;
then the seal goes first, as it does in a store on a disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import OnProgress, file_sha256, ignore
from caeav.pipeline.store.backend import ShardIndex
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.layout import StoreFolder, read_capped
from caeav.pipeline.store.remote.bucket import Bucket
from caeav.pipeline.store.remote.faults import Different, ObjectGone
from caeav.pipeline.store.remote.url import Url, parse_url
from caeav.pipeline.store.state import StoreState, finished
from caeav.pipeline.store.writer import StoreWriter

SHARDS_AT_ONCE = 4


@dataclass(frozen=True)
class Pushed:
    """A store that was put there: its address, how many shards were sent now and were there already."""

    url: str
    sent: int
    there: int
    bytes: int


def address_of(url: Url, store: Path) -> Url:
    """Where a store lies below an address: as in a home, `<data set>/<store>`."""
    folder = store.resolve()
    return url / folder.parent.name / folder.name


def push(store: Path, url: str, told: OnProgress = ignore, *, replace: bool = False) -> Pushed:
    """Put a finished store below an address; raises `StoreError` for one that is not finished or not sound.

    Every file is read once and compared with its digest before it is sent. With `replace` another state of the store
    that is there gives way.
    """
    state = finished(store)
    sender = _Sender(state.folder, Bucket(address_of(parse_url(url), store)), replace)
    return sender.send_all(state, told)


class _Sender:
    """Sends the files of one store to its address."""

    def __init__(self, folder: StoreFolder, bucket: Bucket, replace: bool) -> None:
        self._folder, self._bucket, self._replace = folder, bucket, replace
        self._there = bucket.list()

    @property
    def finished(self) -> bool:
        """Whether a finished store is there."""
        return "complete.json" in self._there

    def send_all(self, state: StoreState, told: OnProgress) -> Pushed:
        """Everything that is not there yet, the seal last."""
        bucket, folder = self._bucket, self._folder
        seal = read_capped(folder.seal)
        self._make_way(seal, {StoreFolder.index_name(number) for number in state.indexes})
        self._create(folder.recipe)

        def one(number: int) -> int:
            sent = self.send_shard(state.indexes[number])
            told(state.indexes.facts[number].size)
            return state.indexes.facts[number].size if sent else -1

        with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="caeav-push") as threads:
            sizes = list(threads.map(one, state.indexes))
        assert state.seal is not None
        for name, sha256 in state.seal.sha256.items():
            if not name.startswith("index/"):
                data = read_capped(folder.path / name)
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise Problem(
                        name, "not the file that the seal names: the store was written meanwhile"
                    ).error(folder.path)
                bucket.put(name, data)
        self._create(folder.seal, seal)
        sent = [size for size in sizes if size >= 0]
        return Pushed(str(bucket.url), len(sent), len(sizes) - len(sent), sum(sent))

    def send_shard(self, index: ShardIndex) -> bool:
        """One shard, its index last; whether it was sent, and not there already."""
        there = self._there
        name, data = StoreFolder.index_name(index.number), index.encode()
        if name in there and self._same(name, data):
            if all(facts.name in there and there[facts.name].size == facts.bytes for facts in index.files):
                return False
        elif name in there and self._replace:
            self._bucket.delete(name)
        elif name in there:
            self._bucket.create(name, data)  # raises, saying what is there
        for facts in index.files:
            path = self._folder.path / facts.name
            if path.stat().st_size != facts.bytes or file_sha256(path) != facts.sha256:
                what = "not the bytes that its index says; nothing was published of it"
                raise Problem(facts.name, what, shard=index.number).error(self._folder.path)
            self._bucket.put(facts.name, path)
        self._bucket.create(name, data)
        return True

    def send_recipe(self) -> None:
        """The recipe: from now on the address holds a store that is being published."""
        self._create(self._folder.recipe)

    def _make_way(self, seal: bytes, indexes: set[str]) -> None:
        """Remove the seal of another state, and indexes of shards that are no more; raises unless that is wanted."""
        there = self._there
        strays = [name for name in there if name.startswith("index/") and name not in indexes]
        other = "complete.json" in there and not self._same("complete.json", seal)
        if not (strays or other):
            return
        if not self._replace:
            raise Different(
                f"{self._bucket.url} holds another state of this store",
                hint=f"to put this one in its place: caeav store push {self._folder.path} "
                f"{self._bucket.url.parent.parent} --replace",
            )
        for name in ("complete.json", *strays):
            self._bucket.delete(name)

    def _create(self, path: Path, data: bytes | None = None) -> None:
        self._bucket.create(self._folder.name_of(path), read_capped(path) if data is None else data)

    def _same(self, name: str, data: bytes) -> bool:
        try:
            return self._bucket.read(name) == data
        except ObjectGone:
            return False


class Publishing:
    """Puts the shards of stores that are being made below an address, each as soon as it is finished.

    Used as a context manager around the writing. A fault does not stop the writing: it is remarked on at once, and
    `finish`, which sends what is missing and the seals, meets it again and raises it.
    """

    def __init__(self, url: str, writers: Sequence[StoreWriter], remark: Callable[[str], object]) -> None:
        self._url = url
        self._writers = writers if url else ()
        self._remark = remark
        self._queue: deque[tuple[_Sender, StoreWriter, int]] = deque()
        self._change = threading.Condition()
        self._over = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Publishing:
        for writer in self._writers:
            self._begin(writer)
        if self._writers:
            self._thread = threading.Thread(target=self._work, name="caeav-publish", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._over = True
            self._queue.clear()
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> list[Pushed]:
        """Send all that is missing of the stores, which are finished now, and their seals."""
        with self._change:
            self._over = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()
        made = []
        for writer in self._writers:
            writer.published = None
            made.append(push(writer.path, self._url))
            self._remark(f"published to {made[-1].url}")
        return made

    def _begin(self, writer: StoreWriter) -> None:
        """Send shards from now on, unless a finished store is there: what becomes of that is decided at the end."""
        sender = _Sender(writer.folder, Bucket(address_of(parse_url(self._url), writer.path)), False)
        if sender.finished:
            return
        sender.send_recipe()

        def noted(number: int) -> None:
            with self._change:
                self._queue.append((sender, writer, number))
                self._change.notify()

        for number in writer.indexes:
            noted(number)
        writer.published = noted

    def _work(self) -> None:
        told = False
        while True:
            with self._change:
                while not self._queue and not self._over:
                    self._change.wait()
                if not self._queue:
                    return
                sender, writer, number = self._queue.popleft()
            try:
                sender.send_shard(writer.indexes[number])
            except (CaeavError, OSError, KeyError) as error:
                if not told:
                    self._remark(f"publishing shard {number} failed and is tried again at the end: {error}")
                told = True
