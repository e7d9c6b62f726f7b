"""What learned text encoders share: a torch network on any device, texts in, tokens and their mask out.

All texts of a call are one batch of one length, so the numbers of a text depend on the size of the batch, not on its
other texts; the caller keeps the size fixed. An empty text (a missing modality) gives zeros and no real token.
Shapes: `N` texts, `W` tokens, `C` channels.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError


class TextTower(ABC):
    """A frozen text encoder, whose network is built and loaded on first use."""

    name: str
    max_tokens: int
    channels: int

    def __init__(self, name: str, max_tokens: int, channels: int, longest: int) -> None:
        if not 3 <= max_tokens <= longest:
            raise CaeavError(
                f"max_tokens of {name} is {max_tokens}",
                hint=f"give 3 to {longest}: begin, words and end of a text",
            )
        self.name, self.max_tokens, self.channels = name, max_tokens, channels
        self._module: nn.Module | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """All settings, and the source and digest of the weights."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with its weights."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids `[N, W]` and mask `[N, W]` (True: a token of the text, its begin and end included); `W` is fixed."""

    @abstractmethod
    def run(self, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids -> tokens `[N, W, C]`, on the device of the ids."""

    def module(self) -> nn.Module:
        """The network, frozen, in eval mode."""
        with self._lock:
            if self._module is None:
                self._module = self.build().eval().requires_grad_(False)
            return self._module

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Texts -> tokens `[N, W, C]` (zeros where padded) and mask `[N, W]` (True: a real token)."""
        if not texts:
            shape = (0, self.max_tokens)
            return np.zeros((*shape, self.channels), np.float32), np.zeros(shape, np.bool_)
        ids, mask = self.tokenize(texts)
        module = self.module()
        device = next(module.parameters()).device
        with torch.inference_mode():
            tokens = self.run(module, ids.to(device), mask.to(device)).float().cpu()
        mask &= torch.tensor([bool(text.strip()) for text in texts]).unsqueeze(1)
        return (tokens * mask.unsqueeze(-1)).numpy(), mask.numpy()
