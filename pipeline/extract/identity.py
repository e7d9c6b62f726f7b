"""Are the media still the ones that the clips of a store were made from?

Size and time of every file are compared with the store's record (`store/media_record.py`); a digest is taken only where
these differ or nothing is known. Changes are listed clip by clip and refused, unless the run says what to do: `redo`
makes these clips anew, `keep` goes on with what is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError, choices
from caeav.manifests.core.util import counted
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.places import place_of
from caeav.pipeline.media.stills import media_files
from caeav.pipeline.store import Slice, StoreError, StoreWriter
from caeav.pipeline.store.media_record import (
    LET_GO,
    NO_DIGEST,
    UNSURE,
    Facts,
    MediaChange,
    look,
    read_record,
    read_records,
    record_path,
    write_record,
)
from caeav.pipeline.store.state import inspect

CHANGED = ("redo", "keep")
"""What `--changed` may say."""
SHOWN = 20


class MediaChanged(CaeavError):
    """The media of stored clips have changed; `changes` names each clip."""

    def __init__(self, dataset: str, changes: Sequence[MediaChange]) -> None:
        self.changes = tuple(changes)
        self.dataset = dataset
        keys = {change.key for change in changes}
        lines = listed(changes)
        super().__init__(
            f"{counted(len(keys), 'stored clip')} of {dataset} {'has' if len(keys) == 1 else 'have'} other media now "
            "than when they were stored:\n" + "\n".join(f"    {line}" for line in lines),
            hint="--changed redo makes exactly these clips anew, --changed keep goes on with what is stored; where "
            "this is another data set, give its folder another name or use another --home",
        )

    def __reduce__(self) -> tuple[type[MediaChanged], tuple[str, tuple[MediaChange, ...]]]:  # type: ignore[override]
        return type(self), (self.dataset, self.changes)


def listed(changes: Sequence[MediaChange]) -> list[str]:
    """One line per changed clip, at most `SHOWN`; the same change in several stores comes once."""
    lines = list(dict.fromkeys(map(str, changes)))
    return lines[:SHOWN] + (
        [f"and {len(lines) - SHOWN} more; --json lists all"] if len(lines) > SHOWN else []
    )


def check_changed(changed: str) -> None:
    """Raises `CaeavError` for a value that `--changed` cannot have."""
    if changed and changed not in CHANGED:
        raise CaeavError(f"--changed cannot be {changed!r}", hint=choices(changed, CHANGED))


class MediaCheck:
    """Compares the media of a manifest with what is recorded for some stores of its data set.

    `folders`: the stores' folders, which need not exist; `place`: where the media lie. Call `refuse` before anything is
    written, and `settle` when a store is open for writing; `changes` are those met so far.
    """

    def __init__(self, context: RunContext, folders: Sequence[Path]) -> None:
        manifest, self._changed = context.manifest, context.options.changed
        check_changed(self._changed)
        self.changes: list[MediaChange] = []
        self._dataset, self._remark = manifest.dataset, context.remark
        self._root = Path(manifest.media_root)
        self.place = place_of(self._root)
        self._media = dict.fromkeys(clip.media for clip in manifest.clips)
        records = [read_record(folder) or {} for folder in folders]
        recorded = dict.fromkeys(name for record in records for name in record)
        self._now = look(self._root, [*dict.fromkeys((*self._media, *recorded))], media_files)
        self._digests: dict[str, bytes] = {}
        self._same: dict[str, Facts] = {}
        self._whole: dict[str, bytes] = {}
        self._differing: set[str] = set()
        self._folders = [folder for folder, record in zip(folders, records, strict=True) if record]

    def refuse(self) -> None:
        """Raises `MediaChanged` when media of stored clips have changed, unless the run said what to do."""
        found: list[MediaChange] = []
        for folder in self._folders:
            record = read_record(folder) or {}
            other = self._other(record)
            if not other:
                continue
            try:
                state = inspect(folder)
            except (StoreError, OSError):
                continue  # opening it for writing says what is wrong
            stored = _keys_of(state.manifest, other, {key for i in state.indexes.values() for key in i.keys})
            found += self._changes(folder, record, stored)
        if found and not self._changed:
            raise MediaChanged(self._dataset, found)

    def settle(self, writer: StoreWriter) -> None:
        """Make clips due again whose media changed, where the run said `redo`, and record the media as they are now.

        Raises `MediaChanged` as `refuse` does, for what another process stored meanwhile.
        """
        recorded = read_record(writer.path)
        known = recorded or {}
        other = self._other(known)
        held = {key for index in writer.indexes.values() for key in index.keys} if other else set()
        stored = _keys_of(writer.manifest, other, held)
        failed = _keys_of(writer.manifest, other, {entry.key for entry in writer.quarantined})
        if other:  # finished, in no shard yet, and of a file that changed: made anew without asking
            kept = {key for plan in writer.plan() for key in plan.kept}
            writer.forget(key for keys in _keys_of(writer.manifest, other, kept).values() for key in keys)
        changes = self._changes(writer.path, known, stored)
        if changes and not self._changed:
            raise MediaChanged(self._dataset, changes)
        self.changes += changes
        redone = [change for change in changes if self._changed == "redo" and change.media in self._media]
        kept_back = [change for change in changes if change not in redone]
        for clips, done in ((redone, "are made anew"), (kept_back, "are kept as they are stored")):
            if clips:
                self._remark(f"{writer.path.name}: clips with other media than before {done}:")
            for line in listed(clips):
                self._remark(f"  {line}")
        if self._changed == "redo":
            there = {name for name in other if name in self._media}
            writer.remake(
                {key for found in (stored, failed) for name in there for key in found.get(name, ())}
            )
            stored = {name: keys for name, keys in stored.items() if name not in there}
        elif failed:
            stored = {**failed, **stored}
            keys = [key for found in failed.values() for key in found]
            self._remark(
                f"{counted(len(keys), 'quarantined clip')} ({keys[0]} first) have other media now than when they "
                "failed; --retry-failed tries them again"
            )
        if not known and writer.stored:
            why = "is damaged" if record_path(writer.path).exists() else "was not written yet"
            self._remark(
                f"{writer.path.name}: the record of its media {why}; changes of media up to now cannot be noticed, "
                "from now on they are"
            )
        self._record(writer, known, stored)

    def decoded(self, name: str) -> None:
        """Take the digest of all bytes of a file that was just read, if it is not very large."""
        if name not in self._whole:
            self._whole[name] = self.place.whole_digest(name)

    def seen(self, names: Iterable[str]) -> dict[str, bytes]:
        """The digest of each of these media as this machine sees them, without those that cannot be read."""
        there = dict.fromkeys(name for name in names if self._now.get(name) is not None)
        unread = self._digest([name for name in there if name not in self._same])
        found = {name: unread[name] if name in unread else self._same[name].digest for name in there}
        return {name: taken for name, taken in found.items() if taken}

    def digested(self, whole: Mapping[str, bytes]) -> None:
        """Take the digests of all bytes of files that another process has read.

        Raises `CaeavError` where one is not what was read of the same file before, by whichever machine; it is recorded
        then that the clips of this file may be of several versions, so that the next run asks what to do with them.
        """
        for name, taken in whole.items():
            before = self._whole.get(name) or (self._same[name].whole if name in self._same else b"")
            if before and taken and before != taken:
                self._differing.add(name)
                raise CaeavError(
                    f"{self._root / name}: a machine of the cluster has read other bytes than were read before",
                    hint="put the media on a file system that all machines mount at the same path, then run the "
                    "command again: it lists the clips stored of this file, and --changed redo makes them anew",
                )
        self._whole |= whole

    def finish(self, stores: Sequence[Path]) -> None:
        """Add these digests to the records of stores that are still open for writing."""
        for store in stores if self._whole or self._differing else ():
            seen = read_record(store) or {}
            for name, whole in self._whole.items():
                before = seen.get(name)
                if before is not None and whole and before.digest == self._digests.get(name):
                    seen[name] = replace(before, whole=whole)
            seen |= {
                name: Facts(seen[name].size, UNSURE, NO_DIGEST) for name in self._differing & seen.keys()
            }
            write_record(store, seen)

    def _record(
        self, writer: StoreWriter, known: Mapping[str, Facts], kept: Mapping[str, Sequence[str]]
    ) -> None:
        """Record the files that stored clips were made of (`kept`: in other versions), and those of due clips."""
        seen = dict(known)
        own = self._media
        if writer.part != Slice():
            keys = {key for planned in writer.planned for key in planned}
            own = dict.fromkeys(clip.media for clip in writer.manifest.clips if clip.key in keys)
        fresh = []
        for name in (*own, *(name for name in known if name not in own)):
            now, before = self._now.get(name), known.get(name)
            if now is None:
                if name in kept:
                    seen[name] = replace(known[name], stamp=LET_GO)
                elif before is not None and before.stamp != LET_GO:
                    del seen[name]  # nothing is stored of it
            elif before is not None and _alike(before, now):
                self._same[name] = before
            elif name not in kept:
                fresh.append(name)
        taken = self._digest(fresh)
        for name in fresh:
            now = self._now[name]
            before = known.get(name)
            if now is not None and taken[name]:
                whole = before.whole if before is not None and before.digest == taken[name] else b""
                seen[name] = Facts(now.size, now.stamp, taken[name], whole)
            else:
                seen.pop(name, None)
        write_record(writer.path, seen)

    def _other(self, record: Mapping[str, Facts]) -> set[str]:
        """The recorded media that have changed or are gone."""
        doubtful, other = [], set()
        for name, before in record.items():
            now = self._now.get(name)
            if now is None:
                other |= set() if before.stamp == LET_GO else {name}
            elif now.size != before.size:
                other.add(name)
            elif not _alike(before, now):
                doubtful.append(name)
        taken = self._digest(doubtful)
        return other | {name for name in doubtful if taken[name] != record[name].digest}

    def _changes(
        self, folder: Path, record: Mapping[str, Facts], stored: Mapping[str, Sequence[str]]
    ) -> list[MediaChange]:
        """One change for each clip of these media."""
        gone = [name for name in stored if self._now.get(name) is None]
        moved = self._moved(record, gone) if gone else {}
        changes = []
        for name, keys in stored.items():
            now, before = self._now.get(name), record[name]
            what: Literal["changed", "gone", "moved"] = "changed"
            if now is not None:
                sizes = f"{before.size} bytes before, {now.size} now"
                detail = f"{name}, {sizes if now.size != before.size else 'other content of the same length'}"
            elif name in moved:
                what, detail = "moved", f"{name} is {moved[name]} now"
            else:
                what, detail = "gone", f"{name} is no file in {self._root}"
            changes += [MediaChange(folder.name, key, name, what, detail) for key in keys]
        return changes

    def _moved(self, record: Mapping[str, Facts], gone: Iterable[str]) -> dict[str, str]:
        """Media that have another name now: old name -> new name."""
        lost = {(record[name].size, record[name].digest): name for name in gone}
        sizes = {size for size, _ in lost}
        new = [n for n in self._media if n not in record and (f := self._now[n]) and f.size in sizes]
        found = {}
        for name, taken in self._digest(new).items():
            now = self._now[name]
            before = lost.get((now.size, taken)) if now else None
            if before is not None:
                found[before] = name
        return found

    def _digest(self, names: Sequence[str]) -> dict[str, bytes]:
        missing = [name for name in names if name not in self._digests]
        self._digests |= self.place.digests(missing)
        return {name: self._digests[name] for name in names}


def _alike(before: Facts, now: Facts) -> bool:
    """Whether, by size and time, a file was not touched."""
    return before.size == now.size and before.stamp == now.stamp != UNSURE


def _keys_of(manifest: Manifest, media: Collection[str], among: Collection[str]) -> dict[str, list[str]]:
    """The clips in `among` by medium, of these media."""
    found: dict[str, list[str]] = {}
    if media and among:
        for clip in manifest.clips:
            if clip.media in media and clip.key in among:
                found.setdefault(clip.media, []).append(clip.key)
    return found


def same_media(stores: Path, root: Path) -> tuple[int, int]:
    """How many of the media recorded for the stores in this folder lie unchanged below `root`, and of how many."""
    recorded = read_records(stores)
    now = look(root, [*recorded], media_files)
    there = [name for name, facts in recorded.items() if (f := now[name]) and f.size == facts.size]
    taken = place_of(root).digests(there)
    return sum(taken[name] == recorded[name].digest for name in there), len(recorded)


@dataclass(frozen=True)
class MediaVerification:
    """What `verify_media` found.

    Stored clips: `compared` with the record, `whole` of these byte for byte, `unknown` without a record; and `changes`.
    """

    path: Path
    compared: int
    whole: int
    unknown: int
    changes: tuple[MediaChange, ...]


def verify_media(store: Path, root: Path) -> MediaVerification:
    """Read the media of a store's clips below `root` again, all bytes where these were recorded, and compare."""
    state = inspect(store)
    record = read_record(store) or {}
    now = look(root, [*record], media_files)
    there = [name for name in record if now[name] is not None]
    place = place_of(root)
    taken = place.digests(there)
    other = {name for name in record if taken.get(name) != record[name].digest}
    for name in there:
        if name not in other and record[name].whole and place.whole_digest(name) != record[name].whole:
            other.add(name)
    stored = {key for index in state.indexes.values() for key in index.keys}
    changes = []
    unknown = compared = whole = 0
    for clip in state.manifest.clips:
        if clip.key not in stored:
            continue
        if clip.media not in record:
            unknown += 1
            continue
        compared += 1
        whole += bool(record[clip.media].whole)
        if clip.media in other:
            gone = now[clip.media] is None
            detail = f"is no file in {root}" if gone else "is not what it was made of"
            what: Literal["gone", "changed"] = "gone" if gone else "changed"
            changes.append(MediaChange(store.name, clip.key, clip.media, what, f"{clip.media} {detail}"))
    return MediaVerification(store, compared, whole, unknown, tuple(changes))
