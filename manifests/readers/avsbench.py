"""AVSBench's S4 and MS3 as distributed (Zhou et al., ECCV 2022): which pixels sound, in each of five seconds.

    S4   Single-source/s4_meta_data.csv      name,start,category,split     and the folder s4_data/ beside it
    MS3  Multi-sources/ms3_meta_data.csv     video_id,split                and ms3_data/
         avss_metadata.csv or metadata.csv   vid,uid,s_min,s_sec,a_obj,split,label   AVSBench-semantic's; optional

Media are not videos but five images and a wav: `media` names the wav, and the decoder finds the images beside it
(`pipeline/media/stills.py`). A clip without images whose trimmed video is in `raw_videos/` takes that. Masks are read
here as the official code reads them, and put into the rows, so that training needs nothing but the manifest. S4's
train clips have a mask for the first frame only. Clips come in the order of the csv list.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLITS, Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaks
from caeav.manifests.keys import KeyRequest, assign_keys
from caeav.manifests.masks import MAX_SIDE, pack_mask
from caeav.manifests.readers import MARKER_FILES, ReadOptions
from caeav.manifests.readers.common import (
    ReadLog,
    first_file,
    how_to_get,
    is_name,
    read_shape,
    read_table,
    refuse_options,
    report_dashes,
)

SEGMENTS = 5
OBJECTS = ("avss_metadata.csv", "metadata.csv", "AVSBench_semantic/metadata.csv")
"""Where below the root the list with MS3's objects may lie."""
AUDIO, FRAMES, MASKS, RAW = "audio_wav", "visual_frames", "gt_masks", "raw_videos"

OFFICIAL_CATEGORIES = (
    "baby_laughter",
    "female_singing",
    "male_speech",
    "dog_barking",
    "cat_meowing",
    "lions_roaring",
    "horse_clip-clop",
    "coyote_howling",
    "mynah_bird_singing",
    "playing_acoustic_guitar",
    "playing_tabla",
    "playing_violin",
    "playing_piano",
    "playing_ukulele",
    "playing_glockenspiel",
    "helicopter",
    "race_car",
    "driving_buses",
    "ambulance_siren",
    "typing_on_computer_keyboard",
    "chainsawing_trees",
    "cap_gun_shooting",
    "lawn_mowing",
)
"""S4's 23 categories in the order of the official preprocessing code."""

SOURCE_S = 10
"""Length of the VGGSound clip that S4's `start` counts in."""

MS3_PART = "v1m"
"""What AVSBench-semantic calls the clips of MS3 among its own."""

NO_OBJECT = ("", "background", "off-the-screen")

_NUMBERED = re.compile(r"(.{11})_\d+")
_HALF = 128


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a csv list; `category` and `start_s` are S4's, empty and 0 for MS3."""

    name: str
    split: str
    category: str
    start_s: int
    where: str

    @property
    def youtube(self) -> str:
        """The YouTube id: the name without the number that MS3 appends; one name of MS3 holds no id."""
        numbered = _NUMBERED.fullmatch(self.name)
        return numbered.group(1) if numbered else self.name


def read_s4(path: Path, log: ReadLog) -> list[Listed]:
    """S4's list in its order."""
    rows = []
    columns = ("name", "start", "category", "split")
    for (name, start, category, split), where in read_table(path, ",", columns, log):
        if not start.isdecimal():
            log.add("damaged_row", where, f"{name}: start {start!r} is no whole second")
        elif not is_name(category):
            log.add("damaged_row", where, f"{name}: {category!r} is no folder name")
        elif _usable(name, split, where, log):
            rows.append(Listed(name, split, category, int(start), where))
    return rows


def read_ms3(path: Path, log: ReadLog) -> list[Listed]:
    """MS3's list in its order."""
    lines = read_table(path, ",", ("video_id", "split"), log)
    return [
        Listed(name, split, "", 0, where)
        for (name, split), where in lines
        if _usable(name, split, where, log)
    ]


def _usable(name: str, split: str, where: str, log: ReadLog) -> bool:
    if not is_name(name):
        log.add("damaged_row", where, f"{name!r} is no file name")
    elif split not in SPLITS:
        log.add("damaged_row", where, f"{name}: split {split!r} is none of {', '.join(SPLITS)}")
    else:
        return True
    return False


