"""A data set cut down to its first clips, under a name of its own: `ave-first20` has 20 clips of each split of `ave`.

The name alone says what it is, so every command finds it again, and its stores lie apart from those of the whole set.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from caeav.manifests.clip import Manifest

_NAME = re.compile(r"(?P<whole>.+)-first(?P<count>[1-9]\d*)")


def limited_name(whole: str, count: int) -> str:
    """`ave`, 20 -> `ave-first20`."""
    return f"{whole}-first{count}"


def whole_of(name: str) -> tuple[str, int]:
    """`ave-first20` -> `ave`, 20; any other name and 0."""
    found = _NAME.fullmatch(name)
    return (found["whole"], int(found["count"])) if found else (name, 0)


def first_clips(manifest: Manifest, count: int) -> Manifest:
    """The first `count` clips of each split, and of those in none, in their order, under the limited name."""
    seen: Counter[str] = Counter()
    kept = []
    for clip in manifest.clips:
        seen[clip.split] += 1
        if seen[clip.split] <= count:
            kept.append(clip)
    return replace(manifest, dataset=limited_name(manifest.dataset, count), clips=tuple(kept))
