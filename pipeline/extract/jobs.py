"""From names of components to a store's recipe, and from a recipe back to its components.

A recipe is settled before any work: which decoder, sampling, backbones or captioners with all their settings,
dtype and shard size. Building components from a recipe checks that they still are what the recipe says: a component
is made from a `ModelChoice`, and what it describes of itself in the recipe leads back to one.

The backbones of token stores opened up for adapters inside them, from the stores' recipes.

Each is built from what its recipe says of it (settings, weights by digest) and must describe itself as it did when the
store was made, so that what runs live is what was cached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from caeav.manifests.core.errors import CaeavError, choices
from caeav.manifests.core.registry import Registry
from caeav.manifests.keys import slug
from caeav.pipeline.backbones import audio_backbones, text_backbones, visual_backbones
from caeav.pipeline.backbones.base import MediaBackbone, TextBackbone
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.cache import recall
from caeav.pipeline.backbones.weights.find import HUB, PART, RANDOM
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.base import Captioner
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.media.clip import Decoder, Sampling
from caeav.pipeline.media.registry import DEFAULT_DECODER, decoders
from caeav.pipeline.store.backend import BACKEND_FIELD, DEFAULT_BACKEND, backend_field
from caeav.pipeline.store.dtypes import DTYPES
from caeav.pipeline.store.recipe import MODALITIES, Recipe, recipe_differences

P = TypeVar("P", MediaBackbone, Captioner, TextBackbone)
SILENT_RATE_HZ = 16_000
"""Rate of sound when no component asks for one."""
NONE = "none"
"""In the place of a backbone: the store has no tokens of this modality."""


@dataclass(frozen=True)
class TokenOptions:
    """What decides the tokens of a store besides the data set. One of `visual` and `audio` may be `NONE`."""

    visual: ModelChoice | str = "classic"
    audio: ModelChoice | str = "classic"
    decoder: str = DEFAULT_DECODER
    dtype: str = "float16"
    shard_clips: int = 64
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    backend: str = DEFAULT_BACKEND


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
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    backend: str = DEFAULT_BACKEND


@dataclass(frozen=True)
class Job:
    """A recipe and the components it describes, by modality: `parts` see media, `texts` the captions they write.

    A store of tokens has no `texts`, and may lack one modality.
    """

    recipe: Recipe
    parts: Mapping[str, MediaBackbone | Captioner]
    texts: Mapping[str, TextBackbone] = field(default_factory=dict)


def token_job(segments: int, segment_s: float, options: TokenOptions) -> Job:
    """A token store's recipe and backbones; raises `CaeavError` for unknown names or values."""
    parts: dict[str, MediaBackbone] = {}
    for modality, registry, wanted in (
        ("visual", visual_backbones, ModelChoice.of(options.visual)),
        ("audio", audio_backbones, ModelChoice.of(options.audio)),
    ):
        if wanted.name != NONE:
            parts[modality] = _make(registry, wanted)
        elif wanted != ModelChoice(NONE):
            raise CaeavError(
                f"{modality} is {NONE!r}, which has no weights and no settings", hint="leave them out"
            )
    if not parts:
        raise CaeavError("a store without visual and without audio tokens", hint="name a backbone")
    described = {modality: {**_component(part), "taps": _taps(part)} for modality, part in parts.items()}
    rate_hz = parts["audio"].rate_hz if "audio" in parts else None
    fields = {**_shared_fields(segments, segment_s, rate_hz, options, [*parts.values()]), **described}
    return Job(Recipe("tokens", _joined(*(part.name for part in parts.values())), fields), parts)


def caption_job(segments: int, segment_s: float, options: CaptionOptions) -> Job:
    """A caption store's recipe and components; raises `CaeavError` for unknown names or values."""
    visual, audio = _make(visual_captioners, options.visual), _make(audio_captioners, options.audio)
    first = _make(text_backbones, options.visual_text)
    same = ModelChoice.of(options.audio_text) == ModelChoice.of(options.visual_text)
    second = first if same else _make(text_backbones, options.audio_text)
    fields = {
        **_shared_fields(segments, segment_s, audio.rate_hz, options, [visual, audio, first, second]),
        "visual": {**_component(visual), "text": _component(first)},
        "audio": {**_component(audio), "text": _component(second)},
    }
    name = _joined(visual.name, audio.name, *sorted((first.name, second.name)))
    recipe = Recipe("captions", name, fields)
    return Job(recipe, {"visual": visual, "audio": audio}, {"visual": first, "audio": second})


