"""What the `caeav store` commands share: how a store is named on the command line, progress, and sizes in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from caeav.manifests.home import Home
from caeav.pipeline.store import find_store, list_stores

TargetArgument = Annotated[
    str, typer.Argument(metavar="DATASET|PATH", help="A data set's name, or a store's folder.")
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="Which of a data set's stores: name, folder or beginning of the fingerprint."
    ),
]


def find_targets(target: str, name: str | None, home: Path | None) -> list[Path]:
    """A folder; or the one store called `name`; or all stores of a data set, at least one."""
    if is_folder(target):
        return [Path(target)]
    stores = Home.find(home).stores
    there = [info.path for info in list_stores(stores) if info.dataset == target]
    return there if name is None and there else [find_store(stores, target, name=name)]


def find_target(target: str, name: str | None, home: Path | None) -> Path:
    """A folder, or the one store of a data set that `name` means; several are an error that lists them."""
    return Path(target) if is_folder(target) else find_store(Home.find(home).stores, target, name=name)


def is_folder(target: str) -> bool:
    """Whether a store is named by its folder."""
    return "/" in target or (Path(target) / "recipe.json").is_file()


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
