"""What the `caeav store` commands share: how a store is named on the command line, progress, and sizes in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from caeav.cli import datasets
from caeav.manifests.core.home import Home
from caeav.pipeline.store import find_store, list_stores
from caeav.pipeline.store.layout import FOLDER_PATTERN
from caeav.pipeline.store.slices import Slice

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET|PATH",
        help="A data set's name or folder of media, or a store's folder.",
        show_default=False,
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="Which of a data set's stores: name, folder or beginning of the fingerprint."
    ),
]


def find_targets(target: str, name: str | None, home: Path | None) -> list[Path]:
    """A folder; or the one store called `name`; or all stores of a data set, at least one."""
    if is_store(target):
        return [Path(target)]
    place = Home.find(home)
    dataset = dataset_of(target, place)
    there = [info.path for info in list_stores(place.stores) if info.dataset == dataset]
    return there if name is None and there else [find_store(place.stores, dataset, name=name)]


def find_target(target: str, name: str | None, home: Path | None) -> Path:
    """A folder, or the one store of a data set that `name` means; several are an error that lists them."""
    if is_store(target):
        return Path(target)
    place = Home.find(home)
    return find_store(place.stores, dataset_of(target, place), name=name)


def dataset_of(target: str, home: Home) -> str:
    """The data set that is meant by a name or by its folder of media."""
    return datasets.name(target, home)


def is_store(target: str) -> bool:
    """Whether a store is named by its folder, there or not, and no data set."""
    folder = Path(target)
    if (folder / "recipe.json").is_file() or FOLDER_PATTERN.fullmatch(Slice.of_folder(folder.name)[0]):
        return True
    return "/" in target and not folder.is_dir()


def bytes_bar(what: str, paths: list[Path]) -> tqdm[Any]:
    """A progress bar over the bytes of these stores' shards; short work shows none."""
    files = (file for path in paths for place in path.glob("shards*") for file in place.rglob("*"))
    total = sum(file.stat().st_size for file in files if file.is_file())
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, leave=False, delay=0.5)


def clips_bar(what: str, clips: int) -> tqdm[Any]:
    """A progress bar over clips; short work shows none."""
    return tqdm(total=clips, unit="clip", desc=what, leave=False, delay=0.5)


def size_text(count: int) -> str:
    """Bytes in words."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
