"""AVSBench's files: the csv lists of its two data sets, and a mask picture as the official code turns it into 0 and 1.

    S4   Single-source/s4_meta_data.csv     name,start,category,split     and the folder s4_data/ beside it
    MS3  Multi-sources/ms3_meta_data.csv    video_id,split                and ms3_data/
         avss_metadata.csv or metadata.csv  vid,uid,s_min,s_sec,a_obj,split,label   AVSBench-semantic's, optional

Knows one file at a time; what they say together is `avsbench.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLITS, Finding
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding
from caeav.manifests.masks import MAX_SIDE
from caeav.manifests.readers.common import is_name, read_table

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
        """The YouTube id: the name, without MS3's number behind it; one name of MS3 holds no id."""
        numbered = _NUMBERED.fullmatch(self.name)
        return numbered.group(1) if numbered else self.name


def read_s4(path: Path, sources: dict[str, str], findings: list[Finding]) -> list[Listed]:
    """S4's list in its order."""
    rows = []
    for (name, start, category, split), where in read_table(
        path, ",", ("name", "start", "category", "split"), sources, findings
    ):
        if not start.isdecimal():
            findings.append(finding("damaged_row", where, f"{name}: start {start!r} is no whole second"))
        elif not is_name(category):
            findings.append(finding("damaged_row", where, f"{name}: {category!r} is no folder name"))
        elif _usable(name, split, where, findings):
            rows.append(Listed(name, split, category, int(start), where))
    return rows


def read_ms3(path: Path, sources: dict[str, str], findings: list[Finding]) -> list[Listed]:
    """MS3's list in its order."""
    lines = read_table(path, ",", ("video_id", "split"), sources, findings)
    return [
        Listed(name, split, "", 0, where)
        for (name, split), where in lines
        if _usable(name, split, where, findings)
    ]


def read_objects(path: Path, sources: dict[str, str], findings: list[Finding]) -> dict[str, list[str]]:
    """What can be seen to sound in each clip of MS3, by its name, from the list of AVSBench-semantic."""
    columns = ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")
    lines = read_table(path, ",", columns, sources, findings)
    return {
        uid: sorted({name for name in objects.split("_") if name not in NO_OBJECT})
        for (_, uid, _, _, objects, _, label), _ in lines
        if label == MS3_PART
    }


def _usable(name: str, split: str, where: str, findings: list[Finding]) -> bool:
    if not is_name(name):
        findings.append(finding("damaged_row", where, f"{name!r} is no file name"))
    elif split not in SPLITS:
        findings.append(
            finding("damaged_row", where, f"{name}: split {split!r} is none of {', '.join(SPLITS)}")
        )
    else:
        return True
    return False


@dataclass(frozen=True)
class MaskFile:
    """A mask bool `[H, W]`, and whether the file held values between, which the official code does not treat alike."""

    mask: NDArray[np.bool_]
    soft: bool


def read_mask(path: Path, mode: str) -> MaskFile:
    """The mask in a picture file, binarised as the official loader does.

    `mode` is the Pillow mode that loader converts to: "1" for S4 (which dithers where values lie between), "P" for
    MS3 (whose palette numbers it then divides by 255; where these are small numbers, whatever is not 0 is meant).
    Raises `CaeavError` when the file is no picture of a sane size.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if max(picture.size) > MAX_SIDE:
                raise CaeavError(
                    f"{path}: {picture.width} x {picture.height} pixels, allowed are {MAX_SIDE} a side"
                )
            values = np.asarray(picture.convert(mode))
            plain = np.asarray(picture.convert("L"))
            palette = picture.mode == "P"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CaeavError(f"{path}: not a readable PNG ({error})") from None
    soft = bool(((plain > 0) & (plain < 255)).any())
    if values.dtype == np.bool_:
        return MaskFile(values, soft)
    low = palette and values.max(initial=0) < _HALF
    return MaskFile(values > 0 if low else values >= _HALF, soft)
