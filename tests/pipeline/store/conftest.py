"""A small, fully determined data set and its records, for the tests of the store."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.pipeline.store import Quarantined, Recipe, Record, StoreWriter, Summary, open_for_writing

SHARD_CLIPS = 4


@dataclass(frozen=True)
class Toy:
    """A data set of `clip000` ... and a pure function from key to record; `stores` is an empty stores folder."""

    stores: Path

    @property
    def dataset(self) -> Path:
        return self.stores / "toy"

    def manifest(self, clips: int = 10, label: str = "bark") -> Manifest:
        rows = tuple(
            Clip(f"clip{i:03d}", f"media/{i}.mp4", 0.0, 10.0, "train", (Event(label, 1.0, 2.0),))
            for i in range(clips)
        )
        return Manifest("toy", 10, 1.0, (label,), rows, media_root="/somewhere")

    def recipe(self, **fields: object) -> Recipe:
        return Recipe("tokens", "classic", {"shard_clips": SHARD_CLIPS, "dtype": "float16", **fields})

    def record(self, key: str) -> Record:
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        arrays = {
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
        order: Callable[[list], list] = list,
        retry_failed: bool = False,
        root: Path | None = None,
        recipe: Recipe | None = None,
        seen: Callable[[StoreWriter], object] = lambda _: None,
    ) -> Summary:
        """One extraction as a stage would do it: plan, compute, quarantine, publish, finish."""
        with open_for_writing(
            root or self.dataset,
            recipe or self.recipe(),
            manifest or self.manifest(),
            retry_failed=retry_failed,
        ) as writer:
            seen(writer)
            for plan in order(writer.plan()):
                records = {}
                for key in plan.missing:
                    if key in failing:
                        writer.quarantine(Quarantined(key, "decode", "no such file", 1))
                    else:
                        records[key] = self.record(key)
                writer.publish(plan, records)
            return writer.finish()

    @property
    def folder(self) -> Path:
        return self.dataset / self.recipe().folder_name

    def at(self, stores: Path) -> Toy:
        return replace(self, stores=stores)

    def same(self, record: Record) -> bool:
        """Whether a record read back is the one that was written."""
        wanted = self.record(record.key)
        return (
            set(record.arrays) == set(wanted.arrays)
            and all(_equal(record.arrays[name], wanted.arrays[name]) for name in wanted.arrays)
            and dict(record.info) == dict(wanted.info)
        )


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "stores")


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], Mapping[str, bytes]]:
    """Every file below a folder with its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
        }

    return read
