"""Running a network: on which device, in which precision, and its official score on a split.

Selection during training and evaluation afterwards share `score`, so they give the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.model.adapters.batch import Inputs, TokenBatch
from caeav.model.tasks.base import Scores, Task
from caeav.model.tasks.config import RunConfig
from caeav.model.train.data import SplitData, batches

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("auto", "cpu", "cuda")


class DeviceError(CaeavError):
    """A device that is unknown or not there."""


def choose_device(name: str) -> torch.device:
    """The device called `auto`, `cpu` or `cuda`; raises `DeviceError` for other names and where CUDA is missing."""
    if name not in DEVICES:
        raise DeviceError(f"unknown device {name!r}", hint=choices(name, DEVICES))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "training.device: 'cuda', but torch finds no CUDA device", hint="--device auto, or --device cpu"
        )
    return torch.device(name)


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision in `bf16` or `fp16`; `fp32` changes nothing."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=AUTOCAST[precision]):
        yield


Observer = Callable[[TokenBatch, Any], None]
"""Looks at each batch that is scored, on the device, and at what the network made of it."""


@torch.no_grad()
def score(
    task: Task,
    model: nn.Module,
    data: SplitData,
    inputs: Inputs,
    config: RunConfig,
    device: torch.device,
    observe: Observer | None = None,
) -> Scores:
    """Score `model` on all samples of `data` in their fixed order; train or eval mode is restored afterwards."""
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
            if observe is not None:
                observe(on_device, output)
    finally:
        model.train(training)
    scores = replace(scorer.result(), without_media=(bare, segments))
    if scores.evidence is not None:
        scores = replace(scores, evidence=scores.evidence.by_clip(data.clip_of))
    return scores
