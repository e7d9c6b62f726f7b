"""The material of a world that is made of the user's own files: its classes, and each file's split.

A class is a folder name (or a csv's class) that has pictures and sounds. Every file belongs to one split, and a clip
uses only files of its own, so test shows unseen drawings and plays unseen recordings. Files that cannot be read, are
silent, are transparent or have the very bytes of another file are left out, and said to be.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted, file_sha256, some_lines, some_of
from caeav.manifests.synthetic.classes import BACKGROUND, MIN_CLASSES, simple_name
from caeav.manifests.synthetic.material_lists import Offer, background_offers, known_extension, offers
from caeav.manifests.synthetic.material_media import problem_of

CLASS_NAME = re.compile(r"[^\W_](?:[\w ,()-]*[\w)])?")
RESERVED = frozenset(
    (BACKGROUND, "yes", "no", "zero", "one", "two", "three", "four", "left", "middle", "right")
)
"""Words that official lists or answers use for something else."""
PROBLEMS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class MaterialFile:
    """One file that clips of `split` may use. `name` is the same wherever its folder lies."""

    kind: str
    cls: str
    path: Path
    name: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Material:
    """Classes in label order, the files that are used, and a line for each file that is not."""

    classes: tuple[str, ...]
    files: tuple[MaterialFile, ...]
    left_out: tuple[str, ...] = ()

    def of(self, kind: str, cls: str, split: str) -> list[MaterialFile]:
        """The files of a kind (`picture`, `sound`, `background`), class and split, in the order of names."""
        return [f for f in self.files if (f.kind, f.cls, f.split) == (kind, cls, split)]

    def to_json(self) -> dict[str, Any]:
        """What the set's options say of it: equal if and only if classes, names, splits and contents are."""
        kinds = Counter(f.kind for f in self.files)
        rows = [[f.kind, f.cls, f.name, f.split, f.sha256] for f in self.files]
        digest = hashlib.sha256(json.dumps([self.classes, rows]).encode()).hexdigest()
        return {
            "classes": list(self.classes),
            **{kind: kinds[kind] for kind in ("picture", "sound", "background")},
            "digest": digest,
        }

    def table(self) -> str:
        """A csv of the files that are used, as the set keeps it."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("kind", "class", "file", "split", "sha256"))
        rows.writerows((f.kind, f.cls, f.name, f.split, f.sha256) for f in self.files)
        return text.getvalue()


def load_material(
    sources: Sequence[Path],
    backgrounds: Path | None = None,
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
) -> Material:
    """Join folders and csv files to one material; every file is read once, to know that it can be.

    `shares` of train, val and test say how files without a split are divided; a split whose share is 0 needs none.
    Raises `CaeavError` naming everything that lacks.
    """
    found = [offer for source in sources for offer in offers(source)]
    if backgrounds is not None:
        if not backgrounds.is_dir():
            raise CaeavError(
                f"--backgrounds {backgrounds} is not a folder", hint="give a folder of pictures or videos"
            )
        found += background_offers(backgrounds)
    found.sort(key=lambda offer: (offer.kind, offer.cls, offer.name, str(offer.path)))
    _check_names({offer.cls for offer in found if offer.cls})
    both = _two_sided(found)
    used, left_out = _usable([o for o in found if o.kind == "background" or o.cls in both])
    classes = tuple(sorted(_two_sided(used)))
    one_sided = sorted(
        {
            f"{o.cls}: no {'sound' if o.kind == 'picture' else 'picture'}"
            for o in found
            if o.cls and o.cls not in both
        }
    )
    if len(classes) < MIN_CLASSES:
        raise CaeavError(
            f"{counted(len(classes), 'class', 'classes')} of the material "
            f"{'has' if len(classes) == 1 else 'have'} a picture and a sound ({', '.join(classes) or 'none'}); "
            f"at least {MIN_CLASSES} are needed",
            hint=f"add what lacks: {some_of([*one_sided, *left_out], PROBLEMS_SHOWN) or 'folders of classes'}",
        )
    files = _with_splits([f for f in used if f.kind == "background" or f.cls in classes], shares)
    _check_splits(files, classes, shares)
    return Material(classes, tuple(files), (*one_sided, *left_out))


def _two_sided(files: Iterable[Offer | MaterialFile]) -> set[str]:
    """The classes with a picture and a sound."""
    files = list(files)
    seen, heard = ({f.cls for f in files if f.kind == kind} for kind in ("picture", "sound"))
    return seen & heard


def _check_names(names: set[str]) -> None:
    wrong = sorted(n for n in names if not CLASS_NAME.fullmatch(n) or simple_name(n) in RESERVED)
    if wrong:
        raise CaeavError(
            f"these cannot be names of classes: {some_of(map(repr, wrong))}",
            hint="use letters, digits, spaces, commas, brackets, - and _, and no word of the official lists "
            f"({', '.join(sorted(RESERVED))})",
        )
    written = Counter(simple_name(name).replace("_", "-") for name in names)
    same = sorted(n for n in names if written[simple_name(n).replace("_", "-")] > 1)
    if same:
        raise CaeavError(
            f"the official lists would write these classes alike: {', '.join(map(repr, same))}",
            hint="rename or join their folders",
        )


def _usable(found: Iterable[Offer]) -> tuple[list[MaterialFile], list[str]]:
    """The files that can be read, and a line for each other one."""
    used: list[MaterialFile] = []
    left_out: list[str] = []
    first: dict[tuple[str, str], str] = {}
    for offer in found:
        if not known_extension(offer):
            left_out.append(f"{offer.name}: its name does not end like a {offer.kind}'s")
            continue
        problem = problem_of(offer.kind, offer.path)
        if problem:
            left_out.append(f"{offer.name}: {problem}")
            continue
        digest = file_sha256(offer.path)
        if (offer.kind, digest) in first:
            left_out.append(f"{offer.name}: it has the same bytes as {first[offer.kind, digest]}")
            continue
        first[offer.kind, digest] = offer.name
        used.append(
            MaterialFile(offer.kind, offer.cls, offer.path.absolute(), offer.name, offer.split, digest)
        )
    return used, left_out


def _with_splits(files: Sequence[MaterialFile], shares: Sequence[float]) -> list[MaterialFile]:
    """Every file with a split: what a csv fixed, the others in the wanted shares within their kind and class.

    Their order follows from their names alone. Every split that is wanted gets one file before any gets a second.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, file in enumerate(files):
        groups.setdefault((file.kind, file.cls), []).append(i)
    result = list(files)
    for members in groups.values():
        counts = Counter(files[i].split for i in members if files[i].split)
        free = [i for i in members if not files[i].split]
        for i in sorted(free, key=lambda i: hashlib.sha256(files[i].name.encode()).digest()):
            done = sum(counts.values()) + 1
            split = max(
                (s for s in range(len(SPLITS)) if shares[s] > 0),
                key=lambda s: (counts[SPLITS[s]] == 0, shares[s] * done - counts[SPLITS[s]], -s),
            )
            counts[SPLITS[split]] += 1
            result[i] = replace(files[i], split=SPLITS[split])
    return result


def _check_splits(files: Sequence[MaterialFile], classes: Sequence[str], shares: Sequence[float]) -> None:
    held = Counter((f.kind, f.cls, f.split) for f in files)
    wanted = [(kind, cls) for cls in classes for kind in ("picture", "sound")]
    if any(f.kind == "background" for f in files):
        wanted.append(("background", ""))
    problems = [
        f"{cls or 'all'}: no {kind} for {split} ({_spread(held, kind, cls)})"
        for kind, cls in wanted
        for split, share in zip(SPLITS, shares, strict=True)
        if share > 0 and not held[kind, cls, split]
    ]
    if problems:
        raise CaeavError(
            "every split needs files of its own:\n  - " + "\n  - ".join(some_lines(problems, PROBLEMS_SHOWN)),
            hint="add files, fix splits by a csv, or leave a split out, e.g. --splits 0.8,0,0.2",
        )


def _spread(held: Mapping[tuple[str, str, str], int], kind: str, cls: str) -> str:
    return ", ".join(f"{split} {held.get((kind, cls, split), 0)}" for split in SPLITS)