def texts_job(
    source: Recipe, visual_text: ModelChoice | None, audio_text: ModelChoice | None, dtype: str | None
) -> Job:
    """A job without `parts`: the captions of the store of `source`, embedded by other text backbones (None: as there).

    Its recipe is that of captioning anew with these text backbones, so the store is the same, byte for byte.
    """
    wanted = {"visual": visual_text, "audio": audio_text}
    choices = {
        modality: choice or described_choice(source.fields[modality]["text"])
        for modality, choice in wanted.items()
    }
    first = _make(text_backbones, choices["visual"])
    same = choices["audio"] == choices["visual"]
    texts = {"visual": first, "audio": first if same else _make(text_backbones, choices["audio"])}
    fields = {name: value for name, value in source.fields.items() if name != "compute"}
    writers = (
        visual_captioners[fields["visual"]["name"]],
        audio_captioners[fields["audio"]["name"]],
        *texts.values(),
    )
    if any(hasattr(part, "module") for part in writers):
        fields["compute"] = source.fields.get("compute", ComputeOptions().fields())
    for modality, text in texts.items():
        fields[modality] = {**fields[modality], "text": _component(text)}
    fields["dtype"] = _known_dtype(dtype or fields["dtype"])
    written = [fields[modality]["name"] for modality in MODALITIES]
    name = _joined(*written, *sorted(text.name for text in texts.values()))
    return Job(Recipe("captions", name, fields), {}, texts)


def token_recipe(segments: int, segment_s: float, options: TokenOptions) -> Recipe:
    """The recipe of a token store; raises `CaeavError` for unknown names or values."""
    return token_job(segments, segment_s, options).recipe


def caption_recipe(segments: int, segment_s: float, options: CaptionOptions) -> Recipe:
    """The recipe of a caption store; raises `CaeavError` for unknown names or values."""
    return caption_job(segments, segment_s, options).recipe


def job_of(recipe: Recipe) -> Job:
    """The components of a recipe, built anew: they must describe themselves as it says; only the decoder's version
    may differ. Raises `CaeavError` naming the fields that do."""
    try:
        fields, sampling = recipe.fields, recipe.fields["sampling"]
        choices: dict[str, Any] = {
            modality: described_choice(fields[modality]) if modality in fields else NONE
            for modality in MODALITIES
        }
        if recipe.kind == "captions":
            choices |= {
                f"{modality}_text": described_choice(fields[modality]["text"]) for modality in MODALITIES
            }
        general = {name: fields[name] for name in ("dtype", "shard_clips")} | {
            "decoder": fields["decoder"]["name"],
            "compute": ComputeOptions(**fields.get("compute", {})),
            "backend": fields.get(BACKEND_FIELD, DEFAULT_BACKEND),
        }
        segments, segment_s = sampling["segments"], sampling["segment_s"]
    except (KeyError, TypeError) as error:
        raise CaeavError(f"the recipe lacks {error}", hint="extract again with this program") from error
    now = (
        token_job(segments, segment_s, TokenOptions(**choices, **general))
        if recipe.kind == "tokens"
        else caption_job(segments, segment_s, CaptionOptions(**choices, **general))
    )
    wanted = {**now.recipe.fields, "decoder": fields["decoder"]}  # the name follows from the fields
    _same(recipe, recipe_differences(fields, wanted, "fields"))
    return replace(now, recipe=recipe)


def part_of(recipe: Recipe, modality: str) -> MediaBackbone | Captioner:
    """One component of a recipe alone, checked like those of `job_of`."""
    choice = described_choice(recipe.fields[modality])
    stored = {key: value for key, value in recipe.fields[modality].items() if key != "text"}
    if recipe.kind == "tokens":
        backbone = _make(visual_backbones if modality == "visual" else audio_backbones, choice)
        _same(recipe, recipe_differences(stored, {**_component(backbone), "taps": _taps(backbone)}, modality))
        return backbone
    captioner = _make(visual_captioners if modality == "visual" else audio_captioners, choice)
    _same(recipe, recipe_differences(stored, _component(captioner), modality))
    return captioner


