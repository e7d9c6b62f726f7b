"""The backbones of token stores opened up for adapters inside them, from the stores' recipes.

Each is built from what its recipe says of it (settings, weights by digest) and must describe itself as it did when the
store was made, so that what runs live is what was cached.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.extract.jobs import part_of
from caeav.pipeline.store import Recipe


def open_live(recipes: Sequence[Recipe], side: Literal["visual", "audio"]) -> Any:
    """The live backbone of one modality of joined token stores: a `LiveSwinV2` or a `LiveHtsat`.

    Raises `CaeavError` when the stores have none, or one that has no open blocks, or when its weights are not on this
    machine.
    """
    holding = [recipe for recipe in recipes if side in recipe.fields]
    if len({_identity(recipe, side) for recipe in holding}) != 1:
        names = ", ".join(recipe.fields[side]["name"] for recipe in holding) or "none"
        raise CaeavError(
            f"the joined stores have {names} as {side} backbones; adapters are placed inside one",
            hint="join stores of one visual and one audio backbone: --set stores.tokens=[...]",
        )
    backbone = part_of(holding[0], side)
    opened = getattr(backbone, "live", None)
    if opened is None:
        raise CaeavError(
            f"no adapters can be placed inside {backbone.name}: its blocks are not open",
            hint="extract with a Swin-V2 (--visual swinv2-large) and an HTS-AT (--audio hts-at or clap), "
            "or use the ladder placement",
        )
    return opened()


def _identity(recipe: Recipe, side: str) -> str:
    """All that decides the network and what it is fed; which of its taps a store holds does not."""
    described = {key: value for key, value in recipe.fields[side].items() if key not in ("taps", "settings")}
    settings = {key: x for key, x in recipe.fields[side].get("settings", {}).items() if key != "taps"}
    return json.dumps([described, settings], sort_keys=True)
