"""From names of components to a store's recipe, and from a recipe back to its components.

A recipe is settled before any work: which decoder, sampling, backbones or captioners with all their settings,
dtype and shard size. Building components from a recipe checks that they still are what the recipe says: a component
is made from a `ModelChoice`, and what it describes of itself in the recipe leads back to one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from caeav.manifests.errors import CaeavError
from caeav.manifests.keys import slug
from caeav.manifests.registry import Registry
from caeav.pipeline.backbones import audio_backbones, text_backbones, visual_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.protocol import MediaBackbone, TextBackbone
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.protocol import Captioner
from caeav.pipeline.decode.media import Decoder, Sampling
from caeav.pipeline.decode.registry import DEFAULT_DECODER, decoders
from caeav.pipeline.store.recipe import Recipe, recipe_differences
from caeav.pipeline.weights.find import HUB, RANDOM
from caeav.pipeline.weights.memory import recall

P = TypeVar("P", MediaBackbone, Captioner, TextBackbone)
DTYPES = ("float16", "float32")
SILENT_RATE_HZ = 16_000
"""Rate of sound when no component asks for one."""


@dataclass(frozen=True)
class TokenOptions:
    """What decides the tokens of a store besides the data set."""

    visual: ModelChoice | str = "classic"
    audio: ModelChoice | str = "classic"
    decoder: str = DEFAULT_DECODER
    dtype: str = "float16"
    shard_clips: int = 64


@dataclass(frozen=True)
class CaptionOptions:
    """What decides the captions of a store besides the data set: captioners, and the text backbone of each."""

    visual: ModelChoice | str = "descriptor"
    audio: ModelChoice | str = "descriptor"
    visual_text: ModelChoice | str = "hashed"
    audio_text: ModelChoice | str = "hashed"
    decoder: str = DEFAULT_DECODER
    dtype: str = "float16"
    shard_clips: int = 64


@dataclass(frozen=True)
class TokenParts:
    """The running components of a token recipe."""

    decoder: Decoder
    sampling: Sampling
    visual: MediaBackbone
    audio: MediaBackbone


@dataclass(frozen=True)
class CaptionParts:
    """The running components of a caption recipe, without its text backbones (see `text_parts`)."""

    decoder: Decoder
    sampling: Sampling
    visual: Captioner
    audio: Captioner


def token_recipe(segments: int, segment_s: float, options: TokenOptions) -> Recipe:
    """The recipe of a token store; raises `CaeavError` for unknown names or values."""
    visual, audio = _make(visual_backbones, options.visual), _make(audio_backbones, options.audio)
    return Recipe(
        "tokens",
        _joined(visual.name, audio.name),
        {
            **_shared_fields(segments, segment_s, audio.rate_hz, options),
            "visual": {**_component(visual), "taps": _taps(visual)},
            "audio": {**_component(audio), "taps": _taps(audio)},
        },
    )


def caption_recipe(segments: int, segment_s: float, options: CaptionOptions) -> Recipe:
    """The recipe of a caption store; raises `CaeavError` for unknown names or values."""
    visual, audio = _make(visual_captioners, options.visual), _make(audio_captioners, options.audio)
    texts = (_make(text_backbones, options.visual_text), _make(text_backbones, options.audio_text))
    return Recipe(
        "captions",
        _joined(visual.name, audio.name, *sorted(text.name for text in texts)),
        {
            **_shared_fields(segments, segment_s, audio.rate_hz, options),
            "visual": {**_component(visual), "text": _component(texts[0])},
            "audio": {**_component(audio), "text": _component(texts[1])},
        },
    )


def token_parts(recipe: Recipe) -> TokenParts:
    """Build and check the components of a token recipe; raises `CaeavError` naming the fields that differ."""
    check_recipe(recipe)
    fields = recipe.fields
    return TokenParts(
        _decoder(fields),
        _sampling(fields),
        _make(visual_backbones, described_choice(fields["visual"])),
        _make(audio_backbones, described_choice(fields["audio"])),
    )


def caption_parts(recipe: Recipe) -> CaptionParts:
    """Build and check the components of a caption recipe; raises `CaeavError` naming the fields that differ."""
    check_recipe(recipe)
    fields = recipe.fields
    return CaptionParts(
        _decoder(fields),
        _sampling(fields),
        _make(visual_captioners, described_choice(fields["visual"])),
        _make(audio_captioners, described_choice(fields["audio"])),
    )


def text_parts(recipe: Recipe) -> dict[Literal["visual", "audio"], TextBackbone]:
    """The text backbone of each modality of a caption recipe; one instance when both name the same."""
    visual, audio = (described_choice(recipe.fields[side]["text"]) for side in ("visual", "audio"))
    first = _make(text_backbones, visual)
    return {"visual": first, "audio": first if audio == visual else _make(text_backbones, audio)}


def described_choice(described: Mapping[str, Any]) -> ModelChoice:
    """The choice that a component's part of a recipe was made from, its weights found by their digest.

    Weights that this machine does not remember are looked for under the hub name the recipe gives, if it gives one.
    """
    settings, weights = described.get("settings", {}), described.get("weights", {})
    digest, source = weights.get("digest", ""), weights.get("source", "")
    return ModelChoice(
        described["name"], digest if recall(digest) or not _named(source) else source, settings
    )


def _named(source: str) -> bool:
    """Whether a source means the same on every machine, as a file's name does not."""
    return source.startswith((HUB, RANDOM))


