"""CLIP's text towers through open_clip: `clip-vit-l14`, `clip-vit-b32`, and others by `open_clip:<name>`.

Tokens are those after the tower's final norm, before pooling: begin of text, words, end of text. Attention is causal,
so they do not see the padding behind the end. A text that is too long is cut and keeps its end.
Shapes: `N` texts, `W` tokens (77), `C` channels (768 for ViT-L/14).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.clip_visual import FILES, OPENAI, import_open_clip, published_by
from caeav.pipeline.backbones.text_tower import TextTower
from caeav.pipeline.backbones.weights import WeightsError, find_weights
from caeav.pipeline.backbones.weights.load import load_checked, read_weights, seeded, strip_prefixes

_KNOWN = ("visual.", "text.", "token_embedding.", "transformer.")
_ELSEWHERE = ("visual.", "logit_scale", "logit_bias")


class ClipText(TextTower):
    """A text tower of open_clip, with open_clip's own byte-pair tokenizer."""

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
        with seeded(weights):
            tower = self._clip.model._build_text_tower(
                self._embedded, self._text, quick_gelu=self._settings["quick_gelu"]
            )
        if weights.seed is None:
            state = strip_prefixes(read_weights(weights), lambda name: name.startswith(_KNOWN))
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
        # the first end of text, since a text may spell one out
        ends = (ids == self._tokenizer.eot_token_id).int().argmax(dim=1)
        return ids, torch.arange(self.max_tokens) <= ends.unsqueeze(1)

    def run(self, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids -> tokens after the final norm."""
        tower = cast(Any, module)
        x, causal = tower._embeds(ids)
        if causal is not None and causal.ndim == 2:
            causal = causal[: self.max_tokens, : self.max_tokens]
        return cast(Tensor, tower.ln_final(tower.transformer(x, attn_mask=causal)))


def clip_text(choice: ModelChoice) -> ClipText:
    """OpenAI's CLIP by its name here."""
    weights = find_facts(choice.name, "text encoder").weights
    return ClipText(choice, OPENAI[choice.name], weights, quick_gelu=True)


def open_clip_text(choice: ModelChoice) -> ClipText:
    """`open_clip:<architecture>`; its weights must be named."""
    return ClipText(choice, choice.variant, "")
