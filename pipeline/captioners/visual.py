"""Captioners of frames: BLIP-2 (`blip2`), and any image-text-to-text model of transformers (`vlm:<name>`).

Frames are prepared by the checkpoint's own processor, with Pillow (its torchvision form gives other pixels).
Shapes: `T` segments, `N` frames, `W` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.find import HUB, WeightsError
from caeav.pipeline.captioners.base import evenly
from caeav.pipeline.captioners.checkpoints import LearnedCaptioner
from caeav.pipeline.captioners.generate import transformers
from caeav.pipeline.media.clip import DecodedClip

Frame = NDArray[np.uint8]


class FrameCaptioner(LearnedCaptioner):
    """Captions several frames of a clip (setting `frames`), evenly spread over its segments that hold real ones."""

    modality: Literal["visual", "audio"] = "visual"
    image_backend = "pil"

    def inputs(self, clip: DecodedClip) -> list[Frame]:
        """Frames `[H, W, 3]` of the clip."""
        if clip.frames is None:
            return []
        return [clip.frames[t] for t in evenly(clip.frames_ok, self.settings["frames"])]

    def empty(self, like: Sequence[Frame]) -> list[Frame]:
        """Black frames."""
        return [np.zeros_like(frame) for frame in like]


class Blip2(FrameCaptioner):
    """BLIP-2: continues the prompt after the image. The prompt is not part of the caption."""

    model_types = ("blip-2",)
    defaults = {  # noqa: RUF012
        "prompt": "a photo of",
        "frames": 3,
        "beams": 5,
        "max_tokens": 30,
        "repetition_penalty": 1.0,
        "dtype": "float32",
    }

    def factory(self) -> Any:
        """`Blip2ForConditionalGeneration`."""
        return transformers().Blip2ForConditionalGeneration

    def write(self, parts: Sequence[Frame]) -> list[str]:
        """All frames in one batch, whatever their sizes."""
        prompts = [self.settings["prompt"]] * len(parts)
        inputs = dict(self.processor(images=list(parts), text=prompts, return_tensors="pt"))
        places = (inputs["input_ids"] == self.model.config.image_token_id).sum(dim=1)
        needed = self.model.config.num_query_tokens
        if not bool((places == needed).all()):  # the library would go on and never look at the image
            raise WeightsError(
                f"the processor of {self.weights.source} leaves {int(places[0])} places for an image, "
                f"the model needs {needed}",
                hint="give a checkpoint with a current processor (num_query_tokens, image_token_index)",
            )
        return self.generate(inputs, inputs["input_ids"])


class ImageTextModel(FrameCaptioner):
    """Any model of `AutoModelForImageTextToText`: prompted through its chat template, or plainly if it has none."""

    defaults = {  # noqa: RUF012
        "prompt": "Describe this picture in one sentence.",
        "frames": 3,
        "beams": 1,
        "max_tokens": 60,
        "repetition_penalty": 1.0,
        "dtype": "bfloat16",
    }

    def default_weights_of(self, choice: ModelChoice) -> str:
        """The checkpoint on the hub that the name holds."""
        return f"{HUB}{choice.variant}" if "/" in choice.variant else ""

    def factory(self) -> Any:
        """The class that the checkpoint's config names."""
        return transformers().AutoModelForImageTextToText

    def write(self, parts: Sequence[Frame]) -> list[str]:
        """One batch per frame size: how many tokens an image takes may depend on its size."""
        texts = [""] * len(parts)
        for shape in dict.fromkeys(part.shape for part in parts):
            places = [i for i, part in enumerate(parts) if part.shape == shape]
            inputs = self._prepared([parts[i] for i in places])
            for i, text in zip(places, self.generate(inputs, self._prompt(inputs["input_ids"])), strict=True):
                texts[i] = text
        return texts

    def _prompt(self, given: Tensor) -> Tensor:
        """What the output begins with, `[N, W]`: BLIP starts with a token of its own and drops the end token."""
        if self.model.config.model_type != "blip":
            return given
        begin = torch.full_like(given[:, :1], self.model.config.text_config.bos_token_id)
        return torch.cat([begin, given[:, 1:-1]], dim=1)

    def _prepared(self, frames: Sequence[Frame]) -> dict[str, Any]:
        from PIL import Image

        images = [Image.fromarray(frame) for frame in frames]
        prompt = self.settings["prompt"]
        if self.processor.chat_template is None:
            return dict(self.processor(images=images, text=[prompt] * len(images), return_tensors="pt"))
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": x}, {"type": "text", "text": prompt}]}]
            for x in images
        ]
        return dict(
            self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"return_tensors": "pt", "padding": True},
            )
        )
