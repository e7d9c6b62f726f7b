"""Predictions that a run keeps: written while it is scored, replaced split by split, the same in both forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.core.home import Home
from caeav.model.train import predictions
from caeav.model.train.agreement import read_calibration
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import Experiment, prepare, reopen
from caeav.model.train.predictions import LINES, PARQUET, keep_predictions, read_predictions
from caeav.model.train.runs import Run, RunError, create_run
from caeav.model.train.session import load_best, train

SETS = ["training.epochs=2", "model.head.width=16", "training.device=cpu", "model.adapters.avmoe.latents=2"]
SEGMENTS = 6


@pytest.fixture(scope="module")
def trained(tiny_home: Home) -> tuple[Run, Experiment]:
    experiment = prepare(tiny_home, resolve_config(assignments=SETS, options={"dataset": "tiny"}))
    run = create_run(tiny_home, experiment.config)
    train(experiment, run)
    return run, reopen(tiny_home, run)


@pytest.fixture
def copy(trained: tuple[Run, Experiment], tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(trained[0].folder, tmp_path / trained[0].name)))


def score(experiment: Experiment, run: Run, *splits: str, fails: bool = False) -> None:
    model = experiment.build()
    load_best(run, model)
    with keep_predictions(run, experiment, read_calibration(run)) as keeper:
        for split in splits:
            experiment.score(model, split, observe=keeper.of(split))
        if fails:
            raise KeyboardInterrupt


def test_a_row_holds_what_the_adapters_did(needs: Any, trained: tuple[Run, Experiment]) -> None:
    needs("pyarrow")
    run, experiment = trained
    rows = list(read_predictions(run))
    assert [row["split"] for row in rows] == ["val"] * 12 + ["test"] * 12
    for row in rows:
        assert row["caste_gate"] is None or row["agreement"] is None
        said = row["agreement"] or row["caste_gate"]
        assert len(said) == SEGMENTS and all(0 <= a <= 1 for a in said)
        assert {"stage1.p1.visual", "stage1.p2.audio"} <= row["routing"].keys()
        assert all(sum(weights) == pytest.approx(1, abs=1e-4) for weights in row["routing"].values())
        # 30 % of 4 tokens are one, in every second
        assert [len(second) for second in row["chosen"]["visual"]] == [1] * SEGMENTS
        assert all(0 <= token < 4 for second in row["chosen"]["visual"] for token in second)
        assert row["frames_ok"] == row["audio_ok"] == [True] * SEGMENTS and row["notes"] == []
    import pyarrow.parquet as pq

    held = pq.read_schema(run.folder / PARQUET).metadata
    assert json.loads(held[b"classes"]) == list(experiment.inputs.classes)


def test_without_pyarrow_the_same_rows_are_lines(
    trained: tuple[Run, Experiment], copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(read_predictions(copy))
    monkeypatch.setattr(predictions, "has_pyarrow", lambda: False)
    if (copy.folder / PARQUET).exists():
        with pytest.raises(RunError, match="pyarrow is not installed"):
            list(read_predictions(copy))
        (copy.folder / PARQUET).unlink()
    score(trained[1], copy, "val", "test")
    assert [p.name for p in copy.folder.glob("predictions.*")] == [LINES]
    lines = list(read_predictions(copy))
    for a, b in zip(whole, lines, strict=True):
        assert a.keys() == b.keys() and a["prediction"] == b["prediction"] and a["chosen"] == b["chosen"]
        assert np.allclose(a["probabilities"], b["probabilities"], atol=1e-5)


def test_a_split_scored_again_replaces_its_rows_alone(
    trained: tuple[Run, Experiment], copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(read_predictions(copy))
    monkeypatch.setattr(predictions, "ROWS_AT_ONCE", 5)  # never more of them in memory
    score(trained[1], copy, "train", "val")
    after = list(read_predictions(copy))
    assert [row["split"] for row in after] == ["train"] * 35 + ["val"] * 12 + ["test"] * 12
    assert after[35:] == before
    if predictions.has_pyarrow():
        import pyarrow.parquet as pq

        assert pq.ParquetFile(copy.folder / PARQUET).num_row_groups >= 7


def test_an_interrupted_scoring_leaves_what_was_there(trained: tuple[Run, Experiment], copy: Run) -> None:
    before = {path.name: path.read_bytes() for path in copy.folder.iterdir() if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        score(trained[1], copy, "train", fails=True)
    assert {path.name: path.read_bytes() for path in copy.folder.iterdir() if path.is_file()} == before


def test_keeping_reads_and_computes_nothing_twice(
    trained: tuple[Run, Experiment], copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    data = type(trained[1].data["test"])
    batch = data.batch
    monkeypatch.setattr(
        data, "batch", lambda self, rows, epoch=None: passes.append(len(rows)) or batch(self, rows, epoch)
    )
    score(trained[1], copy, "test")
    assert sum(passes) == 12


def test_nan_is_stored_as_null_and_notes_come_from_the_record(
    trained: tuple[Run, Experiment], copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, experiment = copy, trained[1]
    data = experiment.data["test"]
    noted = [
        {"notes": [{"code": "short_audio", "detail": "x"}]},
        {"notes": [{"code": "short_audio", "detail": "y"}]},
    ]
    monkeypatch.setattr(data, "infos", lambda row: noted if row == 3 else [])
    outcomes = experiment.task.outcomes

    def diverged(*given: Any) -> list[dict[str, Any]]:
        return [{**row, "confidence": float("nan")} for row in outcomes(*given)]

    monkeypatch.setattr(experiment.task, "outcomes", diverged)
    score(experiment, run, "test")
    rows = [row for row in read_predictions(run) if row["split"] == "test"]
    assert [row["notes"] for row in rows] == [["short_audio"] if i == 3 else [] for i in range(12)]
    assert all(row["confidence"] is None for row in rows)


def test_a_damaged_file_is_named(copy: Run) -> None:
    for name, data in ((PARQUET, b"PAR1 nothing"), (LINES, b'{"split": "val"')):
        for kept in (PARQUET, LINES):
            (copy.folder / kept).unlink(missing_ok=True)
        (copy.folder / name).write_bytes(data)
        if name == LINES or predictions.has_pyarrow():
            with pytest.raises(RunError, match=f"cannot read .*{name}"):
                list(read_predictions(copy))
