"""`caeav eval`: the official score of a trained run on a split, per class, also under stress."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from caeav.cli.console import print_json, print_table, say
from caeav.cli.options import DeviceOption, HomeOption, JsonOption, live_opener
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home

if TYPE_CHECKING:
    from caeav.model.train.agreement import Judged
    from caeav.model.train.experiment import Experiment
    from caeav.model.train.network import Network
    from caeav.model.train.runs import Run


def register(app: typer.Typer) -> None:
    """Add the command as `eval`."""
    app.command("eval")(evaluate)


def evaluate(
    run_name: Annotated[
        str,
        typer.Option(
            "--run", help="Name, part of it, or folder of a run; last: the newest.", show_default=False
        ),
    ],
    split: Annotated[
        Literal["train", "val", "test"], typer.Option("--split", help="Which clips to score.")
    ] = "test",
    stress: Annotated[
        str | None,
        typer.Option(
            "--stress",
            metavar="KIND=STRENGTH,...",
            help="Damage the inputs: shift=SEGMENTS, or a share of clips for swap, mute, blind, cut, caption_drop, "
            "caption_swap, caption_empty; e.g. shift=2,swap=0.3.",
            show_default=False,
        ),
    ] = None,
    stress_curve: Annotated[
        str | None,
        typer.Option(
            "--stress-curve",
            metavar="KINDS",
            help="Score at several strengths of each kind alone (all, or shift,swap,...): table, image and JSON in "
            "the run folder.",
            show_default=False,
        ),
    ] = None,
    stress_seed: Annotated[
        int, typer.Option("--stress-seed", min=0, help="Decides which clips are damaged, and how.")
    ] = 0,
    stress_labels: Annotated[
        Literal["fixed", "follow"],
        typer.Option(
            "--stress-labels",
            help="Score damaged clips against their own labels, or against labels that follow the damage (tasks ave, "
            "ave-weak, avvp).",
        ),
    ] = "fixed",
    drop_leaks: Annotated[
        bool,
        typer.Option(
            "--drop-leaks", help="Leave out clips whose video is in another split too; prints both scores."
        ),
    ] = False,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run's best weights on a split, as at the end of training, or with damaged inputs."""
    from caeav.manifests.core.util import counted
    from caeav.model.tasks.bootstrap import format_interval
    from caeav.model.train.agreement import read_calibration
    from caeav.model.train.examine import examine, remarks
    from caeav.model.train.experiment import reopen
    from caeav.model.train.predictions import keep_predictions
    from caeav.model.train.protocol import HONEST, stamp
    from caeav.model.train.runs import find_run
    from caeav.model.train.session import load_best
    from caeav.model.train.stress import parse_stress

    strengths = parse_stress(stress) if stress is not None else None
    if stress_labels == "follow" and strengths is None:
        raise CaeavError("--stress-labels follow goes with --stress", hint="for example --stress swap=1")
    if stress_curve is not None and (strengths is not None or drop_leaks):
        raise CaeavError(
            "--stress-curve scores each kind alone on all clips", hint="leave out --stress and --drop-leaks"
        )
    place = Home.find(home)
    run = find_run(place, run_name)
    experiment = reopen(place, run, device, live_opener(place))
    model = experiment.build()
    load_best(run, model)
    if stress_curve is not None:
        _curves(experiment, model, run, split, stress_curve, stress_seed, as_json)
        return
    calibration = read_calibration(run)
    with ExitStack() as kept:
        observe = None
        if strengths is None and not drop_leaks and _may_keep(run, experiment, split):
            observe = kept.enter_context(keep_predictions(run, experiment, calibration)).of(split)
        found = examine(
            experiment,
            model,
            split,
            strengths=strengths,
            seed=stress_seed,
            drop_leaks=drop_leaks,
            follow=stress_labels == "follow",
            calibration=calibration,
            observe=observe,
        )
    scores, task = found.scores, experiment.task
    result = run.result()
    comparable = found.plain is None and found.with_leaks is None
    trained = result["scores"].get(split) if result and comparable else None
    if as_json:
        print_json({"run": run.name, **found.as_json(), "score_after_training": trained})
        return
    if scores.per_class:
        columns = list(scores.per_class[0])
        print_table(columns, [[row[name] for name in columns] for row in scores.per_class])
        print()
    elif scores.ungrouped:
        say(f"no table per class: {scores.ungrouped}")
    bounds = found.intervals.as_json() if found.intervals is not None else None
    if scores.details:
        rows = [[name, value, format_interval(bounds, name)] for name, value in scores.details.items()]
        print_table(["also", split, "interval"], rows)
        print()
    if found.agreement is not None:
        _show_agreement(found.agreement)
    config = experiment.config
    marked = stamp(config.protocol, config.select_on)
    marked = f" ({marked})" if marked != HONEST and split == "test" else ""
    asked = counted(scores.clips, f"{split} {task.sample_noun}")
    within = format_interval(bounds, task.metric)
    within = f" ({within})" if within else ""
    print(
        f"{run.name}: {task.metric} {scores.value:.2f} %{within}{marked} on {asked}; majority {found.majority:.2f} %"
    )
    for line in remarks(found):
        print(line)
    if found.intervals is not None:
        made = found.intervals
        say(f"in brackets: {made.level:g} % interval, {made.resamples} resamples of {made.count} {made.unit}")
    if trained is not None and abs(trained - scores.value) > 1e-6:
        say(
            f"note: right after training it was {trained:.4f} %, now {scores.value:.4f} %; another device or version?"
        )


def _may_keep(run: Run, experiment: Experiment, split: str) -> bool:
    """Whether the predictions can be kept in the run's folder, which may be somebody else's."""
    if os.access(run.folder, os.W_OK):
        return bool(experiment.joined.splits[split])
    say(f"note: {run.folder} cannot be written, so the predictions are not kept there")
    return False


def _show_agreement(judged: Judged) -> None:
    """How true the agreement is, kind by kind; for a probability also predicted against observed, by tenths."""
    whole = {"seconds": judged.seconds, "auc": judged.auc, "calibration_error": judged.calibration_error}
    kinds = [["all", *whole.values()], *([kind, *row.values()] for kind, row in judged.by_kind.items())]
    shown = [["-" if value is None else value for value in row] for row in kinds]
    print_table(
        ["kind", "seconds", "AUC", "calibration error"],
        shown,
        title=f"{judged.quantity}, against {judged.against}",
    )
    print()
    if judged.reliability:
        columns = list(judged.reliability[0])
        rows = [list(row.values()) for row in judged.reliability]
        print_table(columns, rows, title="by tenths of its probability")
        print()


def _curves(
    experiment: Experiment, model: Network, run: Run, split: str, kinds: str, seed: int, as_json: bool
) -> None:
    """Scores at all strengths: written, and shown."""
    from caeav.model.train.stress_curves import FOLDER, kinds_of, stress_curves, table, write_curves

    curves = stress_curves(experiment, model, split, kinds_of(kinds, experiment), seed=seed, progress=say)
    written = write_curves(curves, run.folder / FOLDER, f"{split} under stress  ({run.name})")
    if as_json:
        print_json({"run": run.name, **curves})
        return
    columns, rows = table(curves)
    print_table(columns, rows, title=f"{curves['metric']} % on {split}, majority {curves['majority']:.2f}")
    say(f"written: {', '.join(str(path) for path in written)}")
