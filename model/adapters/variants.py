"""Named bundles of adapter settings: `variant` (what is computed) and `preset` (how large it is).

A bundle only sets defaults. Any single setting can be given beside it, which is how each fix is ablated:
`--set model.adapters.variant=revised --set model.adapters.case.gate_gradient=false`. What the published method does
at each place, what the revision does and why is told in docs/VARIANTS.md. A new setting of a bundle belongs in every
bundle of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Variant = Literal["reference", "revised"]
Preset = Literal["reference", "lite"]

FIXES: dict[str, tuple[Any, Any]] = {
    "case.selective_injection": (False, True),
    "case.gate_gradient": (False, True),
    "case.mask_padding": (False, True),
    "avmoe.scaled_attention": (False, True),
    "avmoe.nonlinear_uni": (False, True),
    "avmoe.uniform_target": (False, True),
    "gate_init": (0.0, 0.1),
}
"""Setting -> its value in the reference, its value in the revision."""

SIZES: dict[str, tuple[Any, Any]] = {
    "caste.map_rank": (0, 48),
    "caste.gate_dim": (128, 64),
    "avmoe.token_rank": (0, 16),
    "avmoe.channel_rank": (0, 32),
    "avmoe.router_width": (128, 32),
    "avmoe.reduction": (8, 16),
    "case.width": (0, 192),
    "case.proj_dim": (512, 256),
}
"""Setting -> its value in the reference, its value in `lite`."""


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, `above` winning wherever both say something."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = lay_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _bundle(settings: Mapping[str, tuple[Any, Any]], which: int) -> dict[str, Any]:
    bundle: dict[str, Any] = {}
    for path, values in settings.items():
        part, _, name = path.rpartition(".")
        bundle = lay_over(bundle, {part: {name: values[which]}} if part else {name: values[which]})
    return bundle


VARIANTS: dict[str, dict[str, Any]] = {"reference": _bundle(FIXES, 0), "revised": _bundle(FIXES, 1)}
PRESETS: dict[str, dict[str, Any]] = {"reference": _bundle(SIZES, 0), "lite": _bundle(SIZES, 1)}
