"""A folder in an object store, and what is done with it: list, read, read whole and verified, put, put if absent.

Everything goes through `faults.attempts`. Large objects come in parts, several at a time, each with its own time limit
and its own retries. Nothing is returned as data before its length, and where it is known its sha256, was compared.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store.layout import MAX_FILE_BYTES
from caeav.pipeline.store.remote import faults
from caeav.pipeline.store.remote.faults import (
    Different,
    ObjectGone,
    Patience,
    RemoteError,
    Unusable,
    WrongBytes,
)
from caeav.pipeline.store.remote.url import Url, parse_url

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 8
WHOLE_ATTEMPTS = 3
"""How often an object is read whole whose bytes are wrong: they may have been damaged on the way."""

Made = TypeVar("Made")


class ObjectFacts(NamedTuple):
    """What a listing says of an object: its bytes, when it was written (ns since 1970), and a tag of its content."""

    size: int
    written_ns: int
    tag: str = ""


class Bucket:
    """The objects below an address; names are relative to it. Safe to use from several threads.

    One that is sent to another process connects anew there. Raises `CaeavError` where the library is missing.
    """

    def __init__(self, url: str | Url, *, patience: Patience | None = None) -> None:
        self.url = parse_url(url) if isinstance(url, str) else url
        self._patience = patience
        self._store: Any = None
        require_library()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def address(self, name: str = "") -> str:
        """The address of an object."""
        return str(self.url / name) if name else str(self.url)

    def list(self, prefix: str = "") -> dict[str, ObjectFacts]:
        """Every object below the address (and `prefix`), by name, in order; none where there is nothing."""

        def listed() -> dict[str, ObjectFacts]:
            found = {}
            for some in self._client().list(prefix=prefix or None):
                for each in some:
                    written = int(each["last_modified"].timestamp() * 1e9)
                    found[each["path"]] = ObjectFacts(each["size"], written, each["e_tag"] or "")
            return dict(sorted(found.items()))

        if self._is_absent_folder():
            return {}
        return self._do(prefix, listed)

    def size(self, name: str) -> int:
        """The bytes of an object; raises `ObjectGone` at once where there is none."""
        return int(self._do(name, lambda: self._client().head(name)["size"], probing=True))

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """A small object whole; raises `ObjectGone` at once where there is none, `RemoteError` for a large one."""

        def got() -> bytes:
            result = self._client().get(name)
            size = result.meta["size"]
            if size > limit:
                raise Unusable(
                    f"{self.address(name)} has {size} bytes; at most {limit} are read",
                    hint="this is not a store's file",
                )
            data = bytes(result.bytes())
            if len(data) != size:
                raise RemoteError(f"{self.address(name)}: {len(data)} bytes came of {size}")
            return data

        if self._is_absent_folder():
            raise ObjectGone(
                f"{self.address(name)}: there is no such folder", hint="look whether the address is right"
            )
        return self._do(name, got, probing=True)

    def read_verified(self, name: str, sha256: str) -> bytes:
        """A small object whose sha256 is known; raises `WrongBytes` where it stays another one."""
        return self._verified(name, sha256, lambda: self.read(name))

    def read_range(self, name: str, start: int, end: int, facts: ObjectFacts | None = None) -> bytes:
        """The bytes `start` to `end` (exclusive) of an object, all of them; of the one that `facts` describe."""

        def got() -> bytes:
            result = self._client().get(name, options={"range": (start, end)})
            if facts is not None and not _is_it(result.meta, facts):
                raise Unusable(
                    f"{self.address(name)}: is another object now than when it was listed",
                    hint="run the command again, once nothing is written there any more",
                )
            data = bytes(result.bytes())
            if len(data) != end - start:
                raise RemoteError(
                    f"{self.address(name)}: {len(data)} bytes came of {end - start}, from byte {start} on"
                )
            return data

        return self._do(name, got) if end > start else b""

    def fetch(self, name: str, size: int, sha256: str, write: Callable[[int, bytes], object]) -> None:
        """Give an object to `write(offset, bytes)`, in order; raises `WrongBytes` unless length and sha256 are these.

        Where bytes were wrong it is given again from the beginning.
        """

        def got() -> bytes:
            digest, at = hashlib.sha256(), 0
            for data in self._parts(name, size):
                write(at, data)
                digest.update(data)
                at += len(data)
            return digest.digest()

        self._verified(name, sha256, got, lambda seen: seen.hex())

    def download(self, name: str, facts: ObjectFacts, write: Callable[[int, bytes], object]) -> None:
        """Give an object whose digest nobody knows to `write(offset, bytes)`, in order.

        Raises `Unusable` where it is another one by now than the listing said.
        """
        at = 0
        for data in self._parts(name, facts.size, facts):
            write(at, data)
            at += len(data)

    def put(self, name: str, data: bytes | Path) -> None:
        """Put an object there, whatever was there; its size is compared afterwards."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size

        def given() -> None:
            self._client(writing=True).put(name, data)
            there = self._client().head(name)["size"]
            if there != size:
                raise RemoteError(f"{self.address(name)}: {there} bytes are there of {size} that were put")

        self._do(name, given)

    def create(self, name: str, data: bytes) -> bool:
        """Put a small object there if there is none; whether this did it.

        Where one is there, it holds the same bytes, or `Different` is raised. So an answer that was lost on the way
        back does no harm.
        """
        try:
            self._do(name, lambda: self._client(writing=True).put(name, data, mode="create"))
            return True
        except Different:
            there = self.read(name)
        if there != data:
            raise Different(
                f"{self.address(name)}: other bytes are there than those to be put there",
                hint="it belongs to another state of this store: `caeav store push ... --replace` puts this one in its "
                "place, or choose another address",
            )
        return False

    def delete(self, name: str) -> None:
        """Remove an object; does nothing where there is none."""
        with suppress(ObjectGone):
            self._do(name, lambda: self._client().delete(name), probing=True)

    def _parts(self, name: str, size: int, facts: ObjectFacts | None = None) -> Iterator[bytes]:
        """The parts of an object in order, the next ones under way meanwhile."""
        spans = [(at, min(at + PART_BYTES, size)) for at in range(0, size, PART_BYTES)]
        if len(spans) < 2:
            yield from (self.read_range(name, *span, facts) for span in spans)
            return
        with ThreadPoolExecutor(min(PARTS_AT_ONCE, len(spans)), thread_name_prefix="caeav-part") as threads:
            waiting: deque[Future[bytes]] = deque()
            try:
                for span in spans:
                    waiting.append(threads.submit(self.read_range, name, *span, facts))
                    if len(waiting) > PARTS_AT_ONCE:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _verified(
        self,
        name: str,
        sha256: str,
        read: Callable[[], bytes],
        digest: Callable[[bytes], str] = lambda data: hashlib.sha256(data).hexdigest(),
    ) -> bytes:
        for attempt in range(WHOLE_ATTEMPTS):
            data = read()
            seen = digest(data)
            if seen == sha256:
                return data
            if attempt + 1 < WHOLE_ATTEMPTS:
                self.patience.wait(attempt)
        raise WrongBytes(
            f"{self.address(name)}: sha256 is {seen[:12]}..., it was published as {sha256[:12]}...",
            hint=f"`caeav store verify {self.url}` lists all that is wrong; remove these objects there, then `caeav "
            "store push` from a sound store sends them again",
        )

    @property
    def patience(self) -> Patience:
        """How often and how long is tried."""
        return self._patience or faults.PATIENCE

    def _do(self, name: str, work: Callable[[], Made], *, probing: bool = False) -> Made:
        return faults.attempts(
            self.address(name), work, renew=self._forget, patience=self.patience, probing=probing
        )

    def _is_absent_folder(self) -> bool:
        return self.url.scheme == "file" and not Path(f"/{self.url.path}").is_dir()

    def _forget(self) -> None:
        self._store = None

    def _client(self, *, writing: bool = False) -> Any:
        if writing and self.url.scheme == "file":
            Path(f"/{self.url.path}").mkdir(parents=True, exist_ok=True)
        if self._store is None:
            self._store = _connect(self.url, self.patience)
        return self._store


