"""Opening the backbones of token stores for the inject placement, for commands that train or apply a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caeav.cli.console import say
from caeav.manifests.core.home import Home

if TYPE_CHECKING:
    from caeav.model.adapters.live import Live, LiveOpener
    from caeav.pipeline.store import Recipe


def live_opener(home: Home) -> LiveOpener:
    """What makes a run's backbones when its placement needs them; weights are found by what `home` remembers."""

    def opened(recipes: Sequence[Recipe]) -> Live:
        from caeav.model.adapters.live import Live
        from caeav.pipeline.live import open_live
        from caeav.pipeline.backbones.weights import remember_at

        remember_at(home, say)
        say("loading the backbones that the adapters are placed in")
        return Live(open_live(recipes, "visual"), open_live(recipes, "audio"))

    return opened
