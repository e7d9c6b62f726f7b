"""AVE as distributed (Tian et al., ECCV 2018), and any set in its layout, such as the generated one.

`Annotations.txt` gives the rows, the three split files say where each (video, class) belongs, `AVE/` holds
`<id>.mp4`. 45 of AVE's ids occur more than once, always with another class, so a clip is a (video, class)
and its key says both. Clips come in the order of `Annotations.txt`, which is what the row numbers in the
authors' `*_order.h5` count. Missing media is no matter here; `check` finds it.

The lines of AVE's text files: `Category&VideoID&Quality&StartTime&EndTime`, with or without a header.

Knows one file at a time; what the files say together is `ave.py`. A line that cannot be read costs that line
and a finding; a file without any readable line is an error. Class names hold `, ` and `( )`, so a line is
split at `&` alone; line ends may be LF, CRLF or missing at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.clip import SPLITS, Clip, Event, Finding, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding, leaks, zero_length_events
from caeav.manifests.keys import KeyRequest, assign_keys, slug
from caeav.manifests.readers import ReadOptions
from caeav.manifests.readers.common import (
    is_name,
    media_by_stem,
    read_categories,
    read_file,
    read_shape,
    refuse_options,
    report_dashes,
    shown,
)

ANNOTATIONS = "Annotations.txt"
SPLIT_FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}

OFFICIAL_CLASSES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)
"""AVE's 28 classes in the column order of its label files; index 28 is background there."""

_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One line: times in seconds of the clip, not yet held against its length; `where` is `file:line`."""

    category: str
    video: str
    quality: str
    start_s: float
    end_s: float
    where: str


def read_rows(path: Path, sources: dict[str, str], findings: list[Finding]) -> list[Row]:
    """All readable rows in order; raises `CaeavError` when the file has lines and none can be read."""
    data = read_file(path, sources)
    rows: list[Row] = []
    damaged = 0
    first = True
    for line_number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not raw.strip():
            continue
        where = f"{path.name}:{line_number}"
        fields = [field.strip() for field in raw.decode("utf-8", "backslashreplace").split("&")]
        if first and [name.lower() for name in fields[:2]] == ["category", "videoid"]:
            first = False
            continue
        first = False
        problem = _problem(raw, fields)
        if problem:
            damaged += 1
            findings.append(finding("damaged_row", where, f"{problem}: {shown(raw)}"))
            continue
        category, video, quality, start, end = fields
        rows.append(Row(category, video, quality, float(start), float(end), where))
    if damaged and not rows:
        raise CaeavError(
            f"{path}: none of its {damaged} lines can be read; the first: {findings[-damaged].detail}",
            hint="a line must be Category&VideoID&Quality&StartTime&EndTime",
        )
    return rows


def _problem(raw: bytes, fields: list[str]) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if len(fields) != _FIELDS:
        return f"{len(fields)} fields instead of {_FIELDS} between '&'"
    category, video, _, start, end = fields
    if not category:
        return "no category"
    if not is_name(video):
        return f"{video!r} is no video id"
    for name, value in (("StartTime", start), ("EndTime", end)):
        try:
            usable = math.isfinite(float(value))
        except ValueError:
            usable = False
        if not usable:
            return f"{name} {value!r} is no number"
    return ""


MEDIA_FOLDER = "AVE"

Pair = tuple[str, str]
"""(video id, class): what makes a clip."""


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the official files in `root`; raises `CaeavError` when a file is not there or unreadable."""
    refuse_options(options)
    needed = (ANNOTATIONS, *SPLIT_FILES.values())
    absent = [name for name in needed if not (root / name).is_file()]
    if absent:
        raise CaeavError(f"{root}: {', '.join(absent)} not found", hint=_how_to_get(options.dataset, root))

    sources: dict[str, str] = {}
    findings: list[Finding] = []
    segments, segment_s = read_shape(root, sources)
    seconds = segments * segment_s
    annotated = _group(_sound(read_rows(root / ANNOTATIONS, sources, findings), seconds, findings), findings)
    split_rows: dict[str, dict[Pair, list[Row]]] = {}
    for split, name in SPLIT_FILES.items():
        rows = read_rows(root / name, sources, findings)
        if not rows:
            findings.append(finding("empty_split", name, f"no clip is in {split}"))
        split_rows[split] = _group(_sound(rows, seconds, findings), findings)
    if not annotated and not any(split_rows.values()):
        raise CaeavError(f"{root / ANNOTATIONS}: has no usable row", hint=_how_to_get(options.dataset, root))
    split_of = _splits(annotated, split_rows, findings)
    _report_pairs(annotated, findings)

    media = media_by_stem(root, (MEDIA_FOLDER,), findings)
    keys = assign_keys(
        [KeyRequest(f"{video}__{slug(name).lower()}", f"{video}&{name}") for video, name in annotated]
    )
    clips = tuple(
        Clip(
            key=key,
            media=media.get(video, f"{MEDIA_FOLDER}/{video}.mp4"),
            start_s=0.0,
            seconds=seconds,
            split=split_of.get((video, name), ""),
            events=tuple(Event(name, max(row.start_s, 0.0), min(row.end_s, seconds)) for row in rows),
            extra={"id": video, "quality": rows[0].quality},
        )
        for key, ((video, name), rows) in zip(keys, annotated.items(), strict=True)
    )
    classes = _classes([name for _, name in annotated], read_categories(root, sources), findings)
    findings += leaks(clips) + zero_length_events(clips)
    return Manifest(
        dataset=options.dataset,
        segments=segments,
        segment_s=segment_s,
        classes=classes,
        clips=clips,
        media_root=str(root.absolute()),
        sources=sources,
        findings=tuple(findings),
    )


