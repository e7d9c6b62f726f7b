"""`caeav runs ls|show|table`: list runs, show one, and compare test scores with published numbers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption, at_home
from caeav.cli.train import print_group
from caeav.manifests.core.home import Home

COLUMNS = ("run", "state", "recipe", "dataset", "seed", "protocol", "best_epoch", "val", "test")

commands = typer.Typer(no_args_is_help=True, help="List, show and compare training runs.")


def register(app: typer.Typer) -> None:
    """Add the commands as `runs`."""
    app.add_typer(commands, name="runs")


@commands.command()
def ls(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """All runs, oldest first."""
    from caeav.model.train.runs import list_runs, summarise

    place = Home.find(home)
    summaries = [summarise(run) for run in list_runs(place)]
    if as_json:
        print_json(summaries)
    elif summaries:
        print_table(COLUMNS, [[_shown(summary.get(name)) for name in COLUMNS] for summary in summaries])
    else:
        say(f"no runs in {place.runs}; train one: caeav train --task ave")


@commands.command()
def show(
    name: Annotated[
        str, typer.Argument(help="Name, part of it, or folder of a run; last: the newest; or a group.")
    ],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Configuration, stores and scores of one run, or the summary of a group."""
    from caeav.model.train.groups import read_group
    from caeav.model.train.runs import CARD, find_run, summarise

    place = Home.find(home)
    group = read_group(place, name)
    if group is not None:
        if as_json:
            print_json(group)
            return
        print_group(group)
        say(f"runs: {', '.join(group['runs'])}")
        return
    run = find_run(place, name)
    if as_json:
        facts: dict[str, Any] = {
            **summarise(run),
            "folder": str(run.folder),
            "config": run.config().model_dump(mode="json"),
            "stores": run.stores(),
            "result": run.result(),
        }
        print_json(facts)
        return
    card = run.folder / CARD
    if card.exists():
        print("\n".join(printable(line) for line in card.read_text(encoding="utf-8").splitlines()))
    else:
        print_table(["what", "value"], [[key, _shown(value)] for key, value in summarise(run).items()])
        say(f"not finished; go on with: caeav train --resume {run.name}{at_home(place)}")


@commands.command("table")
def compare(
    task: Annotated[
        str | None, typer.Option("--task", help="Only this one.", show_default="all tasks")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Published numbers and your own runs' test scores, task by task, as Markdown."""
    from caeav.model.train.table import build_table, markdown

    table = build_table(Home.find(home), task)
    for remark in table.remarks:
        say(f"not read: {printable(remark)}")
    if as_json:
        print_json(table.as_json())
    else:
        print(markdown(table), end="")


def _shown(value: Any) -> Any:
    """Empty cells as a dash; scores keep two digits."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None or value == "" else value
