"""The predictions that a run keeps: one row per clip or question, written while its split is scored.

They lie in `predictions.parquet` where pyarrow is installed (`pip install caeav[parquet]`), else in `predictions.jsonl`
with the same rows. Rows of a split that is scored again are replaced, those of other splits stay. Every row has

    split, key, clip  the sample, and the clip whose tokens it has
    labels            what it is grouped by: classes, or the type of the question
    truth, prediction, probabilities   as its task says (`Task.outcome_columns`); classes in the order of inputs.json
    score             its own share of the metric in 0..1; confidence: how sure the prediction is, in 0..1
    agreement         of each second, null where a medium is missing; a run without calibration has caste_gate instead
    frames_ok, audio_ok   which seconds hold real media
    notes             codes of what was noted about its media
    routing           mean weights of the experts of every AVMoE layer, by place and modality (if the run has any)
    chosen            numbers of the tokens that CASE selected in every second, by modality (if the run has any)
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from caeav.manifests.core.atomic import Output, Staging, staging, unpublish
from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.train.agreement import Calibration, agreement_logits
from caeav.model.train.evaluate import Observer
from caeav.model.train.experiment import Experiment
from caeav.model.train.runs import Run, RunError

PARQUET, LINES = "predictions.parquet", "predictions.jsonl"
ROUTING, CHOSEN = "routing", "chosen"
ROWS_AT_ONCE = 256
"""Rows in memory before they are written; with masks of 224 x 224 some 10 MB."""
DIGITS = 6

Row = dict[str, Any]
COMMON: Mapping[str, Any] = {
    "split": "",
    "key": "",
    "clip": "",
    "labels": [""],
    "score": 0.0,
    "confidence": 0.0,
    "agreement": [0.0],
    "caste_gate": [0.0],
    "frames_ok": [True],
    "audio_ok": [True],
    "notes": [""],
}


class Keeper:
    """Takes the batches of one split after the other and writes their rows."""

    def __init__(
        self, run: Run, experiment: Experiment, calibration: Calibration | None, staged: Staging
    ) -> None:
        self._run, self._experiment, self._calibration, self._staged = run, experiment, calibration, staged
        self._replaced: set[str] = set()
        self._waiting: list[Row] = []
        self._forms: dict[str, Any] = {}

    def of(self, split: str) -> Observer:
        """What is shown every batch of `split`."""
        self._flush()
        self._replaced.add(split)
        return _OfSplit(self, split)

    def keep(self, rows: list[Row]) -> None:
        """Take the rows of a batch."""
        if not self._forms:
            self._forms = {**COMMON, **self._experiment.task.outcome_columns, **_trunk_forms(rows[0])}
        self._waiting += rows
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._flush()

    def finish(self) -> None:
        """Write what waits, then the kept rows of splits that were not scored now."""
        self._flush()
        if not self._forms:
            return
        kept: list[Row] = []
        for row in read_predictions(self._run):
            if row.get("split") in self._replaced:
                continue
            kept.append(row)
            if len(kept) >= ROWS_AT_ONCE:
                self._writer.write(kept)
                kept = []
        if kept:
            self._writer.write(kept)
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write(self._waiting)
            self._waiting = []

    @cached_property
    def _writer(self) -> ParquetRows | LineRows:
        classes = self._experiment.inputs.classes
        if has_pyarrow():
            return ParquetRows(self._staged.file(self._run.folder / PARQUET), self._forms, classes)
        return LineRows(self._staged.file(self._run.folder / LINES), self._forms)

    def rows(self, split: str, first: int, batch: TokenBatch, found: Any, trunk: TrunkOutput) -> list[Row]:
        """Of the samples of a batch, which are those from number `first` of the split on."""
        experiment, data = self._experiment, self._experiment.data[split]
        numbers = range(first, first + len(batch.keys))
        samples = [experiment.joined.splits[split][number] for number in numbers]
        outcomes = experiment.task.outcomes(found, batch, samples, experiment.inputs, experiment.config)
        clips = batch.clip_of.tolist() if batch.clip_of is not None else list(range(len(samples)))
        of_clips = self._of_clips(batch, trunk)
        rows = []
        for number, sample, outcome, clip in zip(numbers, samples, outcomes, clips, strict=True):
            notes = [note["code"] for info in data.infos(number) for note in info.get("notes", ())]
            facts = {
                "split": split,
                "key": sample.key,
                "clip": sample.clip.key,
                "notes": list(dict.fromkeys(notes)),
            }
            rows.append(_finite({**facts, **of_clips[clip], **outcome}))
        return rows

    def _of_clips(self, batch: TokenBatch, trunk: TrunkOutput) -> list[Row]:
        """What is known of each clip of the batch, whatever samples it has."""
        frames, audio = batch.frames_ok.tolist(), batch.audio_ok.tolist()
        rows: list[Row] = [
            {"frames_ok": seen, "audio_ok": heard, "agreement": None, "caste_gate": None}
            for seen, heard in zip(frames, audio, strict=True)
        ]
        if trunk.agreement is not None:
            name, values = "caste_gate", trunk.agreement.double()
            if self._calibration is not None:
                name = "agreement"
                logits = agreement_logits(trunk).cpu().numpy()
                values = Tensor(self._calibration.apply(logits)).double()
            for row, said in zip(rows, values.tolist(), strict=True):
                there = zip(row["frames_ok"], row["audio_ok"], said, strict=True)
                row[name] = [value if seen and heard else None for seen, heard, value in there]
        routing = {
            name.removeprefix(f"{ROUTING}."): x.float().mean(dim=1).tolist()  # over the seconds
            for name, x in trunk.aux.items()
            if name.startswith(f"{ROUTING}.")
        }
        chosen = {
            name.removeprefix(f"{CHOSEN}."): x.cpu()
            for name, x in trunk.aux.items()
            if name.startswith(f"{CHOSEN}.")
        }
        for i, row in enumerate(rows):
            if routing:
                row[ROUTING] = {name: weights[i] for name, weights in routing.items()}
            if chosen:
                row[CHOSEN] = {
                    name: [on.nonzero().flatten().tolist() for on in x[i]] for name, x in chosen.items()
                }
        return rows


class _OfSplit(NamedTuple):
    """The observer of one split."""

    keeper: Keeper
    split: str

    def rows(self, first: int, batch: TokenBatch, output: Any) -> list[Row]:
        return self.keeper.rows(self.split, first, batch, output.found, output.trunk)

    def keep(self, rows: list[Row]) -> None:
        self.keeper.keep(rows)


def _trunk_forms(row: Row) -> dict[str, Any]:
    forms: dict[str, Any] = {}
    if ROUTING in row:
        forms[ROUTING] = {name: [0.0] for name in row[ROUTING]}
    if CHOSEN in row:
        forms[CHOSEN] = {name: [[0]] for name in row[CHOSEN]}
    return forms


@contextmanager
def keep_predictions(run: Run, experiment: Experiment, calibration: Calibration | None) -> Iterator[Keeper]:
    """A `Keeper` whose file is published when all splits are scored, and not at all after an error.

    calibration: the run's, None where its agreement has none.
    """
    with staging() as staged:
        keeper = Keeper(run, experiment, calibration, staged)
        yield keeper
        if not experiment.processes.main:  # which made rows for the main one
            return
        keeper.finish()
        staged.put()
    unpublish(
        run.folder / (LINES if has_pyarrow() else PARQUET)
    )  # of the other form: its rows were taken over


def read_predictions(run: Run) -> Iterator[Row]:
    """The rows that a run keeps, in order; none for a run that keeps none. Raises `RunError` for a damaged file."""
    parquet, lines = run.folder / PARQUET, run.folder / LINES
    if parquet.exists():
        if not has_pyarrow():
            raise RunError(
                f"{parquet} cannot be read: pyarrow is not installed", hint='pip install "caeav[parquet]"'
            )
        yield from _read_parquet(parquet)
    elif lines.exists():
        yield from _read_lines(lines)


def has_pyarrow() -> bool:
    """Whether rows are written, and can be read, as Parquet."""
    return importlib.util.find_spec("pyarrow") is not None


class ParquetRows:
    """Rows of one form as a Parquet file, a row group for each call of `write`."""

    def __init__(self, out: Output, forms: Mapping[str, Any], classes: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, _arrow_type(form)) for name, form in forms.items()])
        self._schema = schema.with_metadata({"classes": json.dumps(list(classes))})
        self._writer = pq.ParquetWriter(_Sink(out), self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows; values without a place in the form are left out, missing ones are null."""
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))

    def close(self) -> None:
        """Write what stands at the end of the file."""
        self._writer.close()


