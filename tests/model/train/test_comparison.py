"""`caeav compare` without its processes: which runs it takes, what it measures, what the table says of them."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.tasks.bootstrap import interval_over_seeds
from caeav.model.tasks.config import StressConfig
from caeav.model.train.comparison import Measures, complete, is_complete, plan, read_measured
from caeav.model.train.comparison_table import Comparison, as_csv, build_comparison, markdown
from caeav.model.train.config_file import resolve_config
from caeav.model.train.cost import Curve
from caeav.model.train.experiment import Experiment, prepare
from caeav.model.train.log import MetricsLog
from caeav.model.train.runs import METRICS

RECIPES = ("probe", "none", "lavish")
SMALL = ["dataset=tiny", "training.epochs=2", "model.head.width=16", "model.head.hidden=16"]
STRESS = StressConfig(swap=0.5, shift=1, caption_swap=1)
COSTS = ("command", "budget_s", "rows.epoch_s", "rows.train_s", "rows.peak_mb", "rows.timed", "rows.runs")
"""What differs from one time to another."""


def copied(home: Home, folder: Path) -> Home:
    """The stores of a home in one of its own, without runs."""
    shutil.copytree(home.stores, folder / "stores")
    return Home(folder)


def experiments(home: Home, recipes: Sequence[str] = RECIPES, *more: str) -> list[Experiment]:
    return [prepare(home, resolve_config("ave", name, assignments=[*SMALL, *more])) for name in recipes]


def compared(home: Home, seeds: Sequence[int] = (0, 1)) -> Comparison:
    cells = []
    for one in plan(home, experiments(home), seeds):
        cells.append(cell := one.begun(home, "caeav compare"))
        complete(
            home,
            cell.run,
            Measures("test", STRESS),
            device="cpu",
            watchers=lambda run: [MetricsLog(run.folder / METRICS)],
        )
    return build_comparison(cells, "caeav compare")


def numbers(table: Comparison) -> dict[str, Any]:
    found = table.as_json()
    for name in COSTS:
        for holder in found["rows"] if name.startswith("rows.") else [found]:
            del holder[name.removeprefix("rows.")]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_home: Home) -> tuple[Home, Comparison, float]:
    home = copied(tiny_home, tmp_path_factory.mktemp("undisturbed"))
    began = time.monotonic()
    return home, compared(home), time.monotonic() - began


def test_a_comparison_killed_five_times_gives_the_undisturbed_table(
    undisturbed: tuple[Home, Comparison, float], tiny_home: Home, tmp_path: Path
) -> None:
    _, wanted, took = undisturbed
    home, draw = copied(tiny_home, tmp_path), random.Random(3)
    finished = 0
    for _ in range(5):
        child = os.fork()
        if not child:
            try:
                compared(home)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0.1, 0.5) * took)
        os.kill(child, signal.SIGKILL)
        finished += os.WIFEXITED(os.waitpid(child, 0)[1])
    assert finished < 5
    table = compared(home)
    assert numbers(table) == numbers(wanted)
    assert len(list(home.runs.iterdir())) == len(RECIPES) * 2  # nothing was trained twice


def test_finished_work_is_not_repeated(undisturbed: tuple[Home, Comparison, float]) -> None:
    home, table, _ = undisturbed
    found = plan(home, experiments(home), (0, 1))
    assert {one.run and one.run.name for one in found} == {name for row in table.rows for name in row.runs}
    assert all(one.run and is_complete(one.run, Measures("test", STRESS)) for one in found)
    assert not any(one.run and is_complete(one.run, Measures("val", STRESS)) for one in found)
    before = {path: path.stat().st_mtime_ns for path in home.runs.rglob("*") if path.name != "lock"}
    again = compared(home)
    assert again == table
    assert {path: path.stat().st_mtime_ns for path in home.runs.rglob("*") if path.name != "lock"} == before


def test_another_setting_or_seed_is_another_run(undisturbed: tuple[Home, Comparison, float]) -> None:
    home, _, _ = undisturbed
    runs = set(home.runs.iterdir())
    more = "training.batch_size=7"
    for made, seeds in ((experiments(home, ["none"], more), (0,)), (experiments(home, ["none"]), (5,))):
        [new] = plan(home, made, seeds)
        assert new.run is None and set(home.runs.iterdir()) == runs  # planning makes nothing
        run = new.begun(home, "caeav compare --task ave").run
        assert run.origin()["command"] == "caeav compare --task ave"
        [again] = plan(home, made, seeds)
        assert again.run == run  # begun, though nothing was trained
        shutil.rmtree(run.folder)


def test_settings_of_adapters_that_are_off_make_no_other_run(
    undisturbed: tuple[Home, Comparison, float],
) -> None:
    """A run of a version that did not know such a setting yet is found again, too."""
    home, _, _ = undisturbed
    other = "model.adapters.lavish.latents=3"
    [off] = plan(home, experiments(home, ["none"], other), (0,))
    [on] = plan(home, experiments(home, ["lavish"], other), (0,))
    assert off.run is not None and on.run is None


def test_a_measure_that_is_missing_is_added(undisturbed: tuple[Home, Comparison, float]) -> None:
    home, _, _ = undisturbed
    [cell] = plan(home, experiments(home, ["probe"]), (0,))
    assert cell.run is not None
    before = read_measured(cell.run)
    assert before is not None and set(before["stress"]) == {"swap 0.5", "shift 1"}  # it reads no captions
    complete(home, cell.run, Measures("test", StressConfig(mute=1)), device="cpu")
    after = read_measured(cell.run)
    assert after is not None and set(after["stress"]) == {"mute 1"} and after["score"] == before["score"]
    complete(home, cell.run, Measures("test", STRESS), device="cpu")
    assert read_measured(cell.run) == before


def test_the_table_holds_the_numbers_of_the_runs(undisturbed: tuple[Home, Comparison, float]) -> None:
    home, table, _ = undisturbed
    cells = {(c.config.recipe, c.config.seed): c.run for c in plan(home, experiments(home), (0, 1))}
    none = table.rows[1]
    for row in table.rows:
        results = [run.result() for seed in (0, 1) if (run := cells[row.recipe, seed])]
        scores = [result["scores"]["test"] for result in results if result]
        assert row.score == pytest.approx(sum(scores) / 2) and list(row.by_seed) == pytest.approx(scores)
        assert row.interval is not None and row.interval[0] <= row.score <= row.interval[1]
        assert row.peak_mb is not None and row.peak_mb > 50 and row.epoch_s is not None
        if row.recipe == "none":
            assert row.gain is None and row.gain_interval is None and row.timed == row.selected
        else:
            assert row.gain == pytest.approx(row.score - none.score) and row.gain_interval is not None
            assert row.gain_interval[0] <= row.gain <= row.gain_interval[1]
    assert none.parameters > 10 * table.rows[0].parameters
    assert [list(row.stress) for row in table.rows] == [["swap 0.5", "shift 1"]] * 3
    text, held = markdown(table), list(csv.DictReader(io.StringIO(as_csv(table))))
    assert text.startswith("    caeav compare\n\n| recipe | test accuracy % | minus none |")
    assert [line.split(" | ")[0] for line in text.splitlines() if " | " in line][2:] == [
        f"| {r}" for r in RECIPES
    ]
    assert [float(line["score"]) for line in held] == [row.score for row in table.rows]
    assert held[1]["gain"] == "" and float(held[2]["stress swap 0.5"]) == table.rows[2].stress["swap 0.5"]
    json.dumps(table.as_json(), allow_nan=False)


def test_measures_that_do_not_apply_are_refused_before_anything_starts(tiny_home: Home) -> None:
    [experiment] = experiments(tiny_home, ["none"])
    with pytest.raises(CaeavError, match="shift=9: a clip has 6 segments"):
        Measures("test", StressConfig(shift=9)).check(experiment)
    empty = Measures("test", StressConfig())
    experiment = replace(experiment, joined=replace(experiment.joined, splits={"test": []}))
    with pytest.raises(CaeavError, match="no usable clip in split 'test'"):
        empty.check(experiment)


# ---- intervals and time ----


def test_intervals_over_seeds_pair_clips_and_seeds() -> None:
    rng = torch.Generator().manual_seed(0)
    hard = torch.rand(200, generator=rng, dtype=torch.float64)  # clips differ more than methods
    ones = torch.ones(200, dtype=torch.float64)
    base = [(hard + 0.01 * s, ones) for s in range(5)]
    better = [(top + 0.05, bottom) for top, bottom in base]
    own, paired = interval_over_seeds(better), interval_over_seeds(better, base)
    assert own is not None and paired is not None
    assert paired == pytest.approx((5.0, 5.0))  # the same gain for every clip and seed
    mean = 100 * sum(float(top.mean()) for top, _ in better) / 5
    assert own[0] < mean < own[1] and 4 < own[1] - own[0] < 12
    apart = interval_over_seeds([(hard, ones), (hard + 0.5, ones)])
    assert apart is not None and apart[1] - apart[0] > 40  # two seeds that disagree
    nothing = torch.zeros(3, dtype=torch.float64)
    assert interval_over_seeds([(nothing, nothing)]) is None


@pytest.mark.parametrize(
    ("budget", "best"), [(0.5, None), (1.0, 50.0), (2.9, 50.0), (3.0, 70.0), (99.0, 70.0)]
)
def test_the_best_within_a_time(budget: float, best: float | None) -> None:
    curve = Curve((1.0, 1.0, 1.0), (50.0, 40.0, 70.0))
    assert curve.best_within(budget) == best
    assert curve.total_s == 3.0 and curve.epoch_s == 1.0
