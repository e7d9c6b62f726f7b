"""What a home remembers of its data sets: where each lies, its labels and how its clips are cut, and which was last.

One small file, `<home>/datasets.json`. So `--root` and `--labels` are given once; what is given differently later is a
change, which the caller has to ask for. A data set is known by its folder, not by the folder's name: a second folder of
one name is called `<name>-<hash of its path>`, unless it is the first one at another place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import make_folder, publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import OFFICIAL, Source, folder_dataset
from caeav.manifests.readers import CLASS_FOLDERS, NO_LABELS
from caeav.manifests.readers.folder import LABELS, SEGMENT_S, SEGMENTS

FORMAT = "caeav-datasets"
VERSION = 1
MAX_BYTES = 16 << 20
MEDIA_ROOT = "media_root"
"""File beside a data set's stores: where its media was read last. Homes of old remember nothing else."""

SameMedia = Callable[[Path, Path], tuple[int, int]]
"""How many of the media recorded for the stores in a folder lie below another one unchanged, and of how many."""


@dataclass(frozen=True)
class Memory:
    """What `datasets.json` says: `sources` by data set, with all places resolved; `last` may be empty."""

    last: str = ""
    sources: Mapping[str, Source] = field(default_factory=dict)


class _OfOld(Source):
    """Of which nothing is known but where the media was."""


@dataclass(frozen=True)
class Recalled:
    """A data set as it is to be read: what to load, under which name, and what is to be said or asked first.

    `argument` and `root`: the first two of `load_dataset`; `changes`: what was given otherwise than it is remembered,
    in words; `before`: what is remembered; `built`: the manifest that was built is meant, as it is.
    """

    argument: str
    called: str
    source: Source
    root: Path | None = None
    said: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    before: Source | None = None
    built: bool = False


def read_memory(home: Home) -> Memory:
    """What is remembered in `home`; raises `CaeavError` when the file is not one that was written."""
    path = home.remembered
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        value = json.loads(path.read_bytes())
        if (value["format"], value["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {value['format']!r}, version {value['version']!r}")
        found = {str(name): _source(row) for name, row in value["datasets"].items()}
        return Memory(str(value["last"]), found)
    except FileNotFoundError:
        return Memory()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CaeavError(
            f"{path} does not say what is known of the data sets: {error}",
            hint=f"remove {path}; stores and runs need it not, and the next extract with --root and --labels "
            "writes it again",
        ) from None


def _source(row: Any) -> Source:
    root, labels = row["root"], row["labels"]
    numbers = [row["segments"], row["segment_s"], row["stride_s"]]
    if not all(x is None or isinstance(x, str) for x in (root, labels)):
        raise ValueError("a place is no text")
    if not all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in numbers):
        raise ValueError("a length is no number")
    return Source(Path(root) if root else None, labels_of(labels), *numbers)


def labels_of(text: str | None) -> Path | str | None:
    """What `--labels` means: a file, unless it is one of the words of `ReadOptions.labels`."""
    return text if text in (None, CLASS_FOLDERS, NO_LABELS) else Path(text)


def remember(home: Home, recalled: Recalled, *, last: bool) -> None:
    """Remember a data set as it was recalled, and that it was the `last`. Nothing is written where it is known.

    Raises `CaeavError` when another process gave its name to another folder in between.
    """
    name = recalled.called
    with _alone(home):
        memory = read_memory(home)
        known = memory.sources.get(name)
        if known != recalled.before and known is not None and known.root != recalled.source.root:
            raise CaeavError(
                f"another process has just begun a data set {name} in {known.root or home.data(name)}",
                hint="run the command again: this one is then given a name of its own",
            )
        sources = {**memory.sources, name: recalled.source}
        now = Memory(name if last else memory.last, sources)
        if now == memory:
            return
        rows = {key: _row(source) for key, source in sorted(sources.items())}
        value = {"format": FORMAT, "version": VERSION, "last": now.last, "datasets": rows}
        publish_bytes(home.remembered, (json.dumps(value, indent=2) + "\n").encode("ascii"))


