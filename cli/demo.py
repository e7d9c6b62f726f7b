"""`caeav demo`: the whole path on generated video files, by the commands a user would type.

Each step is the real command in a process of its own, printed before it runs, so nothing works here that would not
work by hand. When the demo is repeated, finished steps take little time.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from caeav.cli.console import print_table, say
from caeav.cli.options import HomeOption
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.keys import slug

DEMO_HOME = "demo"
FEW_TEST_CLIPS = 60
"""With fewer, the 95 % interval of an accuracy a second is wider than the gain from adapters."""
NEXT = "run the same commands on your own data, with learned backbones: caeav models ls lists them, README.md shows how"
RECIPES = {
    "full": "frames, audio and captions; CASTE + AVMoE + CASE",
    "audio": "audio only",
    "visual": "frames only",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    clips: Annotated[int, typer.Option(min=60, help="Clips to synthesise.")] = 320,
    seed: Annotated[int, typer.Option(help="Seed of the data set and of training.")] = 0,
    home: HomeOption = None,
) -> None:
    """Synthesise video files, extract, caption, train, evaluate and predict: minutes, on any machine."""
    place = Home(Home.find(home).root / DEMO_HOME)
    at = ["--home", str(place.root)]
    steps: list[tuple[str, list[str]]] = [
        ("synthesise", ["synthesise", "--clips", str(clips), "--seed", str(seed), *at]),
        ("check", ["manifest", "check", "--dataset", "synthetic", *at]),
        ("extract", ["extract", "--dataset", "synthetic", *at]),
        ("caption", ["caption", "--dataset", "synthetic", *at]),
        ("verify", ["store", "verify", "synthetic", *at]),
    ]
    steps += [
        (
            f"train {name}",
            ["train", "--task", "ave", "--dataset", "synthetic", "--recipe", name, "--seeds", str(seed), *at],
        )
        for name in RECIPES
    ]
    took = [(name, _step(arguments)) for name, arguments in steps]
    from caeav.model.train.prediction_files import IMAGE_FILE
    from caeav.model.train.runs import PREDICTIONS

    runs = _newest_runs(place)
    full = runs["full"]["run"]
    took.append(("evaluate", _step(["eval", "--run", full, "--split", "test", *at])))
    example = _example(place)
    took.append(("predict", _step(["predict", str(example), "--run", full, *at])))
    page, why = _report(place, full, at, took)

    print()
    print_table(
        ["step", "seconds"], [[name, round(seconds, 1)] for name, seconds in took], title="What was done"
    )
    print()
    tested = runs["full"]["clips"]["test"]
    print_table(
        ["model", "what it gets", "val %", "test %", "95 % interval of test"],
        score_rows(runs),
        title=f"AVE accuracy, seed {seed}, on {tested} test clips; chosen on val, test scored once",
    )
    print()
    for line in what_it_shows(runs):
        print(line)
    drawn = place.runs / full / PREDICTIONS / slug(example.stem) / IMAGE_FILE
    say(f"\neverything lies in {place.root}; the timeline: {drawn}")
    say(f"the report, to open in a browser: {page}" if page else f"no report: {why}")
    say(f"next: {NEXT}")


def _report(place: Home, run: str, at: list[str], took: list[tuple[str, float]]) -> tuple[Path | None, str]:
    """The page about the run and the generated set, or why there is none."""
    from caeav.cli.report import REPORT
    from caeav.model.report.page import require

    try:
        require()
    except CaeavError as error:
        return None, f"{error.problem}; {error.hint}"
    page = place.runs / run / REPORT
    arguments = ["report", run, "--dataset", "synthetic", "--out", str(page), *at]
    took.append(("report", _step(arguments)))
    return page, ""


def _step(arguments: list[str]) -> float:
    """Print and run one command; returns its seconds. Raises `CaeavError` when it fails."""
    say(f"\n$ caeav {shlex.join(arguments)}")
    started = time.perf_counter()
    status = subprocess.run([sys.executable, "-m", "caeav.cli", *arguments], check=False).returncode
    if status:
        raise CaeavError(f"'caeav {arguments[0]}' ended with status {status}", hint="see its message above")
    return time.perf_counter() - started


def _newest_runs(place: Home) -> dict[str, dict[str, Any]]:
    """The latest finished run of each recipe."""
    from caeav.model.train.runs import list_runs

    results = [result for run in list_runs(place) if (result := run.result()) is not None]
    return {result["recipe"]: result for result in results}


def _example(place: Home) -> Path:
    """A test clip whose event does not fill it, so that there is something to see."""
    from caeav.manifests.dataset import load_dataset

    manifest = load_dataset("synthetic", None, place)
    for clip in manifest.clips:
        event_s = sum(event.end_s - event.start_s for event in clip.events)
        if clip.split == "test" and 0 < event_s < clip.seconds:
            return Path(manifest.media_root) / clip.media
    raise CaeavError("the generated set has no test clip with an event", hint="raise --clips")


def score_rows(runs: Mapping[str, Mapping[str, Any]]) -> list[list[object]]:
    """One row per model, and one for always giving the most frequent answer."""
    splits = ("val", "test")
    rows: list[list[object]] = [
        ["majority", "nothing", *(runs["full"]["majority"][split] for split in splits), ""]
    ]
    rows += [
        [
            name,
            gets,
            *(runs[name]["scores"][split] for split in splits),
            " to ".join(f"{bound:.1f}" for bound in _interval(runs[name])),
        ]
        for name, gets in RECIPES.items()
    ]
    return rows


def what_it_shows(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What these scores show and what they do not, given the number of test clips."""
    full, tested = runs["full"], runs["full"]["clips"]["test"]
    said = [
        "This shows the steps, not the scores of papers: the clips are generated, and the backbone 'classic' is",
        "a set of fixed descriptors that nobody trained.",
    ]
    if tested < FEW_TEST_CLIPS:
        said.append(
            f"With {tested} test clips a score is mostly chance: look at the intervals. "
            "Measured over three seeds: docs/RESULTS.md."
        )
    best = max(("audio", "visual"), key=lambda name: runs[name]["scores"]["test"])
    if runs[best]["scores"]["test"] >= full["scores"]["test"]:
        low, high = _interval(full)
        one, other = _interval(runs[best])
        overlap = "overlap: nothing follows from it" if one <= high and low <= other else "do not overlap"
        said.append(f"Here '{best}' is not worse than 'full' on test; their intervals {overlap}.")
    return said


def _interval(result: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of the test score; 0 to 100 where there is none."""
    low, high = result["intervals"].get("test", {}).get("bounds", {}).get(result["metric"], (0.0, 100.0))
    return float(low), float(high)
