"""What all official layouts share, and the layouts by name: `generate.py` knows nothing else of them.

A set's folder holds, besides the official files of its layout:

    dataset.json      segments, their length, and every option; written first, it claims the folder
    truth.jsonl       one line per clip: what is true of it
    material.csv      where there is material: the files that were used, with their split
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.atomic import TEMP_PREFIX, publish_bytes, publish_text
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.registry import Registry
from caeav.manifests.synthetic import oracle
from caeav.manifests.synthetic.casting import cast, used_files
from caeav.manifests.synthetic.classes import BACKGROUND
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, generator

OPTIONS_FILE = "dataset.json"
TRUTH_FILE = "truth.jsonl"
MATERIAL_FILE = "material.csv"
LIBRARIES = ("av", "numpy")


class Layout(Protocol):
    """One data set's files. Clips are planned and written independently of each other, lists at the end."""

    measure: str
    """What `scores` measures, in words."""

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        """The scenario of clip `index`, from (seed, index) alone."""
        ...

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        """The file of a clip that is written last; if it exists, the clip is complete."""
        ...

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        """Write the media of one clip."""
        ...

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        """Write the official lists and the truth; files that are already right are left alone."""
        ...

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        """How far perfect knowledge of one modality goes, and of both."""
        ...


layouts: Registry[Layout] = Registry("layout")
layouts.register_lazily("ave", "caeav.manifests.synthetic.layouts.ave:LAYOUT")
layouts.register_lazily("llp", "caeav.manifests.synthetic.layouts.llp:LAYOUT")
layouts.register_lazily("avs-s4", "caeav.manifests.synthetic.layouts.avsbench:S4")
layouts.register_lazily("avs-ms3", "caeav.manifests.synthetic.layouts.avsbench:MS3")
layouts.register_lazily("music-avqa", "caeav.manifests.synthetic.layouts.music_avqa:LAYOUT")


def claim(root: Path, options: SyntheticOptions) -> None:
    """Make `root` the folder of these options, or check that it is.

    Raises `CaeavError` if it was made with other options, naming the differences, or if it holds other files.
    """
    path = root / OPTIONS_FILE
    if path.exists():
        _check_same_options(path, options.to_json())
        return
    if root.is_dir() and any(not entry.name.startswith(TEMP_PREFIX) for entry in root.iterdir()):
        raise CaeavError(
            f"{root} holds files but no {OPTIONS_FILE}, so it is not a generated set",
            hint="give an empty or new folder",
        )
    libraries = LIBRARIES if options.material is None else (*LIBRARIES, "pillow")
    facts = {
        "segments": options.seconds,
        "segment_s": 1.0,
        "synthetic": options.to_json(),
        "made_with": {name: version(name) for name in libraries},
    }
    publish_text(path, json.dumps(facts, indent=2) + "\n")


def _check_same_options(path: Path, wanted: dict[str, Any]) -> None:
    try:
        made = json.loads(path.read_text("utf-8"))["synthetic"]
        names = sorted(set(made) | set(wanted))
    except (ValueError, KeyError, TypeError) as error:
        raise CaeavError(
            f"{path} does not describe a generated set", hint="give an empty or new folder"
        ) from error
    differences = [
        f"{name}: {made.get(name)!r} in the folder, {wanted.get(name)!r} asked for"
        for name in names
        if made.get(name) != wanted.get(name)
    ]
    if differences:
        raise CaeavError(
            f"{path.parent} was made with other options:\n  - " + "\n  - ".join(differences),
            hint="ask for the same options, or give another folder",
        )


def assign_splits(options: SyntheticOptions, scenarios: Sequence[Scenario]) -> list[str]:
    """The split of every clip: the wanted shares within each class and overall, to within one clip.

    Class by class and in random order, each clip goes to the split that lags most behind its share.
    """
    shuffled = generator(options, "shares", options.classes).permutation(len(scenarios))
    counts = [0] * len(SPLITS)
    result = [""] * len(scenarios)
    for done, i in enumerate(sorted(shuffled, key=lambda i: scenarios[i].category), start=1):
        behind = [share * done - count for share, count in zip(options.splits, counts, strict=True)]
        chosen = behind.index(max(behind))
        counts[chosen] += 1
        result[i] = SPLITS[chosen]
    return result


def write_mp4(path: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
    """Render a scenario into a video file."""
    from caeav.manifests.synthetic.audio import waveform
    from caeav.manifests.synthetic.media import mp4
    from caeav.manifests.synthetic.render import frames

    players = cast(options, scenario, split)
    data = mp4(
        frames(options, scenario, players),
        waveform(options, scenario, players),
        size_px=options.size_px,
        fps=options.fps,
        rate_hz=options.rate_hz,
    )
    publish_bytes(path, data)


def truth_row(scenario: Scenario, split: str, names: Sequence[str]) -> dict[str, Any]:
    """The clip's line in the truth file."""
    event = range(scenario.start_s, scenario.end_s)
    category = names[scenario.category]
    return {
        "id": scenario.clip_id,
        "category": category,
        "split": split,
        "kind": scenario.kind,
        "start_s": scenario.start_s,
        "end_s": scenario.end_s,
        "cut_s": scenario.cut_s,
        "seen": [[names[c] for c in second] for second in scenario.seen],
        "heard": [[names[c] for c in second] for second in scenario.heard],
        "label": [category if t in event else BACKGROUND for t in range(len(scenario.seen))],
    }


def write_truth(
    root: Path,
    options: SyntheticOptions,
    scenarios: Sequence[Scenario],
    splits: Sequence[str],
    names: Sequence[str],
) -> None:
    """Write the truth file of a layout whose lists call clips by `names` of their own."""
    classes = options.names()
    rows = [
        {"name": name, **truth_row(scenario, split, classes), **used_files(options, scenario, split)}
        for name, scenario, split in zip(names, scenarios, splits, strict=True)
    ]
    write_lines(root / TRUTH_FILE, [json.dumps(row) for row in rows])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Publish a text file, unless it already holds exactly this."""
    text = "".join(f"{line}\n" for line in lines)
    if not path.exists() or path.read_text("utf-8") != text:
        publish_text(path, text)
