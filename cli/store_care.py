"""`caeav store convert|export|merge|diff|repair|rm|gc`: stores from stores, written out, compared, repaired, removed.

`store.py` has the commands that only look; how a store is named on the command line stands here for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from caeav.cli import datasets
from caeav.cli.console import confirmed, print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption, YesOption
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted, size_text, some_of
from caeav.pipeline.store import (
    Differences,
    StoreError,
    StoreInfo,
    StoreReader,
    Summary,
    compare,
    convert,
    find_slices,
    find_store,
    idle_s,
    list_stores,
    merge,
    remove_store,
    repair,
    unreferenced,
)
from caeav.pipeline.store.export import export
from caeav.pipeline.store.layout import FOLDER_PATTERN, StoreFolder, parse_seal, read_capped
from caeav.pipeline.store.slices import Slice

SHOWN_KEYS = 8
SPARED_S = 24 * 3600.0
"""Stores written more recently are spared: yesterday's work has no run yet."""
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


def register(commands: typer.Typer) -> None:
    """Add the commands to `store`."""
    for name, command in (
        ("convert", convert_command),
        ("export", export_command),
        ("merge", merge_command),
        ("diff", diff_command),
        ("repair", repair_command),
        ("rm", rm_command),
        ("gc", gc_command),
    ):
        commands.command(name=name)(command)


def find_targets(target: str, name: str | None, home: Path | None) -> list[Path]:
    """A folder; or the one store called `name`; or all stores of a data set (at least one)."""
    if is_store(target):
        return [Path(target)]
    place = Home.find(home)
    dataset = dataset_of(target, place)
    there = [info.path for info in list_stores(place.stores) if info.dataset == dataset]
    return there if name is None and there else [find_store(place.stores, dataset, name=name)]


def find_target(target: str, name: str | None, home: Path | None) -> Path:
    """A folder, or the one store of a data set; raises an error that lists them where several fit."""
    if is_store(target):
        return Path(target)
    place = Home.find(home)
    return find_store(place.stores, dataset_of(target, place), name=name)


def dataset_of(target: str, home: Home) -> str:
    """The data set meant by a name or a media folder."""
    return datasets.name(target, home)


def is_store(target: str) -> bool:
    """Whether `target` is a store's folder (existing or not) and not a data set."""
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


def convert_command(
    target: TargetArgument,
    backend: Annotated[
        str, typer.Option("--backend", help="Format of the new store's shards: webdataset or zarr.")
    ],
    name: NameOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the same store in another format beside it, every record compared; the old one stays."""
    source = find_target(target, name, home)
    with clips_bar("convert", 2 * len(StoreReader.open(source))) as bar:
        path, summary = convert(source, backend, bar.update)
    _print_made(path, summary, as_json)


def export_command(
    target: TargetArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="npy (a file a clip), h5 (a row a clip), parquet, or hf (for the library datasets)."
        ),
    ],
    name: NameOption = None,
    arrays: Annotated[
        str, typer.Option("--taps", help="Which arrays, separated by commas.", show_default="all")
    ] = "",
    pool: Annotated[
        bool, typer.Option("--pool", help="The mean over each segment's tokens: [T, C] instead of [T, L, C].")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a store out for other programs, with labels, splits and recipe beside it (docs/STORES.md)."""
    store = StoreReader.open(find_target(target, name, home))
    chosen = [array.strip() for array in arrays.split(",") if array.strip()]
    with clips_bar("export", len(store)) as bar:
        made = export(store, to, folder, arrays=chosen, pool=pool, progress=bar.update)
    if as_json:
        print_json({"folder": str(made.folder), "clips": made.clips, "quarantined": made.quarantined})
        return
    print(made.folder)
    say(
        f"{counted(made.clips, 'clip')} of {printable(store.path.name)} as {to}"
        + (f"; {made.quarantined} in quarantine, listed in clips.csv" if made.quarantined else "")
    )


def merge_command(
    targets: Annotated[
        list[str], typer.Argument(metavar="DATASET|PATH...", help="A data set, or the folders of all slices.")
    ],
    name: NameOption = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Read every shard once and compare its digest, or only sizes, indexes and seals.",
        ),
    ] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the slices of a store (extract --slice i/n) together, all of them and each once; the slices stay.

    Shards are hard-linked, so that no byte is copied; where the file system refuses, they are copied, and it says so.
    """
    place = Home.find(home)
    if len(targets) == 1 and not is_store(targets[0]):
        paths = find_slices(place.stores, datasets.name(targets[0], place), name)
    else:
        paths = [Path(target) for target in targets]
    with clips_bar("merge", sum(map(_clips_of, paths))) as bar:
        made = merge(paths, bar.update, check=check)
    _print_made(
        made.path,
        made.summary,
        as_json,
        "every digest compared" if check else "sizes compared; `caeav store verify` reads them",
        {"linked": made.adopted.linked, "copied": dict(made.adopted.copied), "checked": check},
    )
    if not as_json:
        for why, files in made.adopted.copied.items():
            say(f"{counted(files, 'file')} copied instead of linked: {why}")
        say(f"the {len(paths)} slices are no longer needed; their folders may be removed")


def diff_command(
    first: Annotated[Path, typer.Argument(help="A store's folder.")],
    second: Annotated[Path, typer.Argument(help="Another store's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Show how two stores differ: recipe, clips, arrays and by how much; exit status 1 unless equal in content."""
    a, b = StoreReader.open(first, allow_partial=True), StoreReader.open(second, allow_partial=True)
    with clips_bar("diff", len(a)) as bar:
        found = compare(a, b, bar.update)
    if as_json:
        print_json(asdict(found) | {"same_content": found.same_content})
    else:
        _print_differences(found)
    if not found.same_content:
        raise typer.Exit(1)


