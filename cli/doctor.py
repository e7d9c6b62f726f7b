"""`caeav doctor`: what is there on this machine, and does it work."""

from __future__ import annotations

from dataclasses import asdict

import typer

from caeav.cli.console import print_json, print_table, say
from caeav.cli.options import HomeOption, JsonOption
from caeav.manifests.core.home import Home


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Versions, devices, decoders, disk, weights, and a sample decoded. Exit status 1 when something is wrong."""
    from caeav.pipeline.doctor import examine

    checks = list(examine(Home.find(home)))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(["what", "status", "detail"], [[c.about, c.status, c.detail] for c in checks])
    problems = [check.about for check in checks if check.status == "problem"]
    if problems:
        say(f"to put right: {', '.join(problems)}")
        raise typer.Exit(1)