def _how_to_get(dataset: str, root: Path) -> str:
    names = ", ".join((ANNOTATIONS, *SPLIT_FILES.values()))
    if dataset == "synthetic":
        return f"make the set with: caeav synthesise (it writes {names} and {MEDIA_FOLDER}/ to {root})"
    return (
        f"put {names} and the video folder {MEDIA_FOLDER}/ into {root}, or name their folder with --root; "
        "they come from AVE's authors (github.com/YapengTian/AVE-ECCV18), not with caeav"
    )


def _sound(rows: Iterable[Row], seconds: float, findings: list[Finding]) -> list[Row]:
    """The rows whose times mean something within a clip of `seconds`; what is cut or skipped is said."""
    kept = []
    for row in rows:
        times = f"{row.category} in {row.video} from {row.start_s:g} s to {row.end_s:g} s"
        if row.end_s < row.start_s:
            findings.append(finding("backwards_event", row.where, f"{times}; skipped"))
            continue
        if row.start_s < 0 or row.end_s > seconds:
            nothing_left = row.start_s >= seconds or row.end_s <= 0
            done = "skipped" if nothing_left else "cut"
            findings.append(
                finding("time_outside", row.where, f"{times}, the clip has {seconds:g} s; {done}")
            )
            if nothing_left:
                continue
        kept.append(row)
    return kept


def _group(rows: Iterable[Row], findings: list[Finding]) -> dict[Pair, list[Row]]:
    """Rows by (video, class) in order of first appearance, the same range of a pair only once."""
    groups: dict[Pair, list[Row]] = {}
    for row in rows:
        group = groups.setdefault((row.video, row.category), [])
        twin = next((r for r in group if (r.start_s, r.end_s) == (row.start_s, row.end_s)), None)
        if twin:
            findings.append(
                finding("duplicate_row", row.where, f"{row.category} in {row.video}, as {twin.where}")
            )
        else:
            group.append(row)
    return groups


def _splits(
    annotated: dict[Pair, list[Row]],
    split_rows: Mapping[str, Mapping[Pair, list[Row]]],
    findings: list[Finding],
) -> dict[Pair, str]:
    """The split of each pair; pairs that only a split file has are put behind `annotated`."""
    split_of: dict[Pair, str] = {}
    for split in SPLITS:  # a later one wins, so that nothing that is tested on is trained on
        for pair, rows in split_rows[split].items():
            video, name = pair
            if pair in split_of:
                findings.append(
                    finding(
                        "row_in_two_splits", rows[0].where, f"{name} in {video}: also in {split_of[pair]}"
                    )
                )
            split_of[pair] = split
            if pair not in annotated:
                annotated[pair] = rows
                findings.append(finding("not_annotated", rows[0].where, f"{name} in {video}"))
            known = {(row.start_s, row.end_s) for row in annotated[pair]}
            findings += [
                finding(
                    "split_row_differs", row.where, f"{name} in {video}: {row.start_s:g} to {row.end_s:g} s"
                )
                for row in rows
                if (row.start_s, row.end_s) not in known
            ]
    for pair, rows in annotated.items():
        if pair not in split_of:
            findings.append(finding("no_split", rows[0].where, f"{pair[1]} in {pair[0]}"))
    return split_of


def _report_pairs(annotated: Mapping[Pair, list[Row]], findings: list[Finding]) -> None:
    names: dict[str, list[str]] = {}
    for (video, name), rows in annotated.items():
        names.setdefault(video, []).append(name)
        if len(rows) > 1:
            ranges = ", ".join(f"{row.start_s:g} to {row.end_s:g} s" for row in rows)
            findings.append(finding("several_events", rows[1].where, f"{name} in {video}: {ranges}"))
    findings += [
        finding("repeated_id", video, "; ".join(of_video))
        for video, of_video in names.items()
        if len(of_video) > 1
    ]
    report_dashes([video for video, _ in annotated], ANNOTATIONS, findings)


def _classes(used: Iterable[str], listed: list[str], findings: list[Finding]) -> tuple[str, ...]:
    """Class order: `categories.txt` where it lists other classes than AVE's; AVE's own order where one of its
    classes is used; else first appearance. Names that are in no list come behind."""
    used = list(dict.fromkeys(used))
    official = set(OFFICIAL_CLASSES)
    if listed and set(listed) != official:
        order = listed
    elif listed or official & set(used):
        order = list(OFFICIAL_CLASSES)
    else:
        return tuple(used)
    unknown = [name for name in used if name not in order]
    findings += [finding("unknown_class", ANNOTATIONS, repr(name)) for name in unknown]
    return (*order, *unknown)
