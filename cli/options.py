"""Options that several commands share, declared once so that they read and behave alike."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from caeav.manifests.home import Home

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="CAEAV_HOME", help="Folder of data, stores and runs.", show_default="./caeav_home"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DatasetOption = Annotated[
    str, typer.Option("--dataset", help="ave, synthetic, or a folder of media files.", show_default=False)
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Folder of the data set's official files.", show_default="<home>/data/<dataset>"
    ),
]


def at_home(home: Home) -> str:
    """` --home ...` for a command to type next, or nothing where it finds this home by itself."""
    return "" if Home.find().root == home.root else f" --home {shlex.quote(str(home.root))}"
