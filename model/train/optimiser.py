"""The optimiser and its learning rate over time.

The rate is a pure function of the step, so a schedule has no state to save.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from caeav.model.tasks.config import OptimiserConfig, ScheduleConfig

OPTIMISERS: dict[str, type[torch.optim.Adam] | type[torch.optim.AdamW]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


FAST = ("head.", "trunk.correspondence.")
"""How names of parameters begin that learn at the head's rate: they start from nothing, adapters from a backbone."""
AGREEMENT = ("trunk.correspondence.log_scale", "trunk.correspondence.bias")
"""Scale and shift of the shared agreement. They are of logits and must move by some; a step of Adam is as long as the
rate, whatever the gradient, so at the maps' rate they stay where they start."""


def make_optimiser(
    model: nn.Module,
    config: OptimiserConfig,
    head: str | tuple[str, ...] = FAST,
    *,
    agreement_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """Adapters learn at `lr`, parameters whose names begin with `head` at `lr * head_lr_factor`.

    Those of `AGREEMENT` learn `agreement_lr_factor` times as fast. Weight decay spares vectors and scalars (norms,
    biases, gates). Each group holds its undecayed rate as `base_lr` and the names of its parameters as `names`.
    """

    def rate(name: str) -> float:
        own = config.lr * (config.head_lr_factor if name.startswith(head) else 1.0)
        return own * agreement_lr_factor if name in AGREEMENT else own

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for lr in dict.fromkeys(map(rate, trained)):
        for decays in (True, False):
            held = {name: p for name, p in trained.items() if rate(name) == lr and (p.ndim > 1) == decays}
            if held:
                groups.append(
                    {
                        "params": list(held.values()),
                        "names": list(held),
                        "lr": lr,
                        "base_lr": lr,
                        "weight_decay": config.weight_decay if decays else 0.0,
                    }
                )
    make = OPTIMISERS[config.name]
    return make(groups, fused=True)  # one kernel for hundreds of small tensors saves a fifth of a CPU step


def lr_factor(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Factor on the base rate at optimiser step `step` (0-based)."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "step":
        return config.step_factor ** (step // steps_per_epoch // config.step_epochs)
    if config.name == "cosine":
        done = (step - warmup) / max(epochs * steps_per_epoch - warmup, 1)
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return 1.0


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its base rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
