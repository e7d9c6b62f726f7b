"""Progress bar, metrics log and TensorBoard, also of resumed trainings."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Terminal

from caeav.model.train import log as journal
from caeav.model.train.log import MetricsLog, ProgressBar, TensorBoardLog, read_metrics
from caeav.model.train.resume import Progress


def test_a_resumed_bar_begins_where_the_training_was() -> None:
    out = Terminal()
    bar = ProgressBar(40, "clip", "accuracy", "val", out)
    bar.begin(Progress(epoch=1, position=8), 3)
    bar.end()
    assert "epoch 2/3" in out.getvalue() and "48.0/120" in out.getvalue()


def test_without_a_terminal_there_is_no_bar() -> None:
    out = io.StringIO()
    bar = ProgressBar(40, "clip", "accuracy", "val", out)
    bar.begin(Progress(), 3)
    bar.batch(1, 8)
    bar.epoch({"epoch": 1, "accuracy": 50.0, "best": 50.0, "loss": 1.0, "train_s": 1.0})
    bar.end()
    assert out.getvalue() == ""  # the last line is not old yet


@pytest.mark.parametrize(
    ("row", "train_s", "speed"),
    [("clip", 4.0, "10 clips/s"), ("clip", 100.0, "2.5 s per clip"), ("question", 4.0, "10 questions/s")],
)
def test_a_slow_training_shows_seconds_per_sample(
    monkeypatch: pytest.MonkeyPatch, row: str, train_s: float, speed: str
) -> None:
    monkeypatch.setattr(journal, "QUIET_LINE_S", -1.0)  # every line is due
    out = io.StringIO()
    bar = ProgressBar(40, row, "accuracy", "val", out)
    bar.begin(Progress(), 3)
    bar.epoch({"epoch": 1, "accuracy": 50.0, "best": 50.0, "loss": 1.0, "train_s": train_s})
    bar.end()
    assert f"epoch 1/3  {speed}  val 50.00" in out.getvalue()


def test_a_resumed_log_keeps_the_lines_of_finished_epochs_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.begin(Progress(), 5)
    for epoch in (1, 2, 3):
        log.epoch({"epoch": epoch})
    again = MetricsLog(path)
    again.begin(Progress(epoch=2), 5)
    assert [record["epoch"] for record in read_metrics(path)] == [1, 2]
    again.epoch({"epoch": 3})
    assert [record["epoch"] for record in read_metrics(path)] == [1, 2, 3]


def test_a_line_is_on_the_disk_before_the_state_that_counts_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "metrics.jsonl", []
    log = MetricsLog(path)
    log.begin(Progress(), 5)
    monkeypatch.setattr(journal.os, "fsync", lambda number: synced.append(path.read_text()))
    log.epoch({"epoch": 1})
    assert synced == ['{"epoch": 1}\n']


def test_tensorboard_gets_every_number_of_an_epoch_and_purges_repeated_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    log = TensorBoardLog(tmp_path)
    log.begin(Progress(epoch=2), 5)
    log.epoch({"epoch": 3, "accuracy": 50.0, "select_on": "val", "losses": {"event": 0.5}})
    log.end()
    assert calls == [(str(tmp_path), 3), ("accuracy", 50.0, 3), ("losses/event", 0.5, 3), "closed"]
