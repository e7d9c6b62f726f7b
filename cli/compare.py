"""`caeav compare`: train several recipes with several seeds, where runs are missing, and put them in one table."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption, TaskOption, TrainedOption, live_opener
from caeav.cli.train import choose_dataset, seed_list, task_of
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted

if TYPE_CHECKING:
    from caeav.model.adapters.live import Live, LiveOpener
    from caeav.model.tasks.config import RunConfig
    from caeav.model.train.comparison import Cell, Measures, Planned
    from caeav.model.train.comparison_table import Comparison
    from caeav.pipeline.store import Recipe

RECIPES = "probe,none,lavish,dg-sct,avmoe,full"
SEEDS = "0,1,2,3,4"
STRESS = "shift=2,swap=0.5,mute=0.5,blind=0.5,cut=0.5"
LOG = "compare.log"
POLL_S = 0.05
TAIL = 400
"""Characters shown of what a failed process said."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(
    task: TaskOption = None,
    dataset: TrainedOption = None,
    recipes: Annotated[str, typer.Option("--recipes", help="Recipes to compare, see caeav train.")] = RECIPES,
    seeds: Annotated[str, typer.Option("--seeds", help="Each recipe is trained once with each.")] = SEEDS,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The recipe that the others are compared with.")
    ] = "none",
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file laid over every recipe.", show_default=False)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One value for all recipes that use it; repeatable."),
    ] = None,
    inject_from: Annotated[
        str | None,
        typer.Option(
            "--inject-from",
            metavar="STAGE",
            help="Adapters inside the live backbones; probes stay on cached taps.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option("--split", help="Which clips to score.")] = "test",
    stress: Annotated[
        str,
        typer.Option(
            "--stress",
            metavar="KIND=STRENGTH,...",
            help="Damage to score under, each kind alone (see caeav eval); none leaves these columns out.",
        ),
    ] = STRESS,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Trainings that run at the same time.")] = 1,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu or cuda; several GPUs are shared out among the jobs.")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for table.md, table.csv and table.json.",
            show_default="<home>/comparisons/<task>-<dataset>",
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train what is missing of all recipes and seeds, and write one table: scores, gains, costs, scores under stress.

    Run again after an interruption, it continues; runs that exist, also of caeav train, are not trained again.
    """
    from caeav.model.tasks.config import StressConfig
    from caeav.model.train.comparison import Measures, plan
    from caeav.model.train.comparison_files import FILES, folder_of, publish_comparison
    from caeav.model.train.comparison_table import build_comparison
    from caeav.model.train.experiment import prepare
    from caeav.model.train.stress import parse_stress

    place = Home.find(home)
    names = _recipe_list(recipes, baseline)
    numbers = seed_list(seeds)
    strengths = StressConfig() if stress == "none" else parse_stress(stress)
    dataset = choose_dataset(place, dataset, task, config, assignments or [])
    task = task or task_of(place, dataset)
    measures, opener = Measures(split, strengths), _opened_once(place)
    experiments = {}
    for recipe, resolved in _resolve(task, dataset, names, config, assignments or [], inject_from).items():
        experiments[recipe] = prepare(place, resolved, opener)
        measures.check(experiments[recipe])
    planned = plan(place, list(experiments.values()), numbers)
    command = _command(
        task, dataset, names, seeds, baseline, config, assignments or [], inject_from, split, stress
    )
    first = experiments[names[0]].config
    say(
        f"{task} on {first.dataset}: {counted(len(names), 'recipe')} with {counted(len(numbers), 'seed')}; "
        f"{sum(one.run is not None for one in planned)} of {counted(len(planned), 'run')} begun or done before"
    )
    cells = _complete_all(place, planned, measures, (stress, command), jobs, device)
    table = build_comparison(cells, command, baseline)
    folder = out or folder_of(place, task, first.dataset)
    publish_comparison(folder, table)
    page, why = _page(place, folder)
    if as_json:
        print_json(table.as_json())
        return
    _show(table)
    say(f"written: {', '.join(str(folder / name) for name in FILES)}")
    say(f"the report, to open in a browser: {page}" if page else f"no report: {why}")


def _resolve(
    task: str,
    dataset: str | None,
    recipes: Sequence[str],
    file: Path | None,
    assignments: Sequence[str],
    inject_from: str | None,
) -> dict[str, RunConfig]:
    """Each recipe's configuration; probes read cached taps whatever `inject_from` says."""
    from caeav.model.train.config_file import resolve_recipes

    options: dict[str, dict[str, Any]] = {name: {"dataset": dataset} if dataset else {} for name in recipes}
    if inject_from:
        for name, resolved in resolve_recipes(task, recipes, file, assignments, options).items():
            if resolved.model.probe.kind == "none":
                options[name] |= {
                    "model.adapters.placement": "inject",
                    "model.adapters.inject_from": inject_from,
                }
    return resolve_recipes(task, recipes, file, assignments, options)


def _opened_once(home: Home) -> LiveOpener:
    """Opens the live backbones of stores, the same for all recipes."""
    opener = live_opener(home)
    held: dict[tuple[str, ...], Live] = {}

    def opened(recipes: Sequence[Recipe]) -> Live:
        key = tuple(recipe.fingerprint for recipe in recipes)
        if key not in held:
            held[key] = opener(recipes)
        return held[key]

    return opened


def _recipe_list(text: str, baseline: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise CaeavError(f"--recipes {text!r}", hint=f"give different names: --recipes {RECIPES}")
    if baseline not in names:
        raise CaeavError(
            f"--baseline {baseline!r} is not among --recipes {text}",
            hint=f"add it: --recipes {baseline},{text}; or --baseline {names[0]}",
        )
    return names


def _command(
    task: str,
    dataset: str | None,
    recipes: Sequence[str],
    seeds: str,
    baseline: str,
    config: Path | None,
    assignments: Sequence[str],
    inject_from: str | None,
    split: str,
    stress: str,
) -> str:
    """The command that makes the same table, without what does not change it."""
    words = ["caeav", "compare", "--task", task]
    words += ["--dataset", dataset] if dataset else []
    words += ["--recipes", ",".join(recipes), "--seeds", seeds]
    words += ["--baseline", baseline] if baseline != "none" else []
    words += ["--config", str(config)] if config else []
    for text in assignments:
        words += ["--set", text]
    words += ["--inject-from", inject_from] if inject_from else []
    words += ["--split", split] if split != "test" else []
    words += ["--stress", stress] if stress != STRESS else []
    return shlex.join(words)


def _complete_all(
    home: Home,
    planned: Sequence[Planned],
    measures: Measures,
    asked: tuple[str, str],
    jobs: int,
    device: str,
) -> list[Cell]:
    """A process for each cell that is not complete, `jobs` at a time; raises `CaeavError` at the end where some failed.

    `asked`: the stress in words, and the command that new runs come from.
    """
    from caeav.model.train.comparison import is_complete

    stress, command = asked
    cells = [
        one.begun(home, command) for one in planned if one.run is not None and is_complete(one.run, measures)
    ]
    waiting, failed = [one for one in planned if one.run is None or not is_complete(one.run, measures)], []
    working: dict[int, tuple[Cell, subprocess.Popen[bytes]]] = {}
    gpus = _gpus(device)
    done = len(cells)
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                slot = next(i for i in range(jobs) if i not in working)
                cell = waiting.pop(0).begun(home, command)
                cells.append(cell)
                words = [str(home.root), cell.run.name, device, measures.split, stress]
                working[slot] = cell, _start(cell, words, gpus[slot % len(gpus)] if len(gpus) > 1 else None)
            for slot, (cell, process) in list(working.items()):
                status = process.poll()
                if status is None:
                    continue
                del working[slot]
                done += 1
                if status:
                    failed.append(f"{cell.recipe}, seed {cell.seed} (status {status}): {_said(cell)}")
                say(f"  {done}/{len(planned)}  {cell.recipe}, seed {cell.seed}: {_outcome(cell, status)}")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        raise
    finally:
        for _, process in working.values():
            process.kill()
            process.wait()
    if failed:
        raise CaeavError(
            f"{counted(len(failed), 'run')} of {len(planned)} failed:\n  " + "\n  ".join(failed),
            hint=f"{LOG} in the run's folder has its whole output; the same command tries again, keeping finished runs",
        )
    order = [(one.config.seed, one.config.recipe) for one in planned]
    return sorted(cells, key=lambda cell: order.index((cell.seed, cell.recipe)))


def _start(cell: Cell, words: Sequence[str], gpu: str | None) -> subprocess.Popen[bytes]:
    """The process of a cell, on one GPU if it is named. It ends when its standard input is closed, so it does not
    outlive this one."""
    from caeav.cli import compare_cell

    environment = dict(os.environ) if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    with (cell.run.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", compare_cell.__name__, *words],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )


def _gpus(device: str) -> list[str]:
    """The GPUs to share out, by the names that CUDA_VISIBLE_DEVICES has for them."""
    if device == "cpu":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _said(cell: Cell) -> str:
    """The end of what a cell's process said."""
    text = (cell.run.folder / LOG).read_text(encoding="utf-8", errors="replace").strip()
    return printable(text[-TAIL:])


def _outcome(cell: Cell, status: int) -> str:
    from caeav.model.train.comparison import read_measured

    measured = read_measured(cell.run)
    if status or measured is None:
        return "failed"
    return f"{measured['split']} {measured['metric']} {measured['score']:.2f} %"


def _page(home: Home, folder: Path) -> tuple[Path | None, str]:
    """The report of the comparison in `folder`, or why there is none."""
    from caeav.cli.report import write_report
    from caeav.model.report.page import require

    try:
        require()
    except CaeavError as error:
        return None, f"{error.problem}; {error.hint}, then: caeav report {shlex.quote(str(folder))}"
    return write_report(home, [str(folder)]), ""


def _show(table: Comparison) -> None:
    from caeav.model.train.comparison_table import caption, cells_of, columns

    print_table(columns(table), cells_of(table))
    print()
    print(printable(caption(table)))
