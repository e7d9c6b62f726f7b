"""Do adapters and captions help on learned tokens, real sounds, unseen drawings? Prints the tables of docs/RESULTS.md.

    python benchmarks/material.py --shared FOLDER --home caeav_home/material [--jobs 2]

FOLDER holds `data/material` (pictures and `pictures.csv`), `data/esc_subset` (recordings and `ESC.csv`), `data/media`
(videos for backgrounds) and `weights` (EfficientNet-Lite0, YAMNet and its names). Makes the world in the layouts of AVE
and LLP, tokens of the learned pair and of `classic`, and three kinds of captions: `tags`, `descriptor`, and `truth`:
sentences in the words of `tags` that name what is seen, what is heard, and when. Then trains every model on every task
with every seed; the checkpoint is chosen on val, test is scored once. Models with captions are scored once more with
every clip's captions exchanged for another clip's.

Can be interrupted: finished steps are gone over quickly, a finished cell is a file in `<home>/cells`. What matters most
is trained first. `--tables` trains nothing and prints what is there; `--settings` prints the whole configuration of
every row. All choices are in benchmarks/settings/material.yaml.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from cells import cell_file, spread, train_cell, train_cells

if TYPE_CHECKING:
    from caeav.model.train.experiment import Experiment
    from caeav.model.train.runs import Run

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
CAPTIONS = ("truth", "tags", "descriptor")
GUIDED = ("case", "full")
"""Recipes that read captions; the first captions are trained first."""
PLAIN = ("caste", "avmoe")


@dataclass(frozen=True)
class Row:
    """A row of a table: tokens (`PAIR` or `CLASSIC`), recipe, and captions if it reads any."""

    tokens: str
    recipe: str
    captions: str = ""

    def __str__(self) -> str:
        return f"{self.recipe}, {self.captions}" if self.captions else self.recipe


def groups() -> list[list[Row]]:
    """All rows, what matters most first; a group is trained on every task before the next."""
    guided = {words: [Row(PAIR, recipe, words) for recipe in GUIDED] for words in CAPTIONS}
    return [
        [Row(PAIR, "none"), *guided[CAPTIONS[0]]],
        [row for words in CAPTIONS[1:] for row in guided[words]],
        [Row(PAIR, recipe) for recipe in PLAIN],
        [Row(CLASSIC, "none"), *(Row(CLASSIC, "full", words) for words in ("truth", "descriptor"))],
    ]


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


def assignments(home: Path, task: str, row: Row) -> tuple[str, ...]:
    """All that is set for a row, on top of its recipe."""
    dataset, what = DATASET[task], "none" if row.recipe == "none" else "adapters"
    found = [*CHOSEN["common"], *CHOSEN["tokens"][row.tokens], *CHOSEN["models"][what]]
    found.append(f"stores.tokens={store_of(home, dataset, STORE_OF[row.tokens]).name}")
    if row.captions:
        found.append(f"stores.captions={store_of(home, dataset, STORE_OF[row.captions]).name}")
    return (*found, *CHOSEN["tasks"][task][what])


def cells(home: Path, tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, Row, int, Path]]:
    """(task, row, seed, file), rows that matter most first."""
    for group in groups():
        for task, row, seed in itertools.product(tasks, group, seeds):
            settings = assignments(home, task, row)
            name = f"{task}-{row.tokens}-{str(row).replace(', ', '-')}-s{seed}"
            decides = [task, row.recipe, DATASET[task], settings, seed, CHOSEN["world"]]
            yield task, row, seed, cell_file(home, name, decides)


def train_row(home: Path, task: str, row: Row, seed: int, file: Path) -> float:
    """Train and publish one cell; CPU seconds it took."""
    training = {
        "task": task,
        "recipe": row.recipe,
        "dataset": DATASET[task],
        "assignments": assignments(home, task, row),
        "seed": seed,
    }
    told = {"task": task, "tokens": row.tokens, "recipe": row.recipe, "captions": row.captions, "seed": seed}
    return train_cell(home, training, {**told, "settings": training["assignments"]}, file, look)


def look(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Of the best weights on test: terms of the score per clip, agreement, and the score with captions exchanged."""
    from caeav.model.tasks.config import StressConfig
    from caeav.model.train.agreement import judge, read_calibration
    from caeav.model.train.session import load_best
    from caeav.model.train.stress import Stress

    model, config = experiment.build(), experiment.config
    load_best(run, model)
    scores = experiment.score(model, "test")
    top, bottom = scores.evidence.parts[experiment.task.metric]
    found: dict[str, Any] = {"terms": [top.tolist(), bottom.tolist()]}
    if config.model.adapters.caste.enabled:
        judged = judge(experiment, model, "test", read_calibration(run))
        found["agreement"] = {key: getattr(judged, key) for key in ("auc", "calibration_error", "against")}
    if config.captions:
        exchanged = Stress(StressConfig(caption_swap=1.0))
        found["swapped"] = {
            split: experiment.score(model, split, exchanged).value for split in ("val", "test")
        }
    return found


