"""File-safe, unique clip keys from ids and file names that need be neither.

A key reads like what it stands for. Only where that would be unsafe (characters had to change, too long) or
where two would read alike does it carry a short hash of the exact name; then every one of those that read
alike carries one, so that keys do not depend on the order of files and one key never changes its meaning
when files are added.
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


KEY_PATTERN = re.compile(r"[A-Za-z0-9_+-]{1,200}")
"""Allowed keys: file-safe and free of dots, since a shard member is `<key>.<extension>`."""


READABLE_CHARS = 120
"""Longest readable part; with the longest hash a key stays within the 200 characters of `KEY_PATTERN`."""

_HASH_DIGITS = (8, 16, 64)
_UNSAFE = re.compile(r"[^A-Za-z0-9_+-]+")


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A key somebody wants: `text` is what it should read like, `identity` what no other wish has."""

    text: str
    identity: str


def slug(text: str) -> str:
    """`text` in the characters of a key: itself when safe, else accents dropped and the rest made `_`."""
    if KEY_PATTERN.fullmatch(text) and len(text) <= READABLE_CHARS:
        return text
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return _UNSAFE.sub("_", plain).strip("_")[:READABLE_CHARS] or "clip"


def assign_keys(wishes: Sequence[KeyRequest]) -> list[str]:
    """A key for each wish, in order, all different.

    Raises `ValueError` when two wishes have the same identity: the caller meant one clip.
    """
    if len({wish.identity for wish in wishes}) != len(wishes):
        raise ValueError("two wishes for keys have the same identity")
    readable = [slug(wish.text) for wish in wishes]
    alike = Counter(readable)
    for digits in _HASH_DIGITS:
        keys = [
            text if text == wish.text and alike[text] == 1 else f"{text}-{_hash(wish.identity)[:digits]}"
            for text, wish in zip(readable, wishes, strict=True)
        ]
        if len(set(keys)) == len(keys):
            return keys
    raise ValueError("no unique keys for these names: one of them ends in another's sha256")


def _hash(identity: str) -> str:
    return hashlib.sha256(identity.encode("utf-8")).hexdigest()
