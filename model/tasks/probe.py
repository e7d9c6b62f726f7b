"""Probes: pooled tokens of chosen taps and one layer, the floor that every comparison shows.

No adapters, no attention, no look at other seconds. Each task turns the layer's numbers into its own output
(`Task.build_probe`); tasks whose answer is not in the mean token of a second have none. `T` segments, `C` channels of
all taps together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import InputSpec, TokenBatch
from caeav.model.tasks.config import ProbeConfig
from caeav.model.tasks.layers import ChannelNorm
from caeav.pipeline.store.record import Tap


def chosen_taps(spec: InputSpec, names: Sequence[str]) -> tuple[list[Tap], list[Tap]]:
    """The visual and the audio taps called `names`, the deepest of each modality for no names; raises `CaeavError`."""
    if not names:
        return list(spec.visual[-1:]), list(spec.audio[-1:])
    held = [tap.name for tap in (*spec.visual, *spec.audio)]
    unknown = [name for name in names if name not in held]
    if unknown:
        raise CaeavError(
            f"model.probe.taps: {', '.join(unknown)}; the stores hold {', '.join(held)}",
            hint="choose among those, or leave the setting out for the deepest tap of each modality",
        )
    return [tap for tap in spec.visual if tap.name in names], [tap for tap in spec.audio if tap.name in names]


def no_probe(task: str, why: str) -> CaeavError:
    """The error of a task that has no probe."""
    return CaeavError(
        f"a probe for {task}: {why}", hint="--recipe none trains the task's own head without adapters"
    )


class Probe(nn.Module):
    """Mean tokens of the taps, normalised, side by side -> one layer, or one with a hidden layer before it."""

    def __init__(self, taps: Sequence[Tap], outputs: int, config: ProbeConfig, input_norm: str) -> None:
        super().__init__()
        self.names = [tap.name for tap in taps]
        width = sum(tap.channels for tap in taps)
        self.norm = ChannelNorm(input_norm, width)
        self.layer: nn.Module = nn.Linear(width, outputs)
        if config.kind == "mlp":
            self.layer = nn.Sequential(
                nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, outputs)
            )

    def forward(self, batch: TokenBatch) -> Tensor:
        """A batch -> `[B, T, outputs]`."""
        held = {**batch.visual, **batch.audio}
        pooled = torch.cat([held[name].mean(dim=2) for name in self.names], dim=-1)
        return self.layer(self.norm(pooled))  # type: ignore[no-any-return]
