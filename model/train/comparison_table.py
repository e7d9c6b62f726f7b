"""The table of a comparison: what every recipe scores, what it gains over the baseline, and what it costs.

Scores are means over seeds with an interval over test clips and seeds; differences are paired by clip and seed. The
score at equal training time is the best that the selection split showed in the time that the baseline's whole training
takes. As Markdown for people, CSV for spreadsheets, JSON for reports (`Comparison.as_json`).
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from caeav.model.tasks.bootstrap import LEVEL, interval_over_seeds
from caeav.model.train.comparison import Cell, Measured, read_measured
from caeav.model.train.cost import COST, Curve, curve_of
from caeav.model.train.markdown import literal, markdown_table

BASELINE = "none"
NOTHING = "-"

Bounds = tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """One recipe. Scores in percent, means over seeds; None where something is not known or not there.

    gain: the score minus the baseline's. selected: the best score on the selection split; timed: that within the
    baseline's training time with the same seed. epoch_s: the median epoch, scoring included. peak_mb: in 10^6 bytes.
    """

    recipe: str
    runs: tuple[str, ...]
    score: float
    interval: Bounds
    by_seed: tuple[float, ...]
    gain: float | None
    gain_interval: Bounds
    parameters: int
    epoch_s: float | None
    train_s: float | None
    peak_mb: float | None
    selected: float | None
    timed: float | None
    stress: Mapping[str, float]
    agreement_auc: float | None
    calibration_error: float | None


@dataclass(frozen=True)
class Comparison:
    """All rows in the order asked for, and what they hold for. `budget_s`: mean training time of the baseline."""

    command: str
    task: str
    dataset: str
    metric: str
    split: str
    select_on: str
    protocol: str
    clips: int
    majority: float
    seeds: tuple[int, ...]
    baseline: str
    budget_s: float | None
    devices: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def stresses(self) -> list[str]:
        """Every damage that a recipe was scored under, in the order of the table."""
        return list(dict.fromkeys(name for row in self.rows for name in row.stress))

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Made:
    """What one cell's run holds."""

    result: Mapping[str, Any]
    measured: Measured
    curve: Curve | None
    cost: Mapping[str, Any]


