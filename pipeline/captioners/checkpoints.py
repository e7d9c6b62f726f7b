"""What captioners made of a transformers model share: settings, weights, a module for the engine, and the loop.

Every clip gives the same number of inputs (frames, or windows of audio), so that batches of equally many clips have one
size; a clip without the modality gives empty inputs, whose texts are thrown away. A clip's texts become one caption.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.find import WeightsError
from caeav.pipeline.captioners.base import one_caption
from caeav.pipeline.captioners.generate import (
    DTYPES,
    Decoding,
    checkpoint,
    load_model,
    load_processor,
    new_tokens,
    settle_decoding,
)
from caeav.pipeline.captioners.random_models import byte_processor, random_model, sizes
from caeav.pipeline.media.clip import DecodedClip

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""All that is kept of a checkpoint's own generation config."""
SILENT_BELOW = 1e-4
"""Audio whose peak amplitude stays below this (-80 dB) is called silence without asking a model."""
SILENCE = "Silence."


class LearnedCaptioner(ABC):
    """A captioner that writes with a checkpoint; `defaults` are its settings."""

    modality: Literal["visual", "audio"]
    runs_in: Literal["worker", "device"] = "device"
    rate_hz: int | None = None
    defaults: Mapping[str, Any] = {}
    model_types: Sequence[str] = ()
    kept: Sequence[str] = TOKEN_IDS
    image_backend: str | None = None

    def __init__(self, choice: ModelChoice) -> None:
        self.name = choice.name
        self.default_weights = self.default_weights_of(choice)
        self.settings = choice.resolve(self.defaults)
        for name, lowest in (("beams", 1), ("max_tokens", 1), ("frames", 1)):
            if name in self.settings and self.settings[name] < lowest:
                raise CaeavError(
                    f"setting {name!r} of {self.name} is {self.settings[name]}", hint=f"give {lowest} or more"
                )
        if self.settings["dtype"] not in DTYPES:
            raise CaeavError(
                f"setting 'dtype' of {self.name} is {self.settings['dtype']!r}",
                hint=choices(self.settings["dtype"], DTYPES),
            )
        self.weights = checkpoint(choice, self.default_weights, self.model_types)
        if self.weights.seed is not None and self.name not in sizes:
            raise WeightsError(
                f"{self.name} is of no known size, so it cannot have random weights",
                hint="give a checkpoint folder or a hub name",
            )

    def describe(self) -> Mapping[str, Any]:
        """All settings, explicit, and the digest of the checkpoint folder (tokenizer and preprocessing included)."""
        return {"settings": dict(self.settings), "weights": self.weights.describe()}

    def default_weights_of(self, choice: ModelChoice) -> str:
        """The hub name of the default weights; empty where they must be named."""
        return find_facts(choice.name, f"{self.modality} captioner").weights

    @cached_property
    def processor(self) -> Any:
        """What prepares inputs and turns tokens into text; loaded when first used."""
        return (
            load_processor(self.weights, self.image_backend)
            if self.weights.seed is None
            else byte_processor(self.name)
        )

    @cached_property
    def model(self) -> Any:
        """The model, loaded when first used, its decoding settled."""
        settings, seed = self.settings, self.weights.seed
        model = (
            load_model(self.factory(), self.weights, settings["dtype"])
            if seed is None
            else random_model(self.name, self.factory(), seed, settings["dtype"])
        )
        decoding = Decoding(settings["beams"], settings["max_tokens"], settings["repetition_penalty"])
        settle_decoding(model, decoding, self.kept)
        return model

    def module(self) -> nn.Module:
        """The model for the engine to place, frozen, in eval mode; an unusable processor is refused here too."""
        assert self.processor is not None
        model: nn.Module = self.model
        return model

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text per clip; empty without the modality."""
        wanted = [self.inputs(clip) for clip in clips]
        spare = next((inputs for inputs in wanted if inputs), None)
        if spare is None:
            return [""] * len(clips)
        asked = [inputs or self.empty(spare) for inputs in wanted]
        with torch.inference_mode():
            texts = iter(self.write([part for inputs in asked for part in inputs]))
        written = [[next(texts) for _ in inputs] for inputs in asked]
        return [
            self.finish(clip, found) if real else ""
            for real, clip, found in zip(wanted, clips, written, strict=True)
        ]

    def finish(self, clip: DecodedClip, texts: Sequence[str]) -> str:
        """The caption of a clip from the texts of its inputs."""
        return one_caption(texts)

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors on the model's device, floating ones in its format."""
        here = next(iter(self.module().parameters()))
        return {
            name: x.to(here.device, here.dtype) if x.is_floating_point() else x.to(here.device)
            for name, x in inputs.items()
            if isinstance(x, Tensor)
        }

    def generate(self, inputs: Mapping[str, Any], prompt: Tensor) -> list[str]:
        """Run the model and return what it wrote after `prompt` `[N, W]`."""
        return self.decode(self.model.generate(**self.placed(inputs)), prompt)

    def decode(self, output: Tensor, prompt: Tensor) -> list[str]:
        """Texts of generated tokens `[N, W]`, without `prompt`."""
        written = new_tokens(output.cpu(), prompt, self.settings["max_tokens"])
        texts: list[str] = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts

    @abstractmethod
    def factory(self) -> Any:
        """The class of transformers that makes the model."""

    @abstractmethod
    def inputs(self, clip: DecodedClip) -> list[Any]:
        """The clip's frames or windows of audio, as many for every clip; none without the modality."""

    @abstractmethod
    def empty(self, like: Sequence[Any]) -> list[Any]:
        """Inputs like these that fill an empty place in a batch."""

    @abstractmethod
    def write(self, parts: Sequence[Any]) -> list[str]:
        """One text per input."""
