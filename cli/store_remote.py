"""`caeav store push|pull`, and `ls` and `verify` of an address: stores in object stores and data set repositories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from tqdm import tqdm

from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption
from caeav.cli.store_care import NameOption, TargetArgument, find_targets
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted, size_text
from caeav.pipeline.store import Verification
from caeav.pipeline.store.layout import StoreFolder

HUB = "hub:"
UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL|hub:OWNER/REPO|FOLDER",
        help="An address (s3://bucket/prefix, gs://, az://, file://), a data set repository, or the folder of one.",
        show_default=False,
    ),
]


CURE = "to repair it: remove these objects there, then caeav store push from a sound store sends them again"


def register(commands: typer.Typer) -> None:
    """Add the commands to `store`."""
    commands.command(name="push")(push_command)
    commands.command(name="pull")(pull_command)


def push_command(
    target: TargetArgument,
    url: UrlArgument,
    name: NameOption = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace another state of the store at the address."),
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put finished stores below an address, as <URL>/<data set>/<store>: payload, then indexes, the seal last.

    Run again, it continues with what is missing. Or package one store as a data set repository that the library
    datasets loads too: hub:OWNER/REPO, or a new folder that holds what would be uploaded.
    """
    from caeav.pipeline.store.remote.push import push

    if not is_address(url):
        if replace:
            raise CaeavError(
                "--replace is for addresses", hint="a repository is replaced, a folder must be new"
            )
        place = _hand_on(find_targets(target, name, home), url, private)
        print_json({"url": place}) if as_json else print(printable(place))
        return
    made = []
    for path in find_targets(target, name, home):
        if (
            not StoreFolder(path).seal.is_file()
            and name is None
            and len(find_targets(target, name, home)) > 1
        ):
            say(f"{printable(path.name)} is not finished and stays here")
            continue
        with _bar("push") as bar:
            made.append(push(path, url, bar.update, replace=replace))
    if as_json:
        print_json([asdict(one) for one in made])
        return
    for one in made:
        print(f"sent         {_shards(one.sent, one.there, one.bytes)}")
        print(f"store        {printable(one.url)}")


def pull_command(url: UrlArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Fetch the store at an address, or a packaged one, into the home, comparing every file with its digest.

    The bytes are the same. Run again, it continues with what is missing.
    """
    from caeav.pipeline.store.remote.package import FolderFiles, HubFiles, unpack_store
    from caeav.pipeline.store.remote.pull import pull

    place = Home.find(home)
    with _bar("pull") as bar, TemporaryDirectory() as scratch:
        if is_address(url):
            done = pull(url, place.stores, bar.update)
        else:
            hub = url.removeprefix(HUB) if url.startswith(HUB) else ""
            source = HubFiles(hub, Path(scratch)) if hub else FolderFiles(Path(url).expanduser())
            done = unpack_store(source, place.stores, bar.update)
    if as_json:
        print_json(asdict(done) | {"path": str(done.path)})
        return
    print(f"fetched      {_shards(done.came, done.there, done.bytes)}")
    print(f"store        {printable(done.path)}")


def is_address(place: str) -> bool:
    """Whether this is an address in an object store, and not a folder or a repository."""
    return "://" in place


def _hand_on(found: Sequence[Path], place: str, private: bool) -> str:
    """Write the package of the one store that was found, or upload it; where it is now."""
    from caeav.pipeline.store.remote.hub import push_folder
    from caeav.pipeline.store.remote.package import SHARDS, pack_store

    if len(found) != 1:
        raise CaeavError(
            f"{counted(len(found), 'store')} for one repository: {', '.join(path.name for path in found)}",
            hint="choose one by --store, or name its folder",
        )
    with _bar("push") as bar:
        if not place.startswith(HUB):
            return str(pack_store(found[0], Path(place).expanduser(), bar.update))
        with TemporaryDirectory(
            dir=found[0].parent, prefix=".push-"
        ) as beside:  # links reach no other file system
            package = pack_store(found[0], Path(beside) / "package", bar.update)
            return push_folder(package, place.removeprefix(HUB), "dataset", private=private, replaced=SHARDS)


def print_list(url: str, dataset: str | None, as_json: bool) -> None:
    """The stores at or below an address, as `caeav store ls`."""
    from caeav.pipeline.store.remote.inspecting import list_remote

    found = {address: info for address, info in list_remote(url).items() if dataset in (None, info.dataset)}
    if as_json:
        print_json([asdict(info) | {"path": address} for address, info in found.items()])
        return
    if not found:
        say(f"no store at {printable(url)}; `caeav store push` or --publish puts one there")
        return
    print_table(
        ("data set", "store", "clips", "of", "quarantined", "size", "state"),
        [
            (i.dataset, i.path.name, i.clips, i.expected, i.quarantined, size_text(i.bytes), i.state)
            for i in found.values()
        ],
    )
    for address, info in found.items():
        if info.problem:
            say(f"{printable(address)}: {printable(info.problem)}")


def verify_address(url: str) -> Verification:
    """Read all of the store at an address, with a bar."""
    from caeav.pipeline.store.remote.inspecting import verify_remote

    with _bar("verify") as bar:
        return verify_remote(url, bar.update)


def check_unmixed(url: str, options: Mapping[str, object]) -> None:
    """Raises `CaeavError` for options that say nothing about an address."""
    given = [name for name, value in options.items() if value]
    if given:
        raise CaeavError(
            f"{', '.join(given)} with {url}", hint="an address names one store; media are not compared there"
        )


def _bar(what: str) -> tqdm[Any]:
    """A count of bytes; short work shows none."""
    return tqdm(unit="B", unit_scale=True, desc=what, leave=False, delay=0.5)


def _shards(new: int, there: int, size: int) -> str:
    rest = f"; {there} there already" if there else ""
    return f"{counted(new, 'shard')}, {size_text(size)}{rest}"
