"""AVE's layout: the official lists beside the media, what the set was made from, and the truth of every second.

    AVE/<id>.mp4      media
    Annotations.txt   Category&VideoID&Quality&StartTime&EndTime, header line first
    trainSet.txt, valSet.txt, testSet.txt   the same rows by split, without header, as in the real set
    categories.txt    class names in label order
    dataset.json      segments, their length, and every option; written first, it claims the folder
    truth.jsonl       a line a clip: id, category, split, kind, start_s, end_s, cut_s, and for each second
                      `seen` and `heard` (lists of class names) and `label` (a class name or `background`)

The lists are written after the last media file, so a folder with `Annotations.txt` is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.atomic import TEMP_PREFIX, publish_bytes, publish_text
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic.classes import BACKGROUND, class_names
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, generator

HEADER = "Category&VideoID&Quality&StartTime&EndTime"
QUALITY = "good"  # as in every row of the real set
OPTIONS_FILE = "dataset.json"
TRUTH_FILE = "truth.jsonl"
LIBRARIES = ("av", "numpy")


def media_path(root: Path, scenario: Scenario) -> Path:
    """Where the clip's media file lies."""
    return root / "AVE" / f"{scenario.clip_id}.mp4"


def write_clip(root: Path, options: SyntheticOptions, scenario: Scenario) -> None:
    """Make the media file of one clip."""
    write_mp4(media_path(root, scenario), options, scenario)


def write_mp4(path: Path, options: SyntheticOptions, scenario: Scenario) -> None:
    """Render a scenario into a video file."""
    from caeav.manifests.synthetic.audio import waveform
    from caeav.manifests.synthetic.media import mp4
    from caeav.manifests.synthetic.render import frames

    data = mp4(
        frames(options, scenario),
        waveform(options, scenario),
        size_px=options.size_px,
        fps=options.fps,
        rate_hz=options.rate_hz,
    )
    publish_bytes(path, data)


def claim(root: Path, options: SyntheticOptions) -> None:
    """Make `root` the folder of these options, or see that it already is.

    Raises `CaeavError` naming what differs if it was made with other options, or if it holds other files.
    """
    path = root / OPTIONS_FILE
    if path.exists():
        _compare(path, options.to_json())
        return
    if root.is_dir() and any(not entry.name.startswith(TEMP_PREFIX) for entry in root.iterdir()):
        raise CaeavError(
            f"{root} holds files but no {OPTIONS_FILE}, so it is not a generated set",
            hint="give an empty or new folder",
        )
    facts = {
        "segments": options.seconds,
        "segment_s": 1.0,
        "synthetic": options.to_json(),
        "made_with": {name: version(name) for name in LIBRARIES},
    }
    publish_text(path, json.dumps(facts, indent=2) + "\n")


def _compare(path: Path, wanted: dict[str, Any]) -> None:
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
    """The split of every clip: the asked shares within each class and in all, to within one clip.

    Going through the clips class by class in random order, each goes to the split that is most behind its share.
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


def write_lists(
    root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
) -> None:
    """Write everything but the media and `dataset.json`; files that already hold this are left alone."""
    names = class_names(options.classes)
    order = sorted(range(len(scenarios)), key=lambda i: (scenarios[i].category, i))
    rows = [(splits[i], official_row(scenarios[i], names)) for i in order]
    write_lines(root / "categories.txt", names)
    write_lines(root / TRUTH_FILE, [json.dumps(truth_row(scenarios[i], splits[i], names)) for i in order])
    for split in SPLITS:
        write_lines(root / f"{split}Set.txt", [row for where, row in rows if where == split])
    write_lines(root / "Annotations.txt", [HEADER, *(row for _, row in rows)])


def official_row(scenario: Scenario, names: Sequence[str]) -> str:
    """The clip's line in the official lists."""
    return "&".join(
        (names[scenario.category], scenario.clip_id, QUALITY, str(scenario.start_s), str(scenario.end_s))
    )


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


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Publish a text file, unless it holds just this already."""
    text = "".join(f"{line}\n" for line in lines)
    if not path.exists() or path.read_text("utf-8") != text:
        publish_text(path, text)
