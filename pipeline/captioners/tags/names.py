"""Names of the classes: ImageNet's from timm, AudioSet's from the table that lies beside YAMNet's weights.

Only the first of a class's synonyms is said. A digest of all names is part of the recipe, since names decide texts.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

from caeav.pipeline.backbones.timm_models import import_timm
from caeav.pipeline.backbones.weights.find import WeightsError

TABLES = ("yamnet_class_map.csv", "yamnet_classes.csv")
"""What the table of AudioSet's classes may be called; the first is its authors' name."""
TABLE_ORIGIN = "tensorflow/models, research/audioset/yamnet/yamnet_class_map.csv"
_TABLE_BYTES = 1 << 20
_PLAINER = {"cock": "rooster", "nipple": "rubber nipple", "ice bear": "polar bear"}
"""First synonyms that say something else in a caption than in WordNet."""

_SPOKEN = {
    "A capella": "a capella singing",
    "Bird flight, flapping wings": "flapping wings",
    "Canidae, dogs, wolves": "dogs",
    "Cupboard open or close": "cupboard opening or closing",
    "Drawer open or close": "drawer opening or closing",
    "Fill (with liquid)": "filling",
    "Livestock, farm animals, working animals": "farm animals",
    "Music for children": "children's music",
    "Rain on surface": "rain",
    "Run": "running",
    "Walk, footsteps": "footsteps",
}
"""Names of AudioSet whose first synonym makes no sentence."""

KINDS: dict[str, tuple[range, ...]] = {
    "fish": (range(7), range(389, 398)),
    "bird": (range(7, 25), range(80, 101), range(127, 147)),
    "frog": (range(30, 33),),
    "turtle": (range(33, 38),),
    "lizard": (range(38, 49),),
    "snake": (range(52, 69),),
    "spider": (range(72, 78),),
    "dog": (range(151, 269),),
    "cat": (range(281, 286),),
    "bear": (range(294, 298),),
    "beetle": (range(300, 308),),
    "butterfly": (range(321, 327),),
    "monkey": (range(370, 383),),
}
"""Kinds of animals and ImageNet's classes of each: said where the kind is certain and no class of it is."""

GENERAL = frozenset(
    (
        *("Animal", "Domestic animals, pets", "Livestock, farm animals, working animals", "Wild animals"),
        *(
            "Vehicle",
            "Engine",
            "Mechanisms",
            "Tools",
            "Musical instrument",
            "Water",
            "Liquid",
            "Wood",
            "Glass",
        ),
    )
)
"""Classes of AudioSet above many others: named only in clips of which nothing more exact is claimed."""
NEVER = frozenset(
    (
        *("Silence", "Sound effect", "Noise", "Environmental noise", "Field recording", "Sidetone"),
        *("Inside, small room", "Inside, large room or hall", "Inside, public space"),
        *("Outside, urban or manmade", "Outside, rural or natural"),
    )
)
"""Classes of AudioSet that name no sound, but a place, a recording or the want of one."""


def imagenet_names() -> list[str]:
    """The 1000 names in the order of ImageNet-1k's classes; raises `CaeavError` without timm."""
    info = import_timm().data.ImageNetInfo("imagenet-1k")
    found = [info.index_to_description(k).partition(",")[0].strip() for k in range(info.num_classes())]
    return [_PLAINER.get(name, name) for name in found]


def audioset_classes(folder: Path, count: int) -> list[str]:
    """The names of AudioSet's classes as its table in `folder` has them: column `display_name`, by `index`.

    Raises `WeightsError` without a table, and for one that does not name `count` classes, each once.
    """
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise WeightsError(
            f"{folder} holds no table of AudioSet's classes",
            hint=f"put {TABLES[0]} beside the weights; it comes from {TABLE_ORIGIN}",
        )
    try:
        if path.stat().st_size > _TABLE_BYTES:
            raise ValueError
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        found = {int(row["index"]): row["display_name"].strip() for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise _no_table(path, count) from error
    if len(rows) != count or sorted(found) != list(range(count)) or not all(map(spoken, found.values())):
        raise _no_table(path, count)
    return [found[k] for k in range(count)]


def spoken(name: str) -> str:
    """A class of AudioSet in a sentence: `Crying, sobbing` -> `crying`, `Zipper (clothing)` -> `zipper`."""
    if name in _SPOKEN:
        return _SPOKEN[name]
    first = name.partition(",")[0].partition("(")[0].strip()
    return first[:1].lower() + first[1:]


def names_digest(names: Sequence[str]) -> str:
    """A digest of names in their order."""
    return f"sha256:{hashlib.sha256(chr(10).join(names).encode()).hexdigest()}"


def _no_table(path: Path, count: int) -> WeightsError:
    return WeightsError(
        f"{path.name} is no table of {count} classes with the columns index and display_name",
        hint=f"get it again from {TABLE_ORIGIN}",
    )
