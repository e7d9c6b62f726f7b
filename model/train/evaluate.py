"""Running a network: on which device, in which precision, and its official score on a split.

Selection during training and evaluation afterwards share `score`, so they give the same number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.model.adapters.batch import Inputs, TokenBatch
from caeav.model.tasks.base import Scores, Task
from caeav.model.tasks.config import RunConfig
from caeav.model.train.data import SplitData, read_batches, row_groups
from caeav.model.train.processes import ONE, Processes, as_tensor, from_tensor

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "cuda:1")
GPU = re.compile(r"cuda(?::(\d+))?")
MEDIA, ROWS = "media", "rows"
"""Beside what a scorer measures: which segments have a medium, and what an observer says."""


def choose_device(name: str, processes: Processes = ONE) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:<number>`; of several processes each takes a GPU of its own.

    Raises `CaeavError` for other names, and for GPUs that are not there.
    """
    found = GPU.fullmatch(name)
    if name not in ("auto", "cpu") and not found:
        raise CaeavError(f"unknown device {name!r}", hint=choices(name, DEVICES))
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CaeavError(
            f"training.device: {name!r}, but torch finds no CUDA device",
            hint="--device auto, or --device cpu",
        )
    number = int(found[1]) if found and found[1] else None
    if processes.count > 1:
        if number is not None:
            raise CaeavError(
                f"{name} for {processes.count} processes", hint="--device cuda: each takes its own"
            )
        number = processes.local
    if number is not None and number >= torch.cuda.device_count():
        raise CaeavError(
            f"GPU {number}, but torch finds {torch.cuda.device_count()} here, numbered from 0",
            hint="name one of these, or start fewer processes",
        )
    return torch.device("cuda" if number is None else f"cuda:{number}")


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision in `bf16` or `fp16`; `fp32` changes nothing."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=AUTOCAST[precision]):
        yield


class Observer(Protocol):
    """Makes rows of a network's predictions for each scored batch, and takes them in the order of the samples."""

    def rows(self, first: int, batch: TokenBatch, output: Any) -> list[dict[str, Any]]:
        """JSON values about the samples from number `first` on; batch and output are on the device."""
        ...

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Called in the main process only."""
        ...


def each_batch(
    measure: Callable[[TokenBatch, int], dict[str, Tensor]],
    data: SplitData,
    rows: Sequence[int],
    config: RunConfig,
    processes: Processes,
) -> Iterator[dict[str, Tensor]]:
    """What `measure` makes of the batches of `rows`, in order, each computed by one of the processes; it is also told
    the first of a batch's rows."""
    limits = config.training
    groups = list(row_groups(rows, limits.batch_size))
    own = groups[processes.rank :: processes.count]
    read = read_batches(data, own, limits.workers)
    made = (measure(batch, group[0]) for group, batch in zip(own, read, strict=True))
    return processes.in_order(made, len(groups))


@torch.no_grad()
def score(
    task: Task,
    model: nn.Module,
    data: SplitData,
    inputs: Inputs,
    config: RunConfig,
    device: torch.device,
    observe: Observer | None = None,
    processes: Processes = ONE,
) -> Scores:
    """Score `model` on all samples of `data` in their fixed order; train or eval mode is restored afterwards.

    Several processes take turns with whole batches, and all of them return the score. `observe` sees every batch.
    """
    training = model.training
    model.eval()
    scorer = task.build_scorer(inputs, config)
    bare = segments = 0

    def measure(batch: TokenBatch, first: int) -> dict[str, Tensor]:
        on_device = batch.to(device, torch.float32)
        with autocast(device, config.training.precision):
            output = model(on_device)
        media = batch.frames_ok | batch.audio_ok
        rows = {} if observe is None else {ROWS: as_tensor(observe.rows(first, on_device, output))}
        return {MEDIA: media, **rows, **scorer.measure(output.found, on_device)}

    try:
        for measured in each_batch(measure, data, range(len(data)), config, processes):
            media = measured.pop(MEDIA)
            bare += int((~media).sum())
            segments += media.numel()
            rows = measured.pop(ROWS, None)
            if rows is not None and observe is not None and processes.main:
                observe.keep(from_tensor(rows))
            scorer.take(measured)
    finally:
        model.train(training)
    scores = replace(scorer.result(), without_media=(bare, segments))
    if scores.evidence is not None:
        scores = replace(scores, evidence=scores.evidence.by_clip(data.clip_of))
    return scores
