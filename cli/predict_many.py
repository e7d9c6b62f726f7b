"""Many predictions by one run: components and weights are loaded once, files and windows follow each other.

All images lie in one folder, with `predictions.jsonl` beside them: one row per window of a file, in order, as in
`prediction.json`, or with `error` where a file could not be processed.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caeav.cli.console import print_json, print_table, printable, say
from caeav.manifests.clip import Manifest
from caeav.manifests.core.atomic import Output, publish_bytes, publishing
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted, some_of, usable_cores
from caeav.manifests.keys import KeyRequest, assign_keys, slug
from caeav.manifests.readers import MEDIA_EXTENSIONS

if TYPE_CHECKING:
    from caeav.model.train.predict import Prediction, Predictor
    from caeav.model.train.runs import Run
    from caeav.pipeline.extract.single_file import Part, Processed

ROWS_FILE = "predictions.jsonl"
SHOWN = 60
"""Rows of the table; the file has all."""


@dataclass(frozen=True)
class Item:
    """A file to predict, or a clip of a data set. `name`: of its images; `questions`: what to answer about it."""

    path: Path
    name: str
    start_s: float = 0.0
    questions: tuple[str, ...] = ("",)


def items_of(paths: Sequence[Path], start_s: float, question: str) -> list[Item]:
    """The media files of `paths`, folders searched through; raises `CaeavError` for what is none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in MEDIA_EXTENSIONS and p.is_file())
            if not found:
                raise CaeavError(
                    f"{path}: no media file in this folder", hint=f"looked for {' '.join(MEDIA_EXTENSIONS)}"
                )
            files += found
        else:
            files.append(path)  # one that is missing costs only itself
    files = list(dict.fromkeys(files))
    names = assign_keys([KeyRequest(file.stem, str(file)) for file in files])
    return [Item(file, name, start_s, (question,)) for file, name in zip(files, names, strict=True)]


def items_of_split(manifest: Manifest, split: str, samples: Sequence[Any]) -> list[Item]:
    """The clips of a data set's split, with the questions that its samples ask; raises `CaeavError` without any."""
    asked: dict[str, Any] = {}
    for sample in samples:
        if sample.split == split:
            asked.setdefault(sample.clip.key, (sample.clip, []))[1].append(sample.detail.get("text", ""))
    if not asked:
        counts = ", ".join(f"{name} {n}" for name, n in manifest.split_counts().items())
        raise CaeavError(
            f"data set {manifest.dataset!r} has no clip in split {split!r}; it has {counts}",
            hint="choose another --split",
        )
    root = Path(manifest.media_root)
    return [
        Item(root / clip.media, key, clip.start_s, tuple(questions))
        for key, (clip, questions) in asked.items()
    ]


class Windows:
    """The parts to process: the first of every item, and the others of its file once its length is known.

    Taken by the thread of the pool, fed by that of the predictions.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._first: Iterator[tuple[int, Item]] = iter(enumerate(items))
        self._more: deque[tuple[int, int, Item, float]] = deque()
        self._lock = threading.Lock()
        self._under_way = 0
        self.place: dict[int, tuple[int, int, Item]] = {}
        """Number of the item, number of the window and item, by the id of the part."""

    def __iter__(self) -> Iterator[Part | None]:
        from caeav.pipeline.extract.single_file import Part

        while True:
            with self._lock:
                taken = self._next()
                done = taken is None and self._under_way == 0
                self._under_way += taken is not None
            if done:
                return
            if taken is None:
                yield None
                continue
            number, window, item, start_s = taken
            part = Part(item.path, start_s)
            self.place[id(part)] = number, window, item
            yield part

    def _next(self) -> tuple[int, int, Item, float] | None:
        if self._more:
            return self._more.popleft()
        number, item = next(self._first, (None, None))
        return None if number is None or item is None else (number, 0, item, item.start_s)

    def settle(self, number: int, item: Item, starts_s: Sequence[float]) -> None:
        """A part is done, and these further windows of its file have come to be known."""
        with self._lock:
            self._more.extend((number, window, item, s) for window, s in enumerate(starts_s, 1))
            self._under_way -= 1


@dataclass
class Ordered:
    """Rows of windows that come in any order, written in the order of items and windows."""

    out: Output
    waiting: dict[tuple[int, int], list[dict[str, Any]]] = field(default_factory=dict)
    windows: dict[int, int] = field(default_factory=dict)
    at: tuple[int, int] = (0, 0)

    def add(self, number: int, window: int, rows: list[dict[str, Any]]) -> None:
        """Take the rows of one window, and write what is in order now."""
        self.waiting[number, window] = rows
        while self.at in self.waiting:
            for row in self.waiting.pop(self.at):
                text = json.dumps(row, ensure_ascii=False, allow_nan=False)
                self.out.write(f"{text}\n".encode("utf-8", "backslashreplace"))
            number, window = self.at
            last = window + 1 == self.windows[number]
            self.at = (number + 1, 0) if last else (number, window + 1)


def predict_many(
    run: Run,
    predictor: Predictor,
    items: Sequence[Item],
    folder: Path,
    *,
    stride_s: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Predict every item into `folder`; a file that fails is named and costs only itself.

    stride_s: a window every so many seconds to the end of each file; None: one window an item. Raises `CaeavError` at
    the end where any failed.
    """
    from tqdm import tqdm

    from caeav.pipeline.extract.single_file import FileProcessor

    windows, predicted, total = Windows(items), 0, len(items)
    failed: dict[str, str] = {}
    shown: list[list[object]] = []
    cores = min(usable_cores(), len(items)) if stride_s is None else usable_cores()
    processor = FileProcessor(run.token_recipes(), run.caption_recipe(), device=device, workers=cores)
    bar = tqdm(total=total, unit="window", disable=None)
    with bar, publishing(folder / ROWS_FILE) as out, processor:
        ordered = Ordered(out)
        for part, found in processor.process_each(windows):
            number, window, item = windows.place.pop(id(part))
            starts_s: list[float] = []
            if isinstance(found, CaeavError):
                rows = [{**_facts(run, item, part), "error": found.problem}]
                failed.setdefault(str(item.path), found.problem)
                say(f"failed: {printable(found.problem)}")
            else:
                if window == 0 and stride_s is not None:
                    starts_s = _later(predictor, item, stride_s, found)
                rows = _predicted(run, predictor, item, part, found, folder, shown)
                predicted += 1
            if window == 0:
                ordered.windows[number] = 1 + len(starts_s)
                total += len(starts_s)
                bar.total = total
            ordered.add(number, window, rows)
            windows.settle(number, item, starts_s)
            processor.nudge()
            bar.update()
    _tell(predicted, shown, failed, folder, as_json, of=len(items))


