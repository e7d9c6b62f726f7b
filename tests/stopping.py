"""Trainings with their log, and trainings that are stopped at a given moment, for tests of resuming."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caeav.model.train.experiment import Experiment
from caeav.model.train.log import MetricsLog
from caeav.model.train.loop import Watcher
from caeav.model.train.runs import METRICS, Run
from caeav.model.train.session import train


def train_logged(experiment: Experiment, run: Run, *watchers: Any) -> dict[str, Any]:
    """Train as the command does, with the run's log of epochs."""
    return train(experiment, run, [MetricsLog(run.folder / METRICS), *watchers])


class StopError(Exception):
    """The training was stopped."""


class StopAt(Watcher):
    """Raises at the given batch (from 1) of the given epoch, or when that epoch is reported (`batch` None)."""

    def __init__(self, epoch: int, batch: int | None) -> None:
        self._epoch, self._batch, self._seen = epoch, batch, 0

    def batch(self, epoch: int, samples: int) -> None:
        if epoch == self._epoch and self._batch is not None:
            self._seen += 1
            if self._seen == self._batch:
                raise StopError

    def epoch(self, record: Mapping[str, Any]) -> None:
        if record["epoch"] == self._epoch and self._batch is None:
            raise StopError