def _is_it(now: Any, facts: ObjectFacts) -> bool:
    """Whether what is said of an object now fits what a listing said; times there may be whole seconds."""
    if facts.tag and now["e_tag"]:
        return bool((now["size"], now["e_tag"]) == (facts.size, facts.tag))
    apart_s = abs(now["last_modified"].timestamp() - facts.written_ns / 1e9)
    return bool(now["size"] == facts.size and apart_s < 2)


def require_library() -> None:
    """Raises `CaeavError` where obstore is not installed."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise CaeavError(
            "object stores need the package obstore, which is not installed",
            hint="pip install 'caeav[remote]'",
        ) from None


def _connect(url: Url, patience: Patience) -> Any:
    """The library's client, with its own ways to find credentials."""
    from obstore import store

    from_url: Any = store.from_url  # its types know each kind of store apart
    if url.scheme == "file":
        return from_url(str(url))
    options: dict[str, Any] = {"timeout": timedelta(seconds=patience.timeout_s), "connect_timeout": "5s"}
    if _plain_http():
        options["allow_http"] = True
    more: dict[str, Any] = {}
    if url.scheme == "s3" and (provider := _profile()) is not None:
        more["credential_provider"] = provider
    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=patience.timeout_s)}
    return from_url(str(url), client_options=options, retry_config=retries, **more)


def _plain_http() -> bool:
    """Whether the user has named an endpoint without TLS, as of a server in the house."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


def _profile() -> Any:
    """boto3's credentials, where a profile is named and the environment holds no key; None for the library's own."""
    if not os.environ.get("AWS_PROFILE") or os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise CaeavError(
            "AWS_PROFILE names a profile, and profiles are read by boto3, which is not installed",
            hint="pip install boto3, or put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the environment",
        ) from None
    try:
        return Boto3CredentialProvider()
    except Exception as error:  # noqa: BLE001 - whatever boto3 says of a profile that is not there or holds nothing
        raise CaeavError(
            f"AWS_PROFILE names a profile that boto3 cannot use: {faults.without_credentials(str(error))}",
            hint="name one of your profiles, or unset AWS_PROFILE",
        ) from None
