"""The state of every random generator that training draws from, as tensors: what a stop in mid-epoch has to keep."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

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
