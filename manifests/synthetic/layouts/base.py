"""The official layouts the world can be written in, by name: what `generate.py` asks of each.

AVE's own is `layout.py`, which also holds what all share; the others are `llp.py`, `avsbench.py` and `music_avqa.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from caeav.manifests.core.registry import Registry
from caeav.manifests.synthetic import oracle, scenario
from caeav.manifests.synthetic.layouts import ave as layout
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario


class Layout(Protocol):
    """One data set's files. Clips are planned and written independently of each other, lists at the end."""

    measure: str
    """What the scores of `scores` count, in words."""

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        """The scenario of clip `index`, from (seed, index) alone."""
        ...

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        """The file of a clip that is written last; where it is, the clip is whole."""
        ...

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        """Make the media of one clip."""
        ...

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        """Make the official lists and the truth; files that already hold this are left alone."""
        ...

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        """How far perfect knowledge of one sense goes, and of both."""
        ...


class _Ave:
    measure = "accuracy per second"

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        return scenario.plan(options, index)

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        return layout.media_path(root, scenario)

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        layout.write_clip(root, options, scenario)

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        layout.write_lists(root, options, scenarios, splits)

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        return oracle.scores(scenarios, options.classes)


layouts: Registry[Layout] = Registry("layout")
layouts.register("ave")(_Ave())
layouts.register_lazily("llp", "caeav.manifests.synthetic.layouts.llp:LAYOUT")
layouts.register_lazily("avs-s4", "caeav.manifests.synthetic.layouts.avsbench:S4")
layouts.register_lazily("avs-ms3", "caeav.manifests.synthetic.layouts.avsbench:MS3")
layouts.register_lazily("music-avqa", "caeav.manifests.synthetic.layouts.music_avqa:LAYOUT")
