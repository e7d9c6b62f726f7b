"""The one training loop: epochs of batches, selection on one split, a resumable state after every epoch or step.

On a CPU it is exact: killed at any moment and resumed, it gives the metrics and weights of an undisturbed run,
because order and random numbers of an epoch come from seed and epoch, and all state is published as one file.
It knows no task and prints nothing; watchers are told what happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import deterministic

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import Epoch, TokenBatch
from caeav.model.adapters.whole_batch import Part
from caeav.model.tasks.base import Scores, Task
from caeav.model.tasks.config import RunConfig
from caeav.model.train.data import SplitData, epoch_order, read_batches, row_groups
from caeav.model.train.evaluate import autocast
from caeav.model.train.optimiser import lr_factor, make_optimiser, set_lr
from caeav.model.train.processes import ONE, Processes
from caeav.model.train.resume import (
    MidEpoch,
    Progress,
    generator_states,
    load_progress,
    restore_generators,
    save_progress,
    seed_epoch,
)
from caeav.model.train.shared_step import StepLosses

SHOWN_NAMES = 8


class TrainingError(CaeavError):
    """Training cannot go on."""


class Watcher:
    """Follows a training, such as a log or a progress bar; does nothing by itself."""

    def begin(self, progress: Progress, epochs: int) -> None:
        """Training starts, or continues after `progress.epoch` finished epochs."""

    def batch(self, epoch: int, samples: int) -> None:
        """A batch of `samples` samples was trained on."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is finished; its state is published next."""

    def end(self) -> None:
        """Training has ended: finished, interrupted or failed."""


@contextmanager
def exact_on_cpu(device: torch.device) -> Iterator[None]:
    """Use only deterministic algorithms on a CPU; the process's settings are restored afterwards.

    PyTorch then also fills fresh memory, a debugging aid that costs a seventh of a step: switched off.
    """
    switch: Any = deterministic  # its type stubs miss this property
    before, filled = torch.are_deterministic_algorithms_enabled(), switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    switch.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        switch.fill_uninitialized_memory = filled


