"""The losses of a batch that several processes hold parts of: each runs the network on its clips, all compute the
losses of the whole batch from what the heads of all of them give.

`weighted_losses` is therefore the same function as in one process, whatever it compares across clips. Gradients are
averaged over processes by torch's `DistributedDataParallel`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.adapters.whole_batch import Part, by_sample, gather, gathered, sharing
from caeav.model.tasks.base import Task
from caeav.model.tasks.config import RunConfig
from caeav.model.train.losses import weighted_losses
from caeav.model.train.network import Output
from caeav.model.train.processes import Processes


class LossesOfPart(nn.Module):
    """A part of a batch -> weighted losses of the whole batch, equal in all processes."""

    def __init__(self, task: Task, model: nn.Module, config: RunConfig) -> None:
        super().__init__()
        self.model = model
        # Else torch warns where all parameters have a part in the first loss.
        self.unused = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))
        self._task, self._config = task, config

    def forward(self, batch: TokenBatch, part: Part) -> dict[str, Tensor]:
        """All processes call this at the same time, each with its part."""
        with sharing(part):
            output: Output = self.model(batch)
            with by_sample():
                found = self._task.gather_output(output.found, self._config.loss)
            trunk = cast(TrunkOutput, GatheredTrunk(output.trunk))
            return weighted_losses(
                self._task, Output(found, trunk), gathered_batch(batch, part), self._config
            )


class StepLosses:
    """Losses of the batches of a training step, in one process or several."""

    def __init__(self, task: Task, model: nn.Module, config: RunConfig, processes: Processes) -> None:
        self._task, self._model, self._config = task, model, config
        self._shared: DistributedDataParallel | None = None
        if processes.count > 1:
            # Statistics of batch norms are equal anyway; which parameters have no part in a loss depends on the batch.
            warnings.filterwarnings("ignore", "Grad strides do not match")  # costs a copy of a small vector
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", FutureWarning
                )  # the option's new name is unknown to older versions
                self._shared = DistributedDataParallel(
                    LossesOfPart(task, model, config), broadcast_buffers=False, find_unused_parameters=True
                )

    def __call__(self, batch: TokenBatch, part: Part) -> dict[str, Tensor]:
        """Weighted losses of the whole batch by name."""
        if self._shared is None:
            return weighted_losses(self._task, self._model(batch), batch, self._config)
        return cast(dict[str, Tensor], self._shared(batch, part))

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a batch; only the last one of a step exchanges gradients."""
        if self._shared is None or last:
            return nullcontext()
        return cast(AbstractContextManager[None], self._shared.no_sync())


def gathered_batch(batch: TokenBatch, part: Part) -> TokenBatch:
    """What losses read of a batch, of the whole batch: all but tokens and extra inputs."""

    def of_clips(x: Tensor | None) -> Tensor | None:
        return None if x is None else gather(x)

    clip_of = batch.clip_of
    with by_sample():
        targets = {name: gather(x) for name, x in batch.targets.items()}
        if part.size > sum(part.clips):
            own = torch.arange(len(batch.keys), device=batch.frames_ok.device) if clip_of is None else clip_of
            clip_of = gather(own + part.first_clip)
    return TokenBatch(
        keys=[],
        visual={},
        audio={},
        frames_ok=gather(batch.frames_ok),
        audio_ok=gather(batch.audio_ok),
        visual_caption=of_clips(batch.visual_caption),
        visual_caption_mask=of_clips(batch.visual_caption_mask),
        audio_caption=of_clips(batch.audio_caption),
        audio_caption_mask=of_clips(batch.audio_caption_mask),
        targets=targets,
        clip_of=clip_of,
        sound_from=of_clips(batch.sound_from),
    )


class GatheredTrunk:
    """A `TrunkOutput` of the whole batch; a tensor is gathered when it is first read, since most are never read.

    Losses of the trunk itself, and other scalars, are those of the whole batch already.
    """

    def __init__(self, own: TrunkOutput) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        held = gathered(getattr(self._own, name))
        setattr(self, name, held)
        return held

    @property
    def losses(self) -> dict[str, Tensor]:
        """As they are."""
        return self._own.losses

    @cached_property
    def aux(self) -> Mapping[str, Tensor]:
        """By name, each gathered when it is read."""
        return _Gathered(self._own.aux)


class _Gathered(Mapping[str, Tensor]):
    def __init__(self, own: Mapping[str, Tensor]) -> None:
        self._own = own
        self._held: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._held:
            self._held[name] = gathered(self._own[name])
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)
