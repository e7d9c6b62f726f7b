"""`caeav store ls|show|verify`: which stores there are, what is in them, and whether they are as written.

`store_care.py` has the commands that change or compare stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caeav.cli import datasets, store_care, store_remote
from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption, WideOption
from caeav.cli.stage import media_json
from caeav.cli.store_care import NameOption, TargetArgument, bytes_bar, find_targets
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted, size_text
from caeav.manifests.remembered import media_root
from caeav.model.train.used_stores import users
from caeav.pipeline.store import (
    ArraySpec,
    Description,
    Record,
    Reference,
    StoreInfo,
    StoreReader,
    Verification,
    describe,
    list_slices,
    list_stores,
    verify,
)
from caeav.pipeline.store.backend import backend_name
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.recipe import makers
from caeav.pipeline.store.remote.url import is_url
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import read_recipe

if TYPE_CHECKING:
    from caeav.pipeline.extract.identity import MediaVerification

SHOWN_REASONS = 20
COLUMNS = (
    *(
        "data set",
        "store",
        "made by",
        "format",
        "numbers",
        "clips",
        "of",
        "quarantined",
        "size",
        "runs",
        "state",
    ),
)
DROPPED = ("numbers", "of", "quarantined", "made by", "format", "runs", "size", "state", "data set")
"""Columns that a narrow terminal does without, the first of them first."""

commands = typer.Typer(
    no_args_is_help=True, help="List, show, verify, convert and repair cached tokens and captions."
)


def register(app: typer.Typer) -> None:
    """Add the commands as `store`."""
    store_care.register(commands)
    store_remote.register(commands)
    app.add_typer(commands, name="store")


@commands.command()
def ls(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]", help="Those at or below an address in an object store.", show_default=False
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only those of this data set.")] = None,
    home: HomeOption = None,
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the stores in the home folder: what made each, how large it is, and how many runs use it.

    With an address: those in an object store.
    """
    if url is not None:
        store_remote.print_list(url, dataset, as_json)
        return
    place = Home.find(home)
    stores, named = place.stores, datasets.name(dataset, place) if dataset else None
    infos = [info for info in list_stores(stores) if named in (None, info.dataset)]
    if as_json:
        used = users(place)
        print_json([_info_json(info, used) for info in infos])
        return
    whole = {info.path for info in infos if info.state == "complete"}
    slices = [
        path
        for path in list_slices(stores)
        if named in (None, path.parent.name) and path.with_name(Slice.of_folder(path.name)[0]) not in whole
    ]
    if slices:
        names = sorted({path.parent.name for path in slices})
        say(
            f"not merged yet, {counted(len(slices), 'slice')} (caeav store merge joins them): {', '.join(names)}"
        )
    if not infos:
        say(f"no store in {stores}; `caeav extract` makes one")
        return
    used = users(place)
    print_table(
        COLUMNS,
        [
            (
                i.dataset,
                i.path.name,
                *_made(i),
                i.clips,
                i.expected,
                i.quarantined,
                size_text(i.bytes),
                sum(len(runs) for reference, runs in used.items() if reference.means(i)),
                i.state,
            )
            for i in infos
        ],
        drop=DROPPED,
        wide=wide,
    )
    for info in infos:
        if info.problem:
            say(f"{printable(info.path.name)}: {printable(info.problem)}")


def _made(info: StoreInfo) -> tuple[str, str, str]:
    """By what a store was made, in which format, and of which numbers; dashes for one that cannot be read."""
    try:
        recipe = read_recipe(StoreFolder(info.path))
    except (CaeavError, OSError):
        return "-", "-", "-"
    return " + ".join(makers(recipe)), backend_name(recipe), str(recipe.fields.get("dtype", "-"))


def _info_json(info: StoreInfo, used: Mapping[Reference, list[str]]) -> dict[str, Any]:
    made_by, form, numbers = _made(info)
    runs = [run for reference, named in used.items() if reference.means(info) for run in named]
    words = {"made_by": made_by, "format": form, "numbers": numbers, "runs": runs}
    return asdict(info) | {"path": str(info.path)} | words