def _row(source: Source) -> dict[str, Any]:
    return {key: str(x) if isinstance(x, Path) else x for key, x in asdict(source).items()}


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """One process at a time, where the file system can lock."""
    make_folder(home.root)
    with home.remembered.with_name(".datasets.lock").open("ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def last_dataset(home: Home) -> str:
    """The data set last extracted in `home`; raises `CaeavError` when there is none, or none is the last."""
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


def recall(home: Home, asked: str, given: Source, same_media: SameMedia) -> Recalled:
    """`asked` (a name, a folder, or empty for the last) with what is remembered of it where `given` says nothing.

    Nothing is written. Raises `CaeavError` as `last_dataset`.
    """
    memory = read_memory(home)
    said: list[str] = []
    if not asked:
        asked = last_dataset(home)
        said.append(f"data set {asked}, the one last extracted in {home.root}")
    given = replace(given, root=_real(given.root), labels=_real(given.labels))
    return _without_nothing(_recall(home, asked, given, memory, said, same_media))


def _recall(
    home: Home, asked: str, given: Source, memory: Memory, said: list[str], same_media: SameMedia
) -> Recalled:
    folder = Path(asked).expanduser()
    if asked in OFFICIAL:
        return _official(home, asked, given, memory, said, same_media)
    if folder.is_dir():
        return _folder(home, folder, given, memory, said, same_media)
    known = memory.sources.get(asked)
    if known is None or known.root is None:
        return Recalled(asked, asked, given, given.root, tuple(said), before=known)
    if not known.root.is_dir():
        if not home.manifest(asked).is_file():
            raise CaeavError(
                f"the media of {asked} was in {known.root}, where no folder is now",
                hint="where it lies elsewhere now, name that folder: --dataset FOLDER",
            )
        said.append(f"{known.root} is not there; the manifest that was built is taken")
        return Recalled(asked, asked, known, None, tuple(said), before=known, built=True)
    return _known(str(known.root), asked, replace(given, root=known.root), known, said)


def _without_nothing(recalled: Recalled) -> Recalled:
    """A stride of 0 is none; no labels is said only to keep away the label file in the folder."""
    source = recalled.source
    if source.stride_s == 0:
        source = replace(source, stride_s=None)
    if source.labels == NO_LABELS and not (source.root and (source.root / LABELS).is_file()):
        source = replace(source, labels=None)
    return replace(recalled, source=source)


def name_of(home: Home, asked: str, same_media: SameMedia) -> str:
    """The name of a data set: `asked` itself, that of a folder, or that of the last one where it is empty."""
    if asked and (asked in OFFICIAL or not Path(asked).expanduser().is_dir()):
        return asked
    return recall(home, asked, Source(), same_media).called


def media_root(home: Home, dataset: str) -> Path:
    """Where the media of a data set was read last; raises `CaeavError` when nobody knows or it is not there."""
    known = read_memory(home).sources.get(dataset) or _of_old(home, dataset)
    root = home.data(dataset) if known is not None and known.root is None else known.root if known else None
    if root is None or not root.is_dir():
        raise CaeavError(
            f"it is not known where the media of {dataset} lies" if root is None else f"{root} is not there",
            hint="name the folder: --root FOLDER",
        )
    return root


def _official(
    home: Home, name: str, given: Source, memory: Memory, said: list[str], same_media: SameMedia
) -> Recalled:
    own = _real(home.data(name))
    root = None if given.root == own else given.root
    known = memory.sources.get(name) or _of_old(home, name)
    if known is None:
        return Recalled(name, name, replace(given, root=root), root, tuple(said))
    changes = []
    if given.root is None:
        root = known.root
        if root is not None and not root.is_dir():
            said.append(f"{root}, where {name} was read before, is not there")
            root = None
        elif root is not None:
            said.append(f"data set {name}: --root {root}, as it was read before")
    else:
        if root != known.root:
            same, of = same_media(home.stores / name, root or home.data(name))
            was = f"{name} was read in {known.root or own}"
            if same < of or not of:
                changes.append(
                    f"{was}, now --root {root or own} is given"
                    + (f"; {same} of {of} media files are the same there" if of else "")
                )
            else:
                said.append(f"{was}, it is now in {root or own} with the same media")
    return replace(_known(name, name, replace(given, root=root), known, said, changes), root=root)


def _folder(
    home: Home, folder: Path, given: Source, memory: Memory, said: list[str], same_media: SameMedia
) -> Recalled:
    if given.root is not None:  # refused where it is loaded
        return Recalled(str(folder), folder_dataset(folder), given, given.root, tuple(said))
    root, base = folder.resolve(), folder_dataset(folder)
    given = replace(given, root=root)
    for name, there in memory.sources.items():
        if there.root == root and name.startswith(base):
            return _known(str(folder), name, given, there, said)
    known = memory.sources.get(base) or _of_old(home, base)
    if known is None and (renamed := _renamed(home, root, memory, same_media)):
        known = memory.sources[renamed]
        said.append(f"{renamed} was in {known.root}, it is now in {root}")
        return _moved(str(folder), renamed, given, known, said)
    if known is None or known.root is None or known.root == root:
        return _known(str(folder), base, given, known, said)
    own = f"{base}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
    same, of = same_media(home.stores / base, root)
    gone = not known.root.is_dir()
    if (of and same == of) or (gone and same * 2 >= of):
        said.append(f"{base} was in {known.root}, it is now in {root}")
        return _moved(str(folder), base, given, known, said)
    if own not in memory.sources:
        said.append(f"{root} is called {own}: {base} is {known.root}, whose media are others")
    return _known(str(folder), own, given, memory.sources.get(own), said)


def _renamed(home: Home, root: Path, memory: Memory, same_media: SameMedia) -> str:
    """The data set whose folder is no longer there, while all that is recorded of its media lies in this one."""
    for name, source in memory.sources.items():
        if name not in OFFICIAL and source.root is not None and not source.root.is_dir():
            same, of = same_media(home.stores / name, root)
            if same == of > 0:
                return name
    return ""


def _moved(argument: str, called: str, given: Source, known: Source, said: list[str]) -> Recalled:
    """As `_known`, of a folder that moved: labels that lay in it moved along."""
    labels, old = known.labels, known.root
    if isinstance(labels, Path) and old and given.root and labels.is_relative_to(old) and not labels.exists():
        labels = given.root / labels.relative_to(old)
    return replace(_known(argument, called, given, replace(known, labels=labels), said), before=known)


def _of_old(home: Home, name: str) -> Source | None:
    """What is known of a data set extracted before homes remembered: where its media was."""
    note = home.stores / name / MEDIA_ROOT
    try:
        root = _real(Path(os.fsdecode(note.read_bytes())))
    except OSError:
        return None
    return _OfOld(None if root == _real(home.data(name)) else root)


def _known(
    argument: str,
    called: str,
    given: Source,
    known: Source | None,
    said: list[str],
    changes: list[str] | None = None,
) -> Recalled:
    """`given` filled up from what is `known`; what contradicts it is a change."""
    if known is None:
        return Recalled(argument, called, given, None, tuple(said))
    changes = list(changes or [])
    if isinstance(known, _OfOld):
        return Recalled(argument, called, given, None, tuple(said), tuple(changes))
    filled: dict[str, Any] = {}
    taken: list[str] = []
    options: tuple[tuple[str, str, Any], ...] = (
        ("labels", "--labels", None),
        ("segments", "--segments", SEGMENTS),
        ("segment_s", "--segment-seconds", SEGMENT_S),
        ("stride_s", "--stride-seconds", None),
    )
    for name, option, usual in options:
        new, old = getattr(given, name), getattr(known, name)
        if name == "labels" and old is None and given.root is not None and (given.root / LABELS).is_file():
            usual = given.root / LABELS
        before = usual if old is None else old
        if new is None:
            filled[name] = old
            taken += [f"{option} {_shown(old)}"] if old is not None else []
        elif new != before and before is not None:
            changes.append(f"{called} was made with {option} {_shown(before)}, now it is {_shown(new)}")
    if taken:
        said.append(f"data set {called}: {' '.join(taken)}, as it was made")
    return Recalled(argument, called, replace(given, **filled), None, tuple(said), tuple(changes), known)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _real(path: Any) -> Any:
    """A place without links and dots, by which it is known; other values as they are."""
    return path.expanduser().resolve() if isinstance(path, Path) else path
