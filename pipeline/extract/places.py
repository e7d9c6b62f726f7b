"""Where the media of a data set lie: in a folder, or in an object store of which a folder has the layout.

For media at an address (`--root s3://bucket/AVE`) a folder in the home takes the place of the data set's folder: its
small files are there, and for each media file a stand-in of its size and time that takes no room. So readers, and all
that compares sizes and times, work as on a disk. Whoever needs the content asks the `Place` of the folder, which reads
it where it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from caeav.manifests.core.atomic import make_folder, publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.readers import MEDIA_EXTENSIONS
from caeav.pipeline.media.stills import FRAMES, media_files
from caeav.pipeline.store.media_record import (
    WHOLE_BYTES,
    digest_of_files,
    digests,
    ends_digest,
    whole_digest,
)
from caeav.pipeline.store.remote.bucket import Bucket, ObjectFacts
from caeav.pipeline.store.remote.faults import ObjectGone
from caeav.pipeline.store.remote.url import parse_url

MARKER = ".caeav-address.json"
FORMAT = "caeav-address"
SMALL_BYTES = 64 << 20
"""Files that are no media come whole up to this size; of larger ones there is a stand-in too."""
AT_ONCE = 32


class Place:
    """Media in a folder of this machine."""

    url = ""

    def __init__(self, root: Path) -> None:
        self.root = root

    def digests(self, names: Sequence[str]) -> dict[str, bytes]:
        """See `media_record.digests`."""
        return digests(self.root, names, media_files)

    def whole_digest(self, name: str) -> bytes:
        """See `media_record.whole_digest`."""
        return whole_digest(self.root, name, media_files)


class Address(Place):
    """Media in an object store; `root` is the folder with their layout. What was read lies in `copies`, if anywhere."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.url = url
        self.bucket = Bucket(url)
        self.copies: Path | None = None

    def files(self, name: str) -> dict[str, ObjectFacts]:
        """The objects that the media of this name consist of, as they were listed: names and facts."""
        found = {}
        for path in media_files(str(self.root / name)):
            seen = os.stat(path)  # noqa: PTH116
            inside = Path(path).relative_to(self.root).as_posix()
            found[inside] = ObjectFacts(seen.st_size, seen.st_mtime_ns)
        return found

    def digests(self, names: Sequence[str]) -> dict[str, bytes]:
        """The same digests as of a copy in a folder, from the ends of each object."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="caeav-ends") as threads:
            return dict(zip(names, threads.map(self._digest, names), strict=True))

    def _digest(self, name: str) -> bytes:
        try:
            files = self.files(name)
            return ends_digest(
                (facts.size, partial(self.bucket.read_range, inside)) for inside, facts in files.items()
            )
        except (ObjectGone, OSError):
            return b""

    def whole_digest(self, name: str) -> bytes:
        """The same digest as of a copy in a folder: of the one that was just decoded, else of the objects."""
        if self.copies is not None and (self.copies / name).is_file():
            return whole_digest(self.copies, name, media_files)
        try:
            files = self.files(name)
            if sum(facts.size for facts in files.values()) > WHOLE_BYTES:
                return b""
            return digest_of_files(
                self.bucket.read_range(inside, 0, facts.size) for inside, facts in files.items()
            )
        except (ObjectGone, OSError):
            return b""


def place_of(root: Path) -> Place:
    """The place of the media in a folder: the folder itself, or the address whose layout it has."""
    url = address_of(root)
    return Address(root, url) if url else Place(root)


def address_of(root: Path) -> str:
    """The address whose layout a folder has; empty for a folder of media."""
    try:
        value = json.loads((root / MARKER).read_bytes()[:100_000])
    except (OSError, ValueError):
        return ""
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("url"), str):
        return ""
    return str(parse_url(value["url"]))


def lay_out(url: str, home: Home) -> Path:
    """The folder in the home with the layout of an address, brought up to date; raises `CaeavError` where nothing is.

    Files that are no media are fetched where their size or time differ; what is there no more is removed.
    """
    address = parse_url(url)
    root = home.root / "remote" / address.scheme / address.path
    bucket = Bucket(address)
    there = {name: facts for name, facts in bucket.list().items() if _is_safe(name)}
    if not there:
        raise CaeavError(f"{address}: there is nothing", hint="look whether the address is right")
    make_folder(root)
    for path in sorted(root.rglob("*"), reverse=True):
        inside = path.relative_to(root).as_posix()
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # a folder that is not empty
                path.rmdir()
        elif inside != MARKER and inside not in there:
            path.unlink()
    changed = [name for name, facts in there.items() if not _is_same(root / name, facts)]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="caeav-layout") as threads:
        for _ in threads.map(lambda name: _bring(bucket, root / name, name, there[name]), changed):
            continue
    publish_bytes(root / MARKER, (json.dumps({"format": FORMAT, "url": str(address)}) + "\n").encode())
    return root


def _is_safe(name: str) -> bool:
    return name != MARKER and "\\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _is_same(path: Path, facts: ObjectFacts) -> bool:
    try:
        seen = path.lstat()
    except OSError:
        return False
    return (seen.st_size, seen.st_mtime_ns) == (facts.size, facts.written_ns)


def _bring(bucket: Bucket, path: Path, name: str, facts: ObjectFacts) -> None:
    """A small file whole, or a stand-in for media; its time is the object's."""
    make_folder(path.parent)
    temp = path.with_name(f".part-{path.name}")
    with temp.open("wb") as out:
        if _is_media(name) or facts.size > SMALL_BYTES:
            out.truncate(facts.size)
        else:
            bucket.download(name, facts, lambda _, data: out.write(data))
    os.utime(temp, ns=(facts.written_ns, facts.written_ns))
    temp.replace(path)


def _is_media(name: str) -> bool:
    path = PurePosixPath(name)
    images = path.suffix.lower() in (".png", ".jpg", ".jpeg") and FRAMES in path.parts
    return images or path.suffix.lower() in MEDIA_EXTENSIONS
