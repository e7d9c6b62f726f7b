"""What several commands share, written once so that it reads and behaves alike: options and what is made of them.

A model is chosen by its name, `--<part>-weights` and `--set <part>.<key>=<value>`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caeav.cli.console import say
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import parse_setting
from caeav.manifests.readers import MARKER_FILES
from caeav.pipeline.store.remote.cache import LIMIT_VARIABLE, parse_bytes

if TYPE_CHECKING:
    from caeav.model.adapters.live import Live, LiveOpener
    from caeav.pipeline.backbones.choice import ModelChoice
    from caeav.pipeline.store import Recipe


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="CAEAV_HOME", help="Folder of data, stores and runs.", show_default="./caeav_home"
    ),
]
CacheBytesOption = Annotated[
    str | None,
    typer.Option(
        "--cache-bytes",
        envvar=LIMIT_VARIABLE,
        metavar="BYTES",
        help="For stores at an address (s3://...): how many bytes of their shards may lie on this machine, as 50GB.",
        show_default="32GB",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
WideOption = Annotated[bool, typer.Option("--wide", help="All columns, however narrow the terminal.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        help=f"{', '.join(MARKER_FILES)}, synthetic, synthetic-llp and so on, or a folder of media files.",
        show_default="the one last extracted",
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="ave, ave-weak, avvp, avs-s4, avs-ms3 or avqa.",
        show_default="what the data set is labelled for",
    ),
]
TrainedOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Whose stores to train on, by name or folder of media.",
        show_default="the one last extracted",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        help="Folder of the data set's official files, or its address (s3://...); remembered.",
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
SegmentsOption = Annotated[int | None, typer.Option("--segments", help="For a folder: segments per clip.")]
SegmentSecondsOption = Annotated[
    float | None, typer.Option("--segment-seconds", help="For a folder: seconds per segment.")
]
StrideOption = Annotated[
    float | None,
    typer.Option(
        "--stride-seconds",
        help="For a folder: cut each file into clips, one every so many seconds; 0 turns it off. Remembered.",
    ),
]
RelabelOption = Annotated[
    bool,
    typer.Option("--relabel", help="From now on, use another --root, --labels or segmentation than before."),
]
ChangedOption = Annotated[
    str,
    typer.Option(
        "--changed",
        metavar="redo|keep",
        help="For clips whose media changed since they were stored: make them again, or keep them.",
        show_default="refuse",
    ),
]
WEIGHTS_HELP = "Weights: hub:<owner>/<repo>, a folder, a file, or random:<seed> for measurements."
VisualWeightsOption = Annotated[str | None, typer.Option("--visual-weights", help=WEIGHTS_HELP)]
AudioWeightsOption = Annotated[str | None, typer.Option("--audio-weights", help=WEIGHTS_HELP)]
VisualTextWeightsOption = Annotated[str | None, typer.Option("--visual-text-weights", help=WEIGHTS_HELP)]
AudioTextWeightsOption = Annotated[str | None, typer.Option("--audio-text-weights", help=WEIGHTS_HELP)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PART.KEY=VALUE",
        help="One setting of a model, e.g. visual.preset=reference; repeatable. `caeav models show` lists them.",
    ),
]


def limit_cache(given: str | None) -> None:
    """Let this command and the processes it starts keep so many bytes of shards; raises `CaeavError` for no number."""
    if given:
        os.environ[LIMIT_VARIABLE] = str(parse_bytes(given))


def choose(
    parts: Mapping[str, tuple[str, str | None]], assignments: Sequence[str] | None
) -> dict[str, ModelChoice]:
    """Part -> model choice, from part -> (name, weights) and the values of `--set`.

    Values are read as in YAML (`256`, `true`, `[a, b]`). Raises `CaeavError` for an assignment to no part.
    """
    from caeav.pipeline.backbones.choice import ModelChoice

    settings: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for text in assignments or ():
        left, value = parse_setting(text, f"PART.KEY=VALUE, where PART is one of: {', '.join(parts)}")
        part, dot, key = left.partition(".")
        if not (dot and key and part in settings):
            raise CaeavError(
                f"--set {text!r} sets nothing",
                hint=f"write PART.KEY=VALUE, where PART is one of: {', '.join(parts)}",
            )
        settings[part][key] = value
    return {part: ModelChoice(name, weights or "", settings[part]) for part, (name, weights) in parts.items()}


def choose_one(name: str, weights: str | None, assignments: Sequence[str] | None) -> ModelChoice:
    """The choice of a command that takes one model: `--set KEY=VALUE`."""
    from caeav.pipeline.backbones.choice import ModelChoice

    return ModelChoice(
        name, weights or "", dict(parse_setting(text, "KEY=VALUE") for text in assignments or ())
    )


def paths_of_taps(option: str, given: Sequence[str] | None) -> dict[str, Path]:
    """Tap -> path, from the `TAP=PATH` values of an option; raises `CaeavError` for other values."""
    found: dict[str, Path] = {}
    for text in given or ():
        tap, equals, path = text.partition("=")
        if not (equals and tap and path) or tap in found:
            again = "names a tap again" if tap in found else "is no TAP=PATH"
            raise CaeavError(f"{option} {text!r} {again}", hint=f"{option} motion.r2plus1d=PATH, once a tap")
        found[tap] = Path(path).expanduser()
    return found


def live_opener(home: Home) -> LiveOpener:
    """A function that loads the backbones a run's adapters sit inside; `home` remembers where their weights lie."""

    def opened(recipes: Sequence[Recipe]) -> Live:
        from caeav.model.adapters.live import Live
        from caeav.pipeline.backbones.weights import remember_at
        from caeav.pipeline.extract.jobs import open_live

        remember_at(home, say)
        say("loading the backbones that the adapters are placed in")
        return Live(open_live(recipes, "visual"), open_live(recipes, "audio"))

    return opened


def at_home(home: Home) -> str:
    """` --home ...` for the next command, or nothing where that command finds this home by itself."""
    return "" if Home.find().root == home.root else f" --home {shlex.quote(str(home.root))}"
