"""What a home remembers of its data sets: where each lies, its label file, how its clips are cut, and which came last.

It is kept in one small file, `<home>/datasets.json`, so that `--root` and `--labels` are given once. Another value
given later is a change, which the caller has to confirm. A data set is known by its folder, not by the folder's name:
a second folder of the same name becomes `<name>-<hash of its path>`, unless it is the first folder at a new place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import make_folder, publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import Source, folder_dataset
from caeav.manifests.readers import CLASS_FOLDERS, NO_LABELS, OFFICIAL
from caeav.manifests.readers.folder import LABELS, SEGMENT_S, SEGMENTS

FORMAT = "caeav-datasets"
VERSION = 1
MAX_BYTES = 16 << 20
MEDIA_ROOT = "media_root"
"""A file beside a data set's stores: where its media was read last. Homes made by old versions know nothing else."""

OPTIONS: tuple[tuple[str, str, Any], ...] = (
    ("labels", "--labels", None),
    ("segments", "--segments", SEGMENTS),
    ("segment_s", "--segment-seconds", SEGMENT_S),
    ("stride_s", "--stride-seconds", None),
)
"""Fields of `Source` that are remembered, each with its option and its default."""

SameMedia = Callable[[Path, Path], tuple[int, int]]
"""`same_media(stores, folder)`: how many of the media recorded for these stores lie unchanged in the folder, and of how
many."""


@dataclass(frozen=True)
class Memory:
    """The content of `datasets.json`: `sources` by data set, with resolved paths; `last` may be empty."""

    last: str = ""
    sources: Mapping[str, Source] = field(default_factory=dict)


class _OnlyMediaRoot(Source):
    """A data set of an old home: only the place of its media is known."""


@dataclass(frozen=True)
class ResolvedDataset:
    """A data set as it is to be read: what to load, under which name, and what to tell or ask the user first.

    name_or_folder, root: the first two arguments of `load_dataset`. notes: what to tell. changes: where given
    options differ from the remembered ones. known: what is remembered. built: take the manifest in the home as it is.
    """

    name_or_folder: str
    name: str
    source: Source
    root: Path | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    known: Source | None = None
    built: bool = False


def read_memory(home: Home) -> Memory:
    """What `home` remembers; raises `CaeavError` when the file is damaged or of another format."""
    path = home.remembered
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        value = json.loads(path.read_bytes())
        if (value["format"], value["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {value['format']!r}, version {value['version']!r}")
        found = {str(name): _parse_row(row) for name, row in value["datasets"].items()}
        return Memory(str(value["last"]), found)
    except FileNotFoundError:
        return Memory()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CaeavError(
            f"{path} does not say what is known of the data sets: {error}",
            hint=f"remove {path}; stores and runs do not need it, and the next extract with --root and --labels "
            "writes it again",
        ) from None


def _parse_row(row: Any) -> Source:
    root, labels = row["root"], row["labels"]
    numbers = [row["segments"], row["segment_s"], row["stride_s"]]
    if not all(x is None or isinstance(x, str) for x in (root, labels)):
        raise ValueError("a path is no text")
    if not all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in numbers):
        raise ValueError("a length is no number")
    return Source(Path(root) if root else None, parse_labels(labels), *numbers)


def parse_labels(text: str | None) -> Path | str | None:
    """The meaning of `--labels`: a file, unless it is one of the words of `ReadOptions.labels`."""
    return text if text in (None, CLASS_FOLDERS, NO_LABELS) else Path(text)


def remember(home: Home, resolved: ResolvedDataset, *, last: bool, last_name: str = "") -> None:
    """Remember a data set as it was resolved, and with `last` that it is the last one; writes only what is new.

    `last_name`: what the last one is called, where only a part of the data set was taken.

    Raises `CaeavError` when another process has given its name to another folder since it was resolved.
    """
    name = resolved.name
    with _locked(home):
        memory = read_memory(home)
        stored = memory.sources.get(name)
        if stored != resolved.known and stored is not None and stored.root != resolved.source.root:
            raise CaeavError(
                f"another process has just begun a data set {name} in {stored.root or home.data(name)}",
                hint="run the command again: this data set then gets a name of its own",
            )
        sources = {**memory.sources, name: resolved.source}
        now = Memory((last_name or name) if last else memory.last, sources)
        if now == memory:
            return
        rows = {key: _row(source) for key, source in sorted(sources.items())}
        value = {"format": FORMAT, "version": VERSION, "last": now.last, "datasets": rows}
        publish_bytes(home.remembered, (json.dumps(value, indent=2) + "\n").encode("ascii"))


