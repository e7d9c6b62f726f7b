"""From `--dataset` and its options to a manifest: fills in what the home remembers, and asks about what changed.

Every command that takes a data set comes through here, so a name, a folder, or nothing means the same everywhere.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import typer

from caeav.cli.console import is_terminal, say
from caeav.cli.options import at_home
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted
from caeav.manifests.dataset import Source, first_clips, load_dataset, whole_of
from caeav.manifests.readers import OFFICIAL, Lengths
from caeav.manifests.remembered import (
    ResolvedDataset,
    dataset_name,
    parse_labels,
    read_memory,
    remember,
    resolve_dataset,
)
from caeav.pipeline.store.remote.url import is_url, url_of_path

LOOKS, KEEPS, IS_LAST = "looks", "keeps", "is last"
"""What a command does with a data set: only look at it; write something, so it is remembered; or extract it, so it
becomes the last one too."""


def source(
    root: Path | None,
    labels: str | None,
    segments: int | None,
    segment_s: float | None,
    stride_s: float | None,
) -> Source:
    """The options as one `Source`."""
    return Source(root, parse_labels(labels), segments, segment_s, stride_s)


@dataclass(frozen=True)
class Loaded:
    """A loaded data set: its name for the next command (`called`) and where it was read (`source`)."""

    manifest: Manifest
    called: str
    source: Source


def load(
    dataset: str, given: Source, home: Home, does: str, relabel: bool = False, limit: int | None = None
) -> Loaded:
    """Load a data set with what the home remembers of it; with `limit` only its first clips of each split.

    A limited set has a name of its own (`ave-first20`), and that name means it, too.
    Raises `CaeavError` where an option differs from what is remembered and `relabel` is not given.
    """
    if not dataset and (last := _last_if_limited(home)):
        dataset = last
        say(f"data set {last}, the one last extracted in {home.root}")
    dataset, first = _without_limit(dataset, home)
    dataset, given = _laid_out(dataset, given, home)
    resolved = resolve_dataset(home, dataset, given, _same_media)
    lengths = _lengths(resolved, home)
    for text in resolved.notes:
        say(text)
    if does != LOOKS:
        _ask(resolved, relabel)
    elif resolved.changes:
        say(f"note: {'; '.join(resolved.changes)}; only this command uses it")
    cut = {} if resolved.built else asdict(resolved.source)
    cut.pop("root", None)
    manifest = load_dataset(
        resolved.name_or_folder, resolved.root, home, dataset=resolved.name, lengths=lengths, **cut
    )
    called, count = dataset or resolved.name, limit or first
    if count:
        manifest = first_clips(manifest, count)
        called = manifest.dataset
        say(f"{counted(len(manifest.clips), 'clip')}: at most {count} of each split, as data set {called}")
    if does != LOOKS:
        remember(home, resolved, last=does == IS_LAST, last_name=manifest.dataset)
    return Loaded(manifest, called, resolved.source)


def _without_limit(dataset: str, home: Home) -> tuple[str, int]:
    """`ave-first20` -> `ave` and 20, unless that is itself the name of a data set or a folder."""
    whole, count = whole_of(dataset)
    known = whole in OFFICIAL or whole in read_memory(home).sources or home.manifest(whole).is_file()
    taken = dataset in read_memory(home).sources or home.manifest(dataset).is_file() or Path(dataset).is_dir()
    return (whole, count) if count and known and not taken else (dataset, 0)


def _last_if_limited(home: Home) -> str:
    """The data set last extracted, if it is a limited one."""
    last = read_memory(home).last
    return last if _without_limit(last, home)[1] else ""


def _laid_out(dataset: str, given: Source, home: Home) -> tuple[str, Source]:
    """An address that stands for a folder, of a data set or its `--root`, as the folder with its layout."""
    url, folder = url_of_path(given.root), is_url(dataset)
    if not (url or folder):
        return dataset, given
    from caeav.pipeline.extract.places import lay_out

    if folder:
        dataset = str(lay_out(dataset, home))
    return dataset, replace(given, root=lay_out(url, home)) if url else given


def _lengths(resolved: ResolvedDataset, home: Home) -> Lengths:
    """How long media are: in the folder that was resolved, brought up to date where it has the layout of an address.

    There they are looked at only where files are cut, which their lengths decide: each has to be fetched for it.
    """
    from caeav.pipeline.extract.places import Address, address_of, lay_out
    from caeav.pipeline.media.lengths import lengths_in

    folder = resolved.root or resolved.source.root or Path(resolved.name_or_folder)
    url = address_of(folder) if folder.is_dir() else ""
    if not url:
        return lengths_in(home)
    lay_out(url, home)
    if not resolved.source.stride_s:
        return lambda paths: [None] * len(paths)
    from caeav.pipeline.extract.lengths_at_address import lengths_at

    return lengths_at(Address(folder, url), home)


def name(dataset: str, home: Home) -> str:
    """Name of the data set meant by a name, a media folder, or nothing (the last one; printed)."""
    found = dataset_name(home, dataset, _same_media)
    if found != dataset and not (home.stores / found).is_dir():
        raise CaeavError(
            f"there is no store of {dataset or found} in {home.root} yet",
            hint=f"caeav extract --dataset {shlex.quote(dataset or found)}{at_home(home)}",
        )
    if not dataset:
        say(f"data set {found}, the one last extracted in {home.root}")
    return found


def _same_media(stores: Path, root: Path) -> tuple[int, int]:
    """`identity.same_media`; imported late, since it imports decoders, which training does not need."""
    from caeav.pipeline.extract.identity import same_media

    return same_media(stores, root)


def _ask(resolved: ResolvedDataset, relabel: bool) -> None:
    """Refuse changes that were not asked for."""
    if not resolved.changes:
        return
    told = "; ".join(resolved.changes)
    if relabel:
        say(f"{told}: used from now on, as --relabel says")
        return
    if is_terminal():
        say(told)
        if typer.confirm("use it from now on (as --relabel)?", err=True):
            return
    raise CaeavError(
        told,
        hint="leave the option out to continue as before, add --relabel to use it from now on, or use another --home",
    )