def repair_command(
    target: TargetArgument, name: NameOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Check everything and drop damaged records; the next extract or caption makes them again."""
    paths = find_targets(target, name, home)
    with bytes_bar("repair", paths) as bar:
        done = [repair(path, bar.update) for path in paths]
    if as_json:
        print_json([asdict(repaired) | {"path": str(repaired.path)} for repaired in done])
        return
    for repaired in done:
        print(repaired.path)
        for text in repaired.said:
            print(f"  {printable(text)}")
        if repaired.finished:
            print("sound and finished" if repaired.said else "sound: nothing to repair")
        else:
            due = (
                f"{counted(len(repaired.due), 'clip')} due: {some_of(repaired.due, SHOWN_KEYS)}"
                if repaired.due
                else "not finished"
            )
            print(f"{due}; run the command that made the store again")


def rm_command(
    target: TargetArgument,
    name: NameOption = None,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Remove one store, after asking; says which runs use it."""
    from caeav.model.train.used_stores import users

    path = find_target(target, name, home)
    place = path.resolve()
    infos = [info for info in list_stores(place.parents[1]) if info.path == place]
    used = [
        run
        for reference, runs in users(Home.find(home)).items()
        for run in runs
        if any(map(reference.means, infos))
    ]
    if used:
        say(
            f"{counted(len(used), 'run')} cannot be scored or repeated without it: {some_of(used, SHOWN_KEYS)}"
        )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if not confirmed(f"Remove {path.name} of {path.parent.name} ({size_text(size)})?", yes):
        say("nothing is removed")
        raise typer.Exit(1)
    remove_store(path)
    print(path)


def gc_command(
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only those of this data set.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them, after asking.")] = False,
    recent: Annotated[
        bool,
        typer.Option("--recent", help="Also those written within the last day."),
    ] = False,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the stores that no run refers to; --delete removes them."""
    from caeav.model.train.runs import referenced_stores

    place = Home.find(home)
    named = datasets.name(dataset, place) if dataset else None
    unused = unreferenced(place.stores, referenced_stores(place), named)
    old = [info for info in unused if recent or idle_s(info.path) >= SPARED_S]
    total = size_text(sum(info.bytes for info in old))
    if not as_json:
        _print_unused(unused, old)
    gone: list[Path] = []
    if delete and old:
        if not confirmed(f"Remove {counted(len(old), 'store')}, {total}?", yes):
            say("nothing is removed")
            raise typer.Exit(1)
        for info in old:
            remove_store(info.path)
            gone.append(info.path)
    if as_json:
        print_json(
            [
                asdict(info)
                | {"path": str(info.path), "spared": info not in old, "deleted": info.path in gone}
                for info in unused
            ]
        )
    elif gone:
        print(f"removed: {total}")
    elif old:
        print(f"{total} in stores no run refers to; --delete removes them")


def _print_unused(unused: Sequence[StoreInfo], old: Sequence[StoreInfo]) -> None:
    if not unused:
        say("every store is referred to by a run")
        return
    print_table(
        ("data set", "store", "clips", "size", "state"),
        [
            (
                i.dataset,
                i.path.name,
                i.clips,
                size_text(i.bytes),
                i.state if i in old else f"{i.state}, spared",
            )
            for i in unused
        ],
    )
    if len(old) < len(unused):
        say(
            f"spared: {counted(len(unused) - len(old), 'store')} written within the last day; --recent takes them too"
        )


def _clips_of(path: Path) -> int:
    """The clips a finished store holds, by its seal alone; 0 where `merge` will say what is wrong."""
    seal = StoreFolder(path).seal
    try:
        return parse_seal(read_capped(seal), seal).stored
    except (OSError, StoreError):
        return 0


def _print_made(
    path: Path,
    summary: Summary,
    as_json: bool,
    checked: str = "compared with the source",
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print a store that was made of others; `checked` says how it was compared, `more` is for JSON alone."""
    if as_json:
        print_json({"path": str(path), **asdict(summary), **(more or {})})
        return
    held = f"{summary.stored} of {summary.expected} in {counted(summary.shards, 'shard')}"
    print(f"stored       {held}, {checked}")
    if summary.quarantined:
        print(f"quarantined  {summary.quarantined}")
    print(f"store        {path}")


def _print_differences(found: Differences) -> None:
    for text in found.recipe:
        print(f"recipe       {printable(text)}")
    for what, keys in (
        ("only first", found.only_a),
        ("only second", found.only_b),
        ("quarantine", found.quarantine),
    ):
        if keys:
            print(f"{what:<13}{counted(len(keys), 'clip')}: {some_of(keys, SHOWN_KEYS)}")
    if found.arrays:
        rows = [
            (name, entry.clips, f"{entry.largest:.6g}", entry.key, entry.form)
            for name, entry in found.arrays.items()
        ]
        print_table(("array", "clips", "largest difference", "in", "form"), rows)
    for name, clips in found.facts.items():
        print(f"fact         {printable(name)} differs in {counted(clips, 'clip')}")
    if found.same_content:
        print(f"the same content: {counted(found.compared, 'clip')}, every array and fact")
