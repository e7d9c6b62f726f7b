"""A store written out for other programs: as features that code for AVE, LLP and MUSIC-AVQA reads, or as tables.

    npy      <tap>/<name>.npy, one file a clip, [T, L, C], or [T, C] where a segment has one token
    h5       <tap>.h5, one row a clip, as `avadataset`; ids.txt names the rows; <split>_order.h5 lists a split's rows
    parquet  <split>.parquet, one row a clip: labels, facts, and each array as nested lists
    hf       the same as data/<split>.parquet, typed for the library `datasets`, with a card

Beside each lie clips.csv (every clip, its split, and those in quarantine with their reason), labels.csv (every event,
as `--labels` takes it) and recipe.json. A clip's name is its official id where no two clips share it, else its key.
The folder appears when all of it is written; every record is checked when it is read.
Shapes: `N` clips, `T` segments, `L` tokens per segment, `C` channels, `K` classes.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLITS, Clip, Manifest, active_segments
from caeav.manifests.core.atomic import is_taken, publish_bytes, publish_text, publishing_folder
from caeav.manifests.core.util import OnProgress, ignore, some_of
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.layout import render_recipe
from caeav.pipeline.store.reader import StoreReader
from caeav.pipeline.store.record import Record

FORMATS = ("npy", "h5", "parquet", "hf")
ROWS_AT_ONCE = 64
NO_SPLIT = "unassigned"
"""What rows without a split are called where each split is a file."""


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, how many clips, how many stayed behind in quarantine."""

    folder: Path
    clips: int
    quarantined: int


class Sink(Protocol):
    """Takes every clip of a store, in the manifest's order."""

    def add(self, clip: Clip, name: str, record: Record) -> None:
        """Write one clip."""
        ...

    def close(self) -> None:
        """Write what comes last."""
        ...


def export(
    store: StoreReader,
    to: str,
    folder: Path,
    *,
    arrays: Sequence[str] = (),
    pool: bool = False,
    progress: OnProgress = ignore,
) -> Exported:
    """Write `store` into the new folder `folder` in the format `to`; `progress` is told of each clip.

    `arrays`: those to write, all when empty. `pool`: write the mean over a segment's tokens, `[T, C]`. Raises
    `StoreError` for an unknown format or array, for a folder that has something in it, and where a package is missing.
    """
    if to not in FORMATS:
        raise StoreError(f"no format is called {to!r}", hint=f"give one of {', '.join(FORMATS)}")
    held = list(store.array_specs())
    unknown = sorted(set(arrays) - set(held))
    if unknown:
        raise StoreError(
            f"{store.path.name} has no {some_of(unknown)}; it has {', '.join(held)}",
            hint="name some of these",
        )
    if is_taken(folder):
        raise StoreError(f"{folder} is not empty", hint="name a new folder, or remove this one")
    wanted = list(arrays) or held
    clips = [clip for clip in store.manifest.clips if clip.key in store]
    names = names_of(clips)
    with publishing_folder(folder) as work:
        sink = _sink(to, work, store)
        for clip, record in zip(clips, store.read_each([clip.key for clip in clips]), strict=True):
            kept = {name: _shaped(record.arrays[name], pool) for name in wanted if name in record.arrays}
            sink.add(clip, names[clip.key], replace(record, arrays=kept))
            progress(1)
        sink.close()
        write_lists(store, work)
        publish_bytes(work / "recipe.json", render_recipe(store.recipe))
    return Exported(folder, len(clips), len(store.quarantined))


def write_lists(store: StoreReader, folder: Path) -> None:
    """Write clips.csv and labels.csv of a store into `folder`."""
    clips = [clip for clip in store.manifest.clips if clip.key in store]
    publish_text(folder / "clips.csv", _clips_csv(store, names_of(clips)))
    publish_text(folder / "labels.csv", _labels_csv(clips))


def names_of(clips: Sequence[Clip]) -> dict[str, str]:
    """Key -> the clip's official id where it has one that no other clip has, else its key."""
    ids = {clip.key: clip.extra.get("id") for clip in clips}
    counts = Counter(ids.values())
    safe = {
        key: held
        for key, held in ids.items()
        if isinstance(held, str) and counts[held] == 1 and held == Path(held).name and held not in ids
    }
    return {clip.key: safe.get(clip.key, clip.key) for clip in clips}


def _shaped(array: NDArray[np.generic], pool: bool) -> NDArray[np.generic]:
    """`[T, L, C]` -> `[T, C]` where asked for or where `L` is 1; anything else as it is."""
    if array.ndim != 3:
        return array
    if pool:
        return np.asarray(array.mean(axis=1, dtype=np.float32).astype(array.dtype))
    return array[:, 0] if array.shape[1] == 1 else array


def seconds_of(clip: Clip, manifest: Manifest) -> NDArray[np.float32]:
    """`[T, K + 1]` one-hot, background last, as in AVE's labels.h5; where events overlap, the first class counts."""
    on = active_segments(clip.events, manifest.classes, manifest.segments, manifest.segment_s)
    labels = np.concatenate([on, 1 - on.max(axis=1, keepdims=True)], axis=1)
    first = labels.argmax(axis=1)  # the first of equals
    return np.asarray(np.eye(labels.shape[1], dtype=np.float32)[first])