def _row(source: Source) -> dict[str, Any]:
    return {key: str(x) if isinstance(x, Path) else x for key, x in asdict(source).items()}


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    """One process at a time, where the file system can lock."""
    make_folder(home.root)
    with home.remembered.with_name(".datasets.lock").open("ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def last_dataset(home: Home) -> str:
    """The data set last extracted in `home`; raises `CaeavError` when there is none or several are possible."""
    memory = read_memory(home)
    if memory.last:
        return memory.last
    there = sorted(path.name for path in home.stores.glob("*") if any(path.glob("*/recipe.json")))
    if len(there) == 1:
        return there[0]
    raise CaeavError(
        f"several data sets are in {home.stores} and it is not known which was last: {', '.join(there)}"
        if there
        else f"no data set is named, and none was extracted in {home.root} yet",
        hint=f"name one: --dataset {there[0] if there else 'ave --root FOLDER, or --dataset FOLDER'}",
    )


def dataset_name(home: Home, asked: str, same_media: SameMedia) -> str:
    """The name of a data set: `asked` itself, that of a folder, or that of the last one where it is empty."""
    if asked and (asked in OFFICIAL or not Path(asked).expanduser().is_dir()):
        return asked
    return resolve_dataset(home, asked, Source(), same_media).name


def media_root(home: Home, dataset: str) -> Path:
    """Where the media of a data set was read last; raises `CaeavError` when that is not known or not there."""
    known = read_memory(home).sources.get(dataset) or _old_home(home, dataset)
    root = home.data(dataset) if known is not None and known.root is None else known.root if known else None
    if root is None or not root.is_dir():
        raise CaeavError(
            f"it is not known where the media of {dataset} lies" if root is None else f"{root} is not there",
            hint="name the folder: --root FOLDER",
        )
    return root


def resolve_dataset(home: Home, asked: str, given: Source, same_media: SameMedia) -> ResolvedDataset:
    """`asked` (a name, a folder, or empty for the last) with what is remembered of it where `given` says nothing.

    Nothing is written. Raises `CaeavError` as `last_dataset`, and when the media folder is gone.
    """
    memory = read_memory(home)
    notes = []
    if not asked:
        asked = last_dataset(home)
        notes.append(f"data set {asked}, the one last extracted in {home.root}")
    given = replace(given, root=_real(given.root), labels=_real(given.labels))
    resolved = _Resolver(home, memory, same_media, notes).resolve(asked, given)
    source = resolved.source
    if source.stride_s == 0:  # how a remembered stride is taken back
        source = replace(source, stride_s=None)
    if source.labels == NO_LABELS and not (source.root and (source.root / LABELS).is_file()):
        source = replace(
            source, labels=None
        )  # the word is kept only to keep away the label file in the folder
    return replace(resolved, source=source)


@dataclass
class _Resolver:
    """Finds the data set that a name or a folder means; `notes` collects what the user is told."""

    home: Home
    memory: Memory
    same_media: SameMedia
    notes: list[str]

    def resolve(self, asked: str, given: Source) -> ResolvedDataset:
        """`asked` is not empty; the paths in `given` are resolved."""
        folder = Path(asked).expanduser()
        if asked in OFFICIAL:
            return self._official(asked, given)
        if folder.is_dir():
            return self._folder(folder, given)
        known = self.memory.sources.get(asked)
        if known is None or known.root is None:
            return ResolvedDataset(asked, asked, given, given.root, tuple(self.notes), known=known)
        if not known.root.is_dir():
            if not self.home.manifest(asked).is_file():
                raise CaeavError(
                    f"the media of {asked} was in {known.root}, where no folder is now",
                    hint="name the folder where it lies now: --dataset FOLDER",
                )
            self.notes.append(f"{known.root} is not there; the manifest that was built is taken")
            return ResolvedDataset(asked, asked, known, None, tuple(self.notes), known=known, built=True)
        return self._fill(str(known.root), asked, replace(given, root=known.root), known)

    def _official(self, name: str, given: Source) -> ResolvedDataset:
        """An official set has one place in a home; another `--root` passes when all media are there unchanged."""
        own = _real(self.home.data(name))
        root = None if given.root == own else given.root
        known = self.memory.sources.get(name) or _old_home(self.home, name)
        if known is None:
            return ResolvedDataset(name, name, replace(given, root=root), root, tuple(self.notes))
        changes = []
        if given.root is None:
            root = known.root
            if root is not None and not root.is_dir():
                self.notes.append(f"{root}, where {name} was read before, is not there")
                root = None
            elif root is not None:
                self.notes.append(f"data set {name}: --root {root}, as it was read before")
        elif root != known.root:
            same, of = self.same_media(self.home.stores / name, root or self.home.data(name))
            was = f"{name} was read in {known.root or own}"
            if same < of or not of:
                changes.append(
                    f"{was}, now --root {root or own} is given"
                    + (f"; {same} of {of} media files are the same there" if of else "")
                )
            else:
                self.notes.append(f"{was}, it is now in {root or own} with the same media")
        return replace(self._fill(name, name, replace(given, root=root), known, changes), root=root)

    def _folder(self, folder: Path, given: Source) -> ResolvedDataset:
        """A folder keeps its data set when it moves or is renamed; other media under a known name get a new name."""
        base = folder_dataset(folder)
        if given.root is not None:  # `load_dataset` refuses it
            return ResolvedDataset(str(folder), base, given, given.root, tuple(self.notes))
        root = folder.resolve()
        given = replace(given, root=root)
        for name, there in self.memory.sources.items():
            if there.root == root and name.startswith(base):
                return self._fill(str(folder), name, given, there)
        known = self.memory.sources.get(base) or _old_home(self.home, base)
        if known is None and (renamed := self._renamed(root)):
            known = self.memory.sources[renamed]
            self.notes.append(f"{renamed} was in {known.root}, it is now in {root}")
            return self._moved(str(folder), renamed, given, known)
        if known is None or known.root is None or known.root == root:
            return self._fill(str(folder), base, given, known)
        own = f"{base}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
        same, of = self.same_media(self.home.stores / base, root)
        gone = not known.root.is_dir()
        if (of and same == of) or (gone and same * 2 >= of):
            self.notes.append(f"{base} was in {known.root}, it is now in {root}")
            return self._moved(str(folder), base, given, known)
        if own not in self.memory.sources:
            self.notes.append(f"{root} is called {own}: {base} is {known.root}, which holds other media")
        return self._fill(str(folder), own, given, self.memory.sources.get(own))

    def _renamed(self, root: Path) -> str:
        """The data set whose folder is gone while all media recorded for it lie in `root`; empty when there is none."""
        for name, source in self.memory.sources.items():
            if name not in OFFICIAL and source.root is not None and not source.root.is_dir():
                same, of = self.same_media(self.home.stores / name, root)
                if same == of > 0:
                    return name
        return ""

    def _moved(self, folder: str, name: str, given: Source, known: Source) -> ResolvedDataset:
        """As `_fill`, for a folder that moved: a label file in it has moved with it."""
        labels, old = known.labels, known.root
        if (
            isinstance(labels, Path)
            and old
            and given.root
            and labels.is_relative_to(old)
            and not labels.exists()
        ):
            labels = given.root / labels.relative_to(old)
        return replace(self._fill(folder, name, given, replace(known, labels=labels)), known=known)

    def _fill(
        self, name_or_folder: str, name: str, given: Source, known: Source | None, changes: Sequence[str] = ()
    ) -> ResolvedDataset:
        """`given`, completed by what is `known`; where they contradict each other is a change."""
        if known is None or isinstance(known, _OnlyMediaRoot):
            return ResolvedDataset(name_or_folder, name, given, None, tuple(self.notes), tuple(changes))
        changes = list(changes)
        filled: dict[str, Any] = {}
        taken: list[str] = []
        for field_name, option, default in OPTIONS:
            new, old = getattr(given, field_name), getattr(known, field_name)
            if field_name == "labels" and old is None and given.root and (given.root / LABELS).is_file():
                default = given.root / LABELS
            before = default if old is None else old
            if new is None:
                filled[field_name] = old
                taken += [f"{option} {_text(old)}"] if old is not None else []
            elif new != before and before is not None:
                changes.append(f"{name} was made with {option} {_text(before)}, now it is {_text(new)}")
        if taken:
            self.notes.append(f"data set {name}: {' '.join(taken)}, as remembered")
        source = replace(given, **filled)
        return ResolvedDataset(name_or_folder, name, source, None, tuple(self.notes), tuple(changes), known)


def _old_home(home: Home, name: str) -> Source | None:
    """What is known of a data set extracted before homes remembered: where its media was."""
    note = home.stores / name / MEDIA_ROOT
    try:
        root = _real(Path(os.fsdecode(note.read_bytes())))
    except OSError:
        return None
    return _OnlyMediaRoot(None if root == _real(home.data(name)) else root)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _real(path: Any) -> Any:
    """A path without links and dots, so that equal places compare equal; other values as they are."""
    return path.expanduser().resolve() if isinstance(path, Path) else path
