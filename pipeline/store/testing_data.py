"""The small data set, determined in every byte, that the shipped tests of stores use."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.util import ignore
from caeav.pipeline.store.backend import DEFAULT_BACKEND, backend_field
from caeav.pipeline.store.contents import same_arrays
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Quarantined, Record
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.writer import StoreWriter, Summary

SHARD_CLIPS = 4


@dataclass(frozen=True)
class Toy:
    """A data set of `clip000`, `clip001` ... with records that follow from their keys; `stores` is an empty folder."""

    stores: Path
    backend: str = DEFAULT_BACKEND

    @property
    def dataset(self) -> Path:
        """The folder of the data set's stores."""
        return self.stores / "toy"

    @property
    def folder(self) -> Path:
        """The folder of the store that `write` makes."""
        return self.dataset / self.recipe().folder_name

    def manifest(self, clips: int = 10, label: str = "bark") -> Manifest:
        """This many clips of 10 s, each with one event."""
        rows = tuple(
            Clip(f"clip{i:03d}", f"media/{i}.mp4", 0.0, 10.0, "train", (Event(label, 1.0, 2.0),))
            for i in range(clips)
        )
        return Manifest("toy", 10, 1.0, (label,), rows, media_root="/somewhere")

    def recipe(self, **fields: object) -> Recipe:
        """The recipe of this backend, with more fields or other values."""
        chosen = {"shard_clips": SHARD_CLIPS, "dtype": "float16", **backend_field(self.backend)}
        return Recipe("tokens", "classic", {**chosen, **fields})

    def record(self, key: str) -> Record:
        """The record of a key."""
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        arrays: dict[str, Any] = {
            "visual.stage1": rng.standard_normal((10, 6, 8)).astype(np.float16),
            "audio.stage1": rng.standard_normal((10, 3, 4)).astype(np.float32),
            "audio.mask": rng.integers(0, 2, 7).astype(np.bool_),
        }
        return Record(
            key, arrays, {"notes": [{"code": "no_audio", "detail": "none"}], "audio_ok": [False] * 10}
        )

    def write(
        self,
        manifest: Manifest | None = None,
        *,
        failing: Iterable[str] = (),
        order: Callable[[list[Any]], list[Any]] = list,
        retry_failed: bool = False,
        root: Path | None = None,
        recipe: Recipe | None = None,
        seen: Callable[[StoreWriter], object] = ignore,
    ) -> Summary:
        """Extract as a run would: plan, compute, keep, quarantine, publish, finish."""
        with open_for_writing(
            root or self.dataset,
            recipe or self.recipe(),
            manifest or self.manifest(),
            retry_failed=retry_failed,
        ) as writer:
            seen(writer)
            for plan in order(writer.plan()):
                records = writer.kept(plan.number)
                for key in plan.missing:
                    if key in failing:
                        writer.quarantine(Quarantined(key, "decode", "no such file", 1))
                    elif key not in records:
                        records[key] = self.record(key)
                        writer.keep(records[key])
                writer.sync()
                writer.publish(plan, records)
            return writer.finish()

    def write_slices(self, count: int, manifest: Manifest, failing: Iterable[str] = ()) -> list[Path]:
        """Extract in `count` slices, one after the other; returns their folders."""
        made = []
        for number in range(1, count + 1):
            part = Slice(number, count)
            with open_for_writing(self.dataset, self.recipe(), manifest, part=part) as writer:
                for plan in writer.plan():
                    for key in sorted({*failing} & {*plan.missing}):
                        writer.quarantine(Quarantined(key, "decode", "no such file", 1))
                    writer.publish(
                        plan, {key: self.record(key) for key in plan.missing if key not in failing}
                    )
                writer.finish()
                made.append(writer.path)
        return made

    def at(self, stores: Path) -> Toy:
        """The same data set with its stores in another folder."""
        return replace(self, stores=stores)

    def same(self, record: Record) -> bool:
        """Whether a record read back is the one that was written."""
        wanted = self.record(record.key)
        return dict(record.info) == dict(wanted.info) and same_arrays(record.arrays, wanted.arrays)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
