"""Options that several commands share, declared once so that they read and behave alike."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from caeav.manifests.dataset import MARKS
from caeav.manifests.core.home import Home

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="CAEAV_HOME", help="Folder of data, stores and runs.", show_default="./caeav_home"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        help=f"{', '.join(MARKS)}, synthetic, synthetic-llp and so on, or a folder of media files.",
        show_default="the one last extracted",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        help="Folder of the data set's official files; remembered.",
        show_default="<home>/data/<dataset>",
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FILE|folders|none",
        help="For a folder of media: csv with the columns file,start_s,end_s,label,split; `folders` where files lie "
        "in <class>/ or <split>/<class>/; `none` for no labels. Remembered.",
        show_default="<folder>/labels.csv if there is one",
    ),
]
SegmentsOption = Annotated[int | None, typer.Option("--segments", help="For a folder: segments a clip.")]
SegmentSecondsOption = Annotated[
    float | None, typer.Option("--segment-seconds", help="For a folder: seconds a segment.")
]
StrideOption = Annotated[
    float | None,
    typer.Option(
        "--stride-seconds",
        help="For a folder: cut each file into clips, one every so many seconds, to its end; 0: not. Remembered.",
    ),
]
RelabelOption = Annotated[
    bool,
    typer.Option(
        "--relabel", help="Take another --root, --labels or cut than the data set was made with, from now on."
    ),
]
ChangedOption = Annotated[
    str,
    typer.Option(
        "--changed",
        metavar="redo|keep",
        help="Where media changed since its clips were stored: make these anew, or keep them.",
        show_default="refuse",
    ),
]


def at_home(home: Home) -> str:
    """` --home ...` for a command to type next, or nothing where it finds this home by itself."""
    return "" if Home.find().root == home.root else f" --home {shlex.quote(str(home.root))}"
