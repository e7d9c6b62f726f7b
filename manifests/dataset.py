"""From what the user calls a data set to its manifest: `ave`, `llp`, ..., a folder, or a manifest built before.

This is the one place that knows which name means which reader, and where official files are looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.keys import slug
from caeav.manifests.manifest import read_manifest
from caeav.manifests.readers import MARKER_FILES, OFFICIAL, SYNTHETIC, Lengths, ReadOptions, readers

_LIMITED = re.compile(r"(?P<whole>.+)-first(?P<count>[1-9]\d*)")


@dataclass(frozen=True)
class Source:
    """Where a data set's files lie and how its clips are cut; None where nothing is said.

    root: its folder; None for its place in the home. labels: a file, or a word of `ReadOptions.labels`.
    """

    root: Path | None = None
    labels: Path | str | None = None
    segments: int | None = None
    segment_s: float | None = None
    stride_s: float | None = None


def load_dataset(
    name_or_folder: str,
    root: Path | None,
    home: Home,
    *,
    labels: Path | str | None = None,
    segments: int | None = None,
    segment_s: float | None = None,
    stride_s: float | None = None,
    dataset: str = "",
    lengths: Lengths | None = None,
) -> Manifest:
    """The manifest of a data set, read afresh from its files.

    Official sets (`OFFICIAL`) are read at `root`, by default `home.data(name)`. Any other name is a folder of media, to
    which `labels`, `segments`, `segment_s` and `stride_s` apply; its data set is called `dataset`, by default after the
    folder. Where there are no such files, the manifest built into `home` under this name is taken as it is. `lengths`
    tells how long media files are. Nothing remembered in `home` is looked up, see `remembered.py`.

    Raises `CaeavError` when the name is none of these or the files cannot be read.
    """
    built = home.manifest(name_or_folder) if slug(name_or_folder) == name_or_folder else None
    cut: dict[str, Any] = {
        "labels": labels,
        "segments": segments,
        "segment_s": segment_s,
        "stride_s": stride_s,
    }
    plain = all(value is None for value in cut.values())
    if name_or_folder in OFFICIAL:
        if (
            built
            and root is None
            and plain
            and built.is_file()
            and not _files_there(name_or_folder, built.parent)
        ):
            return read_manifest(built)
        options = ReadOptions(name_or_folder, **cut)
        return readers[name_or_folder](root or home.data(name_or_folder), options)
    folder = Path(name_or_folder).expanduser()
    if root is not None:
        raise CaeavError(
            f"--root {root} was given for {name_or_folder!r}; it goes with {', '.join(OFFICIAL)} only",
            hint=f"for plain media name the folder itself: --dataset {root}",
        )
    if name_or_folder and folder.is_dir():
        options = ReadOptions(dataset or folder_dataset(folder), exclude=home.root, lengths=lengths, **cut)
        return readers["folder"](folder, options)
    if built and built.is_file():
        if not plain:
            raise CaeavError(
                f"{name_or_folder!r} is a manifest built before, which labels and segments cannot change",
                hint="name the media folder instead",
            )
        return read_manifest(built)
    raise CaeavError(
        f"no data set {name_or_folder!r}: it is neither {', '.join(OFFICIAL)}, nor a folder that exists, "
        f"nor a manifest built in {home.root}",
        hint=f"give {', '.join(MARKER_FILES)} (official files in {home.data('ave')} and so on, or --root), "
        "synthetic or synthetic-<name> (made by caeav synthesise), or the path of a folder of media files",
    )


def _files_there(name: str, folder: Path) -> bool:
    layout = next(layout for layout, generated in SYNTHETIC.items() if name in (layout, generated))
    return any((folder / marker).is_file() for marker in MARKER_FILES[layout])


def folder_dataset(folder: Path) -> str:
    """The data set name of a folder of media: its own name made file-safe, never that of an official set."""
    name = slug(folder.resolve().name)
    return f"{name}-folder" if name in OFFICIAL else name


# ---- the first clips of a data set ----


def limited_name(whole: str, count: int) -> str:
    """`ave`, 20 -> `ave-first20`."""
    return f"{whole}-first{count}"


def whole_of(name: str) -> tuple[str, int]:
    """`ave-first20` -> `ave`, 20; any other name and 0."""
    found = _LIMITED.fullmatch(name)
    return (found["whole"], int(found["count"])) if found else (name, 0)


def first_clips(manifest: Manifest, count: int) -> Manifest:
    """The first `count` clips of each split, and of those in none, in their order, as a data set of its own.

    The name alone says what it is, so every command finds it again, and its stores lie apart from those of the whole.
    """
    seen: Counter[str] = Counter()
    kept = []
    for clip in manifest.clips:
        seen[clip.split] += 1
        if seen[clip.split] <= count:
            kept.append(clip)
    return replace(manifest, dataset=limited_name(manifest.dataset, count), clips=tuple(kept))
