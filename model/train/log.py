"""Watchers of a training: a JSON-lines file, TensorBoard, and a progress bar.

A resumed training drops log entries of unfinished epochs, so that no epoch is logged twice.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from caeav.manifests.core.atomic import publish_text
from caeav.model.train.loop import Watcher
from caeav.model.train.resume import Progress

QUIET_LINE_S = 10.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, one per epoch, up to a line cut short by a kill."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsLog(Watcher):
    """Appends one JSON line per epoch to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, progress: Progress, epochs: int) -> None:
        """Keep only the lines of finished epochs."""
        kept = [record for record in read_metrics(self.path) if record["epoch"] <= progress.epoch]
        publish_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Append the epoch's line and sync it: the state published next relies on it."""
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(dict(record)) + "\n")
            out.flush()
            os.fsync(out.fileno())


class TensorBoardLog(Watcher):
    """Writes the numbers of every epoch as TensorBoard events into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def begin(self, progress: Progress, epochs: int) -> None:
        """Open the event file; TensorBoard hides events after the last finished epoch."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=progress.epoch + 1)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write every number of the record."""
        numbers = {name: x for name, x in record.items() if isinstance(x, int | float) and name != "epoch"}
        numbers |= {f"losses/{name}": x for name, x in record["losses"].items()}
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, record["epoch"])

    def end(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class ProgressBar(Watcher):
    """One bar over all epochs with samples/s, time left and the last score; without a terminal, a line now and then."""

    def __init__(
        self, samples: int, row: str, metric: str, select_on: str, out: TextIO | None = None
    ) -> None:
        self._samples, self._row, self._metric, self._select_on = samples, row, metric, select_on
        self._out = out or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._last_line_s = 0.0
        self._epochs = 0

    def begin(self, progress: Progress, epochs: int) -> None:
        """Draw the bar if the output is a terminal."""
        self._epochs = epochs
        self._last_line_s = time.monotonic()
        self._bar = tqdm(
            total=epochs * self._samples,
            initial=progress.epoch * self._samples + progress.position,
            unit=self._row,
            unit_scale=True,
            desc=f"epoch {min(progress.epoch + 1, epochs)}/{epochs}",
            file=self._out,
            disable=not self._out.isatty(),
            dynamic_ncols=True,
            leave=False,
        )

    def batch(self, epoch: int, samples: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
            self._bar.update(samples)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show loss and score; without a terminal, as a line if the last line is old."""
        text = f"{self._select_on} {record[self._metric]:.2f} best {record['best']:.2f} loss {record['loss']:.3f}"
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._last_line_s > QUIET_LINE_S:
            self._last_line_s = time.monotonic()
            rate = self._samples / max(record["train_s"], 1e-9)
            speed = f"{rate:.0f} {self._row}s/s" if rate >= 1 else f"{1 / rate:.1f} s per {self._row}"
            print(
                f"epoch {record['epoch']}/{self._epochs}  {speed}  {text}",
                file=self._out,
                flush=True,
            )

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