class LineRows:
    """Rows of one form as JSON Lines."""

    def __init__(self, out: Output, forms: Mapping[str, Any]) -> None:
        self._out, self._names = out, list(forms)

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows; values without a place in the form are left out, missing ones are null."""
        for row in rows:
            held = {name: _rounded(row.get(name)) for name in self._names}
            text = json.dumps(held, ensure_ascii=False, allow_nan=False)
            self._out.write(f"{text}\n".encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Nothing stands at the end."""


class _Sink(io.RawIOBase):
    """A staged file as pyarrow writes to one."""

    def __init__(self, out: Output) -> None:
        self._out, self._at = out, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._out.write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at


def _arrow_type(form: Any) -> Any:
    """The Arrow type of values like `form`."""
    import pyarrow as pa

    if isinstance(form, Mapping):
        return pa.struct([(name, _arrow_type(value)) for name, value in form.items()])
    if isinstance(form, list):
        return pa.list_(_arrow_type(form[0]))
    return {bool: pa.bool_(), int: pa.int32(), float: pa.float32(), str: pa.string()}[type(form)]


def _finite(value: Any) -> Any:
    """The value with None for numbers that are not finite, as a run that diverged has them."""
    if isinstance(value, dict):
        return {name: _finite(held) for name, held in value.items()}
    if isinstance(value, list):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(held) for name, held in value.items()}
    if isinstance(value, list):
        return [_rounded(held) for held in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a row is a {type(row).__name__}")
                yield row
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(
        f"cannot read {path}: {' '.join(str(error).split())[:200]}",
        hint=f"remove it, then make it again: caeav eval --run {path.parent.name}",
    )