def print_task(task: str, found: Mapping[tuple[Row, int], Mapping[str, Any]], seeds: Sequence[int]) -> None:
    """One line a row that has results; differences over the seeds that both have."""
    print(f"\n{task}")
    print(
        "| tokens | model | seeds | val | test | test minus none | AUC | calibration error | another clip's captions |"
    )
    print("|---" * 9 + "|")
    for row in itertools.chain(*groups()):
        held = {seed: found[row, seed] for seed in seeds if (row, seed) in found}
        if not held:
            continue
        own = {split: spread([cell["scores"][split] for cell in held.values()]) for split in ("val", "test")}
        print(
            f"| {row.tokens} | {row} | {len(held)} | {own['val']} | {own['test']} | "
            f"{_gap(found, row, held)} | {_agreement(held, 'auc')} | {_agreement(held, 'calibration_error')} | "
            f"{_swapped(held)} |"
        )


def _gap(found: Mapping[tuple[Row, int], Mapping[str, Any]], row: Row, held: Mapping[int, Any]) -> str:
    """Mean difference to `none`, with its 95 % interval over seeds and test clips, both paired."""
    import torch

    from caeav.model.tasks.bootstrap import interval_over_seeds

    base = Row(row.tokens, "none")
    common = [seed for seed in held if (base, seed) in found]
    if row == base or not common:
        return ""
    cells = [[found[which, seed] for seed in common] for which in (row, base)]
    one, other = ([cell["scores"]["test"] for cell in side] for side in cells)
    terms = [[tuple(torch.tensor(part) for part in cell["terms"]) for cell in side] for side in cells]
    low, high = interval_over_seeds(*terms)
    return f"{statistics.fmean(one) - statistics.fmean(other):+.1f} ({low:+.1f} to {high:+.1f})"


def _agreement(held: Mapping[int, Mapping[str, Any]], key: str) -> str:
    values = [cell["agreement"][key] for cell in held.values() if "agreement" in cell]
    return "" if not values or None in values else f"{statistics.fmean(values):.3f}"


def _swapped(held: Mapping[int, Mapping[str, Any]]) -> str:
    lost = [cell["swapped"]["test"] - cell["scores"]["test"] for cell in held.values() if "swapped" in cell]
    return spread(lost) if lost else ""


def print_settings(home: Path, tasks: Sequence[str]) -> None:
    """The whole configuration of every row, as YAML: task, then row."""
    from caeav.model.train.config_file import resolve_config

    for task, row in itertools.product(tasks, itertools.chain(*groups())):
        options = {"dataset": DATASET[task]}
        config = resolve_config(task, row.recipe, None, assignments(home, task, row), options)
        print(
            yaml.safe_dump({f"{task}, {row.tokens}, {row}": config.model_dump(mode="json")}, sort_keys=False)
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, help="needed unless --tables")
    parser.add_argument("--home", type=Path, default=Path("caeav_home/material"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--tasks", nargs="+", choices=list(DATASET), default=list(DATASET))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cells", type=int, help="train at most so many now")
    parser.add_argument("--tables", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--settings", action="store_true", help="train nothing, print every configuration")
    options = parser.parse_args()
    if options.settings:
        print_settings(options.home, options.tasks)
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.tables:
        if options.shared is None:
            parser.error("--shared: which folder holds material, recordings, videos and weights?")
        make_world(options.home, options.shared)
    every = list(cells(options.home, options.tasks, seeds))
    todo = [cell for cell in every if not cell[3].exists()][: 0 if options.tables else options.cells]
    train_cells(
        [(f"{t} {r.tokens} {r} seed {s}", train_row, (options.home, t, r, s, f)) for t, r, s, f in todo],
        options.jobs,
    )
    done = {(t, r, s): json.loads(f.read_text("utf-8")) for t, r, s, f in every if f.exists()}
    print(f"{len(done)} of {len(every)} cells, seeds {options.seeds}")
    for task in options.tasks:
        print_task(task, {(r, s): cell for (t, r, s), cell in done.items() if t == task}, seeds)


if __name__ == "__main__":
    main()
