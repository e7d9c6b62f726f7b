"""Do adapters and captions help on learned tokens, real sounds, unseen drawings? Makes the tables of docs/RESULTS.md.

    python benchmarks/material.py --shared FOLDER --home caeav_home/material [--jobs 2]

FOLDER holds `data/material` (pictures and `pictures.csv`), `data/esc_subset` (recordings and `ESC.csv`), `data/media`
(videos for backgrounds) and `weights` (EfficientNet-Lite0, YAMNet and its names). Makes the world in the layouts of AVE
and LLP, tokens of the learned pair and of `classic`, and three kinds of captions: `tags`, `descriptor`, and `truth`:
sentences in the words of `tags` that name what is seen, what is heard, and when. Then one `caeav compare` for every
task, tokens and captions; its tables lie in `<home>/comparisons`.

Can be interrupted: finished steps are gone over quickly, and `caeav compare` goes on where it was. What matters most is
trained first. `--tables` trains nothing and prints what is there; `--settings` prints the whole configuration of every
row. All choices are in benchmarks/settings/material.yaml.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

CHOSEN = yaml.safe_load((Path(__file__).parent / "settings" / "material.yaml").read_text("utf-8"))
LAYOUTS = {"ave": "synthetic", "llp": "synthetic-llp"}
"""What `synthesise` calls a layout -> what the set is called."""
DATASET = {"ave-weak": "synthetic", "ave": "synthetic", "avvp": "synthetic-llp"}
PAIR, CLASSIC = "learned", "classic"
STORE_OF = {
    PAIR: "tokens-efficientnet-lite0-yamnet",
    CLASSIC: "tokens-classic",
    "truth": "captions-file-hashed",
    "tags": "captions-tags-hashed",
    "descriptor": "captions-descriptor-hashed",
}
ALL = ("probe", "none", "lavish", "dg-sct", "avmoe", "caste", "case", "full")
READERS = ("none", "case", "full")
"""What reads captions, beside what reads none."""
STRESS = "shift=2,swap=0.5,mute=0.5,blind=0.5,cut=0.5,caption_swap=1"


@dataclass(frozen=True)
class Table:
    """One comparison: tokens (`PAIR` or `CLASSIC`), captions of the recipes that read any, recipes."""

    tokens: str
    captions: str
    recipes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tokens}-{self.captions}"


TABLES = (
    Table(PAIR, "truth", ALL),
    Table(PAIR, "tags", READERS),
    Table(PAIR, "descriptor", READERS),
    Table(CLASSIC, "truth", ("none", "avmoe", "caste", "case", "full")),
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
        said = home / f"{dataset}-truth.csv"
        write_truth(home, dataset, said)
        file = [
            "--visual",
            "file",
            "--visual-weights",
            str(said),
            "--audio",
            "file",
            "--audio-weights",
            str(said),
        ]
        caeav("caption", *at, *file)


def write_truth(home: Path, dataset: str, to: Path) -> None:
    """A table of captions that tell the truth of a generated set, in the words of `tags`."""
    from caeav.manifests.core.home import Home
    from caeav.manifests.remembered import media_root
    from caeav.manifests.synthetic.truth import truth_of
    from caeav.pipeline.captioners.tags.words import sound, thing
    from caeav.pipeline.store import StoreReader

    root = media_root(Home(home), dataset)
    lines = (root / "truth.jsonl").read_text("utf-8").splitlines()
    truths = {row.get("name", row["id"]): row for row in map(json.loads, lines)}
    clips = StoreReader.open(store_of(home, dataset, STORE_OF[PAIR])).manifest.clips
    with to.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["key", "visual", "audio"])
        for clip in clips:
            row = truth_of(clip, truths)
            table.writerow(
                [clip.key, _told(row["seen"], "A picture", thing), _told(row["heard"], "The sound", sound)]
            )


def _told(seconds: Sequence[Sequence[str]], begin: str, say: Callable[[str], str]) -> str:
    """`A picture of a dog in segments 2 to 5.`; `seconds`: the classes of each second."""
    from caeav.pipeline.captioners.tags.words import Claim, sentence

    names = sorted({name for second in seconds for name in second})
    found = [
        Claim(name.replace("_", " "), np.array([name in second for second in seconds])) for name in names
    ]
    found.sort(key=lambda claim: int(claim.active.argmax()))
    return sentence(f"{begin} of", found, [True] * len(seconds), f"{begin}.", say)


def store_of(home: Path, dataset: str, name: str) -> Path:
    """The one store whose folder begins with `name`."""
    found = sorted((home / "stores" / dataset).glob(f"{name}-*"))
    if len(found) != 1:
        raise SystemExit(
            f"{len(found)} stores {name} of {dataset} in {home}; one is needed: use another --home"
        )
    return found[0]


def assignments(home: Path, task: str, table: Table) -> list[str]:
    """All that is set, on top of the recipes."""
    stores = {"tokens": table.tokens, "captions": table.captions}
    named = [
        f"stores.{kind}={store_of(home, DATASET[task], STORE_OF[made]).name}" for kind, made in stores.items()
    ]
    return [*CHOSEN["common"], *CHOSEN["tokens"][table.tokens], *CHOSEN["tasks"][task], *named]


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
    caeav("compare", *words, "--stress", STRESS, *given, *out)


def print_settings(home: Path, tasks: Sequence[str]) -> None:
    """The whole configuration of every row, as YAML: task, table, recipe."""
    from caeav.model.train.config_file import resolve_recipes

    for table, task in itertools.product(TABLES, tasks):
        options = {name: {"dataset": DATASET[task]} for name in table.recipes}
        found = resolve_recipes(task, table.recipes, None, assignments(home, task, table), options)
        for recipe, config in found.items():
            whole = {f"{task}, {table}, {recipe}": config.model_dump(mode="json")}
            print(yaml.safe_dump(whole, sort_keys=False))


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
    parser.add_argument("--settings", action="store_true", help="train nothing, print every configuration")
    options = parser.parse_args()
    if options.settings:
        print_settings(options.home, options.tasks)
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


if __name__ == "__main__":
    main()
