"""The world in AVE's layout: the official lists beside the media, and the truth of every second.

    AVE/<id>.mp4      media
    Annotations.txt   Category&VideoID&Quality&StartTime&EndTime, header line first
    trainSet.txt, valSet.txt, testSet.txt   the same rows by split, without header, as in the real set
    categories.txt    class names in label order
    truth.jsonl       per clip: id, category, split, kind, start_s, end_s, cut_s, and for each second `seen` and `heard`
                      (lists of class names) and `label` (a class name or `background`)

The lists are written after the last media file, so a folder with `Annotations.txt` is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from caeav.manifests.clip import SPLITS
from caeav.manifests.synthetic import oracle, scenario
from caeav.manifests.synthetic.casting import used_files
from caeav.manifests.synthetic.layouts.base import TRUTH_FILE, truth_row, write_lines, write_mp4
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario

HEADER = "Category&VideoID&Quality&StartTime&EndTime"
QUALITY = "good"  # as in every row of the real set


class _Ave:
    measure = "accuracy per second"

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        return scenario.plan(options, index)

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        return root / "AVE" / f"{scenario.clip_id}.mp4"

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        write_mp4(self.last_file(root, scenario, split), options, scenario, split)

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        names = options.names()
        order = sorted(range(len(scenarios)), key=lambda i: (scenarios[i].category, i))
        rows = [(splits[i], official_row(scenarios[i], names)) for i in order]
        write_lines(root / "categories.txt", names)
        truth = [
            {**truth_row(scenarios[i], splits[i], names), **used_files(options, scenarios[i], splits[i])}
            for i in order
        ]
        write_lines(root / TRUTH_FILE, map(json.dumps, truth))
        for split in SPLITS:
            write_lines(root / f"{split}Set.txt", [row for where, row in rows if where == split])
        write_lines(root / "Annotations.txt", [HEADER, *(row for _, row in rows)])

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        return oracle.scores(scenarios, options.classes)


def official_row(scenario: Scenario, names: Sequence[str]) -> str:
    """The clip's line in the official lists."""
    return "&".join(
        (names[scenario.category], scenario.clip_id, QUALITY, str(scenario.start_s), str(scenario.end_s))
    )


LAYOUT = _Ave()
