"""Which files a folder or a csv offers as material, with their class and perhaps their split. No file is opened.

    FOLDER/pictures/<class>/*     drawings or photographs, alpha respected
    FOLDER/sounds/<class>/*       recordings
    FOLDER/backgrounds/*          pictures or videos, in folders of any depth

`pictures.csv`, `sounds.csv` and `backgrounds.csv` in the folder fix the split: then exactly the files that they list
are used. A csv may also be given in place of a folder, for files that lie in no such folders; its columns:

    file (or filename)       relative to the csv, or to `pictures`, `sounds`, `audio` or `backgrounds` beside it
    class (or category)      empty for backgrounds
    split, or fold           train, val or test; of folds the highest number is test, the one below it val
    kind                     picture, sound or background; left out, the extension tells
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import some_of
from caeav.manifests.readers import MEDIA_EXTENSIONS
from caeav.manifests.synthetic.material_media import IMAGE_EXTENSIONS

FOLDERS = {"picture": "pictures", "sound": "sounds", "background": "backgrounds"}
MAX_LIST_BYTES = 100_000_000
COLUMNS = {
    "file": ("file", "filename"),
    "class": ("class", "category"),
    "split": ("split",),
    "fold": ("fold",),
}


@dataclass(frozen=True, slots=True)
class Offer:
    """One file: `kind` is a key of `FOLDERS`; `cls` is empty for backgrounds, `split` where no csv fixes it.
    `name` says where it lies below its folder or csv, with `/` between folders."""

    kind: str
    cls: str
    path: Path
    name: str
    split: str


def offers(source: Path) -> list[Offer]:
    """What `source`, a folder or a csv, offers, in the order of names; raises `CaeavError` if it is neither."""
    if source.is_file() and source.suffix.lower() == ".csv":
        return _listed(source, "")
    if not source.is_dir():
        raise CaeavError(
            f"--material {source}: there is no such folder or csv file",
            hint="give a folder with pictures/<class>/ and sounds/<class>/, or a csv of files",
        )
    if not any((source / folder).is_dir() for folder in FOLDERS.values()):
        raise CaeavError(
            f"--material {source} has none of {', '.join(f'{x}/' for x in FOLDERS.values())}",
            hint="put files in pictures/<class>/ and sounds/<class>/, or give a csv that lists them",
        )
    found: list[Offer] = []
    for kind, folder in FOLDERS.items():
        fixed = source / f"{folder}.csv"
        if fixed.is_file():
            found += _listed(fixed, kind)
        elif kind == "background":
            found += background_offers(source / folder)
        else:
            for place in _visible(source / folder):
                if place.is_dir():
                    found += [
                        Offer(kind, place.name, path, f"{place.name}/{path.name}", "")
                        for path in _visible(place)
                        if path.is_file()
                    ]
    return found


def background_offers(folder: Path) -> list[Offer]:
    """Every visible file below a folder as a background."""
    return [
        Offer("background", "", path, path.relative_to(folder).as_posix(), "")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def known_extension(offer: Offer) -> bool:
    """Whether a file's name says that it may be what it is offered as."""
    extension = offer.path.suffix.lower()
    image, media = extension in IMAGE_EXTENSIONS, extension in MEDIA_EXTENSIONS
    return {"picture": image, "sound": media, "background": image or media}[offer.kind]


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _listed(path: Path, kind: str) -> list[Offer]:
    """The files of a csv; `kind` is empty where the rows or the extensions tell it."""
    rows = list(_rows(path))
    split_of = _splits([row.get("fold", "") for row in rows], path)
    found, lost, wrong = [], [], []
    for number, (row, by_fold) in enumerate(zip(rows, split_of, strict=True), start=2):
        file, cls, split = row["file"], row.get("class", ""), row.get("split") or by_fold
        kind_here = kind or row.get("kind") or _kind_of(file, cls)
        if kind_here not in FOLDERS or split not in ("", *SPLITS):
            wrong.append(f"line {number} has kind {kind_here!r} and split {split!r}")
            continue
        place = _find(path.parent, file, kind_here, cls)
        if place is None:
            lost.append(file)
        elif bool(cls) == (kind_here != "background"):
            name = file if file.startswith(f"{cls}/") or not cls else f"{cls}/{file}"
            found.append(Offer(kind_here, cls, place, name, split))
        else:
            wrong.append(f"line {number} has class {cls!r} and kind {kind_here!r}")
    if wrong:
        raise CaeavError(
            f"{path}: {some_of(wrong)}",
            hint=f"splits are {', '.join(SPLITS)}, kinds {', '.join(FOLDERS)}; backgrounds alone have no class",
        )
    if lost:
        raise CaeavError(
            f"{path} names {len(lost)} of {len(rows)} files that are not there: {some_of(lost)}",
            hint="paths are relative to the csv, or to pictures/, sounds/, audio/ or backgrounds/ beside it",
        )
    return found


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a csv by our names of its columns."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise CaeavError(
            f"{path} has {path.stat().st_size} bytes; at most {MAX_LIST_BYTES} are read", hint="split it"
        )
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig")), strict=True)
        seen = [name or "" for name in reader.fieldnames or ()]
        named = {
            ours: next((name for name in theirs if name in seen), "")
            for ours, theirs in {**COLUMNS, "kind": ("kind",)}.items()
        }
        if not named["file"]:
            raise CaeavError(
                f"{path} has no column `file`; it has {', '.join(seen) or 'none'}",
                hint="columns are file, class, and split or fold",
            )
        for row in reader:
            yield {ours: (row.get(theirs) or "").strip() for ours, theirs in named.items() if theirs}
    except (UnicodeDecodeError, csv.Error) as error:
        raise CaeavError(
            f"{path} is not a csv file in UTF-8: {error}", hint="save it as UTF-8 csv"
        ) from error


def _splits(folds: Sequence[str], path: Path) -> list[str]:
    """The split of each row by its fold; empty where it has none."""
    try:
        order = sorted({int(fold) for fold in folds if fold})
    except ValueError as error:
        raise CaeavError(
            f"{path}: a fold is no number: {error}", hint="use a column `split` instead"
        ) from error
    of_fold = {fold: ("test", "val")[i] if i < 2 else "train" for i, fold in enumerate(reversed(order))}
    return [of_fold[int(fold)] if fold else "" for fold in folds]


def _kind_of(file: str, cls: str) -> str:
    if not cls:
        return "background"
    return "picture" if Path(file).suffix.lower() in IMAGE_EXTENSIONS else "sound"


def _find(folder: Path, file: str, kind: str, cls: str) -> Path | None:
    """The file in one of the places where it may lie."""
    places: Iterable[Path] = (
        base / inner / file
        for base in (folder, folder.parent)
        for inner in (Path(), Path(FOLDERS[kind]), Path("audio"), Path(FOLDERS[kind]) / cls)
    )
    return next((place for place in places if place.is_file()), None)
