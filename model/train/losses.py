"""What training minimises: a task's own losses and what adapters ask for, each by its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from caeav.model.adapters.batch import TokenBatch
from caeav.model.losses.guidance import guidance_losses

if TYPE_CHECKING:
    from caeav.model.tasks.config import RunConfig
    from caeav.model.train.network import Output
    from caeav.model.tasks.base import Task


def weighted_losses(task: Task, output: Output, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
    """Named scalars, already weighted; their sum is minimised. A weight of 0 leaves a loss out."""
    named = {
        **task.losses(output.found, batch, config),
        **output.trunk.losses,
        **guidance_losses(output.trunk, batch),
    }
    weights = config.loss.model_dump()
    return {name: loss * weights[name] for name, loss in named.items() if weights[name]}
