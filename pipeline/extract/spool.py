"""Media from an object store for the decoding processes: each file comes shortly before it is decoded, and goes again.

Clips are looked ahead in the order in which they are decoded, as far as their files fit into the spool. Clips of one
file that follow each other share it. A file that vanished costs its clips; any other fault that stays ends the run,
which goes on when it is run again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from caeav.manifests.core.atomic import make_folder
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import size_text
from caeav.pipeline.extract.places import Address
from caeav.pipeline.store.remote.bucket import ObjectFacts
from caeav.pipeline.store.remote.cache import parse_bytes
from caeav.pipeline.store.remote.faults import ObjectGone

LIMIT_VARIABLE = "CAEAV_SPOOL_BYTES"
DEFAULT_LIMIT = 4_000_000_000
PREFIX = ".caeav-spool-"
FETCHERS = 4
LOOK_AHEAD = 64
"""Clips that are looked at ahead of the one that is asked for."""


class Lost(CaeavError):
    """Media that are not there; the text is the reason for their clips' quarantine."""


class MediaFiles(Protocol):
    """Gives the decoding processes paths of media."""

    def path(self, key: str) -> str | None:
        """The path of a clip's media; None while it is not there yet. Raises `Lost`, or what ends the run."""

    def done(self, key: str) -> None:
        """A clip's media are not needed any more."""


class FolderFiles:
    """Media where they lie: nothing comes, nothing goes."""

    def __init__(self, root: Path, media_of: Callable[[str], str]) -> None:
        self._root, self._media_of = root, media_of

    def path(self, key: str) -> str | None:
        """See `MediaFiles.path`."""
        return str(self._root / self._media_of(key))

    def done(self, key: str) -> None:
        """See `MediaFiles.done`."""


@dataclass
class _Held:
    """Media in the spool: how many clips wait for them, their bytes, and what became of fetching them."""

    media: str
    files: dict[str, ObjectFacts]
    waiting: int = 1
    ready: bool = False
    error: BaseException | None = None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(facts.size for facts in self.files.values())


class Spool:
    """A `MediaFiles` with a folder in `parent` of at most `limit` bytes; used as a context manager.

    `keys` are the clips in the order in which they are asked for; `arrived` is called when another one may be there.
    """

    def __init__(
        self,
        place: Address,
        parent: Path,
        keys: Sequence[str],
        media_of: Callable[[str], str],
        arrived: Callable[[], object],
        limit: int | None = None,
    ) -> None:
        self._place, self._parent = place, parent
        self._keys, self._media_of = keys, media_of
        self._arrived = arrived
        self.limit = spool_limit() if limit is None else limit
        self._held: dict[str, _Held] = {}
        self._of_clip: dict[str, _Held] = {}
        self._next = self._asked = 0
        self.bytes = 0
        self._change = threading.Condition()
        self._over = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Spool:
        make_folder(self._parent)
        remove_left(self._parent)
        self.folder = Path(tempfile.mkdtemp(dir=self._parent, prefix=PREFIX))
        self._lock = (self.folder / ".lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._place.copies = self.folder
        for _ in range(FETCHERS):
            thread = threading.Thread(target=self._fetch_all, name="caeav-spool", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._over = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        self._place.copies = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def path(self, key: str) -> str | None:
        """See `MediaFiles.path`."""
        with self._change:
            held = self._of_clip.get(key)
            if held is None or not (held.ready or held.error):
                return None
            self._asked += 1
            self._change.notify_all()
        if held.error is not None:
            raise held.error
        return str(self.folder / held.media)

    def done(self, key: str) -> None:
        """See `MediaFiles.done`."""
        with self._change:
            held = self._of_clip.pop(key)
            held.waiting -= 1
            if held.waiting:
                return
            del self._held[held.media]
            for name in held.files:
                (self.folder / name).unlink(missing_ok=True)
            self.bytes -= held.size
            self._change.notify_all()

    def _fetch_all(self) -> None:
        while (held := self._claim()) is not None:
            try:
                for name, facts in held.files.items():
                    self._fetch(name, facts)
                held.ready = True
            except ObjectGone as error:
                held.error = Lost(f"object not found: {error.problem.partition(': ')[0]}")
            except BaseException as error:  # noqa: BLE001 - handed to who asks for the file, and raised there
                held.error = error
            with self._change:
                self._change.notify_all()
            self._arrived()

    def _claim(self) -> _Held | None:
        """The next media to fetch, once there is room for them; None when there is nothing left to do."""
        with self._change:
            while not self._over and self._next < len(self._keys):
                if self._next - self._asked >= LOOK_AHEAD:
                    self._change.wait()
                    continue
                key = self._keys[self._next]
                media = self._media_of(key)
                if (held := self._held.get(media)) is not None:
                    held.waiting += 1
                    self._of_clip[key] = held
                    self._next += 1
                    if held.ready or held.error:
                        self._arrived()
                    continue
                held = _Held(media, self._files(media))
                if held.size > self.limit:
                    held.error = CaeavError(
                        f"{self._place.url}/{media} has {size_text(held.size)}, the spool may hold "
                        f"{size_text(self.limit)}",
                        hint=f"give more: {LIMIT_VARIABLE}=10GB in the environment",
                    )
                    held.size = 0
                elif self.bytes and self.bytes + held.size > self.limit:
                    self._change.wait()
                    continue
                self._next += 1
                self.bytes += held.size
                self._held[media] = self._of_clip[key] = held
                if held.error is None:
                    return held
                self._arrived()
            return None

    def _files(self, media: str) -> dict[str, ObjectFacts]:
        try:
            return self._place.files(media)
        except OSError:  # the layout lost it meanwhile
            return {media: ObjectFacts(0, 0)}

    def _fetch(self, name: str, facts: ObjectFacts) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            self._place.bucket.download(name, facts, lambda _, data: out.write(data))
        os.utime(path, ns=(facts.written_ns, facts.written_ns))


def spool_folder(home: Home) -> Path:
    """The folder of a home for spools."""
    return home.root / "remote"


def spool_limit() -> int:
    """The bytes that `CAEAV_SPOOL_BYTES` allows, by default 4 GB; raises `CaeavError` for another value."""
    return parse_bytes(os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT))


def remove_left(parent: Path) -> None:
    """Remove the spools that killed processes left."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            with (folder / ".lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