@commands.command()
def show(
    target: TargetArgument,
    name: NameOption = None,
    key: Annotated[str | None, typer.Option("--key", help="Show one record's facts instead.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show recipe, arrays, counts, quarantine and notes of one store, or of all stores of a data set; or one record."""
    readers = [StoreReader.open(path, allow_partial=True) for path in find_targets(target, name, home)]
    for reader in readers:
        for remark in reader.remarks:
            say(printable(remark))
    if as_json:
        print_json([_record_json(reader, key) if key else _facts_json(reader) for reader in readers])
        return
    for i, reader in enumerate(readers):
        print("\n" if i else "", end="")
        if key is not None:
            _print_record(reader, key)
        else:
            _print_facts(reader, describe(reader))


@commands.command(name="verify")
def verify_command(
    target: TargetArgument,
    name: NameOption = None,
    media: Annotated[
        bool,
        typer.Option(
            "--media", help="Also read the media again and compare it with what the clips were made of."
        ),
    ] = False,
    root: Annotated[
        Path | None,
        typer.Option("--root", help="With --media: its folder.", show_default="where it was read last"),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare everything with its checksums; exit status 1 unless all is finished and sound."""
    if is_url(target):
        store_remote.check_unmixed(target, {"--store": name, "--media": media, "--root": root})
        verified = store_remote.verify_address(target)
        if as_json:
            print_json(_verified_json(verified, None) | {"path": target})
        else:
            print(target)
            _print_verified(verified, store_remote.CURE)
        if not verified.sound:
            raise typer.Exit(1)
        return
    if root is not None and not media:
        raise CaeavError(
            f"--root {root} without --media", hint="add --media: stores themselves need no media"
        )
    paths = find_targets(target, name, home)
    with bytes_bar("verify", paths) as bar:
        results = [verify(path, bar.update) for path in paths]
    seen = {verified.path: _verify_media(verified, root) for verified in results} if media else {}
    if as_json:
        print_json([_verified_json(verified, seen.get(verified.path)) for verified in results])
    else:
        for verified in results:
            print(verified.path)
            _print_verified(verified)
            if (found := seen.get(verified.path)) is not None:
                _print_media(found)
    if not all(one.sound for one in results) or any(found and found.changes for found in seen.values()):
        raise typer.Exit(1)


def _verify_media(verified: Verification, root: Path | None) -> MediaVerification | None:
    """Compare the media of a store's clips; None for a damaged store."""
    from caeav.pipeline.extract.identity import verify_media

    if verified.problems:
        return None
    store = verified.path.resolve()
    return verify_media(store, root or media_root(Home(store.parents[2]), store.parent.name))


def _verified_json(verified: Verification, media: MediaVerification | None) -> dict[str, Any]:
    value = asdict(verified) | {"path": str(verified.path), "sound": verified.sound}
    if media is not None:
        changes = [media_json(change) for change in media.changes]
        counts = {"compared": media.compared, "whole": media.whole, "unknown": media.unknown}
        value["media"] = {**counts, "changes": changes}
    return value


def _print_media(found: MediaVerification) -> None:
    if found.changes:
        print_table(("media", "key", "what is wrong"), [(x.what, x.key, x.detail) for x in found.changes])
        print(f"MEDIA CHANGED: {len(found.changes)} of {counted(found.compared, 'clip')}")
        say("to make these clips again: run the command that made the store with --changed redo")
    elif found.compared:
        ends = found.compared - found.whole
        how = [f"{found.whole} by all bytes"] if found.whole else []
        how += [f"{ends} by length and both ends of the file"] if ends else []
        print(f"media as it was: {counted(found.compared, 'clip')}, {' and '.join(how)}")
    if found.unknown:
        print(f"media not recorded: {counted(found.unknown, 'clip')}")


def _facts_json(reader: StoreReader) -> dict[str, Any]:
    recipe = {"fingerprint": reader.recipe.fingerprint, "recipe": reader.recipe.as_json()}
    return {"path": str(reader.path), **recipe, **asdict(describe(reader))}


def _record_json(reader: StoreReader, key: str) -> dict[str, Any]:
    record = reader.read(key)
    arrays = {name: asdict(spec) for name, spec in _specs(record).items()}
    return {"path": str(reader.path), "key": key, "arrays": arrays, "info": dict(record.info)}


def _specs(record: Record) -> dict[str, ArraySpec]:
    return {name: ArraySpec(array.shape, str(array.dtype)) for name, array in record.arrays.items()}


def _print_record(reader: StoreReader, key: str) -> None:
    record = reader.read(key)
    print(reader.path)
    _print_arrays(_specs(record))
    print()
    print_table(("fact", "value"), sorted((name, _shown(value)) for name, value in record.info.items()))


def _print_facts(reader: StoreReader, facts: Description) -> None:
    print(reader.path)
    print_table(("recipe", "value"), _flat(reader.recipe.as_json()))
    print()
    _print_arrays(facts.arrays)
    print()
    rows: list[tuple[str, object]] = [
        ("clips", f"{facts.clips} of {facts.expected}"),
        ("quarantined", sum(n for _, _, n in facts.quarantine)),
        ("missing", f"{facts.missing} (run the command that made the store again)" if facts.missing else 0),
        ("size", f"{size_text(facts.bytes)}, {size_text(facts.bytes_a_clip)} per clip"),
        ("without video", facts.no_video),
        ("without audio", facts.no_audio),
    ]
    print_table(("content", ""), rows)
    if facts.notes:
        print()
        print_table(("note", "clips"), facts.notes)
    if facts.quarantine:
        print()
        shown = [(n, stage, reason) for stage, reason, n in facts.quarantine[:SHOWN_REASONS]]
        print_table(("quarantined", "at", "reason"), shown)
        if len(facts.quarantine) > SHOWN_REASONS:
            say(f"{len(facts.quarantine) - SHOWN_REASONS} more reasons; --json shows all")


def _print_arrays(arrays: Any) -> None:
    rows = [(name, " x ".join(map(str, spec.shape)), spec.dtype) for name, spec in sorted(arrays.items())]
    print_table(("array", "shape", "dtype"), rows)


def _print_verified(verified: Verification, cure: str = "") -> None:
    for remark in verified.remarks:
        say(printable(remark))
    if verified.problems:
        rows = [(p.where, p.key, p.what) for p in verified.problems]
        print_table(("file", "key", "problem"), rows)
        if cure or any(p.shard is not None for p in verified.problems):
            drop = f"to drop what is damaged: caeav store repair {verified.path}"
            say(cure or f"{drop}; the command that made the store fills it")
    held = f"{counted(verified.stored, 'clip')} in {counted(verified.shards, 'shard')}, {size_text(verified.bytes)}"
    counts = f"{held}, {verified.quarantined} quarantined"
    if verified.sound:
        print(f"sound: {counts}")
    elif verified.problems:
        print(f"DAMAGED, {counted(len(verified.problems), 'problem')}: {counts}")
    else:
        print(f"not finished, {counted(verified.missing, 'clip')} missing: {counts}; what is there is sound")


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested JSON as one row per leaf."""
    if isinstance(value, dict) and value:
        return [row for key in value for row in _flat(value[key], f"{path}.{key}" if path else str(key))]
    return [(path, _shown(value))]


def _shown(value: Any) -> str:
    return ", ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)
