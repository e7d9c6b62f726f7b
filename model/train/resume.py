"""What a killed training needs to go on as if nothing had happened: one file, replaced whole after every epoch
and, where the run asks for it, after every so many steps.

`checkpoints/last.safetensors` holds the weights (`model.<name>`), the optimiser's tensors
(`optimiser.<parameter>/<slot>`) and, as JSON in its header, the counters. Every epoch draws its random numbers from a
seed made of the run's seed and the epoch; only within one are the generators (`random.<name>`) and the sums of the
losses so far (`losses.<name>`) saved too. `state.json` is a readable copy of the counters. The best weights are written
beside and take their name only after `last` says that they are the best, so a kill between the two files cannot pair
the counters of one epoch with the weights of another.

The state of every random generator that training draws from, as tensors: what a stop in mid-epoch has to keep.
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

PREFIX = "random."
_PYTHON, _NUMPY, _TORCH, _CUDA = (PREFIX + name for name in ("python", "numpy", "torch", "cuda."))


def generator_states() -> dict[str, Tensor]:
    """States of python's, numpy's and torch's generators (all devices), by names that begin with `random.`."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one, as seed_epoch seeds it
    words = [*numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]]
    states = {
        _PYTHON: torch.tensor(random.getstate()[1], dtype=torch.int64),
        _NUMPY: torch.tensor(words, dtype=torch.int64),
        _TORCH: torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states |= {f"{_CUDA}{i}": x for i, x in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Put back what `generator_states` gave; what normal draws have half used up is not kept, as nothing does so."""
    random.setstate((3, tuple(states[_PYTHON].tolist()), None))
    words = states[_NUMPY].numpy()
    state = ("MT19937", words[:-1].astype(np.uint32), int(words[-1]), 0, 0.0)
    np.random.set_state(state)  # noqa: NPY002
    torch.set_rng_state(states[_TORCH])
    cuda = [states[name] for name in sorted(states) if name.startswith(_CUDA)]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda[: torch.cuda.device_count()])


SUMS = "losses."
LAST, BEST, PENDING, STATE = "last.safetensors", "best.safetensors", "best-pending.safetensors", "state.json"


@dataclass
class Progress:
    """Counters of a training after `epoch` finished epochs; `best` is the selection metric's best value, `peaks` the
    best that every number on the selection split reached, each in an epoch of its own; `position`: samples of the
    epoch after that already learnt from."""

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    stopped_early: bool = False
    scaler: dict[str, Any] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    position: int = 0

    def improves(self, value: float) -> bool:
        """Whether `value` is better than everything before; the first of equals stays the best."""
        return self.best is None or value > self.best


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed python, numpy and torch (all devices) for epoch `epoch`; 0 stands for building the model."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - third-party code may draw from the global generator
    torch.manual_seed(mixed)


def save_progress(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    *,
    is_best: bool,
    within: Mapping[str, Tensor] | None = None,
) -> None:
    """Publish the state after an epoch, with `is_best` its weights become `best.safetensors`; or, with what
    `Within.tensors` gives, in the middle of one."""
    weights = model.state_dict()
    if is_best:
        write_tensors(folder / PENDING, weights, {"epoch": progress.epoch, "value": progress.best})
    tensors = {f"model.{name}": x for name, x in weights.items()} | _optimiser_tensors(optimiser)
    write_tensors(folder / LAST, tensors | dict(within or {}), asdict(progress))
    settle_best(folder, progress)
    publish_text(folder / STATE, json.dumps(asdict(progress), indent=2) + "\n")


def settle_best(folder: Path, progress: Progress) -> None:
    """Give pending best weights their name if `last` knows of them, else remove them."""
    pending = folder / PENDING
    if not pending.exists():
        return
    if read_facts(pending).get("epoch") == progress.best_epoch:
        pending.replace(folder / BEST)
        sync_folder(folder)
    else:
        unpublish(pending)


@dataclass
class Within:
    """Where an epoch was interrupted: the sums of the losses so far, and the generators to go on with (empty: none)."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Both by their names in the file."""
        return {f"{SUMS}{name}": x for name, x in self.sums.items()} | self.generators

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Within:
        """The part of a file's tensors that belongs here."""
        return cls(
            {name.removeprefix(SUMS): x for name, x in tensors.items() if name.startswith(SUMS)},
            {name: x for name, x in tensors.items() if name.startswith(PREFIX)},
        )


def load_progress(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[Progress, Within]:
    """Restore the last saved state into `model` and `optimiser`; a fresh `Progress` when there is none."""
    path = folder / LAST
    if not path.exists():
        unpublish(folder / PENDING)
        return Progress(), Within()
    tensors, facts = read_tensors(path)
    if set(facts) != {f.name for f in fields(Progress)}:
        raise CheckpointError(
            f"{path} holds the counters {sorted(facts)}", hint="it was written by another version of caeav"
        )
    progress = Progress(**facts)
    load_into(
        model, {n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")}, path
    )
    _restore_optimiser(optimiser, {n: x for n, x in tensors.items() if n.startswith("optimiser.")})
    settle_best(folder, progress)
    return progress, Within.of(tensors)


def _parameter_names(optimiser: torch.optim.Optimizer) -> list[str]:
    """Names in the order in which the optimiser numbers its parameters."""
    return [name for group in optimiser.param_groups for name in group["names"]]


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _parameter_names(optimiser)
    return {
        f"optimiser.{names[i]}/{slot}": torch.as_tensor(value)
        for i, slots in optimiser.state_dict()["state"].items()
        for slot, value in slots.items()
    }


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    number = {name: i for i, name in enumerate(_parameter_names(optimiser))}
    state: dict[int, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, slot = full.removeprefix("optimiser.").rpartition("/")
        state.setdefault(number[name], {})[slot] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
