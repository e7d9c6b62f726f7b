"""`caeav predict`: from a media file to what happens in every second, by a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption
from caeav.manifests.errors import CaeavError
from caeav.manifests.home import Home
from caeav.manifests.keys import slug


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    file: Annotated[Path, typer.Argument(help="A media file.", show_default=False)],
    run_name: Annotated[
        str,
        typer.Option(
            "--run", help="Name, part of it, or folder of a run; last: the newest.", show_default=False
        ),
    ],
    start_s: Annotated[
        float, typer.Option("--start", min=0, help="Where in the file to begin, in seconds.")
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for JSON and picture.", show_default="<run>/predictions/<file>"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which event is both seen and heard in every second of a clip of a media file."""
    from caeav.model.predict import Predictor
    from caeav.model.report import report_json, write_json, write_timeline
    from caeav.model.runs import PREDICTIONS, find_run
    from caeav.pipeline.single import process_file

    if not file.is_file():
        raise CaeavError(f"no file {file}", hint="give the path of a media file")
    run = find_run(Home.find(home), run_name)
    predictor = Predictor.load(run, device)
    recipes = run.recipes()
    processed = process_file(file, recipes["tokens"], recipes.get("captions"), start_s=start_s)
    arrays = dict(processed.tokens.arrays)
    if processed.captions is not None:
        arrays |= processed.captions.arrays
    prediction = predictor.predict(slug(file.stem), arrays, processed.tokens.info, start_s)
    name = slug(file.stem) + (
        f"-from-{start_s:g}s" if start_s else ""
    )  # else the next part replaces this one
    folder = out or run.folder / PREDICTIONS / name
    texts = processed.captions.info.get("texts", {}) if processed.captions is not None else {}
    facts = {
        "file": str(file),
        "run": run.name,
        "start_s": start_s,
        "notes": processed.tokens.info.get("notes", []),
        "captions": texts,
    }
    write_json([prediction], folder / "prediction.json", facts)
    write_timeline(
        [prediction], folder / "timeline.png", f"{file.name}  ({run.name})", list(processed.frames)
    )
    for note in facts["notes"]:
        say(f"note: {printable(note['code'])}: {printable(note['detail'])}")
    end_s, media_s = (
        start_s + len(prediction.events) * prediction.segment_s,
        processed.tokens.info["facts"].get("media_s"),
    )
    if media_s is not None and media_s >= end_s + prediction.segment_s:
        say(
            f"note: the file lasts {media_s:.1f} s, this is {start_s:g} to {end_s:g} s; go on with --start {end_s:g}"
        )
    if as_json:
        print_json(report_json([prediction], facts))
        return
    rows = [
        [f"{row['start_s']:g}", row["event"], row["probability"], _dash(row["agreement"])]
        for row in prediction.rows()
    ]
    print_table(["second", "event", "probability", "agreement"], rows)
    for name in ("visual", "audio"):
        if texts.get(name):
            say(f"{name} caption: {printable(texts[name])}")
    say(f"written: {folder / 'prediction.json'}, {folder / 'timeline.png'}")


def _dash(value: Any) -> Any:
    """Without CASTE there is no agreement to show."""
    return "-" if value is None else value
