"""`caeav models ls|show|pull|check|convert`: which models there are, what they need, whether their features are the
recorded ones; and checkpoints of other programs converted to plain ones.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import WEIGHTS_HELP, HomeOption, JsonOption, choose_one
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted, size_text

NO_RECORD = 3
"""Exit status of `check` when there is nothing to compare with."""

commands = typer.Typer(
    no_args_is_help=True,
    help="List, show, fetch and check backbones, text encoders and captioners; convert checkpoints.",
)

NameArgument = Annotated[
    str, typer.Argument(help="A name `caeav models ls` lists, or timm:<name>, open_clip:<name>.")
]
KindOption = Annotated[
    str | None,
    typer.Option("--kind", help="Only this kind: visual, audio, text, backbone, captioner, or both words."),
]
WeightsOption = Annotated[str | None, typer.Option("--weights", help=WEIGHTS_HELP)]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. preset=reference; repeatable."),
]


def register(app: typer.Typer) -> None:
    """Add the commands as `models`."""
    app.add_typer(commands, name="models")


@commands.command()
def ls(kind: KindOption = None, as_json: JsonOption = False) -> None:
    """List all models: taps, parameters, weights and their licence. Loads nothing."""
    from caeav.pipeline.backbones.catalogue import is_kind
    from caeav.pipeline.backbones.describe import weights_state
    from caeav.pipeline.backbones.facts import MODELS

    rows = [row for row in MODELS if is_kind(row, kind)]
    if as_json:
        print_json(
            [
                asdict(row) | {"bytes_a_clip": row.bytes_a_clip() or None, "state": weights_state(row)}
                for row in rows
            ]
        )
        return
    print_table(
        (
            "kind",
            "name",
            "parameters",
            "taps, L x C per segment",
            "per clip",
            "licence of weights",
            "weights",
        ),
        [
            (
                row.kind,
                f"{row.name}<name>" if row.name.endswith(":") else row.name,
                _millions(row.parameters),
                _taps_in_short(row),
                size_text(row.bytes_a_clip()) if row.taps else "-",
                row.licence,
                weights_state(row),
            )
            for row in rows
        ],
    )
    say(
        "per clip: all taps of 10 segments in float16, or the tokens of one text; `caeav models show NAME` tells more"
    )


@commands.command()
def show(
    name: NameArgument,
    kind: KindOption = None,
    weights: WeightsOption = None,
    settings: SettingsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's taps, settings, input, weights and licence; weights given by path are remembered by digest."""
    from caeav.pipeline.backbones.catalogue import find_facts
    from caeav.pipeline.backbones.describe import view_model
    from caeav.pipeline.backbones.weights import remember_at

    remember_at(Home.find(home), say)
    facts = find_facts(name, kind)
    view = view_model(choose_one(name, weights, settings), facts)
    if as_json:
        print_json(asdict(view) | {"bytes_a_clip": _bytes_a_clip(view)})
        return
    print_table(
        ("model", name),
        [
            ("kind", facts.kind),
            ("what", facts.what),
            ("input", facts.input),
            ("parameters", _millions(view.parameters)),
            ("licence of weights", view.licence),
            ("default weights", view.weights or "none"),
            ("file", facts.file or "none"),
            *([("tensors", view.tensors)] if view.tensors else []),
            *((f"{part}.{key}", value) for part, values in _described(view) for key, value in values.items()),
        ],
    )
    if view.taps:
        print()
        cached = {tap.name for tap in view.taps}
        print_table(
            ("tap", "tokens", "channels", "cached"),
            [
                (t.name, t.tokens, t.channels, "yes" if t.name in cached else "by the setting taps")
                for t in view.offered
            ],
        )
        each = "per clip of 10 segments" if facts.kind.endswith("backbone") else "per text"
        say(f"{size_text(_bytes_a_clip(view))} {each} in float16")
    if view.settings:
        print()
        print_table(("setting", "value"), [(key, str(value)) for key, value in view.settings.items()])
    if view.problem:
        say(f"it cannot be run yet: {view.problem}")


