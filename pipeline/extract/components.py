"""Decoders, backbones and captioners as a recipe describes them: made from choices, described, and made anew.

What a component describes of itself in a recipe leads back to the choice it was made from. One that is made anew
must still describe itself the same way. Shapes: `T` segments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.registry import Registry
from caeav.pipeline.backbones.base import MediaBackbone, TextBackbone
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.cache import recall
from caeav.pipeline.backbones.weights.find import HUB, PART, RANDOM
from caeav.pipeline.captioners.base import Captioner
from caeav.pipeline.media.clip import DecodedClip, Decoder, Sampling
from caeav.pipeline.media.registry import decoders
from caeav.pipeline.store.recipe import Recipe

Component = MediaBackbone | Captioner | TextBackbone
P = TypeVar("P", MediaBackbone, Captioner, TextBackbone)
BLACK_PIXELS = 64
"""Height and width of the black frames that stand for missing video."""


def make(registry: Registry[Callable[[ModelChoice], P]], choice: ModelChoice | str) -> P:
    """The component of a choice; raises `CaeavError` for an unknown name, and what the component raises."""
    wanted = ModelChoice.of(choice)
    return registry[wanted.name](wanted)


def described(part: Component) -> dict[str, Any]:
    """What a recipe says of a component; JSON values."""
    fields: dict[str, Any] = json.loads(json.dumps(dict(part.describe()), allow_nan=False))
    return {"name": part.name, **fields}


def described_taps(backbone: MediaBackbone) -> list[dict[str, Any]]:
    """What a recipe says of the taps of a backbone."""
    return [{"name": tap.name, "tokens": tap.tokens, "channels": tap.channels} for tap in backbone.taps()]


def described_choice(fields: Mapping[str, Any]) -> ModelChoice:
    """The choice that a described component was made from, its weights found by their digest.

    Weights that this machine does not remember are looked for under the hub name in the recipe, if there is one.
    """
    settings, weights = fields.get("settings", {}), fields.get("weights", {})
    digest, source = weights.get("digest", ""), weights.get("source", "")
    part = f"{PART}{weights['part']}" if "part" in weights else ""
    portable = source.startswith((HUB, RANDOM))  # means the same on every machine; a file's name does not
    return ModelChoice(fields["name"], source if portable and not recall(digest) else digest + part, settings)


def check_same(recipe: Recipe, differences: Sequence[str]) -> None:
    """Raises `CaeavError` naming the fields in which components differ from what a recipe says of them."""
    if differences:
        raise CaeavError(
            f"this program no longer makes what the recipe {recipe.folder_name} says: {'; '.join(differences)}",
            hint="use the program (and weights) that made the store, or extract again and train on the new store",
        )


def decoder_of(recipe: Recipe) -> Decoder:
    """The decoder a recipe names, in the installed version."""
    return decoders[recipe.fields["decoder"]["name"]]()


def decoder_remark(recipe: Recipe) -> str:
    """What to say when the installed decoder is another version than the recipe names; empty when it is the same."""
    stored, now = recipe.fields["decoder"]["version"], decoder_of(recipe).version()
    return "" if now == stored else f"decoded by {now}, the store by {stored}"


def sampling_of(recipe: Recipe) -> Sampling:
    """What is sampled of a clip."""
    return Sampling(**recipe.fields["sampling"])


def media_input(clip: DecodedClip, modality: str, sampling: Sampling) -> NDArray[Any]:
    """What a backbone of `modality` is given of a clip: `frames_of` or `windows_of`."""
    return frames_of(clip, sampling) if modality == "visual" else windows_of(clip, sampling)


def frames_of(clip: DecodedClip, sampling: Sampling) -> NDArray[np.uint8]:
    """The clip's frames `[T, H, W, 3]`, black where there is no video."""
    if clip.frames is not None:
        return clip.frames
    return np.zeros((sampling.segments, BLACK_PIXELS, BLACK_PIXELS, 3), dtype=np.uint8)


def windows_of(clip: DecodedClip, sampling: Sampling) -> NDArray[np.float32]:
    """The clip's audio in windows `[T, samples]`, silence where there is none."""
    wave = np.zeros(sampling.samples, dtype=np.float32) if clip.wave is None else clip.wave
    if wave.shape != (sampling.samples,):
        raise ValueError(f"the decoder gave {wave.shape[0]} samples instead of {sampling.samples}")
    return wave.reshape(sampling.segments, sampling.segment_samples)
