"""The lists of VGGSound and AudioSet as they are published, taken as the label file of a folder of media.

    VGGSound   ytid,start,"label, perhaps with commas",split      no header; clips of 10 s
    AudioSet   # YTID, start_seconds, end_seconds, positive_labels    comments, then rows; the labels in one field

Downloaders name files in many ways: `<id>_<start as six digits>`, `<id>_<start>_<end>` in milliseconds or seconds, the
id alone, each perhaps after a `Y`. A file with the start in its name is the clip, cut already, and begins at 0. A file
named by the id alone may be the clip or the whole video: its length decides.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted
from caeav.manifests.readers import MEDIA_EXTENSIONS, Lengths
from caeav.manifests.readers.common import ReadLog, csv_cells, csv_rows, first_file, is_name, to_number
from caeav.manifests.readers.labels import LabelRow, read_text, refuse_rows, report_missing
from caeav.manifests.readers.names import MediaNames
from caeav.manifests.readers.times import MAX_TIME_S

VGGSOUND, AUDIOSET = "VGGSound", "AudioSet"
_FORMS = {
    VGGSOUND: "ytid,start,label,split",
    AUDIOSET: "YTID, start_seconds, end_seconds, positive_labels",
}
VGGSOUND_S = 10.0
LABEL_NAMES = "class_labels_indices.csv"
"""AudioSet's file of names for its label ids, looked for beside the list and in the media folder."""

CUT_S = 1.0
"""A file named by the id alone is the clip when it is at most this much longer."""

_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_ID_COLUMNS = ("ytid", "youtube_id", "youtube id", "video_id", "id")


@dataclass(frozen=True, slots=True)
class Listed:
    """One clip of a list, times in seconds of the YouTube video."""

    line: int
    id: str
    start_s: float
    end_s: float
    labels: tuple[str, ...]
    split: str

    @property
    def name(self) -> str:
        """`<id>_<start>`: the start in six digits as in VGGSound's file names, in milliseconds if it has decimals."""
        whole = self.start_s.is_integer()
        return f"{self.id}_{self.start_s:06.0f}" if whole else f"{self.id}_{self.start_s * 1000:.0f}ms"

    def cut_stems(self) -> Iterator[str]:
        """The names, without extension, of a file that holds just this clip."""
        start, end = self.start_s, self.end_s
        names = [f"_{start * 1000:.0f}_{end * 1000:.0f}", f"_{start:.3f}_{end:.3f}"]
        if start.is_integer():
            names = [
                f"_{start:06.0f}",
                *names,
                f"_{start:.0f}_{end:g}",
                f"_{start:.0f}",
                f"_{start:.1f}_{end:.1f}",
            ]
        for before in ("", "Y"):
            yield from (f"{before}{self.id}{name}" for name in (*names, f"_{start * 1000:.0f}"))


def list_format(content: str) -> str:
    """`VGGSOUND`, `AUDIOSET`, or empty when the text is neither list."""
    first = [line for line in content.splitlines()[:20] if line.strip()]
    if any(line.startswith("#") and "ytid" in line.lower() for line in first):
        return AUDIOSET
    rows = [csv_cells(line) or [""] for line in first if not line.startswith("#")][:2]
    if len(rows) == 2 and rows[0][0].lower() in _ID_COLUMNS:
        rows = rows[1:]
    for row in rows[:1]:
        if len(row) == 4 and _ID.fullmatch(row[0]) and row[1].isdecimal() and row[3] in ("train", "test"):
            return VGGSOUND
        if len(row) == 4 and _ID.fullmatch(row[0]) and row[3].startswith(("/m/", "/t/", "/g/")):
            return AUDIOSET
    return ""


def read_list(
    path: Path,
    log: ReadLog,
    media: MediaNames,
    files: Sequence[str],
    lengths: Lengths | None,
) -> tuple[list[LabelRow], set[str]]:
    """A row for each clip and label of the list; and the files that are not needed, since another holds the same clip.

    Raises `CaeavError` for wrong rows, and when no clip has a file.
    """
    content = read_text(path, log)
    form = list_format(content)
    listed = _listed(path, content, form)
    names = _label_names(path, media.root, log) if form == AUDIOSET else {}
    split = f"; all rows are in {listed[0].split}" if form == AUDIOSET and listed[0].split else ""
    log.add("labels_read_as", path.name, f"{form}'s list{split}")
    found, spare = _files(listed, files, path.name, log)
    starts = _starts(listed, found, media.root, lengths, path.name, log)
    rows = [
        LabelRow(
            clip.line,
            found.get(clip.name, (f"{clip.name}.mp4", True))[0],
            None,
            names.get(label, label),
            clip.split,
            (starts[clip.name], starts[clip.name] + clip.end_s - clip.start_s),
            (),
            clip.id,
            clip.name,
        )
        for clip in listed
        for label in clip.labels
    ]
    without = [row for row in rows if row.name not in found]
    if len(without) == len(rows):
        looked = ", ".join(f"{stem}.mp4" for stem in [*listed[0].cut_stems()][:3])
        raise CaeavError(
            f"{path}: none of its {counted(len(listed), 'clip')} has a media file below {media.root}, "
            f"such as {looked} or {listed[0].id}.mp4 for the first",
            hint="name the folder that holds the downloaded clips or videos: --dataset FOLDER",
        )
    if without:
        gone = len({row.name for row in without})
        log.add("missing_media", path.name, f"{gone} of {counted(len(listed), 'clip')}")
    report_missing(path, rows, without, media, log)
    return rows, spare