def _later(predictor: Predictor, item: Item, stride_s: float, found: Processed) -> list[float]:
    """Where the further windows of a file begin: every one of them holds media."""
    from caeav.model.tasks.prediction import EDGE

    media_s = found.tokens.info.get("facts", {}).get("media_s")
    starts_s, number = [], 1
    while (
        media_s is not None and item.start_s + number * stride_s < media_s - EDGE * predictor.inputs.segment_s
    ):
        starts_s.append(item.start_s + number * stride_s)
        number += 1
    return starts_s


def _facts(run: Run, item: Item, part: Part) -> dict[str, Any]:
    return {"file": str(item.path), "run": run.name, "start_s": part.start_s}


def _predicted(
    run: Run,
    predictor: Predictor,
    item: Item,
    part: Part,
    found: Processed,
    folder: Path,
    shown: list[list[object]],
) -> list[dict[str, Any]]:
    """The rows of one window, a row per question; its images are written."""
    from caeav.model.train.prediction_files import draw, prediction_json
    from caeav.model.train.protocol import stamp

    arrays = dict(found.tokens.arrays) | (dict(found.captions.arrays) if found.captions else {})
    config, rows = predictor.config, []
    for asked, question in enumerate(item.questions, 1):
        made: Prediction = predictor.predict(item.name, arrays, found.tokens.info, part.start_s, question)
        name = item.name + (f"-from-{part.start_s:g}s" if part.start_s else "")
        name += f"-question-{asked}" if len(item.questions) > 1 else ""
        images = {f"{name}.png": draw(made, f"{item.path.name}  ({run.name})", list(found.frames))}
        images |= {f"{name}-{file}": data for file, data in made.decoded.files(made.times).items()}
        for file, data in images.items():
            publish_bytes(folder / file, data)
        facts = {
            **_facts(run, item, part),
            "end_s": made.times.end_s,
            "picture": f"{name}.png",
            "protocol": stamp(config.protocol, config.select_on),
            "notes": found.tokens.info.get("notes", []),
            "captions": found.captions.info.get("texts", {}) if found.captions else {},
        }
        rows.append(prediction_json(made, facts))
        if len(shown) < SHOWN:
            span = f"{part.start_s:.5g} to {made.times.end_s:.5g}"
            shown.append(
                [item.path.name, span, *([question] if question else []), made.decoded.headline(made.times)]
            )
    return rows


def _tell(
    predicted: int, shown: list[list[object]], failed: dict[str, str], folder: Path, as_json: bool, of: int
) -> None:
    if as_json:
        print_json({"written": str(folder / ROWS_FILE), "windows": predicted, "failed": failed})
    elif shown:
        columns = ["file", "seconds", *(["question"] if len(shown[0]) > 3 else []), "found"]
        print_table(columns, shown)
        if predicted > len(shown):
            say(f"and more: {predicted} windows in all, see {folder / ROWS_FILE}")
    say(f"written: {folder / ROWS_FILE} and images beside it")
    if failed:
        raise CaeavError(
            f"{counted(len(failed), 'file')} of {of} could not be predicted: {some_of(list(failed))}",
            hint="the others are done; the reasons stand above and in the rows with `error`",
        )


def folder_of(items: Sequence[Item], parent: Path, name: str) -> Path:
    """`parent/name`, or with a number added where predictions of other files lie there."""
    wanted = {str(item.path) for item in items}
    folder, number = parent / name, 1
    while (held := _files_in(folder / ROWS_FILE)) is not None and held != wanted:
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _files_in(rows: Path) -> set[str] | None:
    """The files that rows are about; None where there are no rows, or none worth keeping."""
    try:
        with rows.open(encoding="utf-8") as lines:
            return {str(json.loads(line)["file"]) for line in lines}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def name_of(paths: Sequence[Path], items: Sequence[Item]) -> str:
    """What the folder of predictions of these paths is called."""
    first = slug(paths[0].resolve().name if paths[0].is_dir() else paths[0].stem)
    return first if len(paths) == 1 else f"{first}-and-{len(items) - 1}-more"
