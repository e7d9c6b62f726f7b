"""What a killed training needs to go on as if nothing had happened: one file, replaced whole at every save.

`checkpoints/last.safetensors` holds the weights (`model.<name>`), the optimiser's tensors
(`optimiser.<parameter>/<slot>`) and, as JSON in its header, the counters. `state.json` is a readable copy of these.
Every epoch draws its random numbers from the run's seed and its own number, so only a save within an epoch holds the
states of the generators (`random.<name>`) and the sums of the losses so far (`losses.<name>`).

The best weights are written first under a pending name and renamed once `last` names their epoch as the best: a kill
between the two files cannot pair the counters of one epoch with the weights of another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caeav.manifests.core.atomic import publish_text, sync_folder, unpublish
from caeav.model.train.checkpoint import CheckpointError, load_into, read_facts, read_tensors, write_tensors
from caeav.model.train.processes import ONE, Processes

LAST, BEST, PENDING, STATE = "last.safetensors", "best.safetensors", "best-pending.safetensors", "state.json"
WEIGHTS, OPTIMISER, LOSS_SUMS, GENERATORS = "model.", "optimiser.", "losses.", "random."
"""Prefixes of the tensors in `last.safetensors`."""
_PYTHON, _NUMPY, _TORCH, _CUDA = (GENERATORS + name for name in ("python", "numpy", "torch", "cuda."))


@dataclass
class Progress:
    """Counters of a training after `epoch` finished epochs.

    `best`: best value of the selection metric. `peaks`: best value of each number on the selection split, each in its
    own epoch. `position`: samples of the next epoch already trained on.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    stopped_early: bool = False
    scaler: dict[str, Any] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    position: int = 0

    def improves(self, value: float) -> bool:
        """Whether `value` beats everything before; of equal values the first stays the best."""
        return self.best is None or value > self.best


@dataclass
class MidEpoch:
    """Where an epoch was interrupted: the sums of the losses so far and the states of the generators; empty at an
    epoch's end."""

    loss_sums: dict[str, Tensor] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Both, under their names in the file."""
        return {f"{LOSS_SUMS}{name}": x for name, x in self.loss_sums.items()} | self.generators

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> MidEpoch:
        """The inverse of `tensors`, from all tensors of the file."""
        return cls(
            _without_prefix(tensors, LOSS_SUMS),
            {name: x for name, x in tensors.items() if name.startswith(GENERATORS)},
        )


def save_progress(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    *,
    is_best: bool,
    mid_epoch: MidEpoch | None = None,
) -> None:
    """Publish the state after an epoch, or within one as `mid_epoch`; with `is_best` the weights become the best."""
    weights = model.state_dict()
    if is_best:
        write_tensors(folder / PENDING, weights, {"epoch": progress.epoch, "value": progress.best})
    tensors = {f"{WEIGHTS}{name}": x for name, x in weights.items()} | _optimiser_tensors(optimiser)
    write_tensors(folder / LAST, tensors | (mid_epoch or MidEpoch()).tensors(), asdict(progress))
    settle_best(folder, progress)
    publish_text(folder / STATE, json.dumps(asdict(progress), indent=2) + "\n")


def settle_best(folder: Path, progress: Progress) -> None:
    """Rename pending best weights if `last` names their epoch as the best; else remove them."""
    pending = folder / PENDING
    if not pending.exists():
        return
    if read_facts(pending).get("epoch") == progress.best_epoch:
        pending.replace(folder / BEST)
        sync_folder(folder)
    else:
        unpublish(pending)


def load_progress(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, processes: Processes = ONE
) -> tuple[Progress, MidEpoch]:
    """Restore the last saved state into `model` and `optimiser`; a fresh `Progress` when there is none.

    The main process reads it for all.
    """
    path = folder / LAST
    tensors, facts = processes.from_main(lambda: read_tensors(path) if path.exists() else ({}, {}))
    if not facts:
        if processes.main:
            unpublish(folder / PENDING)
        return Progress(), MidEpoch()
    if set(facts) != {f.name for f in fields(Progress)}:
        raise CheckpointError(
            f"{path} holds the counters {sorted(facts)}", hint="it was written by another version of caeav"
        )
    progress = Progress(**facts)
    load_into(model, _without_prefix(tensors, WEIGHTS), path)
    _restore_optimiser(optimiser, _without_prefix(tensors, OPTIMISER))
    if processes.main:
        settle_best(folder, progress)
    return progress, MidEpoch.of(tensors)


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _parameter_names(optimiser: torch.optim.Optimizer) -> list[str]:
    """Names in the order in which the optimiser numbers its parameters."""
    return [name for group in optimiser.param_groups for name in group["names"]]


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _parameter_names(optimiser)
    return {
        f"{OPTIMISER}{names[i]}/{slot}": torch.as_tensor(value)
        for i, slots in optimiser.state_dict()["state"].items()
        for slot, value in slots.items()
    }


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    number = {name: i for i, name in enumerate(_parameter_names(optimiser))}
    state: dict[int, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, slot = full.rpartition("/")
        state.setdefault(number[name], {})[slot] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed python, numpy and torch (all devices) for an epoch, counted from 1; 0 is for building the model."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - third-party code may draw from the global generator
    torch.manual_seed(mixed)


def generator_states(device: torch.device | None = None) -> dict[str, Tensor]:
    """States of python's, numpy's and torch's generators, by their names in the file. Of GPUs that of `device`, which
    trains, is kept for all: whichever go on then draw as it would have."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one, as seed_epoch seeds it
    words = [*numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]]
    states = {
        _PYTHON: torch.tensor(random.getstate()[1], dtype=torch.int64),
        _NUMPY: torch.tensor(words, dtype=torch.int64),
        _TORCH: torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        own = torch.cuda.get_rng_state(device if device is not None and device.type == "cuda" else "cuda")
        states |= {f"{_CUDA}{i}": own for i in range(torch.cuda.device_count())}
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Restore what `generator_states` returned, except for cached normal draws, which training never makes."""
    random.setstate((3, tuple(states[_PYTHON].tolist()), None))
    words = states[_NUMPY].numpy()
    state = ("MT19937", words[:-1].astype(np.uint32), int(words[-1]), 0, 0.0)
    np.random.set_state(state)  # noqa: NPY002
    torch.set_rng_state(states[_TORCH])
    cuda = [states[name] for name in sorted(states) if name.startswith(_CUDA)]
    if cuda and torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            torch.cuda.set_rng_state(cuda[min(i, len(cuda) - 1)], i)