@dataclass
class Trainer:
    """Trains `model` on `data`; `select` scores it after each epoch; its state lies in the folder `checkpoints`.

    Several `processes` train the same model, each on a part of every batch; the main one alone saves.
    """

    task: Task
    config: RunConfig
    model: nn.Module
    device: torch.device
    data: SplitData
    select: Callable[[], Scores]
    checkpoints: Path
    watchers: Sequence[Watcher] = ()
    processes: Processes = ONE
    optimiser: torch.optim.Optimizer = field(init=False)
    losses: StepLosses = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = make_optimiser(
            self.model,
            self.config.optimiser,
            agreement_lr_factor=self.config.model.adapters.caste.agreement_lr_factor,
        )
        self.losses = StepLosses(self.task, self.model, self.config, self.processes)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.training.precision == "fp16")

    def fit(self) -> Progress:
        """Train from the last published state to the last epoch or the early stop."""
        limits = self.config.training
        progress, mid_epoch = load_progress(self.checkpoints, self.model, self.optimiser, self.processes)
        if progress.scaler:
            self.scaler.load_state_dict(progress.scaler)
        for watcher in self.watchers:
            watcher.begin(progress, limits.epochs)
        try:
            with exact_on_cpu(self.device):
                while progress.epoch < limits.epochs and not progress.stopped_early:
                    self._run_epoch(progress, mid_epoch)
                    mid_epoch = MidEpoch()
        finally:
            for watcher in self.watchers:
                watcher.end()
        return progress

    def _run_epoch(self, progress: Progress, mid_epoch: MidEpoch) -> None:
        """Train, score, tell the watchers, publish; `mid_epoch`: where an interrupted epoch continues."""
        began = time.perf_counter()
        number = progress.epoch + 1
        seed_epoch(self.config.seed, number)
        if mid_epoch.generators:
            restore_generators(mid_epoch.generators)
        losses, lr = self._train(number, progress, mid_epoch.loss_sums)
        trained = time.perf_counter()
        scores = self.select()
        progress.epoch, progress.position = number, 0
        is_best = progress.improves(scores.value)
        if is_best:
            progress.best, progress.best_epoch = scores.value, number
        scored = set(scores.evidence.parts) if scores.evidence is not None else set()
        reached = {name: value for name, value in scores.details.items() if name in scored}
        for name, value in {self.task.metric: scores.value, **reached}.items():
            progress.peaks[name] = max(value, progress.peaks.get(name, value))
        patience = self.config.training.early_stop_epochs
        progress.stopped_early = bool(patience) and number - progress.best_epoch >= patience
        progress.scaler = self.scaler.state_dict()
        record = {
            "epoch": number,
            "step": progress.step,
            "lr": lr,
            "loss": sum(losses.values()),
            "losses": losses,
            "select_on": self.config.select_on,
            self.task.metric: scores.value,
            "best": progress.best,
            "best_epoch": progress.best_epoch,
            "train_s": trained - began,
            "score_s": time.perf_counter() - trained,
        }
        for (
            watcher
        ) in self.watchers:  # before the state is saved: a resumed run drops lines of unsaved epochs
            watcher.epoch(record)
        if self.processes.main:
            save_progress(self.checkpoints, self.model, self.optimiser, progress, is_best=is_best)

    def _train(
        self, number: int, progress: Progress, sums_before: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], float]:
        """One pass over the data, or the rest of one; mean losses over samples and the last learning rate."""
        limits = self.config.training
        samples, group = len(self.data), limits.batch_size * limits.accumulation
        window = self.config.stores.window_shards or 0
        order = epoch_order(
            samples,
            self.config.seed,
            number,
            self.data.clip_of,
            limits.samples_per_clip,
            self.data.shards if window else None,
            window,
        )
        order = order[progress.position :]
        sums = {name: x.to(self.device) for name, x in sums_before.items()}
        seen, factor = progress.position, 1.0
        self.model.train()
        epoch = Epoch(self.config.seed, number)
        for part, batch in self._parts(order, epoch):
            size = part.size
            of_step = min(group, samples - seen // group * group)  # samples of this optimiser step
            on_device = batch.to(self.device, torch.float32)
            seen += size
            with self.losses.accumulating(last=seen % group == 0 or seen == samples):
                with autocast(self.device, limits.precision):
                    losses = self.losses(on_device, part)
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
                self.scaler.scale(total * (size / of_step)).backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                sums[name] = (
                    sums.get(name, torch.zeros((), device=self.device)) + loss.detach().float() * size
                )
            if seen % group == 0 or seen == samples:
                factor = lr_factor(
                    self.config.schedule, progress.step, math.ceil(samples / group), limits.epochs
                )
                self._step(factor)
                progress.step += 1
                if limits.checkpoint_every_steps and progress.step % limits.checkpoint_every_steps == 0:
                    self._save_mid_epoch(progress, seen, sums)
            for watcher in self.watchers:
                watcher.batch(number, size)
        self._require_finite(number, sums)
        # sorted, because the sums of a restored state are: the total must be summed in the same order
        means = {name: float(sums[name]) / samples for name in sorted(sums)}
        return means, self.config.optimiser.lr * factor

    def _parts(self, order: NDArray[np.int64], epoch: Epoch) -> Iterator[tuple[Part, TokenBatch]]:
        """This process's part of every batch."""
        limits = self.config.training

        def shares() -> Iterator[tuple[Part, list[int]]]:
            for rows in row_groups(order, limits.batch_size):
                part = self.processes.part([self.data.clip_of[row] for row in rows])
                yield part, [rows[place] for place in part.places]

        parts = (part for part, _ in shares())
        return zip(
            parts,
            read_batches(self.data, (rows for _, rows in shares()), limits.workers, epoch),
            strict=True,
        )

    def _require_finite(self, epoch: int, sums: Mapping[str, Tensor]) -> None:
        """Raise `TrainingError` for infinite or NaN losses and weights, before they replace a sound state."""
        broken = [f"the loss {name}" for name, x in sums.items() if not bool(x.isfinite())] or [
            name
            for name, p in self.model.named_parameters()
            if p.requires_grad and not bool(p.isfinite().all())
        ]
        if broken:
            raise TrainingError(
                f"epoch {epoch} gave infinite or NaN values: {', '.join(broken[:SHOWN_NAMES])}",
                hint="lower optimiser.lr, or use training.precision=fp32; the last saved state is kept",
            )

    def _save_mid_epoch(self, progress: Progress, seen: int, sums: Mapping[str, Tensor]) -> None:
        """Publish the state within an epoch; at its end the state waits for the score."""
        if seen == len(self.data):
            return
        self._require_finite(progress.epoch + 1, sums)
        if not self.processes.main:
            return
        progress.position = seen
        progress.scaler = self.scaler.state_dict()
        mid_epoch = MidEpoch(dict(sums), generator_states(self.device))
        save_progress(
            self.checkpoints, self.model, self.optimiser, progress, is_best=False, mid_epoch=mid_epoch
        )

    def _step(self, factor: float) -> None:
        """One optimiser step on the accumulated gradients."""
        set_lr(self.optimiser, factor)
        if self.config.training.clip_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
