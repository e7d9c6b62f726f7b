"""A network's official score over one split, the same number during training and afterwards."""

from __future__ import annotations

import torch
from torch import nn

from caeav.model.data import SplitData, batches
from caeav.model.task import Scores, Task
from caeav.model.train import autocast


@torch.no_grad()
def score(
    task: Task,
    model: nn.Module,
    data: SplitData,
    classes: tuple[str, ...],
    device: torch.device,
    *,
    batch_size: int,
    precision: str = "fp32",
    workers: int = 0,
) -> Scores:
    """Score `model` over all clips of `data` in their fixed order; the mode of the model is restored."""
    training = model.training
    model.eval()
    scorer = task.scorer(classes)
    try:
        for batch in batches(data, range(len(data)), batch_size, workers):
            on_device = batch.to(device, torch.float32)
            with autocast(device, precision):
                output = model(on_device)
            scorer.add(output, on_device)
    finally:
        model.train(training)
    return scorer.result()