def build_comparison(cells: Sequence[Cell], command: str, baseline: str = BASELINE) -> Comparison:
    """The table of finished and measured cells, the same seeds of every recipe; the baseline is one of the recipes."""
    made = {(cell.recipe, cell.seed): _read(cell) for cell in cells}
    recipes, seeds = (
        tuple(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in ("recipe", "seed")
    )
    base = [made[baseline, seed] for seed in seeds]
    budgets = [one.curve.total_s for one in base if one.curve is not None]
    rows = tuple(
        _row(
            recipe,
            [cell.run.name for cell in cells if cell.recipe == recipe],
            [made[recipe, seed] for seed in seeds],
            None if recipe == baseline else base,
            budgets,
        )
        for recipe in recipes
    )
    first, split = base[0].result, base[0].measured["split"]
    return Comparison(
        command=command,
        task=first["task"],
        dataset=first["dataset"],
        metric=first["metric"],
        split=split,
        select_on=first["select_on"],
        protocol=first["protocol"],
        clips=first["clips"][split],
        majority=first["majority"][split],
        seeds=seeds,
        baseline=baseline,
        budget_s=statistics.fmean(budgets) if len(budgets) == len(seeds) else None,
        devices=tuple(sorted({one.cost["device"] for one in made.values() if "device" in one.cost})),
        rows=rows,
    )


def _read(cell: Cell) -> _Made:
    result, measured = cell.run.result(), read_measured(cell.run)
    assert result is not None and measured is not None, (
        "a cell is finished and measured before its table is made"
    )
    cost = cell.run.read(COST) if (cell.run.folder / COST).exists() else {}
    return _Made(result, measured, curve_of(cell.run, result["metric"]), cost)


def _row(
    recipe: str,
    runs: Sequence[str],
    made: Sequence[_Made],
    base: Sequence[_Made] | None,
    budgets: Sequence[float],
) -> Row:
    scores = tuple(float(one.measured["score"]) for one in made)
    gain = None
    if base is not None:
        gain = statistics.fmean(scores) - statistics.fmean(one.measured["score"] for one in base)
    curves = [one.curve for one in made if one.curve is not None]
    known = len(curves) == len(made)
    names = made[0].measured["stress"]
    return Row(
        recipe=recipe,
        runs=tuple(runs),
        score=statistics.fmean(scores),
        interval=_interval(made),
        by_seed=scores,
        gain=gain,
        gain_interval=None if base is None else _interval(made, base),
        parameters=sum(made[0].result["parameters"].values()),
        epoch_s=statistics.median(curve.epoch_s for curve in curves) if known else None,
        train_s=statistics.fmean(curve.total_s for curve in curves) if known else None,
        peak_mb=_mean([one.cost.get("peak_mb") for one in made]),
        selected=_mean([max(curve.scores) for curve in curves]) if known else None,
        timed=_mean([c.best_within(b) for c, b in zip(curves, budgets, strict=True)])
        if known and len(budgets) == len(made)
        else None,
        stress={name: statistics.fmean(one.measured["stress"][name] for one in made) for name in names},
        agreement_auc=_mean([one.measured["agreement_auc"] for one in made]),
        calibration_error=_mean([one.measured.get("calibration_error") for one in made]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if any value is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _interval(made: Sequence[_Made], base: Sequence[_Made] | None = None) -> Bounds:
    """Over clips and seeds; None where a run has no terms, or not of the same clips."""
    sides = [side for side in (made, base) if side is not None]
    every = [one.measured for side in sides for one in side]
    if any(held["terms"] is None for held in every):
        return None
    common: list[str] | None = None
    if all(held["keys"] is not None for held in every):
        shared = set.intersection(*(set(held["keys"]) for held in every))
        common = [key for key in every[0]["keys"] if key in shared]
    elif len({len(held["terms"][0]) for held in every}) > 1:
        return None
    terms = [[_terms(one.measured, common) for one in side] for side in sides]
    if not len(terms[0][0][0]):
        return None
    return interval_over_seeds(terms[0], terms[1] if base is not None else None)


def _terms(held: Measured, common: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """Both terms of a run's score, of the clips called `common` if that is given."""
    top, bottom = (torch.tensor(part, dtype=torch.float64) for part in held["terms"])
    if common is None:
        return top, bottom
    place = {key: i for i, key in enumerate(held["keys"])}
    rows = torch.tensor([place[key] for key in common], dtype=torch.long)
    return top[rows], bottom[rows]


# ---- as text ----


def number_text(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number of a table, a dash where there is none."""
    return NOTHING if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _within(value: float | None, bounds: Bounds, *, sign: bool = False) -> str:
    shown = number_text(value, sign=sign)
    plus = "+" if sign else ""
    return shown if bounds is None else f"{shown} ({bounds[0]:{plus}.1f} to {bounds[1]:{plus}.1f})"


def columns(comparison: Comparison) -> list[str]:
    """Headings of the table for people."""
    made = comparison
    timed = f"{made.select_on} in {made.budget_s:.0f} s" if made.budget_s is not None else "at equal time"
    return [
        "recipe",
        f"{made.split} {made.metric} %",
        f"minus {made.baseline}",
        "parameters",
        "s an epoch",
        "peak MB",
        f"{made.select_on} %",
        timed,
        *made.stresses,
        "agreement AUC",
        "calibration error",
    ]


def cells_of(comparison: Comparison) -> list[list[str]]:
    """Cells of the table for people, row by row."""
    return [
        [
            row.recipe,
            _within(row.score, row.interval),
            _within(row.gain, row.gain_interval, sign=True),
            f"{row.parameters:,}",
            number_text(row.epoch_s),
            number_text(row.peak_mb, 0),
            number_text(row.selected),
            number_text(row.timed),
            *(number_text(row.stress.get(name)) for name in comparison.stresses),
            number_text(row.agreement_auc),
            number_text(row.calibration_error, 3),
        ]
        for row in comparison.rows
    ]


def caption(comparison: Comparison) -> str:
    """What the numbers are, in a few sentences."""
    made = comparison
    seeds = ", ".join(map(str, made.seeds))
    timed = ""
    if made.budget_s is not None:
        timed = f" In {made.budget_s:.0f} s: the best {made.select_on} score in the time of training {made.baseline}."
    return (
        f"{made.task} on {made.dataset}, {made.clips} in {made.split}, seeds {seeds}, majority "
        f"{made.majority:.2f}, {', '.join(made.devices) or 'device not known'}. Means over seeds; in brackets "
        f"{LEVEL:g} % intervals over test clips and seeds, differences paired by both. Each epoch is the best by "
        f"{made.select_on}.{timed} Stress: every kind alone, labels as they were."
    )


def markdown(comparison: Comparison) -> str:
    """The command, the table, and what its numbers are."""
    rows = [[literal(cell) for cell in row] for row in cells_of(comparison)]
    heads = [literal(name) for name in columns(comparison)]
    return f"    {comparison.command}\n\n{markdown_table(heads, rows)}\n\n{literal(caption(comparison))}\n"


def as_csv(comparison: Comparison) -> str:
    """One line per recipe, plain numbers; empty where something is not known."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    plain = [
        "score",
        "gain",
        "parameters",
        "epoch_s",
        "train_s",
        "peak_mb",
        "selected",
        "timed",
        "agreement_auc",
        "calibration_error",
    ]
    bounds = ["score_low", "score_high", "gain_low", "gain_high"]
    table.writerow(["recipe", *plain, *bounds, *(f"stress {name}" for name in comparison.stresses)])
    for row in comparison.rows:
        edges = [*(row.interval or (None, None)), *(row.gain_interval or (None, None))]
        table.writerow(
            [
                row.recipe,
                *(getattr(row, name) for name in plain),
                *edges,
                *map(row.stress.get, comparison.stresses),
            ]
        )
    return out.getvalue()
