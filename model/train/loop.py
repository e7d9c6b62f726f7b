"""The one training loop: epochs of batches, selection on one split, a resumable state after every epoch or step.

On a CPU it is exact: killed at any moment and resumed, it gives the metrics and weights of an undisturbed run,
because each epoch's order and random numbers come from seed and epoch, and all state is published as one file.
It knows no task, prints nothing, and tells its watchers what happens.

The optimiser and its learning rate over time.

The rate is a pure function of the step, so a schedule has no state to save or to lose.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import deterministic

from caeav.manifests.core.errors import CaeavError, choices
from caeav.model.adapters.batch import Epoch
from caeav.model.tasks.base import Scores, Task
from caeav.model.tasks.config import OptimiserConfig, RunConfig, ScheduleConfig
from caeav.model.train.data import SplitData, batches, epoch_order
from caeav.model.train.losses import weighted_losses
from caeav.model.train.resume import (
    Progress,
    Within,
    generator_states,
    load_progress,
    restore_generators,
    save_progress,
    seed_epoch,
)

OPTIMISERS: dict[str, type[torch.optim.Adam] | type[torch.optim.AdamW]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def make_optimiser(model: nn.Module, config: OptimiserConfig, head: str = "head.") -> torch.optim.Optimizer:
    """Two groups: the adapters, and the parameters whose names begin with `head` at `head_lr_factor` times the rate.

    Weight decay spares vectors and scalars (norms, biases, gates). Each group keeps its rate at factor 1 in
    `base_lr`, and the names of its parameters in `names`.
    """
    groups = []
    for is_head in (False, True):
        for decays in (True, False):
            held = {
                name: p
                for name, p in model.named_parameters()
                if p.requires_grad and name.startswith(head) == is_head and (p.ndim > 1) == decays
            }
            if held:
                lr = config.lr * (config.head_lr_factor if is_head else 1.0)
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
    return make(groups, fused=True)  # one kernel for hundreds of small tensors: a fifth of a CPU step saved


def lr_factor(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the base rate is multiplied by at optimiser step `step` (0-based)."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _AFTER_WARMUP[config.name](config, step, steps_per_epoch, epochs)


def _constant(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    return 1.0


def _step(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    return config.step_factor ** (step // steps_per_epoch // config.step_epochs)


def _cosine(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    warmup = config.warmup_epochs * steps_per_epoch
    share = (step - warmup) / max(epochs * steps_per_epoch - warmup, 1)
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


_AFTER_WARMUP = {"none": _constant, "step": _step, "cosine": _cosine}


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its base rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN = 8
DEVICES = ("auto", "cpu", "cuda")


class TrainingError(CaeavError):
    """Training cannot begin or go on."""


class Watcher(Protocol):
    """Someone who is told how training goes."""

    def begin(self, progress: Progress, epochs: int) -> None:
        """Training starts, or goes on after `progress.epoch` finished epochs."""
        ...

    def batch(self, epoch: int, samples: int) -> None:
        """A batch of so many samples was learnt from."""
        ...

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is finished and its state is about to be published."""
        ...

    def end(self) -> None:
        """Training is over, for whatever reason."""
        ...


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> device; raises `TrainingError` for others, and for a CUDA that is not there."""
    if name not in DEVICES:
        raise TrainingError(f"unknown device {name!r}", hint=choices(name, DEVICES))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "training.device: 'cuda', but torch finds no CUDA device", hint="--device auto, or --device cpu"
        )
    return torch.device(name)


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision as configured; `fp32` changes nothing."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=AUTOCAST[precision]):
        yield


@contextmanager
def exact_on_cpu(device: torch.device) -> Iterator[None]:
    """Only deterministic algorithms on a CPU; the settings of the process are restored.

    Filling fresh memory, which comes with them, is a debugging aid that costs a seventh of a step: off.
    """
    switch: Any = deterministic  # a module with properties, which its types do not know
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
    """Trains `model` on `data`; `select` scores it after each epoch; `checkpoints` is the folder of its state."""

    task: Task
    config: RunConfig
    model: nn.Module
    device: torch.device
    data: SplitData
    select: Callable[[], Scores]
    checkpoints: Path
    watchers: Sequence[Watcher] = ()
    optimiser: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = make_optimiser(self.model, self.config.optimiser)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.training.precision == "fp16")

    def fit(self) -> Progress:
        """Train from the last published epoch to the end, or to the early stop."""
        limits = self.config.training
        progress, within = load_progress(self.checkpoints, self.model, self.optimiser)
        if progress.scaler:
            self.scaler.load_state_dict(progress.scaler)
        for watcher in self.watchers:
            watcher.begin(progress, limits.epochs)
        try:
            with exact_on_cpu(self.device):
                while progress.epoch < limits.epochs and not progress.stopped_early:
                    self._one_epoch(progress, within)
                    within = Within()
        finally:
            for watcher in self.watchers:
                watcher.end()
        return progress

    def _one_epoch(self, progress: Progress, within: Within) -> None:
        """Learn, score, tell, publish; `within`: what an interrupted epoch goes on with."""
        began = time.perf_counter()
        number = progress.epoch + 1
        seed_epoch(self.config.seed, number)
        if within.generators:
            restore_generators(within.generators)
        losses, lr = self._learn(number, progress, within.sums)
        learnt = time.perf_counter()
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
        progress.scaler = self.scaler.state_dict() if self.scaler.is_enabled() else {}
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
            "train_s": learnt - began,
            "score_s": time.perf_counter() - learnt,
        }
        for watcher in self.watchers:  # before the state: a resumed run drops lines of unpublished epochs
            watcher.epoch(record)
        save_progress(self.checkpoints, self.model, self.optimiser, progress, is_best=is_best)

    def _learn(
        self, number: int, progress: Progress, sums_before: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], float]:
        """One pass over the data, or the rest of one; mean losses over clips and the last learning rate."""
        limits = self.config.training
        clips, group = len(self.data), limits.batch_size * limits.accumulation
        order = epoch_order(clips, self.config.seed, number, self.data.clip_of, limits.samples_per_clip)
        order = order[progress.position :]
        sums = {name: x.to(self.device) for name, x in sums_before.items()}
        seen, factor = progress.position, 1.0
        self.model.train()
        epoch = Epoch(self.config.seed, number)
        for batch in batches(self.data, order, limits.batch_size, limits.workers, epoch):
            size = len(batch.keys)
            of_step = min(group, clips - seen // group * group)  # clips of this optimiser step
            on_device = batch.to(self.device, torch.float32)
            with autocast(self.device, limits.precision):
                losses = weighted_losses(self.task, self.model(on_device), on_device, self.config)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            self.scaler.scale(total * (size / of_step)).backward()  # type: ignore[no-untyped-call]
            seen += size
            for name, loss in losses.items():
                sums[name] = (
                    sums.get(name, torch.zeros((), device=self.device)) + loss.detach().float() * size
                )
            if seen % group == 0 or seen == clips:
                factor = lr_factor(
                    self.config.schedule, progress.step, math.ceil(clips / group), limits.epochs
                )
                self._step(factor)
                progress.step += 1
                if limits.checkpoint_every_steps and progress.step % limits.checkpoint_every_steps == 0:
                    self._save_within(progress, seen, sums)
            for watcher in self.watchers:
                watcher.batch(number, size)
        self._require_numbers(number, sums)
        # by name, as the sums of a state that was read back come
        means = {name: float(sums[name]) / clips for name in sorted(sums)}
        return means, self.config.optimiser.lr * factor

    def _require_numbers(self, epoch: int, sums: Mapping[str, Tensor]) -> None:
        """Raise `TrainingError` before losses or weights that are no numbers replace a sound state."""
        strange = [f"the loss {name}" for name, x in sums.items() if not bool(x.isfinite())] or [
            name
            for name, p in self.model.named_parameters()
            if p.requires_grad and not bool(p.isfinite().all())
        ]
        if strange:
            raise TrainingError(
                f"in epoch {epoch} not a number any more: {', '.join(strange[:SHOWN])}",
                hint="lower optimiser.lr, or use training.precision=fp32; what was saved before is kept",
            )

    def _save_within(self, progress: Progress, seen: int, sums: Mapping[str, Tensor]) -> None:
        """Publish the state in the middle of an epoch; at its end that is done once it is scored."""
        if seen == len(self.data):
            return
        self._require_numbers(progress.epoch + 1, sums)
        progress.position = seen
        progress.scaler = self.scaler.state_dict() if self.scaler.is_enabled() else {}
        within = Within(dict(sums), generator_states()).tensors()
        save_progress(self.checkpoints, self.model, self.optimiser, progress, is_best=False, within=within)

    def _step(self, factor: float) -> None:
        """One optimiser step with the gradients summed so far."""
        set_lr(self.optimiser, factor)
        if self.config.training.clip_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
