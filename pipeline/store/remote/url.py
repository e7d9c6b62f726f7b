"""Addresses of stores and media in object stores: `s3://`, `gs://`, `az://`, `file://`.

An address holds no credentials: these come from where the object store's own tools take them (environment, profile,
the machine's role), so that an address may stand in a configuration, a log or a message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.errors import CaeavError

SCHEMES = ("s3", "gs", "az", "file")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_FLATTENED = re.compile(rf"({'|'.join(SCHEMES)}):/+(.*)", re.DOTALL)


def is_url(text: str) -> bool:
    """Whether `text` is an address of any scheme, and no name or path."""
    return _URL.fullmatch(text) is not None


@dataclass(frozen=True)
class Url:
    """An address; `path` has neither a slash at its ends nor an empty part. `str` gives it back."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{'/' if self.scheme == 'file' else ''}{self.path}"

    def __truediv__(self, name: str) -> Url:
        return Url(self.scheme, f"{self.path}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """The address without its last part."""
        return Url(self.scheme, self.path.rpartition("/")[0])


def parse_url(text: str) -> Url:
    """An address as it was typed -> `Url`; raises `CaeavError` for other schemes and for one with credentials."""
    match = _URL.fullmatch(text)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in SCHEMES:
        raise CaeavError(
            f"{without_secrets(text)!r} is no address of an object store",
            hint=f"write one that begins with {', '.join(f'{name}://' for name in SCHEMES)}",
        )
    rest = match[2]
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise CaeavError(
            f"{without_secrets(text)}: an address with a user, a query or a fragment",
            hint="leave them out; credentials come from the environment or a profile (docs/REMOTE.md)",
        )
    parts = [part for part in rest.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts) or not rest.isprintable():
        raise CaeavError(
            f"{text!r} names no place in an object store",
            hint="write scheme://bucket/prefix, and file:///folder for a folder of this machine",
        )
    return Url(scheme, "/".join(parts))


def url_of_path(path: Path | None) -> str:
    """The address that was typed where a folder is expected (`Path` makes one slash of two); empty for a folder."""
    match = _FLATTENED.fullmatch(str(path or ""))
    return str(parse_url(f"{match[1]}://{'/' if match[1] == 'file' else ''}{match[2]}")) if match else ""


def without_secrets(text: str) -> str:
    """A text without what may be a credential in an address: user and password, and the query."""
    text = re.sub(r"(?<=://)[^/\s@]+@", "", text)
    return re.sub(r"\?[^\s\"')]+", "", text)