def read_objects(path: Path, log: ReadLog) -> dict[str, list[str]]:
    """The visible sounding objects of each clip of MS3, by its name, from the list of AVSBench-semantic."""
    columns = ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")
    return {
        uid: sorted({name for name in objects.split("_") if name not in NO_OBJECT})
        for (_, uid, _, _, objects, _, label), _ in read_table(path, ",", columns, log)
        if label == MS3_PART
    }


@dataclass(frozen=True)
class Layout:
    """What differs between the two sets: names, and where below the data folder a clip's files lie."""

    name: str
    folder: str
    data: str
    mask_mode: str
    train_masks: int
    read: Callable[[Path, ReadLog], list[Listed]]
    clip_folder: Callable[[Listed], str]
    frames: Callable[[Listed], str]
    raw: Callable[[Listed], str]

    @property
    def csv_places(self) -> tuple[str, ...]:
        """Where below the root the list may lie."""
        return MARKER_FILES[self.name]


S4 = Layout(
    name="avs-s4",
    folder="Single-source",
    data="s4_data",
    mask_mode="1",
    train_masks=1,
    read=read_s4,
    clip_folder=lambda row: f"{row.split}/{row.category}/{row.name}",
    frames=lambda row: f"{row.split}/{row.category}/{row.name}",
    raw=lambda row: f"{row.split}/{row.category}/{row.name}.mp4",
)
MS3 = Layout(
    name="avs-ms3",
    folder="Multi-sources",
    data="ms3_data",
    mask_mode="P",
    train_masks=SEGMENTS,
    read=read_ms3,
    clip_folder=lambda row: f"{row.split}/{row.name}",
    frames=lambda row: row.name,
    raw=lambda row: f"{row.name}.mp4",
)


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the official files in `root`; raises `CaeavError` when the list is missing or unreadable."""
    refuse_options(options)
    layout = MS3 if options.dataset.endswith("ms3") else S4
    csv = Path(layout.csv_places[0]).name
    help_text = how_to_get(
        options.dataset,
        root,
        official=f"{layout.folder}/ with {csv} and {layout.data}/ ({FRAMES}, {AUDIO}, {MASKS})",
        authors="AVSBench's authors (github.com/OpenNLPLab/AVSBench)",
        generated=f"{layout.folder}/",
    )
    path = first_file(root, layout.csv_places)
    if path is None:
        raise CaeavError(f"{root}: {layout.csv_places[0]} not found", hint=help_text)
    log = ReadLog()
    segments, segment_s = read_shape(root, log, SEGMENTS, 1.0)
    rows = _unique(layout.read(path, log), log)
    if not rows:
        raise CaeavError(f"{path}: lists no clip", hint=help_text)
    data = path.parent / layout.data
    masks = _masks(rows, layout, data, segments, log)
    listing = first_file(root, OBJECTS) if layout is MS3 else None
    objects = read_objects(listing, log) if listing is not None else {}
    keys = assign_keys([KeyRequest(row.name, row.name) for row in rows])
    clips = tuple(
        Clip(
            key=key,
            media=_media(row, layout, data, log).relative_to(root).as_posix(),
            start_s=0.0,
            seconds=segments * segment_s,
            split=row.split,
            extra={
                "id": row.youtube,
                **({"name": row.name} if row.name != row.youtube else {}),
                **({"category": row.category} if row.category else {}),
                **({"objects": objects[row.name]} if row.name in objects else {}),
                "masks": masks[row.name],
            },
        )
        for key, row in zip(keys, rows, strict=True)
    )
    _report_rows(rows, path.name, log)
    log.findings += leaks(clips)
    return log.manifest(root, options.dataset, segments, segment_s, _classes(rows), clips)


def _unique(rows: Sequence[Listed], log: ReadLog) -> list[Listed]:
    """Each name once; of several splits the later one wins, so that nothing that is tested on is trained on."""
    chosen: dict[str, Listed] = {}
    for row in rows:
        known = chosen.setdefault(row.name, row)
        if known is row:
            continue
        if known.split == row.split:
            log.add("duplicate_row", row.where, f"{row.name}, as {known.where}")
            continue
        log.add("row_in_two_splits", row.where, f"{row.name}: also in {known.split}")
        if SPLITS.index(row.split) > SPLITS.index(known.split):
            chosen[row.name] = row
    return list(chosen.values())


def _media(row: Listed, layout: Layout, data: Path, log: ReadLog) -> Path:
    """The wav of a clip with images, the raw video of one without; the wav again where there is neither."""
    wav = data / AUDIO / f"{layout.clip_folder(row)}.wav"
    raw = data / RAW / layout.raw(row)
    if (data / FRAMES / layout.frames(row)).is_dir():
        return wav
    if raw.is_file():
        log.add("raw_video", row.where, f"{row.name}: {RAW}/{layout.raw(row)}")
        return raw
    if wav.is_file():
        log.add("missing_pictures", row.where, f"{row.name}: {FRAMES}/{layout.frames(row)}/")
    return wav


def _masks(
    rows: Sequence[Listed], layout: Layout, data: Path, segments: int, log: ReadLog
) -> dict[str, list[str | None]]:
    """For each name its masks, packed; None for a frame without ground truth."""
    found: dict[str, list[str | None]] = {row.name: [None] * segments for row in rows}
    if not (data / MASKS).is_dir():
        log.add("no_masks", f"{layout.data}/{MASKS}", f"not found in {data.parent.name}")
        return found
    sizes: Counter[tuple[int, ...]] = Counter()
    for row in rows:
        for number in range(1, 1 + (min(layout.train_masks, segments) if row.split == "train" else segments)):
            name = f"{row.name}_{number}.png"
            path = data / MASKS / layout.clip_folder(row) / name
            if not path.is_file():
                log.add("missing_mask", name, f"{row.split}, {path.relative_to(data)}")
                continue
            try:
                read = read_mask(path, layout.mask_mode)
            except CaeavError as error:
                log.add("damaged_mask", name, str(error))
                continue
            sizes[read.mask.shape] += 1
            found[row.name][number - 1] = pack_mask(read.mask)
            if read.soft:
                log.add("soft_mask", name, row.split)
            if not read.mask.any():
                log.add("empty_mask", name, row.split)
    if len(sizes) > 1:
        counts = ", ".join(f"{width} x {height}: {n}" for (height, width), n in sizes.most_common())
        log.add("mask_size", f"{layout.data}/{MASKS}", counts)
    return found


@dataclass(frozen=True)
class MaskFile:
    """A mask bool `[H, W]`; `soft`: the file held values between black and white, which the two official loaders treat
    differently."""

    mask: NDArray[np.bool_]
    soft: bool


def read_mask(path: Path, mode: str) -> MaskFile:
    """The mask in an image file, binarised as the official loader does.

    `mode` is the Pillow mode that the loader converts to: "1" for S4, which dithers values between black and white;
    "P" for MS3, whose palette numbers it divides by 255 (where these are small, every number but 0 is foreground).
    Raises `CaeavError` when the file is not a PNG or has more than `MAX_SIDE` pixels a side.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if max(image.size) > MAX_SIDE:
                raise CaeavError(
                    f"{path}: {image.width} x {image.height} pixels, allowed are {MAX_SIDE} a side"
                )
            values = np.asarray(image.convert(mode))
            plain = np.asarray(image.convert("L"))
            palette = image.mode == "P"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CaeavError(f"{path}: not a readable PNG ({error})") from None
    soft = bool(((plain > 0) & (plain < 255)).any())
    if values.dtype == np.bool_:
        return MaskFile(values, soft)
    low = palette and values.max(initial=0) < _HALF
    return MaskFile(values > 0 if low else values >= _HALF, soft)


def _classes(rows: Sequence[Listed]) -> tuple[str, ...]:
    """S4's own order where its categories are used, else first appearance; MS3 has no classes."""
    used = dict.fromkeys(row.category for row in rows if row.category)
    official = OFFICIAL_CATEGORIES if set(used) & set(OFFICIAL_CATEGORIES) else ()
    return (*official, *(name for name in used if name not in official))


def _report_rows(rows: Sequence[Listed], name: str, log: ReadLog) -> None:
    for row in rows:
        if row.start_s + SEGMENTS > SOURCE_S:
            log.add("short_source", row.where, f"{row.name} starts at {row.start_s} of {SOURCE_S} s")
    for row in rows:
        if len(row.youtube) != 11:
            log.add("no_youtube_id", row.where, row.name)
    changes = sum(a.category != b.category for a, b in itertools.pairwise(rows))
    classes = len({row.category for row in rows})
    if classes > 1 and changes + 1 <= 2 * classes <= len(rows) // 2:
        log.add("grouped_rows", name, f"{classes} classes in {changes + 1} stretches")
    report_dashes([row.name for row in rows], name, log)
