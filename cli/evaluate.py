"""`caeav eval`: the official score of a trained run on a split, class by class."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from caeav.cli.console import print_json, print_table, say
from caeav.cli.live import live_opener
from caeav.cli.options import HomeOption, JsonOption
from caeav.manifests.errors import CaeavError
from caeav.manifests.home import Home


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
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run's best weights on a split, as it was done at the end of training."""
    from caeav.model.experiment import load_best, reopen
    from caeav.model.runs import find_run

    place = Home.find(home)
    run = find_run(place, run_name)
    experiment = reopen(place, run, device, live_opener(place))
    if not experiment.joined.splits[split]:
        raise CaeavError(f"no usable clip in split {split!r}", hint="choose another --split")
    model = experiment.build()
    load_best(run, model)
    scores, majority = experiment.score(model, split), experiment.majority(split)
    metric = experiment.task.metric
    result = run.result()
    trained = result["scores"].get(split) if result else None
    if as_json:
        print_json(
            {
                "run": run.name,
                "split": split,
                "metric": metric,
                "score": scores.value,
                "majority": majority,
                "clips": scores.clips,
                "details": dict(scores.details),
                "select_on": experiment.config.select_on,
                "score_after_training": trained,
                "per_class": [dict(row) for row in scores.per_class],
            }
        )
        return
    if scores.per_class:
        columns = list(scores.per_class[0])
        print_table(columns, [[row[name] for name in columns] for row in scores.per_class])
        print()
    if scores.details:
        print_table(["also", split], [[name, value] for name, value in scores.details.items()])
        print()
    marked = " (selected on test)" if experiment.config.select_on == "test" and split == "test" else ""
    counted = f"{scores.clips} {split} {experiment.task.rows}"
    print(f"{run.name}: {metric} {scores.value:.2f} %{marked} on {counted}; majority {majority:.2f} %")
    if trained is not None and abs(trained - scores.value) > 1e-6:
        say(
            f"note: right after training it was {trained:.4f} %, now {scores.value:.4f} %; another device or version?"
        )
