"""The network of every task: a trunk of adapters with the task's head on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from caeav.model.adapters.batch import NEGATIVE, Inputs, TokenBatch, TrunkOutput
from caeav.model.adapters.live import Live
from caeav.model.adapters.trunk import Trunk, build_trunk
from caeav.model.tasks.base import Task
from caeav.model.tasks.config import Modalities, ModelConfig


@dataclass
class Output:
    """`found`: the output of the task's head; `trunk`: that of the adapters."""

    found: Any
    trunk: TrunkOutput


class Network(nn.Module):
    """Tokens of a batch in, the head's output out. `call_head(head, trunk, batch)` runs the head."""

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        call_head: Callable[[nn.Module, TrunkOutput, TokenBatch], Any],
        modalities: Modalities = "both",
    ) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self._call_head, self._modalities = call_head, modalities

    def forward(self, batch: TokenBatch) -> Output:
        """A batch -> `Output`."""
        trunk: TrunkOutput = self.trunk(batch)
        if NEGATIVE in batch.extra:
            alone = cast(Trunk, self.trunk).frozen_visual(batch.extra[NEGATIVE])
            batch = replace(batch, extra={**batch.extra, NEGATIVE: alone})
        if self._modalities != "both":
            trunk, batch = blind(trunk, batch, self._modalities)
        return Output(self._call_head(self.head, trunk, batch), trunk)


def blind(trunk: TrunkOutput, batch: TokenBatch, modalities: Modalities) -> tuple[TrunkOutput, TokenBatch]:
    """Zero the tokens of the modality that a baseline must not use, wherever a head could read them."""

    def zeroed(held: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(x) if _is_visual(name) else x for name, x in held.items()}

    if modalities in ("audio", "neither"):
        trunk = replace(trunk, visual=torch.zeros_like(trunk.visual), aux=zeroed(trunk.aux))
        batch = replace(batch, extra=zeroed(batch.extra))
    if modalities in ("visual", "neither"):
        trunk = replace(trunk, audio=torch.zeros_like(trunk.audio))
    return trunk, batch


def _is_visual(name: str) -> bool:
    """Whether an auxiliary tensor or extra input comes from frames."""
    return name.endswith(".visual") or name.startswith(("visual.", "motion."))


def build_network(task: Task, inputs: Inputs, config: ModelConfig, live: Live | None = None) -> Network:
    """The network for `inputs`; raises `CaeavError` when they do not fit.

    `live`: the frozen backbones, needed by the inject placement only.
    """
    adapters = config.adapters if config.modalities == "both" else config.adapters.off()
    trunk = build_trunk(inputs.spec, adapters, live)
    if config.probe.kind != "none":
        return Network(trunk, task.build_probe(inputs, config), _call_probe)
    trunk.keep_stages = task.keeps_stages
    return Network(trunk, task.build_head(trunk, inputs, config.head), task.forward, config.modalities)


def _call_probe(head: nn.Module, trunk: TrunkOutput, batch: TokenBatch) -> Any:
    """A probe reads the batch's own tokens."""
    return head(batch)
