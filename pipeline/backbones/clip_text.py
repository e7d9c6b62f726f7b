"""CLIP's text towers through open_clip: `clip-vit-l14`, `clip-vit-b32`, and others by `open_clip:<name>`.

Tokens are those after the tower's final norm, before anything is pooled: begin of text, words, end of text. Attention
is causal, so the padding behind the end is not seen by them. A text that is too long is cut, its end kept.
Shapes: `N` texts, `W` tokens (77), `C` channels (768 for ViT-L/14).

What learned text encoders have in common: a network on any device, texts in, tokens and their mask out.

All texts of a call are one batch of one length, so that the numbers of a text depend on the size of the batch, not
on its neighbours; whoever calls keeps the size fixed. An empty text (a missing modality) gives zeros and no real token.
Shapes: `N` texts, `W` tokens, `C` channels.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.clip_visual import FILES, OPENAI, import_open_clip, published_by
from caeav.pipeline.backbones.weights import WeightsError, find_weights
from caeav.pipeline.backbones.weights.load import load_checked, read_weights, unwrapped


class TextTower(ABC):
    """A frozen text encoder; the network is built and loaded on first use."""

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
        """All settings, and where the weights come from."""

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


_KNOWN = ("visual.", "text.", "token_embedding.", "transformer.")
_ELSEWHERE = ("visual.", "logit_scale", "logit_bias")


class ClipText(TextTower):
    """A text tower of open_clip with open_clip's own byte-pair tokenizer."""

    def __init__(
        self, choice: ModelChoice, architecture: str, weights: str, *, quick_gelu: bool = False
    ) -> None:
        self._clip = import_open_clip()
        config = self._clip.get_model_config(architecture)
        self._text = dict(config["text_cfg"]) if config else {}
        if not config or {"hf_model_name", "hf_tokenizer_name", "embed_cls"} & self._text.keys():
            raise CaeavError(
                f"open_clip has no text tower of its own tokenizer in {architecture!r}",
                hint="choose ViT-B-32, ViT-L-14, ViT-H-14 or another of open_clip.list_models()",
            )
        self._embedded = config["embed_dim"]
        longest = self._text.get("context_length", 77)
        activation = quick_gelu or bool(config.get("quick_gelu"))
        self._settings = choice.resolve({"max_tokens": longest, "quick_gelu": activation})
        self._weights = find_weights(
            choice,
            default=weights,
            wants=FILES,
            origin="" if weights else published_by(self._clip, architecture),
        )
        self._tokenizer = self._clip.SimpleTokenizer(context_length=longest)
        vocabulary = self._text.get("vocab_size", 49408)
        if self._tokenizer.vocab_size != vocabulary:
            raise CaeavError(
                f"open_clip's tokenizer has {self._tokenizer.vocab_size} entries, {architecture} needs {vocabulary}",
                hint="choose a model with CLIP's own vocabulary",
            )
        super().__init__(choice.name, self._settings["max_tokens"], self._text.get("width", 512), longest)

    def describe(self) -> Mapping[str, Any]:
        """Length, activation and weights."""
        return {"settings": dict(self._settings), "weights": self._weights.describe()}

    def build(self) -> nn.Module:
        """The tower, filled from a checkpoint of both towers."""
        weights = self._weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.seed or 0)
            tower = self._clip.model._build_text_tower(
                self._embedded, self._text, quick_gelu=self._settings["quick_gelu"]
            )
        if weights.seed is None:
            state = unwrapped(read_weights(weights), lambda name: name.startswith(_KNOWN))
            state = {
                name.removeprefix("text."): x for name, x in state.items() if not name.startswith(_ELSEWHERE)
            }
            if not state:
                raise WeightsError(
                    f"{weights.source} holds no text tower", hint="give a checkpoint of the whole CLIP"
                )
            load_checked(tower, state, source=weights.source)
        return cast(nn.Module, tower)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids `[N, W]`, and a mask that ends with the end of text."""
        ids = self._tokenizer(list(texts), context_length=self.max_tokens)
        ends = (
            (ids == self._tokenizer.eot_token_id).int().argmax(dim=1)
        )  # the first, should a text spell one out
        return ids, torch.arange(self.max_tokens) <= ends.unsqueeze(1)

    def run(self, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids -> tokens after the final norm."""
        tower = cast(Any, module)
        x, causal = tower._embeds(ids)
        if causal is not None and causal.ndim == 2:
            causal = causal[: self.max_tokens, : self.max_tokens]
        return cast(Tensor, tower.ln_final(tower.transformer(x, attn_mask=causal)))


def clip_text(choice: ModelChoice) -> ClipText:
    """OpenAI's CLIP by its name here; the weights are those of its picture tower."""
    architecture, weights = OPENAI[choice.name]
    return ClipText(choice, architecture, weights, quick_gelu=True)


def open_clip_text(choice: ModelChoice) -> ClipText:
    """`open_clip:<architecture>`; its weights must be named."""
    return ClipText(choice, choice.variant, "")
