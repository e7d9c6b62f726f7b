"""Which files of the material a clip uses: a picture per object, a recording per voice, a background per shot.

Drawn from (seed, index) among the files of the clip's split, so test shows and plays what train never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caeav.manifests.synthetic.material import MaterialFile
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, generator


@dataclass(frozen=True)
class Cast:
    """The files of one clip. Pictures and recordings are by the numbers in the scenario's `seen` and `heard`; there
    is a background for each shot, or none at all."""

    pictures: Mapping[int, MaterialFile]
    sounds: Mapping[int, MaterialFile]
    backgrounds: tuple[MaterialFile, ...]


def cast(options: SyntheticOptions, scenario: Scenario, split: str) -> Cast | None:
    """The files of a clip of `split`; None in a world of generated shapes and voices."""
    material = options.material
    if material is None:
        return None
    rng = generator(options, "material", scenario.index)
    names = options.names()

    def one_of(kind: str, cls: str) -> MaterialFile:
        files = material.of(kind, cls, split)
        return files[int(rng.integers(len(files)))]

    seen, heard = (sorted(set().union(*track)) for track in (scenario.seen, scenario.heard))
    shots = 1 if scenario.cut_s is None else 2
    return Cast(
        {number: one_of("picture", names[scenario.cls(number)]) for number in seen},
        {number: one_of("sound", names[scenario.cls(number)]) for number in heard},
        tuple(one_of("background", "") for _ in range(shots)) if material.of("background", "", split) else (),
    )


def used_files(options: SyntheticOptions, scenario: Scenario, split: str) -> dict[str, Any]:
    """What a clip's line of truth says of its files: nothing without material, else `material` with the names of
    pictures and sounds by class (by number where a clip has numbered things), and of backgrounds."""
    players = cast(options, scenario, split)
    if players is None:
        return {}

    def by_class(files: Mapping[int, MaterialFile]) -> dict[str, str]:
        return {str(n) if scenario.things else options.names()[n]: file.name for n, file in files.items()}

    return {
        "material": {
            "pictures": by_class(players.pictures),
            "sounds": by_class(players.sounds),
            "backgrounds": [file.name for file in players.backgrounds],
        }
    }