def decoder_remark(recipe: Recipe) -> str:
    """What to say when the decoder is not the version the recipe names; empty when it is."""
    stored = recipe.fields["decoder"]
    now = decoders[stored["name"]]().version()
    return "" if now == stored["version"] else f"decoded by {now}, the store by {stored['version']}"


def check_recipe(recipe: Recipe) -> None:
    """The components named must describe themselves as the recipe says; the decoder's version may differ."""
    try:
        fields, sampling = recipe.fields, recipe.fields["sampling"]
        parts: dict[str, Any] = {side: described_choice(fields[side]) for side in ("visual", "audio")}
        general = {name: fields[name] for name in ("dtype", "shard_clips")} | {
            "decoder": fields["decoder"]["name"]
        }
        texts: dict[str, Any] = {
            f"{side}_text": described_choice(fields[side]["text"])
            for side in parts
            if recipe.kind == "captions"
        }
        segments, segment_s = sampling["segments"], sampling["segment_s"]
    except (KeyError, TypeError) as error:
        raise CaeavError(f"the recipe lacks {error}", hint="extract again with this program") from error
    now = (
        token_recipe(segments, segment_s, TokenOptions(**parts, **general))
        if recipe.kind == "tokens"
        else caption_recipe(segments, segment_s, CaptionOptions(**parts, **texts, **general))
    )
    stored, wanted = recipe.as_json(), now.as_json()
    wanted["fields"]["decoder"] = stored["fields"]["decoder"]
    differences = recipe_differences(stored, wanted)
    if differences:
        raise CaeavError(
            f"this program no longer makes what the recipe {recipe.folder_name} says: {'; '.join(differences)}",
            hint="use the program (and weights) that made the store, or extract again and train on the new store",
        )


def _shared_fields(
    segments: int, segment_s: float, rate_hz: int | None, options: TokenOptions | CaptionOptions
) -> dict[str, Any]:
    if options.dtype not in DTYPES:
        raise CaeavError(f"unknown dtype {options.dtype!r}", hint=f"choose one of: {', '.join(DTYPES)}")
    decoder = decoders[options.decoder]()
    return {
        "decoder": {"name": decoder.name, "version": decoder.version()},
        "sampling": {"segments": segments, "segment_s": segment_s, "rate_hz": rate_hz or SILENT_RATE_HZ},
        "dtype": options.dtype,
        "shard_clips": options.shard_clips,
    }


def _make(registry: Registry[Callable[[ModelChoice], P]], wanted: ModelChoice | str) -> P:
    choice = ModelChoice.of(wanted)
    return registry[choice.name](choice)


def _joined(*names: str) -> str:
    """The components' names as the readable part of a folder's name, each once."""
    return slug("-".join(name.replace(":", "-").replace(".", "_") for name in dict.fromkeys(names)))


def _component(part: MediaBackbone | Captioner | TextBackbone) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(json.dumps(dict(part.describe()), allow_nan=False))
    return {"name": part.name, **described}


def _taps(backbone: MediaBackbone) -> list[dict[str, Any]]:
    return [{"name": tap.name, "tokens": tap.tokens, "channels": tap.channels} for tap in backbone.taps()]


def _decoder(fields: Mapping[str, Any]) -> Decoder:
    return decoders[fields["decoder"]["name"]]()


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    return Sampling(**fields["sampling"])
