"""`caeav predict`: from a media file to what a trained run finds in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from caeav.cli import datasets
from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import DeviceOption, HomeOption, JsonOption, live_opener, paths_of_taps
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.keys import slug


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Media files, and folders of them.", show_default=False)
    ] = None,
    *,
    run_name: Annotated[
        str,
        typer.Option(
            "--run", help="Name, part of it, or folder of a run; last: the newest.", show_default=False
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Instead of files: the media of a data set's split, by name or folder.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"], typer.Option("--split", help="Which clips of --dataset.")
    ] = "test",
    start_s: Annotated[
        float, typer.Option("--start", min=0, help="Where the clip begins in the file, in seconds.")
    ] = 0.0,
    stride_s: Annotated[
        float | None,
        typer.Option(
            "--stride",
            min=0.1,
            help="Go through whole files: a window every so many seconds, to the end of the media.",
            show_default=False,
        ),
    ] = None,
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
        typer.Option("--out", help="Folder for JSON and images.", show_default="<run>/predictions/<file>"),
    ] = None,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a run to media files: events per second, sounding pixels, or the answer to a question.

    For one file: a table, JSON and an image. For several, a folder, --stride or --dataset: a row per window in one
    file of JSON Lines, with the images beside it.
    """
    from caeav.model.train.predict import Predictor
    from caeav.model.train.prediction_files import folder_for, prediction_json, write_prediction
    from caeav.model.train.protocol import stamp
    from caeav.model.train.runs import PREDICTIONS, find_run
    from caeav.pipeline.backbones.weights import remember_at
    from caeav.pipeline.extract.single_file import process_file

    paths = files or []
    if bool(paths) == (dataset is not None):
        raise CaeavError(
            "nothing to predict" if dataset is None else "files and --dataset are two things to predict",
            hint="give the path of a media file, several, a folder of them, or --dataset NAME --split test",
        )
    place = Home.find(home)
    if len(paths) != 1 or paths[0].is_dir() or stride_s is not None:
        asked = _Asked(paths, dataset, split, start_s, stride_s, question, features, out)
        _many(asked, place, run_name, device, as_json)
        return
    file = paths[0]
    if not file.is_file():
        raise CaeavError(f"no file {file}", hint="give the path of a media file")
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
            f"note: the file lasts {media_s:.1f} s, this is {start_s:g} to {end_s:g} s; continue with --start {end_s:g}"
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


@dataclass(frozen=True)
class _Asked:
    """The options of a prediction of many."""

    paths: list[Path]
    dataset: str | None
    split: str
    start_s: float
    stride_s: float | None
    question: str
    features: list[str] | None
    out: Path | None


def _many(asked: _Asked, place: Home, run_name: str, device: str, as_json: bool) -> None:
    """Predict files, folders or a split of a data set."""
    from caeav.cli.predict_many import folder_of, items_of, items_of_split, name_of, predict_many
    from caeav.model.tasks.base import TASKS
    from caeav.model.train.predict import Predictor
    from caeav.model.train.runs import PREDICTIONS, find_run
    from caeav.pipeline.backbones.weights import remember_at

    if asked.features:
        raise CaeavError("--features are those of one clip", hint="predict one file at a time")
    if asked.dataset is not None and (asked.stride_s is not None or asked.start_s or asked.question):
        raise CaeavError(
            "the clips of a data set have their own start and questions",
            hint="leave out --start, --stride and --question, or give files instead of --dataset",
        )
    remember_at(place, say)
    run = find_run(place, run_name)
    if asked.dataset is not None:
        nothing = datasets.source(None, None, None, None, None)
        manifest = datasets.load(asked.dataset, nothing, place, datasets.LOOKS).manifest
        items = items_of_split(manifest, asked.split, TASKS[run.config().task].samples(manifest))
        name = f"{slug(manifest.dataset)}-{asked.split}"
    else:
        items = items_of(asked.paths, asked.start_s, asked.question)
        name = name_of(asked.paths, items)
    live = live_opener(place)
    predictor = Predictor.load(run, device, live)
    predictor.check(items[0].questions[0])
    if predictor.weak:
        say(f"note: {predictor.weak}")
    folder = asked.out or folder_of(items, run.folder / PREDICTIONS, name)
    predict_many(run, predictor, items, folder, stride_s=asked.stride_s, device=device, as_json=as_json)
