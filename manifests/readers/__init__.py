"""Readers: a data set's files as they are distributed, oddities included, to a `Manifest`.

A reader reads text and lists folders; it never opens media. What is odd becomes a `Finding`; only what leaves
nothing to work with is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.clip import Manifest
from caeav.manifests.core.registry import Registry

MEDIA_EXTENSIONS = (
    *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".vob", ".gif"),
    *(".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".mka", ".aac", ".aiff", ".aif", ".wma"),
)
"""Extensions taken for media, compared in lower case; earlier ones are preferred for one id."""


CLASS_FOLDERS = "folders"
"""As `ReadOptions.labels`: files lie in `<class>/` or `<split>/<class>/`, and these names are their labels."""

NO_LABELS = "none"
"""As `ReadOptions.labels`: no label file, not even the one that lies in the folder."""

Lengths = Callable[[Sequence[Path]], Sequence[float | None]]
"""Seconds of each media file, in order; None where its length is not known."""


@dataclass(frozen=True)
class ReadOptions:
    """What a reader is told beside the folder.

    `dataset` names the manifest. The rest is the folder reader's; official data sets fix it and refuse it: `labels`
    is a csv, `CLASS_FOLDERS` where the folders' names are the labels, or `NO_LABELS`; `segments` and `segment_s` cut
    a clip; `exclude` is a folder left out. `stride_s` cuts each file into clips, one every so many seconds over its
    whole length. Nothing here opens media: how long files are is asked of `lengths`, which the caller brings
    (`caeav.pipeline.media.lengths.lengths_in`).
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
for _name, _module in {
    "ave": "ave",
    "synthetic": "ave",
    "llp": "llp",
    "synthetic-llp": "llp",
    "avs-s4": "avsbench",
    "synthetic-avs-s4": "avsbench",
    "avs-ms3": "avsbench",
    "synthetic-avs-ms3": "avsbench",
    "music-avqa": "music_avqa",
    "synthetic-music-avqa": "music_avqa",
    "folder": "folder",
}.items():
    readers.register_lazily(_name, f"caeav.manifests.readers.{_module}:read")
