"""Names of the generated classes in the spelling of AVSBench and MUSIC-AVQA."""

from __future__ import annotations

from caeav.manifests.synthetic.classes import class_names, simple_name


def simple_names(n: int) -> tuple[str, ...]:
    """Of the first `n` classes: `hopping_box_square`, `circling_cross_plus`."""
    return tuple(map(simple_name, class_names(n)))