def decoder_of(recipe: Recipe) -> Decoder:
    """The decoder a recipe names, in the version at hand."""
    return decoders[recipe.fields["decoder"]["name"]]()


def sampling_of(recipe: Recipe) -> Sampling:
    """What is sampled of a clip."""
    return Sampling(**recipe.fields["sampling"])


def described_choice(described: Mapping[str, Any]) -> ModelChoice:
    """The choice that a component's part of a recipe was made from, its weights found by their digest.

    Weights that this machine does not remember are looked for under the hub name the recipe gives, if it gives one.
    """
    settings, weights = described.get("settings", {}), described.get("weights", {})
    digest, source = weights.get("digest", ""), weights.get("source", "")
    part = f"{PART}{weights['part']}" if "part" in weights else ""
    return ModelChoice(
        described["name"], digest + part if recall(digest) or not _named(source) else source, settings
    )


def _named(source: str) -> bool:
    """Whether a source means the same on every machine, as a file's name does not."""
    return source.startswith((HUB, RANDOM))


def decoder_remark(recipe: Recipe) -> str:
    """What to say when the decoder is not the version the recipe names; empty when it is."""
    stored = recipe.fields["decoder"]
    now = decoders[stored["name"]]().version()
    return "" if now == stored["version"] else f"decoded by {now}, the store by {stored['version']}"


def _same(recipe: Recipe, differences: Sequence[str]) -> None:
    if differences:
        raise CaeavError(
            f"this program no longer makes what the recipe {recipe.folder_name} says: {'; '.join(differences)}",
            hint="use the program (and weights) that made the store, or extract again and train on the new store",
        )


def _shared_fields(
    segments: int,
    segment_s: float,
    rate_hz: int | None,
    options: TokenOptions | CaptionOptions,
    parts: Sequence[MediaBackbone | Captioner | TextBackbone],
) -> dict[str, Any]:
    decoder = decoders[options.decoder]()
    compute = options.compute.fields()
    return {
        "decoder": {"name": decoder.name, "version": decoder.version()},
        "sampling": {"segments": segments, "segment_s": segment_s, "rate_hz": rate_hz or SILENT_RATE_HZ},
        "dtype": _known_dtype(options.dtype),
        "shard_clips": options.shard_clips,
        **backend_field(options.backend),
        **({"compute": compute} if any(hasattr(part, "module") for part in parts) else {}),
    }


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise CaeavError(f"unknown dtype {name!r}", hint=choices(name, DTYPES))
    return name


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


def open_live(recipes: Sequence[Recipe], modality: Literal["visual", "audio"]) -> Any:
    """The live backbone of one modality of joined token stores: a `LiveSwinV2` or a `LiveHtsat`.

    Raises `CaeavError` when the stores have none, or one that has no open blocks, or when its weights are not on this
    machine.
    """
    holding = [recipe for recipe in recipes if modality in recipe.fields]
    if len({_identity(recipe, modality) for recipe in holding}) != 1:
        names = ", ".join(recipe.fields[modality]["name"] for recipe in holding) or "none"
        raise CaeavError(
            f"the joined stores have {names} as {modality} backbones; adapters are placed inside one",
            hint="join stores of one visual and one audio backbone: --set stores.tokens=[...]",
        )
    backbone = part_of(holding[0], modality)
    opened = getattr(backbone, "live", None)
    if opened is None:
        raise CaeavError(
            f"no adapters can be placed inside {backbone.name}: its blocks are not open",
            hint="extract with a Swin-V2 (--visual swinv2-large) and an HTS-AT (--audio hts-at or clap), "
            "or use the ladder placement",
        )
    return opened()


def _identity(recipe: Recipe, modality: str) -> str:
    """All that decides the network and what it is fed; which of its taps a store holds does not."""
    described = {key: x for key, x in recipe.fields[modality].items() if key not in ("taps", "settings")}
    settings = {key: x for key, x in recipe.fields[modality].get("settings", {}).items() if key != "taps"}
    return json.dumps([described, settings], sort_keys=True)
