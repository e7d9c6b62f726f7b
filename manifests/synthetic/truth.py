"""Reading back what is true of a generated set: in which seconds something is both seen and heard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caeav.manifests.clip import Clip
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic.layouts.base import TRUTH_FILE

MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Truth:
    """Of one clip: how its modalities disagree (`aligned`, `silent`, ...), and `together[t]` for every second.

    `seen[t]`, `heard[t]`: names of classes; empty where the set tells of things instead.
    """

    kind: str
    together: tuple[bool, ...]
    seen: tuple[tuple[str, ...], ...] = ()
    heard: tuple[tuple[str, ...], ...] = ()


def read_truth(root: Path) -> dict[str, Truth]:
    """The truth of the generated set at `root` by names of clips (`truth_of` finds a clip's); empty if it is none.

    Raises `CaeavError` for a damaged file.
    """
    path = root / TRUTH_FILE
    if not path.is_file():
        return {}
    found = {}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            tracks = () if "things" in row else (_names(row["seen"]), _names(row["heard"]))
            found[str(row.get("name", row["id"]))] = Truth(str(row["kind"]), _together(row), *tracks)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CaeavError(
            f"cannot read {path}: {error}", hint="make the set again: caeav synthesise"
        ) from error
    return found


def truth_of(clip: Clip, truths: Mapping[str, Truth]) -> Truth | None:
    """The truth of a clip, found by its official name."""
    names = (clip.extra.get("name"), clip.extra.get("id"), Path(clip.media).stem, clip.key)
    return next((truths[name] for name in names if isinstance(name, str) and name in truths), None)


def _names(seconds: Iterable[Iterable[object]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(str, second)) for second in seconds)


def _together(row: Mapping[str, Any]) -> tuple[bool, ...]:
    if "things" in row:  # of several things, one must be both
        both = [zip(thing["seen"], thing["heard"], strict=True) for thing in row["things"]]
        return tuple(any(s and h for s, h in second) for second in zip(*both, strict=True))
    pairs = zip(row["seen"], row["heard"], strict=True)
    return tuple(bool({*seen} & {*heard}) for seen, heard in pairs)
