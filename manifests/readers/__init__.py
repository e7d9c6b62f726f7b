"""Readers: from a data set's files as they are distributed, oddities included, to a `Manifest`.

A reader reads text files and lists folders; it never opens media. Whatever is odd becomes a `Finding`; only what
leaves nothing to work with is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.clip import SPLITS, Manifest
from caeav.manifests.core.registry import Registry

MARKER_FILES = {
    "ave": ("Annotations.txt",),
    "llp": ("AVVP_train.csv", "data/AVVP_train.csv"),
    "avs-s4": (
        "Single-source/s4_meta_data.csv",
        "s4_meta_data.csv",
        "AVSBench_data/Single-source/s4_meta_data.csv",
    ),
    "avs-ms3": (
        "Multi-sources/ms3_meta_data.csv",
        "ms3_meta_data.csv",
        "AVSBench_data/Multi-sources/ms3_meta_data.csv",
    ),
    "music-avqa": tuple(
        f"{place}avqa-{split}.json"
        for place in ("json_update/", "json/", "", "data/json_update/", "data/json/", "data/")
        for split in SPLITS  # its reader is content with one of them
    ),
}
"""For each official layout, paths below its root; where the set's files are, one of these is a file."""

SYNTHETIC = {"ave": "synthetic", **{name: f"synthetic-{name}" for name in MARKER_FILES if name != "ave"}}
"""The generated data set of each layout."""

OFFICIAL = (*MARKER_FILES, *SYNTHETIC.values())
"""Data sets with files of their own; any other name is a folder of media, or was built from one."""

MEDIA_EXTENSIONS = (
    *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".vob", ".gif"),
    *(".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".mka", ".aac", ".aiff", ".aif", ".wma"),
)
"""Extensions of media files, in lower case; where one id has several files, the earlier extension is taken."""

CLASS_FOLDERS = "folders"
"""For `ReadOptions.labels`: files lie in `<class>/` or `<split>/<class>/`, and the folders' names are their labels."""

NO_LABELS = "none"
"""For `ReadOptions.labels`: use no label file, not even the one in the folder."""

Lengths = Callable[[Sequence[Path]], Sequence[float | None]]
"""Seconds of each media file, in order; None where the length is not known."""


@dataclass(frozen=True)
class ReadOptions:
    """What a reader is told besides the folder.

    dataset: the manifest's name. The other options are for folders of media; official sets fix them and refuse them:
        labels: a csv, `CLASS_FOLDERS`, or `NO_LABELS`; None takes `labels.csv` where the folder holds one.
        segments, segment_s: how a clip is divided. stride_s: cut each whole file into clips, one every so many seconds.
        exclude: a folder to leave out.
        lengths: tells how long media files are, since readers open none (`caeav.pipeline.media.lengths.lengths_in`).
    """

    dataset: str
    labels: Path | str | None = None
    segments: int | None = None
    segment_s: float | None = None
    exclude: Path | None = None
    stride_s: float | None = None
    lengths: Lengths | None = None


Reader = Callable[[Path, ReadOptions], Manifest]
"""`read(root, options)`: raises `CaeavError` when the files at `root` cannot be read at all."""

readers: Registry[Reader] = Registry("reader")
for _layout, _generated in SYNTHETIC.items():
    _module = "avsbench" if _layout.startswith("avs-") else _layout.replace("-", "_")
    for _name in (_layout, _generated):
        readers.register_lazily(_name, f"caeav.manifests.readers.{_module}:read")
readers.register_lazily("folder", "caeav.manifests.readers.folder:read")
