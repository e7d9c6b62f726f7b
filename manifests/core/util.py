"""Small helpers that all packages share: numbers, sizes and lists in messages, `--set` values, and the cores to use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.core.errors import CaeavError

EXAMPLES = 3
"""How many names a message quotes unless it asks for more."""


def counted(number: int, one: str, several: str = "") -> str:
    """`1 clip`, `2 clips`: `number` with its noun; `several` is the plural where that is not `one` with an s."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def some_of(names: Iterable[object], most: int = EXAMPLES) -> str:
    """`a, b, c and 4 more`: the first `most` names and how many others there are."""
    texts = [str(name) for name in names]
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def capitalised(text: str) -> str:
    """`text` with a large first letter; unlike `str.capitalize` the others stay as they are."""
    return text[:1].upper() + text[1:]


def some_lines(lines: Sequence[str], most: int) -> list[str]:
    """The first `most` lines, and as a last one `and 4 more` where there are others."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {more} more"] if more > 0 else [])]


def size_text(count: float, *, binary: bool = False) -> str:
    """Bytes in words: `1.5 kB`, `250 MB`; `binary` counts in 1024 (`1.5 KiB`), as memory is measured.

    One decimal below 100 of a unit, none above; files on disk are decimal, RAM and GPU memory binary.
    """
    step, units = (1024, ("KiB", "MiB", "GiB", "TiB")) if binary else (1000, ("kB", "MB", "GB", "TB"))
    unit = "B"
    for larger in units:
        if count < step:
            break
        count, unit = count / step, larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def parse_setting(text: str, form: str) -> tuple[str, Any]:
    """A `KEY=VALUE` of `--set` as key and value; the value is read as YAML.

    Raises `CaeavError`; `form` is what the user should write.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not (equals and all(part.strip() for part in key.split("."))):
        raise CaeavError(f"--set {text!r} sets nothing", hint=f"write {form}")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise CaeavError(f"--set {text!r} is not a value of YAML", hint="quote it: KEY='\"text\"'") from error


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


OnProgress = Callable[[int], object]
"""Is told how many bytes, or clips, more are done."""


def ignore(_: object) -> None:
    """An `OnProgress`, or another function that is told something, where nobody wants to know."""


def usable_cores() -> int:
    """CPU cores this process may use: fewer than the machine has in a container, all where the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def age_text(seconds: float) -> str:
    """`3 min`, `5 h`, `12 d`: roughly how long ago."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
