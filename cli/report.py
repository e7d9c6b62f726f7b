"""`caeav report`: one HTML page that opens offline, of runs, of a store, of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caeav.cli import datasets
from caeav.cli.console import say
from caeav.cli.options import HomeOption
from caeav.manifests.clip import Clip
from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.remembered import media_root

if TYPE_CHECKING:
    from caeav.model.report.cards import Look, Media
    from caeav.model.report.page import Page
    from caeav.pipeline.media.preview import Preview
    from caeav.pipeline.store import StoreReader

REPORT, FOLDER = "report.html", "reports"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    run_names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Names, parts of them, or folders of runs; several are compared with the first. last: the newest. "
            "Or the folder or the name of what caeav compare wrote.",
            show_default=False,
        ),
    ] = None,
    *,
    store: Annotated[
        str | None, typer.Option("--store", help="A token store, by name or folder.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="A data set: its labels, stores and clips.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The file to write.",
            show_default="<run or comparison>/report.html, else <home>/reports/<name>.html",
        ),
    ] = None,
    home: HomeOption = None,
) -> None:
    """One HTML page to look at: scores and clips, data to check, runs or recipes compared (needs caeav[report])."""
    place = Home.find(home)
    if not run_names and store is None and dataset is None:
        raise CaeavError(
            "nothing to report on",
            hint="name a run (last: the newest) or a comparison, --store STORE or --dataset DATASET",
        )
    file = write_report(place, run_names or [], store=store, dataset=dataset, out=out)
    say(f"written: {file} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser, no network is needed")


def write_report(
    home: Home,
    run_names: Sequence[str],
    *,
    store: str | None = None,
    dataset: str | None = None,
    out: Path | None = None,
) -> Path:
    """Write the page and return where it is; raises `CaeavError`. A name is that of a run or of a comparison."""
    from caeav.model.report.compare import comparison
    from caeav.model.report.page import Page, render, require
    from caeav.model.report.recipes import recipes_section
    from caeav.model.report.run import open_run, run_sections
    from caeav.model.train.comparison_files import comparisons_of, find_comparison, read_comparison
    from caeav.model.train.runs import find_run

    require()
    compared = {name: folder for name in run_names if (folder := find_comparison(home, name)) is not None}
    runs = [find_run(home, name) for name in run_names if name not in compared]
    subjects = [open_run(run, home) for run in {run.folder: run for run in runs}.values()]
    title = " and ".join(
        [
            *(f"comparison {folder.resolve().name}" for folder in compared.values()),
            *(subject.run.name for subject in subjects[:2]),
            *([f"{len(subjects) - 2} more"] if len(subjects) > 2 else []),
            *([f"store {store}"] if store else []),
            *([f"data set {dataset}"] if dataset else []),
        ]
    )
    page = Page(title, _made(), notes=[remark for subject in subjects for remark in subject.remarks])
    tables = [read_comparison(folder) for folder in compared.values()]
    if runs and not tables:
        tables = comparisons_of(home, [run.name for run in runs])
    recipes = [
        recipes_section(table, home, f"-{number + 1}" if len(tables) > 1 else "")
        for number, table in enumerate(tables)
    ]
    page.sections += recipes if compared else []
    inputs = {subject.run.config().dataset: subject.run.inputs() for subject in subjects}
    media = {
        name: _media(home, name, held.spec.segments, held.segment_s, page, len(inputs))
        for name, held in inputs.items()
    }
    if len(subjects) > 1:
        page.sections.append(comparison(subjects, page, media[subjects[0].run.config().dataset]))
    for number, subject in enumerate(subjects):
        mark = f"-{number + 1}" if len(subjects) > 1 else ""
        page.sections += run_sections(subject, home, page, media[subject.run.config().dataset], mark)
    page.sections += [] if compared else recipes
    own = [*compared.values(), *(run.folder for run in runs)]
    name = own[0] / REPORT if len(own) == 1 and not (store or dataset) else None
    if store is not None:
        _of_store(home, store, page)
    if dataset is not None:
        _of_dataset(home, dataset, page)
    file = out or name or home.root / FOLDER / f"{_file_name(title)}.html"
    publish_bytes(file, render(page))
    return file


def _made() -> str:
    from datetime import datetime
    from importlib.metadata import version

    return f"made by caeav {version('caeav')} at {datetime.now().astimezone():%Y-%m-%d %H:%M}"


def _file_name(title: str) -> str:
    from caeav.manifests.keys import slug

    return slug(title)


def _media(home: Home, dataset: str, segments: int, segment_s: float, page: Page, share: int = 1) -> Media:
    """Previews of a data set's media, a frame per segment, with a share of the bytes that a page may have."""
    from caeav.model.report.cards import PICTURES_BYTES, Media

    try:
        root = media_root(home, dataset)
    except CaeavError as error:
        page.notes.append(
            f"The media of {dataset} are not found, so its cards show no frames: {error.problem}"
        )
        return Media(lambda clips: (), PICTURES_BYTES)
    return Media(_look(root, segments, segment_s), PICTURES_BYTES // max(1, share))


def _look(root: Path, segments: int, segment_s: float) -> Look:
    """Previews of clips whose media lie below `root`."""

    def look(clips: Sequence[Clip]) -> Iterable[Preview]:
        from caeav.pipeline.media.preview import View, previews

        views = [View(clip.key, root / clip.media, clip.start_s) for clip in clips]
        return previews(views, segments, segment_s, height=TALL if segments <= MANY else SMALL)

    return look


TALL, SMALL, MANY = 64, 40, 16
"""Heights of frames in pixels, the smaller where a clip has more of them than this."""


def _of_store(home: Home, name: str, page: Page) -> None:
    from caeav.cli.store_care import find_targets
    from caeav.model.report.store import clip_section, store_section
    from caeav.pipeline.store import StoreReader, list_stores

    called = [info.path for info in list_stores(home.stores) if info.path.name == name]
    for number, path in enumerate(called or find_targets(name, None, home.root)):
        reader = StoreReader.open(path)
        page.sections.append(store_section(reader, f"-{number}"))
        if reader.recipe.kind == "tokens":
            captions = _captions_beside(reader)
            page.sections.append(
                clip_section(reader, captions, page, _of_manifest(home, reader, page), f"-{number}")
            )


def _of_manifest(home: Home, store: StoreReader, page: Page) -> Media:
    held = store.manifest
    return _media(home, held.dataset, held.segments, held.segment_s, page)


def _captions_beside(tokens: StoreReader) -> StoreReader | None:
    """The newest finished caption store of the same data set."""
    from caeav.pipeline.store import StoreReader, list_stores

    home = tokens.path.parent.parent
    for info in reversed(list_stores(home)):
        if info.dataset == tokens.path.parent.name and info.path.name.startswith("captions-"):
            try:
                return StoreReader.open(info.path)
            except CaeavError:
                continue
    return None


def _of_dataset(home: Home, name: str, page: Page) -> None:
    """Labels, every finished store, and the clips by the newest token store."""
    from caeav.model.report.store import clip_section, label_section, store_section
    from caeav.pipeline.store import StoreReader, list_stores

    found = datasets.name(name, home)
    readers = []
    for info in list_stores(home.stores):
        if info.dataset == found:
            try:
                readers.append(StoreReader.open(info.path))
            except CaeavError as error:
                page.notes.append(f"{info.path.name} is left out: {error.problem.splitlines()[0]}")
    if not readers:
        raise CaeavError(f"no finished store of {found}", hint=f"caeav extract --dataset {name}")
    tokens = [reader for reader in readers if reader.recipe.kind == "tokens"]
    captions = [reader for reader in readers if reader.recipe.kind == "captions"]
    page.sections.append(label_section(readers[-1].manifest))
    if tokens:
        media = _of_manifest(home, tokens[-1], page)
        page.sections.append(clip_section(tokens[-1], captions[-1] if captions else None, page, media))
    page.sections += [store_section(reader, f"-{number}") for number, reader in enumerate(readers)]
