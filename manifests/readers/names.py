"""Which media file a name in a label file means, where it is not written as the file's path.

Lists come from other machines: backslashes and drive letters, absolute paths, another folder above, `%20`, letters
composed otherwise (macOS), another case, no extension. A name is taken for a file when it can be only that one; when it
can be several, or two names would be one file, nobody guesses.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from caeav.manifests.readers import MEDIA_EXTENSIONS
from caeav.manifests.rows import is_inside

_DRIVE = re.compile(r"(?:file:/{0,3})?(?:[A-Za-z]:)?")


@dataclass(frozen=True, slots=True)
class Meant:
    """What a name means: `file`, or none and perhaps several `candidates`.

    `how` says what the name lacks or has too much, and is empty when it is the file's path. `path` is where a file that
    is not there should be, from what other names have too much; empty when the name says so itself.
    """

    file: str | None
    how: str = ""
    candidates: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True, slots=True)
class _Parts:
    """A path to be compared: its folders and its name without extension, and the extension of media, if any."""

    folders: tuple[str, ...]
    stem: str
    extension: str

    def folded(self) -> _Parts:
        return _Parts(tuple(map(str.casefold, self.folders)), self.stem.casefold(), self.extension.casefold())


class MediaNames:
    """The media below a folder, to be found by names that are written in another way."""

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        self.root = root
        self._files = dict.fromkeys(files)
        self._by_stem: dict[str, list[str]] | None = None
        self._parts: dict[str, _Parts] = {}

    @property
    def count(self) -> int:
        """How many media files there are."""
        return len(self._files)

    @property
    def first(self) -> str:
        """The first of them, for a message; empty when there is none."""
        return next(iter(self._files), "")

    def is_there(self, name: str) -> bool:
        """Whether the name is the path of a file, media by its extension or not."""
        if name in self._files:
            return True
        if not is_inside(name):
            return False
        path = str(PurePosixPath(name))
        return path in self._files or os.path.isfile(self.root / path)  # noqa: PTH113 - a name may be too long

    def meant(self, names: Iterable[str]) -> dict[str, Meant]:
        """What each of the names means; two names that differ in more than spelling never mean one file.

        Where one of them is the file's path, the other means a file that is not there.
        """
        found = {name: self._one(name) for name in dict.fromkeys(names)}
        of_file: dict[str, list[str]] = {}
        for name, meant in found.items():
            if meant.file is not None:
                of_file.setdefault(meant.file, []).append(name)
        for file, rivals in of_file.items():
            spelt = {name: _cut(_plain(name)).folded() for name in rivals}
            if len(set(spelt.values())) > 1:
                own = _cut(unicodedata.normalize("NFC", file)).folded()
                exact = any(not found[name].how for name in rivals)
                for name in rivals:
                    if found[name].how and spelt[name] != own:
                        found[name] = Meant(None, "", () if exact else (file,))
        above = {
            wanted.folders[:extra]
            for name, meant in found.items()
            if meant.file and meant.how
            for wanted in [_cut(_plain(name))]
            if (extra := len(wanted.folders) - meant.file.count("/")) > 0
        }
        for name, meant in found.items():
            if meant.file is None and not meant.candidates and (above or "\\" in name):
                found[name] = Meant(None, path=_below(name, above))
        return found

    def near(self, name: str) -> str:
        """The file whose name is most like this one, for a hint; empty when none is."""
        self._index()
        parts = _cut(_plain(name)).folded()
        same = (self._by_stem or {}).get(parts.stem)
        if same:
            return same[0]
        close = difflib.get_close_matches(parts.stem, list(self._by_stem or {})[:2000], n=1, cutoff=0.8)
        return (self._by_stem or {})[close[0]][0] if close else ""

    def _one(self, name: str) -> Meant:
        if name in self._files:
            return Meant(name)
        if self.is_there(name):
            return Meant(str(PurePosixPath(name)))
        inside = self._below_root(name)
        if inside:
            return Meant(inside, "an absolute path")
        self._index()
        best: dict[tuple[int, bool, bool], dict[str, str]] = {}
        for text in dict.fromkeys((_plain(name), _plain(unquote(name)))):
            wanted = _cut(text)
            folded = wanted.folded()
            for file in (self._by_stem or {}).get(folded.stem, ()):
                parts = self._parts[file]
                shared = min(len(parts.folders), len(wanted.folders))
                if _last(parts.folded().folders, shared) != _last(folded.folders, shared):
                    continue
                same = parts.folded().extension == folded.extension
                same_case = (parts.stem, _last(parts.folders, shared)) == (
                    wanted.stem,
                    _last(wanted.folders, shared),
                ) and (parts.extension == wanted.extension or not same)
                rank = (shared, same, same_case)
                best.setdefault(rank, {})[file] = _difference(name, text, wanted, parts)
        if not best:
            return Meant(None)
        files = best[max(best)]
        if len(files) > 1:
            return Meant(None, "", tuple(sorted(files)))
        [(file, how)] = files.items()
        return Meant(file, how)

    def _below_root(self, name: str) -> str:
        """The file of an absolute path into the folder, whichever way the folder is written."""
        if not os.path.isabs(name):  # noqa: PTH117
            return ""
        for root in (self.root.absolute(), self.root.resolve()):
            if Path(name).is_relative_to(root):
                file = Path(name).relative_to(root).as_posix()
                return file if self.is_there(file) else ""
        return ""

    def _index(self) -> None:
        if self._by_stem is None:
            self._by_stem = {}
            for file in self._files:
                self._parts[file] = _cut(unicodedata.normalize("NFC", file))
                self._by_stem.setdefault(self._parts[file].folded().stem, []).append(file)


def _below(name: str, above: Iterable[tuple[str, ...]]) -> str:
    """The name without the folders that other names have too much, with slashes; empty when it does not lie in them."""
    text = _plain(name)
    parts = tuple(part for part in text.split("/") if part not in ("", ".", ".."))
    for folders in sorted(above, key=len, reverse=True):
        if parts[: len(folders)] == folders:
            return "/".join(parts[len(folders) :])
    return "/".join(parts) if "\\" in name and is_inside(text) else ""


def _last(folders: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(folders[len(folders) - count :])


def _plain(name: str) -> str:
    """The name with slashes, without drive or scheme, its letters composed."""
    text = unicodedata.normalize("NFC", name).replace("\\", "/")
    return text[_DRIVE.match(text).end() :]  # type: ignore[union-attr]  # it matches nothing too


def _cut(path: str) -> _Parts:
    parts = [part.strip() for part in path.split("/")]
    parts = [part for part in parts if part not in ("", ".", "..")] or [""]
    stem, dot, extension = parts[-1].rpartition(".")
    if dot and stem and f".{extension}".lower() in MEDIA_EXTENSIONS:
        return _Parts(tuple(parts[:-1]), stem, f".{extension}")
    return _Parts(tuple(parts[:-1]), parts[-1], "")


def _difference(name: str, text: str, wanted: _Parts, file: _Parts) -> str:
    """What is other about a name than about the path of its file, in words."""
    said = ["backslashes"] if "\\" in name else []
    if text != _plain(name):
        said.append("percent signs for letters")
    shared = min(len(wanted.folders), len(file.folders))
    ours = (*_last(wanted.folders, shared), wanted.stem)
    theirs = (*_last(file.folders, shared), file.stem)
    if not wanted.extension and file.extension:
        said.append("no extension")
    elif wanted.extension.lower() != file.extension.lower():
        said.append("another extension")
    else:
        ours, theirs = (*ours, wanted.extension), (*theirs, file.extension)
    if len(wanted.folders) != len(file.folders):
        said.append("a folder more" if len(wanted.folders) > len(file.folders) else "without its folder")
    if ours != theirs:
        said.append("another case")
    return ", ".join(said) or "letters put together otherwise"
