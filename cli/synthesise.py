"""`caeav synthesise`: make a generated data set, and print how far each modality alone could get on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caeav.cli.console import print_json, print_table, say
from caeav.cli.options import HomeOption, JsonOption
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted, some_lines
from caeav.manifests.readers import SYNTHETIC
from caeav.manifests.synthetic.options import KINDS, LAYOUTS, SyntheticOptions

if TYPE_CHECKING:
    from caeav.manifests.synthetic.generate import Progress, Summary
    from caeav.manifests.synthetic.material import Material

DEFAULT = SyntheticOptions()
LEFT_OUT_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("synthesise")(synthesise)


def synthesise(
    dataset: Annotated[
        str, typer.Option("--dataset", help=f"Whose official layout and labels: {', '.join(LAYOUTS)}.")
    ] = LAYOUTS[0],
    home: HomeOption = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            help="Folder to write the set to.",
            show_default="<home>/data/synthetic, or synthetic-<dataset>",
        ),
    ] = None,
    clips: Annotated[int, typer.Option(help="Number of clips.")] = DEFAULT.clips,
    classes: Annotated[
        int | None,
        typer.Option(
            help="Number of event classes, 5 to 12; of material, the first so many by name.",
            show_default="8; all of the material",
        ),
    ] = None,
    seconds: Annotated[
        int | None,
        typer.Option(help="Length of a clip; a segment is one second.", show_default="10; avs-*: 5"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Width and height in pixels, even.", show_default="128; avs-*: 224")
    ] = None,
    fps: Annotated[int, typer.Option(help="Frames per second.")] = DEFAULT.fps,
    rate: Annotated[int, typer.Option(help="Audio samples per second.")] = DEFAULT.rate_hz,
    seed: Annotated[int, typer.Option(help="The same seed and options give the same bytes.")] = DEFAULT.seed,
    misaligned: Annotated[
        float, typer.Option(help="Fraction of clips whose video and audio disagree for a while.")
    ] = DEFAULT.misaligned,
    mix: Annotated[
        str,
        typer.Option(
            help=f"Weights of the kinds of misalignment ({', '.join(KINDS)}), e.g. offscreen=2,cut=1; "
            "kinds left out get none.",
            show_default="all alike",
        ),
    ] = "",
    distractors: Annotated[
        float,
        typer.Option(
            help="Fraction of misaligned clips with other classes that are only seen or only heard."
        ),
    ] = DEFAULT.distractors,
    splits: Annotated[str, typer.Option(help="Fractions of train, val and test.")] = "0.7,0.15,0.15",
    questions: Annotated[
        int, typer.Option(help="Most questions per video (music-avqa).")
    ] = DEFAULT.questions,
    material: Annotated[
        list[Path] | None,
        typer.Option(
            "--material",
            help="Make the set of your own files: a folder with pictures/<class>/ and sounds/<class>/ (and "
            "backgrounds/), or a csv with columns file, class, and split or fold. May be repeated; classes are the "
            "names that have both.",
            show_default="generated shapes and voices",
        ),
    ] = None,
    backgrounds: Annotated[
        Path | None,
        typer.Option(
            "--backgrounds",
            help="Another folder of pictures or videos whose frames are put behind the material.",
            show_default="those of the material, else generated",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; the bytes do not depend on it.", show_default="one per core"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a set of real media files whose every second is known, in the layout of AVE or another data set.

    Run again after an interruption, it continues; a folder made with other options is refused.
    """
    from caeav.manifests.synthetic import synthesise as make

    shares = _numbers("--splits", splits, splits.split(","))
    if backgrounds is not None and not material:
        raise CaeavError(
            f"--backgrounds {backgrounds} is of no use without --material",
            hint="give --material, or leave it out",
        )
    weights = [part.partition("=") for part in mix.split(",") if part]
    given = _numbers("--mix", mix, [value for _, _, value in weights])
    given_only = {"seconds": seconds, "size_px": size, "classes": classes}
    lengths = {name: value for name, value in given_only.items() if value is not None}
    options = SyntheticOptions.for_layout(
        _layout(dataset),
        clips=clips,
        **lengths,
        fps=fps,
        rate_hz=rate,
        seed=seed,
        misaligned=misaligned,
        mix=dict(zip((kind.strip() for kind, _, _ in weights), given, strict=True)) if mix else DEFAULT.mix,
        distractors=distractors,
        splits=tuple(shares),
        questions=questions,
        **({} if not material else {"material": _material(material, backgrounds, shares)}),
    )
    where = root if root is not None else Home.find(home).data(SYNTHETIC[options.layout])
    summary = _with_bar(lambda report: make(where, options, workers, report))
    if as_json:
        print_json(_as_json(summary))
    else:
        _print(summary)


def _material(sources: list[Path], backgrounds: Path | None, shares: list[float]) -> Material:
    """The material, with its files divided by the shares of the splits; wrong shares are left to the options."""
    from caeav.manifests.synthetic.material import load_material

    say("reading the material ...")
    three = (shares[0], shares[1], shares[2]) if len(shares) == len(DEFAULT.splits) else DEFAULT.splits
    return load_material(sources, backgrounds, three)


def _layout(dataset: str) -> str:
    """The layout of a data set name, `synthetic...` included."""
    return next((layout for layout, generated in SYNTHETIC.items() if dataset == generated), dataset)


def _numbers(option: str, text: str, parts: list[str]) -> list[float]:
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise CaeavError(
            f"{option} is {text!r}; expected numbers",
            hint="write e.g. --splits 0.7,0.15,0.15 or --mix cut=1,silent=2",
        ) from error


def _with_bar(work: Callable[[Progress], Summary]) -> Summary:
    """Run under a progress bar on stderr; shown on terminals only."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None

    def report(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done, desc="synthesise", unit="clip", disable=None)
        else:
            bar.update()

    try:
        return work(report)
    except KeyboardInterrupt:
        say("\nfinished clips are kept; run the same command again to continue")
        raise
    finally:
        if bar is not None:
            bar.close()


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "root": str(summary.root),
        "options": summary.options.to_json(),
        "written": summary.written,
        "kept": summary.kept,
        "splits": summary.splits,
        "kinds": summary.kinds,
        "classes": summary.classes,
        **({} if summary.options.material is None else {"left_out": list(summary.options.material.left_out)}),
        "background": summary.background,
        "measure": summary.measure,
        "bounds": [{"knows": s.knows, "accuracy": s.accuracy, "rule": s.rule} for s in summary.scores],
    }


def _print(summary: Summary) -> None:
    clips = summary.options.clips
    if summary.written:
        say(
            f"wrote {counted(summary.written, 'clip')} to {summary.root}"
            + (f", {summary.kept} already there" if summary.kept else "")
        )
    else:
        say(f"nothing to do: all {clips} clips are in {summary.root}")
    material = summary.options.material
    if material is not None:
        say(
            f"made of {counted(len(material.files), 'file')} of {counted(summary.options.classes, 'class', 'classes')}"
        )
        if material.left_out:
            say("left out:\n  - " + "\n  - ".join(some_lines(material.left_out, LEFT_OUT_SHOWN)))
    rows = [(f"split {name}", n, n / clips) for name, n in summary.splits.items()]
    rows += [(f"kind {name}", n, n / clips) for name, n in summary.kinds.items() if n]
    print_table(("clips", "number", "share"), rows)
    print()
    print(f"what can be reached ({summary.measure}):")
    print_table(
        ("perfect knowledge of", "reaches", "best rule"),
        [(s.knows, s.accuracy, s.rule) for s in summary.scores],
    )
    print(f"in {summary.background:.0%} of seconds nothing is both seen and heard")
