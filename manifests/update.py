"""Brings a stored manifest up to date with its data set, without moving or losing what is stored already."""

from __future__ import annotations

from dataclasses import dataclass, replace

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError


@dataclass(frozen=True)
class ManifestUpdate:
    """How a manifest differs from the stored one: the keys that are new, changed in labels or split, and gone."""

    added: tuple[str, ...]
    relabelled: tuple[str, ...]
    gone: tuple[str, ...]

    def loses_labels(self, stored: Manifest, grown: Manifest) -> bool:
        """Whether stored clips had labels or splits, and none of those that are still in the data set has any."""
        if not self.relabelled:
            return False
        gone = set(self.gone)
        kept = [clip for clip in grown.clips[: len(stored.clips)] if clip.key not in gone]
        return any(map(_labelled, stored.clips)) and not any(map(_labelled, kept))

    def __bool__(self) -> bool:
        return bool(self.added or self.relabelled or self.gone)


def _labelled(clip: Clip) -> bool:
    return bool(
        clip.split or clip.events or clip.extra.get("questions") or clip.extra.get("masks") or clip.labels()
    )


def update_manifest(stored: Manifest, current: Manifest) -> tuple[Manifest, ManifestUpdate]:
    """`stored` brought up to date with `current`, and what has changed.

    Stored clips keep their place and take labels, split and extra from `current`. A clip that `current` no longer has
    stays, but in no split: nobody wants to train on what was taken out. New clips follow in `current`'s order. The
    header is `current`'s; classes that only gone clips use come after its own.

    Raises `CaeavError` when the two cut clips differently, or a key now means another part of the media.
    """
    for name in ("dataset", "segments", "segment_s"):
        was, now = getattr(stored, name), getattr(current, name)
        if was != now:
            raise CaeavError(
                f"the stored manifest has {name} {was!r}, the data set now {now!r}",
                hint="a store keeps one cut of one data set; use another --home or data set name for the new one",
            )
    if stored.clips == current.clips and stored.classes == current.classes:
        return replace(current, clips=stored.clips), ManifestUpdate((), (), ())
    new = {clip.key: clip for clip in current.clips}
    known = {clip.key for clip in stored.clips}
    clips, relabelled, gone = [], [], []
    for clip in stored.clips:
        fresh = new.get(clip.key)
        if fresh is None:
            gone.append(clip.key)
            clips.append(replace(clip, split=""))
            continue
        if fresh.source() != clip.source():
            raise CaeavError(
                f"clip {clip.key!r} was {clip.source()[1:]} (media, start, seconds), it is now {fresh.source()[1:]}",
                hint="one key must keep its media: rename the media file back, or use another --home for the new set",
            )
        if fresh != clip:
            relabelled.append(clip.key)
        clips.append(fresh)
    added = [clip for clip in current.clips if clip.key not in known]
    kept_labels = {event.label for clip in clips for event in clip.events}
    old_classes = tuple(
        name for name in stored.classes if name in kept_labels and name not in current.classes
    )
    grown = replace(current, clips=(*clips, *added), classes=current.classes + old_classes)
    return grown, ManifestUpdate(tuple(clip.key for clip in added), tuple(relabelled), tuple(gone))