def _listed(path: Path, content: str, form: str) -> list[Listed]:
    """The clips, one for each row, in order."""
    clips: list[Listed] = []
    problems: list[str] = []
    split = _split_of(path.name) if form == AUDIOSET else ""
    for line, cells in csv_rows(io.StringIO(content, newline=""), problems):
        if cells[0].startswith("#") or (not clips and cells[0].lower() in _ID_COLUMNS):
            continue
        clip = _clip(cells, form, split, line)
        if isinstance(clip, Listed):
            clips.append(clip)
        else:
            problems.append(f"line {line}: {clip}")
    if problems:
        refuse_rows(path, problems, f"a row of {form}'s list is {_FORMS[form]}")
    if not clips:
        raise CaeavError(f"{path}: lists no clip", hint="take the list as it is published")
    return clips


def _clip(cells: Sequence[str], form: str, split: str, line: int) -> Listed | str:
    """The clip of a row, or what is wrong with it."""
    if len(cells) != 4:
        return f"{len(cells)} fields instead of 4"
    if not is_name(cells[0]):
        return f"{cells[0]!r} is no YouTube id"
    start_s = to_number(cells[1])
    end_s = start_s + VGGSOUND_S if form == VGGSOUND else to_number(cells[2])
    if not 0 <= start_s < end_s <= MAX_TIME_S:
        return f"from {cells[1]!r}" + (f" to {cells[2]!r}" if form == AUDIOSET else "") + " are no seconds"
    if form == VGGSOUND:
        if cells[3] not in ("train", "test"):
            return f"split is {cells[3]!r}, it must be train or test"
        return Listed(line, cells[0], start_s, end_s, (cells[2],), cells[3])
    labels = tuple(dict.fromkeys(label.strip() for label in cells[3].split(",") if label.strip()))
    return Listed(line, cells[0], start_s, end_s, labels or ("",), split)


def _files(
    listed: Iterable[Listed], files: Sequence[str], where: str, log: ReadLog
) -> tuple[dict[str, tuple[str, bool]], set[str]]:
    """By clip name: its file, and whether that is the clip already by its name. Also the files that are not needed."""
    by_stem: dict[str, list[str]] = {}
    for file in files:
        by_stem.setdefault(PurePosixPath(file).stem, []).append(file)
    found: dict[str, tuple[str, bool]] = {}
    several: list[str] = []
    spare: set[str] = set()
    for clip in listed:
        stems = [(stem, True) for stem in clip.cut_stems()] + [(clip.id, False), (f"Y{clip.id}", False)]
        there = [
            (file, cut) for stem, cut in stems for file in sorted(by_stem.get(stem, ()), key=_preference)
        ]
        if there:
            found[clip.name] = there[0]
        if len(there) > 1:
            several.append(f"{clip.name}: {', '.join(file for file, _ in there)}")
            spare.update(file for file, _ in there)
    if several:
        more = f" ({len(several)} clips)" if len(several) > 1 else ""
        log.add("several_media", where, f"{several[0]}{more}")
    return found, spare - {file for file, _ in found.values()}


def _preference(file: str) -> tuple[int, str]:
    return MEDIA_EXTENSIONS.index(PurePosixPath(file).suffix.lower()), file


def _starts(
    listed: Sequence[Listed],
    found: Mapping[str, tuple[str, bool]],
    root: Path,
    lengths: Lengths | None,
    where: str,
    log: ReadLog,
) -> dict[str, float]:
    """By clip name, the second of its file at which it begins."""
    whole = {clip.name: found[clip.name][0] for clip in listed if not found.get(clip.name, ("", True))[1]}
    files = list(dict.fromkeys(whole.values()))
    known = (
        dict(zip(files, lengths([root / file for file in files]), strict=True)) if lengths and files else {}
    )
    starts: dict[str, float] = {}
    clips_in: dict[str, str] = {}
    cut = unknown = 0
    for clip in listed:
        if clip.name in starts:
            continue
        starts[clip.name] = 0.0
        if clip.name in whole:
            length_s = known.get(whole[clip.name])
            unknown += length_s is None
            if length_s is not None and length_s <= clip.end_s - clip.start_s + CUT_S:
                cut += 1
                other = clips_in.setdefault(whole[clip.name], clip.name)
                if other != clip.name:
                    raise CaeavError(
                        f"{whole[clip.name]} lasts {length_s:.1f} s, and the list has two clips of that video: "
                        f"{other} and {clip.name}",
                        hint=f"call the file by the clip it is, such as {clip.name}.mp4",
                    )
            else:
                starts[clip.name] = clip.start_s
    if whole:
        detail = f"{counted(len(whole), 'file')}, such as {next(iter(whole.values()))}: "
        detail += f"{cut} are no longer than the clip and begin at 0, "
        detail += f"{len(whole) - cut - unknown} are longer and begin at the list's second"
        detail += f", {unknown} of unknown length are taken for whole videos" if unknown else ""
        log.add("named_by_id", where, detail)
    return starts


def _label_names(path: Path, root: Path, log: ReadLog) -> dict[str, str]:
    """AudioSet's names by label id, from its file; empty where there is none."""
    place = first_file(path.parent, [LABEL_NAMES]) or first_file(root, [LABEL_NAMES])
    if place is None:
        return {}
    rows = csv.reader(io.StringIO(read_text(place, log), newline=""), skipinitialspace=True)
    return {cells[1]: cells[2] for cells in rows if len(cells) == 3 and cells[1].startswith("/")}


def _split_of(name: str) -> str:
    """The split that the name of an AudioSet list says."""
    words = re.split(r"[^a-z]+", name.lower())
    return "train" if "train" in words else "test" if {"eval", "test"} & set(words) else ""
