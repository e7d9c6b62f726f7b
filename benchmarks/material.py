"""Do adapters and captions help on learned tokens, real sounds, unseen drawings? Makes the tables of docs/RESULTS.md.

    python benchmarks/material.py --shared FOLDER --home caeav_home/material [--jobs 2]

FOLDER holds `data/material` (pictures and `pictures.csv`), `data/esc_subset` (recordings and `ESC.csv`), `data/media`
(videos for backgrounds) and `weights` (EfficientNet-Lite0, YAMNet and its names). Makes the world in the layouts of AVE
and LLP, tokens of the learned pair and of `classic`, and four kinds of captions: `tags`, `descriptor`, `truth`
(sentences in the words of `tags` that name what is seen, what is heard, and when) and `blank` (what `tags` says of
nothing). Then one `caeav compare` for every task, tokens and captions; its tables lie in `<home>/comparisons`. At the
end: what captions of the truth bring over blank ones.

Can be interrupted: finished steps are gone over quickly, and `caeav compare` goes on where it was. What matters most is
trained first. `--tables` trains nothing and prints what is there. All choices are in benchmarks/settings/material.yaml;
what follows from them, every setting of every row, is in benchmarks/settings/material-resolved.yaml, which is what
`--settings` prints.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CHOSEN = yaml.safe_load((Path(__file__).parent / "settings" / "material.yaml").read_text("utf-8"))
LAYOUTS = {"ave": "synthetic", "llp": "synthetic-llp"}
"""What `synthesise` calls a layout -> what the set is called."""
DATASET = {"ave-weak": "synthetic", "ave": "synthetic", "avvp": "synthetic-llp"}
PAIR, TWO_TAPS, CLASSIC = "learned", "two-taps", "classic"
STORE_OF = {
    PAIR: "tokens-efficientnet-lite0-yamnet",
    TWO_TAPS: "tokens-efficientnet-lite0-yamnet",
    CLASSIC: "tokens-classic",
    "truth": "captions-file-hashed",
    "blank": "captions-file-hashed",
    "tags": "captions-tags-hashed",
    "descriptor": "captions-descriptor-hashed",
}
ALL = ("probe", "none", "lavish", "dg-sct", "avmoe", "caste", "case", "full")
MAIN = ("none", "avmoe", "caste", "case", "full")
READERS = ("none", "case", "full")
"""What reads captions, beside what reads none."""
WRITTEN = ("truth", "blank")
"""Captions that `write_captions` writes into tables."""
STRESS = "shift=2,swap=0.5,mute=0.5,blind=0.5,cut=0.5,caption_swap=1"
"""Where captions are of the truth; of the others it is asked only whether they are read."""


@dataclass(frozen=True)
class Table:
    """One comparison: tokens (`PAIR`, `TWO_TAPS` or `CLASSIC`), captions of the recipes that read any, recipes."""

    tokens: str
    captions: str
    recipes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tokens}-{self.captions}"


WORTH = ("task", "tokens", "recipe", "blank", "truth", "truth minus blank", "another clip's captions")
TABLES = (
    Table(PAIR, "truth", ALL),
    Table(TWO_TAPS, "truth", MAIN),
    Table(PAIR, "blank", READERS),
    Table(TWO_TAPS, "blank", READERS),
    Table(PAIR, "tags", READERS),
    Table(PAIR, "descriptor", READERS),
    Table(TWO_TAPS, "tags", READERS),
    Table(TWO_TAPS, "descriptor", READERS),
    Table(CLASSIC, "truth", MAIN),
    Table(CLASSIC, "tags", READERS),
    Table(CLASSIC, "descriptor", READERS),
)
"""What matters most first; each is made for every task before the next."""


def caeav(*arguments: str) -> None:
    """Run one command of the program, quietly."""
    print("$ caeav", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "caeav.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def weights(shared: Path) -> tuple[str, str]:
    """The files of the learned pair, visual and audio."""
    folder = shared / "weights"
    return str(folder / "tf_efficientnet_lite0.safetensors"), str(folder / "yamnet.safetensors")


def make_world(home: Path, shared: Path) -> None:
    """Clips, tokens and captions, through the program."""
    home.mkdir(parents=True, exist_ok=True)
    media = (shared / "data" / "media").resolve()
    behind = [
        f"{media / name},{split},background"
        for split, names in CHOSEN["backgrounds"].items()
        for name in names
    ]
    (home / "backgrounds.csv").write_text("\n".join(["file,split,kind", *behind]) + "\n", "utf-8")
    visual, audio = weights(shared)
    material = [
        shared / "data" / "material",
        shared / "data" / "esc_subset" / "ESC.csv",
        home / "backgrounds.csv",
    ]
    given = [part for source in material for part in ("--material", str(source))]
    pair = [
        "--visual",
        "efficientnet-lite0",
        "--visual-weights",
        visual,
        "--audio",
        "yamnet",
        "--audio-weights",
        audio,
    ]
    changes = [part for one in CHOSEN["extract"] for part in ("--set", one)]
    tags = ["--visual", "tags", "--visual-weights", visual, "--audio", "tags", "--audio-weights", audio]
    for layout, dataset in LAYOUTS.items():
        at = ("--dataset", dataset, "--home", str(home))
        caeav("synthesise", "--dataset", layout, *CHOSEN["world"], *given, "--home", str(home), "--json")
        caeav("extract", *at, *pair, *changes)
        caeav("extract", *at)
        caeav("caption", *at)
        caeav("caption", *at, *tags)
        for captions in WRITTEN:
            made = write_captions(home, dataset, captions)
            file = [
                "--visual",
                "file",
                "--visual-weights",
                str(made),
                "--audio",
                "file",
                "--audio-weights",
                str(made),
            ]
            caeav("caption", *at, *file)


def write_captions(home: Path, dataset: str, captions: str) -> Path:
    """A table of captions in the words of `tags`: the truth of a generated set, or what `tags` says of nothing."""
    from caeav.manifests.core.home import Home
    from caeav.manifests.remembered import media_root
    from caeav.manifests.synthetic.truth import truth_of
    from caeav.pipeline.captioners.tags.words import sound, thing
    from caeav.pipeline.store import StoreReader

    root = media_root(Home(home), dataset)
    lines = (root / "truth.jsonl").read_text("utf-8").splitlines()
    truths = {row.get("name", row["id"]): row for row in map(json.loads, lines)}
    clips = StoreReader.open(store_of(home, dataset, PAIR)).manifest.clips
    to = home / written(dataset, captions)
    with to.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["key", "visual", "audio"])
        for clip in clips:
            row = truth_of(clip, truths)
            seen, heard = (row["seen"], row["heard"]) if captions == "truth" else ([], [])
            table.writerow([clip.key, _told(seen, "A picture", thing), _told(heard, "The sound", sound)])
    return to


def written(dataset: str, captions: str) -> str:
    """The name of the table that `write_captions` writes."""
    return f"{dataset}-{captions}.csv"


def _told(seconds: Sequence[Sequence[str]], begin: str, say: Callable[[str], str]) -> str:
    """`A picture of a dog in segments 2 to 5.`; `seconds`: the classes of each second."""
    from caeav.pipeline.captioners.tags.words import Claim, sentence

    names = sorted({name for second in seconds for name in second})
    found = [
        Claim(name.replace("_", " "), np.array([name in second for second in seconds])) for name in names
    ]
    found.sort(key=lambda claim: int(claim.active.argmax()))
    return sentence(f"{begin} of", found, [True] * len(seconds), f"{begin}.", say)


def store_of(home: Path, dataset: str, made: str) -> Path:
    """The one store of these tokens or captions; of those from a table, the one of its name."""
    found = sorted((home / "stores" / dataset).glob(f"{STORE_OF[made]}-*"))
    if made in WRITTEN:
        found = [store for store in found if _table_of(store) == written(dataset, made)]
    if len(found) != 1:
        raise SystemExit(
            f"{len(found)} stores {made} of {dataset} in {home}; one is needed: use another --home"
        )
    return found[0]


def _table_of(store: Path) -> str:
    """The name of the table that a store of captions was made from."""
    recipe = json.loads((store / "recipe.json").read_text("utf-8"))
    return recipe["fields"]["visual"]["weights"]["source"]


def settings_of(task: str, tokens: str) -> list[str]:
    """What is set on top of the recipes, but for the stores."""
    return [*CHOSEN["common"], *CHOSEN["tokens"][tokens], *CHOSEN["tasks"][task]]


def assignments(home: Path, task: str, table: Table) -> list[str]:
    """All that is set on top of the recipes."""
    stores = {"tokens": table.tokens, "captions": table.captions}
    named = [f"stores.{kind}={store_of(home, DATASET[task], made).name}" for kind, made in stores.items()]
    return [*settings_of(task, table.tokens), *named]


def folder_of(home: Path, task: str, table: Table) -> Path:
    """Where `caeav compare` writes a table."""
    return home / "comparisons" / f"{task}-{table}"


def compare(home: Path, task: str, table: Table, seeds: str, jobs: int) -> None:
    """Train and score what is missing of one table."""
    given = [part for one in assignments(home, task, table) for part in ("--set", one)]
    words = [
        "--task",
        task,
        "--dataset",
        DATASET[task],
        "--recipes",
        ",".join(table.recipes),
        "--seeds",
        seeds,
    ]
    out = ["--out", str(folder_of(home, task, table)), "--home", str(home), "--jobs", str(jobs)]
    stress = STRESS if table.captions == "truth" else "caption_swap=1"
    caeav("compare", *words, "--stress", stress, *given, *out)


def worth_of_captions(home: Path, task: str, tokens: str) -> list[list[str]]:
    """Cells under `WORTH`: what reads captions of the truth, minus the same recipe trained on blank ones."""
    from caeav.manifests.core.home import Home
    from caeav.model.train.comparison import Cell
    from caeav.model.train.comparison_files import read_comparison
    from caeav.model.train.comparison_table import build_comparison, cells_of, number_text
    from caeav.model.train.runs import find_run

    folders = {captions: folder_of(home, task, Table(tokens, captions, READERS)) for captions in WRITTEN}
    if not all((folder / "table.json").exists() for folder in folders.values()):
        return [[task, tokens, "not made yet", *[""] * (len(WORTH) - 3)]]
    made = {captions: read_comparison(folder) for captions, folder in folders.items()}
    table = []
    of_recipe = {captions: {row.recipe: row for row in of.rows} for captions, of in made.items()}
    for recipe in (name for name in READERS if name != "none"):
        rows = {captions: by_name[recipe] for captions, by_name in of_recipe.items()}
        cells = [
            Cell(captions, seed, find_run(Home(home), run))
            for captions, row in rows.items()
            for seed, run in zip(made[captions].seeds, row.runs, strict=True)
        ]
        shown = {row[0]: row for row in cells_of(build_comparison(cells, "", "blank"))}
        swapped = rows["truth"].stress.get("caption_swap 1")
        cost = None if swapped is None else swapped - rows["truth"].score
        worth = [shown["blank"][1], *shown["truth"][1:3], number_text(cost, sign=True)]
        table.append([task, tokens, recipe, *worth])
    return table


def resolved() -> dict[str, dict[str, Any]]:
    """Every setting of every row, told once: under what decides it, a task, tokens, a recipe, several or nothing.

    Names of stores, which differ with the weights, and seeds are left out.
    """
    from caeav.model.train.config_file import flat_settings, resolve_recipes

    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for table, task in itertools.product(TABLES, DATASET):
        options = {name: {"dataset": DATASET[task]} for name in table.recipes}
        given = settings_of(task, table.tokens)
        for recipe, config in resolve_recipes(task, table.recipes, None, given, options).items():
            rows[task, table.tokens, recipe] = flat_settings(config)
    told: dict[str, dict[str, Any]] = {}
    places = [by for count in range(4) for by in itertools.combinations(range(3), count)]
    for key in dict.fromkeys(key for row in rows.values() for key in row):
        if key not in ("stores.tokens", "stores.captions", "seed"):
            having = {row: settings[key] for row, settings in rows.items() if key in settings}
            by = next(by for by in places if _decides(by, having))
            for row, value in having.items():
                told.setdefault(", ".join(row[i] for i in by) or "all", {})[key] = value
    return dict(sorted(told.items(), key=lambda part: part[0] != "all"))


def _decides(by: Sequence[int], having: Mapping[tuple[str, ...], Any]) -> bool:
    """Whether rows that are alike in these parts of their names have one value."""
    seen: dict[tuple[str, ...], Any] = {}
    return all(seen.setdefault(tuple(row[i] for i in by), value) == value for row, value in having.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, help="needed unless --tables or --settings")
    parser.add_argument("--home", type=Path, default=Path("caeav_home/material"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--tasks", nargs="+", choices=list(DATASET), default=list(DATASET))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--settings", action="store_true", help="train nothing, print all of every row")
    options = parser.parse_args()
    if options.settings:
        print(
            f"# Every setting of every row of {Path(__file__).name}, under what decides it. Made by --settings."
        )
        print(yaml.safe_dump(resolved(), sort_keys=False, width=120), end="")
        return
    if not options.tables:
        if options.shared is None:
            parser.error("--shared: which folder holds material, recordings, videos and weights?")
        make_world(options.home, options.shared)
    for table, task in itertools.product(TABLES, options.tasks):
        made = folder_of(options.home, task, table) / "table.md"
        if not options.tables:
            compare(options.home, task, table, options.seeds, options.jobs)
        print(f"## {task}, {table}\n\n{made.read_text('utf-8') if made.exists() else 'not made yet'}")
    from caeav.model.train.markdown import markdown_table

    pairs = itertools.product((PAIR, TWO_TAPS), options.tasks)
    worth = [row for tokens, task in pairs for row in worth_of_captions(options.home, task, tokens)]
    print(f"## Captions of the truth and blank ones\n\n{markdown_table(WORTH, worth)}")


if __name__ == "__main__":
    main()
