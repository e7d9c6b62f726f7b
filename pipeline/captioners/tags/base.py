"""What both `tags` captioners share: their two settings, and that each clip is computed for itself.

A clip's scores do not depend on its batch, so neither do its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caeav.manifests.core.errors import CaeavError

VERSION = 1
"""Of the rules that make words of scores."""
MOST = 3
"""How many things a caption names at most, by default: so many fit the 32 words of the `hashed` text encoder."""


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raises `CaeavError` for a `threshold` outside 0..1 and for fewer than one of `names`."""
    if not 0 < settings["threshold"] <= 1:
        raise CaeavError(
            f"setting 'threshold' of {name} is {settings['threshold']}",
            hint="give a score above 0, at most 1",
        )
    if settings["names"] < 1:
        raise CaeavError(f"setting 'names' of {name} is {settings['names']}", hint="give 1 or more")
