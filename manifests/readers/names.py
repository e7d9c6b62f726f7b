"""Which media file a name in a label file means, where it is not exactly the file's path.

Lists come from other machines: with backslashes and drive letters, absolute paths, another folder above, `%20`,
letters composed differently (macOS), another case, no extension. A name matches a file when it can be only that one;
when it can be several, or two names would be one file, it matches none.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from caeav.manifests.readers import MEDIA_EXTENSIONS
from caeav.manifests.rows import is_inside

_DRIVE = re.compile(r"(?:file:/{0,3})?(?:[A-Za-z]:)?")


@dataclass(frozen=True, slots=True)
class Match:
    """What a name means: `file`, or None and perhaps several `candidates`.

    how: how the name differs from the file's path; empty when it is the path. path: where a missing file should be,
    once the folders that other names have in excess are cut off; empty when the name itself says it.
    """

    file: str | None
    how: str = ""
    candidates: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True, slots=True)
class _Parts:
    """A path to compare: its folders, its name without extension, and its extension where that is one of media."""

    folders: tuple[str, ...]
    stem: str
    extension: str

    def folded(self) -> _Parts:
        return _Parts(tuple(map(str.casefold, self.folders)), self.stem.casefold(), self.extension.casefold())


class MediaNames:
    """The media files below a folder, found by names that are not exactly their paths."""

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        self.root = root
        self._files = dict.fromkeys(files)
        self._parts: dict[str, _Parts] = {}

    @property
    def count(self) -> int:
        """How many media files there are."""
        return len(self._files)

    @property
    def first(self) -> str:
        """The first media file, for a message; empty when there is none."""
        return next(iter(self._files), "")

    def is_there(self, name: str) -> bool:
        """Whether the name is the path of a file, whatever its extension."""
        if name in self._files:
            return True
        if not is_inside(name):
            return False
        path = str(PurePosixPath(name))
        return path in self._files or os.path.isfile(self.root / path)  # noqa: PTH113 - a name may be too long

    def match(self, names: Iterable[str]) -> dict[str, Match]:
        """What each name means; two names that differ in more than spelling never mean one file.

        Where one of them is the file's path, the other means a file that is missing.
        """
        found = {name: self._match(name) for name in dict.fromkeys(names)}
        of_file: dict[str, list[str]] = {}
        for name, match in found.items():
            if match.file is not None:
                of_file.setdefault(match.file, []).append(name)
        for file, rivals in of_file.items():
            spelt = {name: _cut(_plain(name)).folded() for name in rivals}
            if len(set(spelt.values())) > 1:
                own = _cut(unicodedata.normalize("NFC", file)).folded()
                exact = any(not found[name].how for name in rivals)
                for name in rivals:
                    if found[name].how and spelt[name] != own:
                        found[name] = Match(None, "", () if exact else (file,))
        above = {
            wanted.folders[:extra]
            for name, match in found.items()
            if match.file and match.how
            for wanted in [_cut(_plain(name))]
            if (extra := len(wanted.folders) - match.file.count("/")) > 0
        }
        for name, match in found.items():
            if match.file is None and not match.candidates and (above or "\\" in name):
                found[name] = Match(None, path=_below(name, above))
        return found

    def near(self, name: str) -> str:
        """The file with the most similar name, for a hint; empty when none is similar."""
        parts = _cut(_plain(name)).folded()
        same = self._by_stem.get(parts.stem)
        if same:
            return same[0]
        close = difflib.get_close_matches(parts.stem, list(self._by_stem)[:2000], n=1, cutoff=0.8)
        return self._by_stem[close[0]][0] if close else ""

    def _match(self, name: str) -> Match:
        if name in self._files:
            return Match(name)
        if self.is_there(name):
            return Match(str(PurePosixPath(name)))
        inside = self._below_root(name)
        if inside:
            return Match(inside, "an absolute path")
        best: dict[tuple[int, bool, bool], dict[str, str]] = {}
        for text in dict.fromkeys((_plain(name), _plain(unquote(name)))):
            wanted = _cut(text)
            folded = wanted.folded()
            for file in self._by_stem.get(folded.stem, ()):
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
            return Match(None)
        files = best[max(best)]
        if len(files) > 1:
            return Match(None, "", tuple(sorted(files)))
        [(file, how)] = files.items()
        return Match(file, how)

    def _below_root(self, name: str) -> str:
        """The file that an absolute path into the folder names, links resolved or not; empty when it names none."""
        if not os.path.isabs(name):  # noqa: PTH117
            return ""
        for root in (self.root.absolute(), self.root.resolve()):
            if Path(name).is_relative_to(root):
                file = Path(name).relative_to(root).as_posix()
                return file if self.is_there(file) else ""
        return ""

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Media files by their folded stem; fills `_parts`. Made only when a name is not a path."""
        by_stem: dict[str, list[str]] = {}
        for file in self._files:
            self._parts[file] = _cut(unicodedata.normalize("NFC", file))
            by_stem.setdefault(self._parts[file].folded().stem, []).append(file)
        return by_stem


def _below(name: str, above: Iterable[tuple[str, ...]]) -> str:
    """The name without the folders that other names have in excess, with slashes; empty when it lies in none."""
    text = _plain(name)
    parts = tuple(part for part in text.split("/") if part not in ("", ".", ".."))
    for folders in sorted(above, key=len, reverse=True):
        if parts[: len(folders)] == folders:
            return "/".join(parts[len(folders) :])
    return "/".join(parts) if "\\" in name and is_inside(text) else ""


def _last(folders: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(folders[len(folders) - count :])


def _plain(name: str) -> str:
    """The name with slashes, without drive or scheme, its letters composed (NFC)."""
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
    """How a name differs from the path of its file, in words."""
    differences = ["backslashes"] if "\\" in name else []
    if text != _plain(name):
        differences.append("percent signs for letters")
    shared = min(len(wanted.folders), len(file.folders))
    ours = (*_last(wanted.folders, shared), wanted.stem)
    theirs = (*_last(file.folders, shared), file.stem)
    if not wanted.extension and file.extension:
        differences.append("no extension")
    elif wanted.extension.lower() != file.extension.lower():
        differences.append("another extension")
    else:
        ours, theirs = (*ours, wanted.extension), (*theirs, file.extension)
    if len(wanted.folders) != len(file.folders):
        differences.append(
            "a folder more" if len(wanted.folders) > len(file.folders) else "without its folder"
        )
    if ours != theirs:
        differences.append("another case")
    return ", ".join(differences) or "letters composed differently"