class _Npy:
    """One file a clip."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, clip: Clip, name: str, record: Record) -> None:
        for array_name, array in record.arrays.items():
            place = self._folder / array_name / f"{name}.npy"
            place.parent.mkdir(exist_ok=True)
            np.save(place, array, allow_pickle=False)

    def close(self) -> None:
        pass


class _H5:
    """One file an array, one row a clip, with the names that AVE's files have."""

    def __init__(self, folder: Path, store: StoreReader) -> None:
        self._h5py = _needs("h5py", "hdf5")
        self._folder, self._store = folder, store
        self._open = ExitStack()
        self._sets: dict[str, Any] = {}
        self._names: list[str] = []
        self._splits: list[str] = []
        self._labels: list[NDArray[np.float32]] = []

    def add(self, clip: Clip, name: str, record: Record) -> None:
        row = len(self._names)
        for array_name, array in record.arrays.items():
            if array_name not in self._sets:
                file = self._open.enter_context(self._h5py.File(self._folder / f"{array_name}.h5", "w"))
                self._sets[array_name] = file.create_dataset(
                    "avadataset", (len(self._store), *array.shape), array.dtype, chunks=(1, *array.shape)
                )
            self._sets[array_name][row] = array
        self._names.append(name)
        self._splits.append(clip.split)
        if self._store.manifest.classes:
            self._labels.append(seconds_of(clip, self._store.manifest))

    def close(self) -> None:
        self._open.close()
        publish_text(self._folder / "ids.txt", "".join(f"{name}\n" for name in self._names))
        if self._labels:
            with self._h5py.File(self._folder / "labels.h5", "w") as file:
                file["avadataset"] = np.stack(self._labels)
        for split in SPLITS:
            rows = [row for row, name in enumerate(self._splits) if name == split]
            with self._h5py.File(self._folder / f"{split}_order.h5", "w") as file:
                file["order"] = np.array(rows, np.int64)


class _Parquet:
    """One file a split, one row a clip."""

    def __init__(self, folder: Path, store: StoreReader, card: bool) -> None:
        self._arrow = _needs("pyarrow", "parquet")
        self._parquet = _needs("pyarrow.parquet", "parquet")
        self._data, self._folder, self._store = folder / "data" if card else folder, folder, store
        self._data.mkdir(exist_ok=True)
        self._card = card
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._writers: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()
        self._features: dict[str, Any] = {}
        self._schema: Any = None

    def add(self, clip: Clip, name: str, record: Record) -> None:
        if self._schema is None:
            self._declare(record)
        split = clip.split or NO_SPLIT
        held = self._rows.setdefault(split, [])
        held.append(
            {
                "name": name,
                "key": clip.key,
                "media": clip.media,
                "start_s": clip.start_s,
                "seconds": clip.seconds,
                "labels": list(clip.labels()),
                "events": [
                    {"label": e.label, "start_s": e.start_s, "end_s": e.end_s, "modality": e.modality or ""}
                    for e in clip.events
                ],
                "info": json.dumps(dict(record.info), ensure_ascii=False, sort_keys=True),
                **record.arrays,
            }
        )
        self._counts[split] += 1
        if len(held) == ROWS_AT_ONCE:
            self._write(split)

    def close(self) -> None:
        for split in self._rows:
            self._write(split)
        for writer in self._writers.values():
            writer.close()
        if self._card:
            publish_text(self._folder / "README.md", self._readme())

    def _declare(self, record: Record) -> None:
        """The columns, and for `datasets` what they mean."""
        pa = self._arrow
        text, real = _value("string"), _value("float64")
        event = {"label": text, "start_s": real, "end_s": real, "modality": text}
        self._features = dict.fromkeys(("name", "key", "media"), text)
        self._features |= {"start_s": real, "seconds": real}
        self._features |= {
            "labels": {"feature": text, "_type": "List"},
            "events": {"feature": event, "_type": "List"},
            "info": text,
        }
        fields = [pa.field(name, pa.string()) for name in ("name", "key", "media")]
        fields += [pa.field("start_s", pa.float64()), pa.field("seconds", pa.float64())]
        fields += [pa.field("labels", pa.list_(pa.string()))]
        kinds = {
            "label": pa.string(),
            "start_s": pa.float64(),
            "end_s": pa.float64(),
            "modality": pa.string(),
        }
        fields += [
            pa.field("events", pa.list_(pa.struct(list(kinds.items())))),
            pa.field("info", pa.string()),
        ]
        for name, array in record.arrays.items():
            kind = pa.from_numpy_dtype(array.dtype)
            feature: dict[str, Any] = _value(array.dtype.name)
            for _ in array.shape:
                kind = pa.list_(kind)
            if array.ndim == 1:
                feature = {"feature": feature, "_type": "List"}
            else:
                feature = {
                    "shape": list(array.shape),
                    "dtype": array.dtype.name,
                    "_type": f"Array{array.ndim}D",
                }
            fields.append(pa.field(name, kind))
            self._features[name] = feature
        told = {"huggingface": json.dumps({"info": {"features": self._features}})} if self._card else None
        self._schema = pa.schema(fields, metadata=told)

    def _write(self, split: str) -> None:
        rows, self._rows[split] = self._rows[split], []
        if not rows:
            return
        if split not in self._writers:
            place = self._data / f"{split}.parquet"
            self._writers[split] = self._parquet.ParquetWriter(place, self._schema)
        columns = [
            self._nested([row[field.name] for row in rows], field)
            if isinstance(rows[0][field.name], np.ndarray)
            else self._arrow.array([row[field.name] for row in rows], field.type)
            for field in self._schema
        ]
        self._writers[split].write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))

    def _nested(self, arrays: Sequence[NDArray[np.generic]], field: Any) -> Any:
        """Arrays of one shape as nested lists, without a Python object a number."""
        stacked = np.stack(arrays)  # [N, ...]
        column = self._arrow.array(stacked.reshape(-1))
        for axis in range(stacked.ndim - 1, 0, -1):
            count = int(np.prod(stacked.shape[:axis]))
            offsets = np.arange(0, (count + 1) * stacked.shape[axis], stacked.shape[axis], dtype=np.int32)
            column = self._arrow.ListArray.from_arrays(offsets[: count + 1], column)
        return column.cast(field.type)

    def _readme(self) -> str:
        """The card, with the places of each split's file."""
        splits = sorted(self._counts)
        files = "".join(f"      - split: {split}\n        path: data/{split}.parquet\n" for split in splits)
        return card(
            self._store,
            f"configs:\n  - config_name: default\n    data_files:\n{files}",
            '    from datasets import load_dataset\n    data = load_dataset("FOLDER")\n\n'
            "Labels are in the columns `labels` and `events`, and in labels.csv.\n",
            self._counts,
            [name for name in self._store.array_specs() if name in self._features],
        )


