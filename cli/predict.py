"""`caeav predict`: from a media file to what a trained run finds in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import HomeOption, JsonOption, live_opener, paths_of_taps
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
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
        float, typer.Option("--start", min=0, help="Where the clip begins in the file, in seconds.")
    ] = 0.0,
    question: Annotated[
        str,
        typer.Option("--question", help="What to answer (runs of task avqa).", show_default=False),
    ] = "",
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            metavar="TAP=FILE",
            help="The clip's features, where the run reads imported ones (caeav import); repeatable.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for JSON and image.", show_default="<run>/predictions/<file>"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a run to a clip of a media file: events per second, sounding pixels, or the answer to a question."""
    from caeav.model.train.predict import Predictor
    from caeav.model.train.prediction_files import folder_for, prediction_json, write_prediction
    from caeav.model.train.protocol import stamp
    from caeav.model.train.runs import PREDICTIONS, find_run
    from caeav.pipeline.backbones.weights import remember_at
    from caeav.pipeline.extract.single_file import process_file

    if not file.is_file():
        raise CaeavError(f"no file {file}", hint="give the path of a media file")
    place = Home.find(home)
    remember_at(place, say)
    run = find_run(place, run_name)
    predictor = Predictor.load(run, device, live_opener(place))
    predictor.check(question)  # decoding and captions may take minutes
    processed = process_file(
        file,
        run.token_recipes(),
        run.caption_recipe(),
        start_s=start_s,
        device=device,
        features=paths_of_taps("--features", features),
    )
    arrays = dict(processed.tokens.arrays)
    if processed.captions is not None:
        arrays |= processed.captions.arrays
    prediction = predictor.predict(slug(file.stem), arrays, processed.tokens.info, start_s, question)
    part = f"-from-{start_s:g}s" if start_s else ""  # else the next part replaces this one
    name = slug(file.stem) + part
    folder = out or folder_for(file, run.folder / PREDICTIONS / name, question)
    texts = processed.captions.info.get("texts", {}) if processed.captions is not None else {}
    facts = {
        "file": str(file),
        "run": run.name,
        "protocol": stamp(predictor.config.protocol, predictor.config.select_on),
        "start_s": start_s,
        "notes": processed.tokens.info.get("notes", []),
        "captions": texts,
    }
    title = f"{file.name}  ({run.name})"
    written = write_prediction(prediction, folder, title, facts, list(processed.frames))
    for remark in prediction.remarks():
        say(f"note: {printable(remark)}")
    for note in facts["notes"]:
        say(f"note: {printable(note['code'])}: {printable(note['detail'])}")
    end_s, media_s = prediction.times.end_s, prediction.times.media_s
    if media_s is not None and media_s >= end_s + prediction.times.segment_s:
        say(
            f"note: the file lasts {media_s:.1f} s, this is {start_s:g} to {end_s:g} s; go on with --start {end_s:g}"
        )
    if as_json:
        print_json(prediction_json(prediction, facts))
        return
    rows = prediction.rows()
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    for name in ("visual", "audio"):
        if texts.get(name):
            say(f"{name} caption: {printable(texts[name])}")
    say(f"written: {', '.join(str(path) for path in written)}")
