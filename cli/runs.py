"""`caeav runs ls|show|compare|table|rm|push|pull`: list runs, show, compare, package and copy them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from caeav.cli.console import confirmed, print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption, WideOption, YesOption, at_home
from caeav.cli.train import print_group
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import age_text, counted, size_text

COLUMNS = ("run", "state", "dataset", "backbones", "set", "protocol", "best_epoch", "val", "test", "age")
HUB = "hub:"
SHOWN_CLIPS = 10
DROPPED = ("best_epoch", "protocol", "state", "age", "dataset", "set", "backbones")
"""Columns that a narrow terminal does without, the first of them first."""

commands = typer.Typer(no_args_is_help=True, help="List, show and compare training runs.")


def register(app: typer.Typer) -> None:
    """Add the commands as `runs`."""
    app.add_typer(commands, name="runs")


@commands.command()
def ls(home: HomeOption = None, wide: WideOption = False, as_json: JsonOption = False) -> None:
    """All runs, oldest first: what each was trained on, which settings differ from its recipe, and its scores."""
    from caeav.model.train.listing import groups, overview
    from caeav.model.train.runs import list_runs

    place = Home.find(home)
    found = [overview(run) for run in list_runs(place)]
    if as_json:
        print_json(found)
        return
    if not found:
        say(f"no runs in {place.runs}; train one: caeav train --task ave")
        return
    rows = [
        {**row, "set": " ".join(row.get("set", ())), "age": age_text(row["age_s"])}  # one cell each
        for row in found
    ]
    print_table(
        COLUMNS, [[_shown(row.get(name)) for name in COLUMNS] for row in rows], drop=DROPPED, wide=wide
    )
    several = [group for group in groups(found) if len(group["seeds"]) > 1]
    if several:
        print()
        print_table(
            ("seeds together", "seeds", "val", "test"),
            [
                (
                    group["group"],
                    ",".join(map(str, group["seeds"])),
                    _spread(group, "val"),
                    _spread(group, "test"),
                )
                for group in several
            ],
            drop=("seeds",),
            wide=wide,
        )


def _spread(group: dict[str, Any], split: str) -> str:
    if group[split] is None:
        return "-"
    return f"{group[split]:.2f}" + (
        "" if group[f"{split}_std"] is None else f" ± {group[f'{split}_std']:.2f}"
    )


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
        say(f"not finished; continue with: caeav train --resume {run.name}{at_home(place)}")


@commands.command()
def compare(
    first: Annotated[
        str, typer.Argument(metavar="RUN", help="Name, part of it, or folder of a finished run.")
    ],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare with it.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Two runs: which settings differ, by how much the second scores above the first, and on which clips."""
    from caeav.model.report.compare import beyond_chance, differences, differing_settings, require_one_task
    from caeav.model.report.run import open_run
    from caeav.model.train.runs import find_run

    place = Home.find(home)
    subjects = [open_run(find_run(place, name), place) for name in (first, second)]
    require_one_task(subjects)
    settings = differing_settings([subject.run.config() for subject in subjects])
    found = differences(*subjects)
    for remark in dict.fromkeys(remark for subject in subjects for remark in subject.remarks):
        say(f"note: {printable(remark)}")
    apart = (
        [] if found is None else [(a, b) for a, b in found.pairs if a["score"] != b["score"]][:SHOWN_CLIPS]
    )
    if as_json:
        print_json(
            {
                "runs": [subject.run.name for subject in subjects],
                "settings": [list(row) for row in settings],
                "split": found.split if found else None,
                "differences": [
                    {"score": name, "points": gap, "low": low, "high": high}
                    for name, gap, low, high in found.scores
                ]
                if found
                else [],
                "clips": [{"key": a["key"], "scores": [a["score"], b["score"]]} for a, b in apart],
            }
        )
        return
    if settings:
        print_table(("setting", *(subject.run.name for subject in subjects)), settings)
        print()
    else:
        say("both have the same settings")
    if found is None:
        say("no clips that both keep predictions of: caeav eval --run RUN writes them")
        return
    print_table(
        (f"second above first, {found.split}", "points", "95 % interval", "beyond chance"),
        [
            (name, f"{gap:+.2f}", f"{low:+.2f} to {high:+.2f}", beyond_chance(low, high))
            for name, gap, low, high in found.scores
        ],
    )
    if apart:
        print()
        print_table(
            ("clip", "first", "second"),
            [(a["key"], f"{a['score']:.2f}", f"{b['score']:.2f}") for a, b in apart],
        )
    say(
        f"paired over {found.units} {found.unit}; another seed may change more than this. "
        f"To look at them: caeav report {subjects[0].run.name} {subjects[1].run.name}{at_home(place)}"
    )


@commands.command("table")
def published(
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


@commands.command()
def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Names, parts of them, or folders of runs.")
    ],
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Remove runs with their checkpoints and predictions; stores stay."""
    from caeav.model.train.runs import find_run, remove_run

    found = {run.folder: run for run in (find_run(Home.find(home), name) for name in names)}
    total = sum(file.stat().st_size for folder in found for file in folder.rglob("*") if file.is_file())
    listed = ", ".join(run.name for run in found.values())
    if confirmed(f"Remove {counted(len(found), 'run')} ({size_text(total)}): {listed}?", yes):
        for run in found.values():
            remove_run(run)
            print(run.name)


@commands.command()
def push(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Name, part of it, or folder of a finished run.")
    ],
    to: Annotated[
        str, typer.Argument(metavar="hub:OWNER/REPO|FOLDER", help="A model repository, or a new folder.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    home: HomeOption = None,
) -> None:
    """Package a run: adapters, head, settings and card as a model repository, or as the folder that would be one."""
    from caeav.model.train.package import pack
    from caeav.model.train.runs import find_run
    from caeav.pipeline.store.remote.hub import push_folder

    place = Home.find(home)
    run = find_run(place, name)
    if not to.startswith(HUB):
        print(pack(run, Path(to)))
        return
    with TemporaryDirectory() as folder:
        print(
            push_folder(pack(run, Path(folder) / "package"), to.removeprefix(HUB), "model", private=private)
        )


@commands.command()
def pull(
    source: Annotated[
        str, typer.Argument(metavar="hub:OWNER/REPO|FOLDER", help="Repository or folder of the package.")
    ],
    home: HomeOption = None,
) -> None:
    """Copy a packaged run into this home; then predict and eval find it by its name."""
    from caeav.model.train.package import README, TAKEN, unpack
    from caeav.pipeline.store.remote.hub import pull_folder

    place = Home.find(home)
    with TemporaryDirectory() as folder:
        package = Path(source)
        if source.startswith(HUB):
            package = pull_folder(source.removeprefix(HUB), "model", (*TAKEN, README), Path(folder))
        run = unpack(package, place)
    print(run.name)
    say(f"next: caeav predict FILE --run {run.name}{at_home(place)}")


def _shown(value: Any) -> Any:
    """Empty cells as a dash; scores keep two digits."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None or value == "" else value