def card(
    store: StoreReader, head: str, reading: str, counts: Mapping[str, int], arrays: Sequence[str]
) -> str:
    """The card of a data set repository: what its arrays are, how they are read, how they were made.

    head: YAML lines that say what lies where. reading: how to read it, Markdown. counts: clips of each split.
    """
    said = "".join(f"| {split} | {count} |\n" for split, count in sorted(counts.items()))
    specs = store.array_specs()
    shapes = "".join(
        f"| `{name}` | {' x '.join(map(str, specs[name].shape))} | {specs[name].dtype} |\n" for name in arrays
    )
    recipe = json.dumps(store.recipe.as_json(), indent=2, ensure_ascii=False)
    return (
        f"---\n{head}tags:\n  - audio-visual\n  - caeav\n---\n\n"
        f"# {store.manifest.dataset}: {store.recipe.kind} of {store.recipe.name}\n\n"
        f"Cached outputs of frozen networks for every clip, made by caeav. Read them with\n\n{reading}\n"
        f"| split | clips |\n|---|---|\n{said}\n"
        f"| array | as stored | numbers |\n|---|---|---|\n{shapes}\n"
        f"{len(store.quarantined)} clips could not be processed; clips.csv says why. The media are not in here, and "
        "keep the licence they have.\n\n"
        f"Made with this recipe, fingerprint {store.recipe.fingerprint}:\n\n```json\n{recipe}\n```\n"
    )


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _sink(to: str, folder: Path, store: StoreReader) -> Sink:
    if to == "npy":
        return _Npy(folder)
    return _H5(folder, store) if to == "h5" else _Parquet(folder, store, card=to == "hf")


def _needs(module: str, extra: str) -> Any:
    """An optional package; raises `StoreError` with what to install."""
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise StoreError(f"this format needs {error.name}", hint=f"pip install 'caeav[{extra}]'") from None


def _csv(header: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _clips_csv(store: StoreReader, names: Mapping[str, str]) -> str:
    quarantined = {entry.key: f"{entry.stage}: {entry.reason}" for entry in store.quarantined}
    return _csv(
        ("name", "key", "split", "media", "start_s", "seconds", "labels", "quarantined"),
        (
            (
                names.get(c.key, c.key),
                c.key,
                c.split,
                c.media,
                c.start_s,
                c.seconds,
                "; ".join(c.labels()),
                quarantined.get(c.key, ""),
            )
            for c in store.manifest.clips
        ),
    )


def _labels_csv(clips: Sequence[Clip]) -> str:
    """Times in seconds of the media; a clip without events has one row, of its label or of background."""

    def rows() -> Iterator[Sequence[object]]:
        for clip in clips:
            part = (clip.start_s, clip.start_s + clip.seconds)
            for e in clip.events:
                times = (clip.start_s + e.start_s, clip.start_s + e.end_s)
                yield clip.media, *times, e.label, clip.split, *part, e.modality
            if not clip.events:
                for label in clip.labels() or ("",):
                    yield clip.media, *part, label, clip.split, *part, ""

    return _csv(
        ("file", "start_s", "end_s", "label", "split", "clip_start_s", "clip_end_s", "modality"), rows()
    )
