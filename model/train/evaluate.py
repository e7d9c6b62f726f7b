"""A network's official score over one split, the same number during training and afterwards."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from caeav.model.adapters.batch import Inputs
from caeav.model.tasks.base import Scores, Task
from caeav.model.tasks.config import RunConfig
from caeav.model.train.data import SplitData, batches
from caeav.model.train.loop import autocast


@torch.no_grad()
def score(
    task: Task, model: nn.Module, data: SplitData, inputs: Inputs, config: RunConfig, device: torch.device
) -> Scores:
    """Score `model` over all samples of `data` in their fixed order; the mode of the model is restored."""
    training, limits = model.training, config.training
    model.eval()
    scorer = task.build_scorer(inputs, config)
    bare = segments = 0
    try:
        for batch in batches(data, range(len(data)), limits.batch_size, limits.workers):
            bare += int((~(batch.frames_ok | batch.audio_ok)).sum())
            segments += batch.frames_ok.numel()
            on_device = batch.to(device, torch.float32)
            with autocast(device, limits.precision):
                output = model(on_device)
            scorer.add(output.found, on_device)
    finally:
        model.train(training)
    scores = replace(scorer.result(), without_media=(bare, segments))
    if scores.evidence is not None:
        scores = replace(scores, evidence=scores.evidence.by_clip(data.clip_of))
    return scores
