"""`caeav config`: every setting of a training, with its default, what it may be and what it means."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from caeav.cli.console import print_json, print_table, say
from caeav.cli.options import JsonOption
from caeav.manifests.core.errors import CaeavError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(config)


def config(
    word: Annotated[
        str,
        typer.Argument(
            metavar="[WORD]", help="Only settings with this in their path or meaning.", show_default=False
        ),
    ] = "",
    task: Annotated[str, typer.Option("--task", help="Whose settings.")] = "ave",
    recipe: Annotated[str, typer.Option("--recipe", help="Whose defaults.")] = "full",
    as_json: JsonOption = False,
) -> None:
    """List what --set of caeav train may set: default, allowed values, meaning, and the page of docs/ with more."""
    from caeav.model.train.settings import settings

    asked = word.lower()
    found = [
        each for each in settings(task, recipe) if asked in each.path.lower() or asked in each.meaning.lower()
    ]
    if not found:
        raise CaeavError(f"no setting of {task} has {word!r} in it", hint="caeav config lists all of them")
    if as_json:
        print_json([asdict(each) for each in found])
        return
    print_table(
        ("setting", "default", "allowed", "meaning", "docs"),
        [(each.path, _shown(each.default), each.allowed, each.meaning, each.page) for each in found],
    )
    say(f"defaults of --task {task} --recipe {recipe}; set one: caeav train --set {found[0].path}=VALUE")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else "-"
