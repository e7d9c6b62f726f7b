"""File-safe, unique clip keys from ids and file names that are neither.

A key reads like what it stands for. It carries a short hash of the exact name only where that would be unsafe (too
long, or characters had to change) or where two names would read alike. Then every one of those names carries a hash,
so that keys do not depend on the order of files, and no key changes its meaning when files are added.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MAX_KEY_CHARS = 200
KEY_CHARS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-"
KEY_PATTERN = re.compile(rf"[A-Za-z0-9_+-]{{1,{MAX_KEY_CHARS}}}")
"""Allowed keys: file-safe and free of dots, since a shard member is `<key>.<extension>`."""

READABLE_CHARS = 120
"""The longest readable part; with the longest hash a key stays within `MAX_KEY_CHARS`."""

_HASH_DIGITS = (8, 16, 64)
_UNSAFE = re.compile(r"[^A-Za-z0-9_+-]+")


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A key to be made: `text` is what it should read like, `identity` is what no other request has."""

    text: str
    identity: str


def slug(text: str) -> str:
    """`text` in the characters of a key: unchanged when safe, else without accents and with `_` for what is unsafe."""
    if KEY_PATTERN.fullmatch(text) and len(text) <= READABLE_CHARS:
        return text
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return _UNSAFE.sub("_", plain).strip("_")[:READABLE_CHARS] or "clip"


def assign_keys(requests: Sequence[KeyRequest]) -> list[str]:
    """A key for each request, in order, all different; raises `ValueError` when two requests have one identity."""
    if len({request.identity for request in requests}) != len(requests):
        raise ValueError("two requests for keys have the same identity")
    readable = [slug(request.text) for request in requests]
    alike = Counter(readable)
    for digits in _HASH_DIGITS:
        keys = [
            text
            if text == request.text and alike[text] == 1
            else f"{text}-{_hash(request.identity)[:digits]}"
            for text, request in zip(readable, requests, strict=True)
        ]
        if len(set(keys)) == len(keys):
            return keys
    raise ValueError("no unique keys for these names: one of them ends in another's sha256")


def _hash(identity: str) -> str:
    return hashlib.sha256(identity.encode("utf-8")).hexdigest()