@commands.command()
def pull(
    name: NameArgument,
    kind: KindOption = None,
    weights: WeightsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model's weights from the hub into its cache, for all kinds of that name, and print their digest."""
    from caeav.pipeline.backbones.catalogue import find_all_facts
    from caeav.pipeline.backbones.describe import pull_model
    from caeav.pipeline.backbones.weights import remember_at

    remember_at(Home.find(home), say)
    choice = choose_one(name, weights, None)
    found = [(row.kind, pull_model(choice, row)) for row in find_all_facts(name, kind)]
    if as_json:
        print_json([{"kind": of, "name": name, **got} for of, got in found])
    else:
        print_table(("kind", "from", "digest"), [(of, got["source"], got["digest"]) for of, got in found])


@commands.command()
def check(
    name: NameArgument,
    kind: KindOption = None,
    weights: WeightsOption = None,
    settings: SettingsOption = None,
    keep: Annotated[
        bool, typer.Option("--record", help="Record its features, to compare with later.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model on a built-in sample and compare its features with recorded ones.

    Exit status 0: as recorded, or recorded now; 1: they differ; 3: nothing is recorded for these weights and settings.
    """
    from caeav.pipeline.backbones.catalogue import find_facts
    from caeav.pipeline.backbones.record_check import check_model, record
    from caeav.pipeline.backbones.weights import remember_at

    place = Home.find(home)
    remember_at(place, say)
    choice, facts = choose_one(name, weights, settings), find_facts(name, kind)
    checked = check_model(choice, facts.kind, place)
    if as_json:
        print_json(asdict(checked))
    else:
        _print_statistics(checked.statistics)
    if checked.described.get("weights", {}).get("digest", "").startswith("random:"):
        say("the weights are random: this says nothing about the model of that name")
    if keep:
        say(f"recorded in {record(checked, choice, facts.kind, place)}")
        return
    if not checked.against:
        say(
            "nothing is recorded for these weights and settings, so nothing was compared; --record keeps these features"
        )
        raise typer.Exit(NO_RECORD)
    if checked.differences:
        raise CaeavError(
            f"not as recorded in {checked.against}:\n  " + "\n  ".join(checked.differences),
            hint="look at the versions of libraries: caeav doctor",
        )
    say(f"as recorded in {checked.against}")


@commands.command()
def convert(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint of torch: .pt, .pth, .ckpt, .bin.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.", show_default=False)],
    take: Annotated[
        str,
        typer.Option(
            "--take", help="Which dictionary of tensors, e.g. state_dict where there is an average too."
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Write the tensors of a checkpoint to a .safetensors file, under their names there; nothing in it is run.

    For checkpoints that hold objects besides tensors. What is left out is listed.
    """
    from caeav.pipeline.backbones.weights.convert import convert as convert_file

    done = convert_file(file.expanduser(), out.expanduser(), take)
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "taken": done.parts.taken,
                "others": done.parts.others,
                "tensors": done.tensors,
                "bytes": done.bytes,
                "dropped": done.dropped,
                "classes": done.classes,
            }
        )
        return
    print(f"written      {printable(done.path)}: {counted(done.tensors, 'tensor')}, {size_text(done.bytes)}")
    print(f"taken        {printable(done.parts.in_words())}")
    for text in done.dropped:
        print(f"left out     {printable(text)}")
    for name in done.classes:
        print(f"never made   {printable(name)}")
    print(f"next         caeav models show NAME --weights {shlex.quote(str(done.path))}")


def _print_statistics(statistics: dict[str, dict[str, Any]]) -> None:
    arrays = {name: x for name, x in statistics.items() if "texts" not in x}
    for x in statistics.values():
        for text in x.get("texts", ()):
            print(printable(text))
    if arrays:
        print_table(
            ("array", "shape", "mean", "std", "largest"),
            [
                (name, " x ".join(map(str, x["shape"])), x["mean"], x["std"], x["largest"])
                for name, x in arrays.items()
            ],
        )


def _described(view: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(part, values) for part, values in view.described.items() if isinstance(values, dict)]


def _bytes_a_clip(view: Any) -> int:
    from dataclasses import replace

    return int(replace(view.facts, taps=view.taps).bytes_a_clip())


def _taps_in_short(row: Any) -> str:
    return ", ".join(f"{tap.name.rpartition('.')[2]} {tap.tokens}x{tap.channels}" for tap in row.taps) or "-"


def _millions(parameters: int | None) -> str:
    return "-" if parameters is None else f"{parameters / 1e6:.1f} M"
