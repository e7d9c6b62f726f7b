"""What a run is asked to make: one job for each store, of tokens or of captions.

A job is a recipe and the components that recipe describes. It is built from options, or from the recipe of a store;
then its components must describe themselves as the recipe does. A job computes what is cheap inside a decoding
process, declares what a reply from there must hold, and builds a clip's record. Shapes: `T` segments, `L` tokens,
`C` channels.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError, choices
from caeav.manifests.keys import slug
from caeav.pipeline.backbones import audio_backbones, text_backbones, visual_backbones
from caeav.pipeline.backbones.base import MediaBackbone, TextBackbone, TorchBackbone
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.base import Captioner
from caeav.pipeline.captioners.from_file import FileCaptioner
from caeav.pipeline.extract.components import (
    Component,
    check_same,
    described,
    described_choice,
    described_taps,
    make,
    media_input,
    sampling_of,
)
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.embedding import Embedder
from caeav.pipeline.media.clip import DecodedClip, Sampling
from caeav.pipeline.media.registry import DEFAULT_DECODER, decoders
from caeav.pipeline.store import Record
from caeav.pipeline.store.backend import BACKEND_FIELD, DEFAULT_BACKEND, backend_field
from caeav.pipeline.store.dtypes import DTYPES
from caeav.pipeline.store.recipe import MODALITIES, Modality, Recipe, recipe_differences

DEFAULT_RATE_HZ = 16_000
"""Sample rate when no component asks for one."""
NONE = "none"
"""In the place of a backbone: the store has no tokens of this modality."""
VISUAL, AUDIO = MODALITIES

Complete = Callable[[Sequence[Record], Callable[[str], int]], list[Record]]
"""Turns the records of one shard into what is stored, given each key's place in the shard."""
Computed = tuple[dict[str, NDArray[np.float32]], dict[str, str]]
"""What components made of one clip: taps `[T, L, C]`, and texts by modality."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions(ABC):
    """What decides the bytes of any store besides its data set and its components."""

    decoder: str = DEFAULT_DECODER
    dtype: str = "float16"
    shard_clips: int = 64
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    backend: str = DEFAULT_BACKEND

    @abstractmethod
    def job(self, segments: int, segment_s: float) -> Job:
        """The job for clips of so many segments; raises `CaeavError` for unknown names or values."""

    def recipe_fields(
        self, segments: int, segment_s: float, rate_hz: int | None, parts: Sequence[Component]
    ) -> dict[str, Any]:
        """The fields of a recipe that do not describe a component."""
        decoder = decoders[self.decoder]()
        rate_hz = rate_hz or DEFAULT_RATE_HZ
        compute = self.compute.fields()
        return {
            "decoder": {"name": decoder.name, "version": decoder.version()},
            "sampling": {"segments": segments, "segment_s": segment_s, "rate_hz": rate_hz},
            "dtype": known_dtype(self.dtype),
            "shard_clips": self.shard_clips,
            **backend_field(self.backend),
            **({"compute": compute} if _uses_torch(parts) else {}),
        }


@dataclass(frozen=True)
class TokenOptions(StoreOptions):
    """The backbones of a store of tokens; one of them may be `NONE`."""

    visual: ModelChoice | str = "classic"
    audio: ModelChoice | str = "classic"

    def job(self, segments: int, segment_s: float) -> TokenJob:
        """The job of a store of tokens."""
        return TokenJob.from_options(self, segments, segment_s)


@dataclass(frozen=True)
class CaptionOptions(StoreOptions):
    """The captioners of a store of captions, and the text backbone for the captions of each."""

    visual: ModelChoice | str = "descriptor"
    audio: ModelChoice | str = "descriptor"
    visual_text: ModelChoice | str = "hashed"
    audio_text: ModelChoice | str = "hashed"

    def job(self, segments: int, segment_s: float) -> CaptionJob:
        """The job of a store of captions."""
        return CaptionJob.from_options(self, segments, segment_s)


@dataclass(frozen=True)
class Job(ABC):
    """A recipe and the components that look at media, by modality.

    Inside a decoding process a job holds only the components that compute there.
    """

    device_class: ClassVar[Any] = object
    """What a component must be to compute on a device."""

    recipe: Recipe
    parts: Mapping[str, Any]

    @classmethod
    @abstractmethod
    def options_of(cls, fields: Mapping[str, Any]) -> StoreOptions:
        """The options that lead to a recipe of these fields; KeyError or TypeError if they are not a recipe's."""

    @classmethod
    @abstractmethod
    def load_part(cls, recipe: Recipe, modality: str) -> MediaBackbone | Captioner:
        """One component of a recipe; raises `CaeavError` when it is no longer what the recipe says."""

    @abstractmethod
    def compute(self, clip: DecodedClip) -> Computed:
        """What the components at hand make of one clip."""

    @abstractmethod
    def build_record(
        self, key: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], texts: Mapping[str, str]
    ) -> Record:
        """The record of one clip, once all its parts are there."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """The job of a stored recipe: its components must be what it says, only the decoder's version may differ.

        Raises `CaeavError` naming the fields that differ.
        """
        fields = recipe.fields
        try:
            options, sampling = cls.options_of(fields), fields["sampling"]
            segments, segment_s = sampling["segments"], sampling["segment_s"]
        except (KeyError, TypeError) as error:
            raise CaeavError(f"the recipe lacks {error}", hint="extract again with this program") from error
        made = options.job(segments, segment_s)
        wanted = {**made.recipe.fields, "decoder": fields["decoder"]}  # the name follows from the fields
        check_same(recipe, recipe_differences(fields, wanted, "fields"))
        assert isinstance(made, cls)
        return replace(made, recipe=recipe)

    @classmethod
    def in_worker(cls, recipe: Recipe, modalities: Sequence[str]) -> Self:
        """The job as a decoding process needs it, with the components of these modalities only."""
        return cls(recipe, {modality: cls.load_part(recipe, modality) for modality in modalities})

    @property
    def sampling(self) -> Sampling:
        """What is sampled of a clip."""
        return sampling_of(self.recipe)

    @property
    def worker_parts(self) -> dict[str, Any]:
        """The components that compute beside the decoder, by modality."""
        return {modality: part for modality, part in self.parts.items() if part.runs_in == "worker"}

    @property
    def device_parts(self) -> dict[str, Any]:
        """The components that compute on a device, by modality."""
        return {modality: part for modality, part in self.parts.items() if part.runs_in != "worker"}

    @property
    def components(self) -> Sequence[Any]:
        """All components, those for text included."""
        return tuple(self.parts.values())

    def media_for(self, modalities: Collection[str]) -> Collection[str]:
        """The modalities of a decoded clip that the components of `modalities` look at."""
        return modalities

    def reply_arrays(self) -> dict[str, tuple[int, int, int]]:
        """The taps that a decoding process must send, with their shapes `[T, L, C]`."""
        return {}

    def reply_texts(self) -> Collection[str]:
        """The modalities for which a decoding process must send a text."""
        return ()

    def check(self, context: RunContext) -> None:  # noqa: B027 - tokens suit every data set
        """Raise `CaeavError` where the components do not suit the data set."""

    def complete(self, devices: Sequence[str]) -> Complete:
        """The step that completes the records of a shard, on one of `devices`."""
        return keep_as_is


def keep_as_is(records: Sequence[Record], place: object) -> list[Record]:
    """The `Complete` of records that are complete."""
    return list(records)


class TokenJob(Job):
    """A store of tokens: the taps of one visual and one audio backbone, or of one of them."""

    device_class: ClassVar[Any] = TorchBackbone
    parts: Mapping[str, MediaBackbone]

    @classmethod
    def from_options(cls, options: TokenOptions, segments: int, segment_s: float) -> TokenJob:
        """The job of these options; raises `CaeavError` for unknown names or values."""
        parts: dict[str, MediaBackbone] = {}
        for modality, registry, choice in (
            (VISUAL, visual_backbones, ModelChoice.of(options.visual)),
            (AUDIO, audio_backbones, ModelChoice.of(options.audio)),
        ):
            if choice.name != NONE:
                parts[modality] = make(registry, choice)
            elif choice != ModelChoice(NONE):
                raise CaeavError(
                    f"{modality} is {NONE!r}, which has no weights and no settings", hint="leave them out"
                )
        if not parts:
            raise CaeavError("a store without visual and without audio tokens", hint="name a backbone")
        rate_hz = parts[AUDIO].rate_hz if AUDIO in parts else None
        for part in parts.values():
            if isinstance(part, TorchBackbone):
                part.check_segment(segment_s)
        fields = options.recipe_fields(segments, segment_s, rate_hz, [*parts.values()])
        fields |= {
            modality: {**described(part), "taps": described_taps(part)} for modality, part in parts.items()
        }
        return cls(Recipe("tokens", _joined(*(part.name for part in parts.values())), fields), parts)

    @classmethod
    def options_of(cls, fields: Mapping[str, Any]) -> TokenOptions:
        """The options that lead to a recipe of these fields."""
        visual, audio = (described_choice(fields[m]) if m in fields else NONE for m in MODALITIES)
        return TokenOptions(visual, audio, **_store_options(fields))

    @classmethod
    def load_part(cls, recipe: Recipe, modality: str) -> MediaBackbone:
        """One backbone of a recipe."""
        stored = recipe.fields[modality]
        backbone = make(visual_backbones if modality == VISUAL else audio_backbones, described_choice(stored))
        now = {**described(backbone), "taps": described_taps(backbone)}
        check_same(recipe, recipe_differences(stored, now, modality))
        return backbone

    def compute(self, clip: DecodedClip) -> Computed:
        """The taps of the backbones at hand."""
        taps: dict[str, NDArray[np.float32]] = {}
        for modality, part in self.parts.items():
            taps |= part.tokens([media_input(clip, modality, self.sampling)])[0]
        return taps, {}

    def reply_arrays(self) -> dict[str, tuple[int, int, int]]:
        """The taps of the backbones that compute beside the decoder."""
        segments = self.sampling.segments
        return {
            tap["name"]: (segments, tap["tokens"], tap["channels"])
            for modality in self.worker_parts
            for tap in self.recipe.fields[modality]["taps"]
        }

    def build_record(
        self, key: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], texts: Mapping[str, str]
    ) -> Record:
        """A record of the taps."""
        return Record(key, arrays, info)


@dataclass(frozen=True)
class CaptionJob(Job):
    """A store of captions: the texts of one visual and one audio captioner, and their tokens by `texts`."""

    parts: Mapping[str, Captioner]
    texts: Mapping[str, TextBackbone] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: CaptionOptions, segments: int, segment_s: float) -> CaptionJob:
        """The job of these options; raises `CaeavError` for unknown names or values."""
        visual, audio = make(visual_captioners, options.visual), make(audio_captioners, options.audio)
        texts = _text_backbones(options.visual_text, options.audio_text)
        fields = options.recipe_fields(segments, segment_s, audio.rate_hz, [visual, audio, *texts.values()])
        fields |= {
            VISUAL: {**described(visual), "text": described(texts[VISUAL])},
            AUDIO: {**described(audio), "text": described(texts[AUDIO])},
        }
        name = _joined(visual.name, audio.name, *sorted(text.name for text in texts.values()))
        return cls(Recipe("captions", name, fields), {VISUAL: visual, AUDIO: audio}, texts)

    @classmethod
    def reembedding(
        cls,
        source: Recipe,
        visual_text: ModelChoice | None,
        audio_text: ModelChoice | None,
        dtype: str | None,
    ) -> CaptionJob:
        """Embed the captions of the store of `source` with other text backbones (None: the same); without `parts`.

        The recipe is that of captioning anew with these text backbones, so the store is the same, byte for byte.
        """
        fields = {name: value for name, value in source.fields.items() if name != "compute"}
        stored = {modality: described_choice(fields[modality]["text"]) for modality in MODALITIES}
        texts = _text_backbones(visual_text or stored[VISUAL], audio_text or stored[AUDIO])
        captioners = visual_captioners[fields[VISUAL]["name"]], audio_captioners[fields[AUDIO]["name"]]
        if any(hasattr(part, "module") for part in (*captioners, *texts.values())):
            fields["compute"] = source.fields.get("compute", ComputeOptions().fields())
        for modality, text in texts.items():
            fields[modality] = {**fields[modality], "text": described(text)}
        fields["dtype"] = known_dtype(dtype or fields["dtype"])
        names = [fields[modality]["name"] for modality in MODALITIES]
        name = _joined(*names, *sorted(text.name for text in texts.values()))
        return cls(Recipe("captions", name, fields), {}, texts)

    @classmethod
    def options_of(cls, fields: Mapping[str, Any]) -> CaptionOptions:
        """The options that lead to a recipe of these fields."""
        visual, audio = (described_choice(fields[m]) for m in MODALITIES)
        visual_text, audio_text = (described_choice(fields[m]["text"]) for m in MODALITIES)
        return CaptionOptions(visual, audio, visual_text, audio_text, **_store_options(fields))

    @classmethod
    def load_part(cls, recipe: Recipe, modality: str) -> Captioner:
        """One captioner of a recipe."""
        stored = {key: value for key, value in recipe.fields[modality].items() if key != "text"}
        captioner = make(
            visual_captioners if modality == VISUAL else audio_captioners, described_choice(stored)
        )
        check_same(recipe, recipe_differences(stored, described(captioner), modality))
        return captioner

    @property
    def components(self) -> Sequence[Any]:
        """Captioners and text backbones."""
        return (*self.parts.values(), *self.texts.values())

    @property
    def files(self) -> list[FileCaptioner]:
        """The captioners that read captions from a file."""
        return [part for part in self.parts.values() if isinstance(part, FileCaptioner)]

    @property
    def reads_media(self) -> bool:
        """Whether any captioner looks at media."""
        return len(self.files) < len(self.parts)

    def check(self, context: RunContext) -> None:
        """Say which clips have no row in a file of captions and which rows belong to no clip.

        Raises `CaeavError` when more clips have none than may be quarantined.
        """
        manifest = context.manifest
        for file in self.files:
            remark = file.compare_keys(manifest.dataset, manifest.keys, context.failure_limit())
            if remark:
                context.remark(remark)

    def compute(self, clip: DecodedClip) -> Computed:
        """The captions of the captioners at hand."""
        return {}, {modality: part.caption([clip])[0] for modality, part in self.parts.items()}

    def media_for(self, modalities: Collection[str]) -> Collection[str]:
        """Both: a captioner may look at video and audio, whatever it writes about."""
        return MODALITIES if modalities else ()

    def reply_texts(self) -> Collection[str]:
        """The modalities of the captioners that write beside the decoder."""
        return self.worker_parts

    def build_record(
        self, key: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], texts: Mapping[str, str]
    ) -> Record:
        """A record of the texts, which `complete` embeds."""
        return Record(key, arrays, {**info, "texts": {modality: texts[modality] for modality in self.parts}})

    def complete(self, devices: Sequence[str]) -> Complete:
        """Embed the texts."""
        return Embedder(self.recipe, self.texts, devices).embed


JOBS: Mapping[str, type[Job]] = {"tokens": TokenJob, "captions": CaptionJob}


def job_type(recipe: Recipe) -> type[Job]:
    """The type of job that makes stores of this recipe."""
    return JOBS[recipe.kind]


def job_of(recipe: Recipe) -> Job:
    """The job of a stored recipe, see `Job.from_recipe`."""
    return job_type(recipe).from_recipe(recipe)


def open_live(recipes: Sequence[Recipe], modality: Modality) -> Any:
    """The backbone of one modality of joined token stores, opened for adapters: a `LiveSwinV2` or a `LiveHtsat`.

    It must describe itself as when the stores were made, so that what runs live is what was cached. Raises `CaeavError`
    when the stores have no such backbone, several, or one whose blocks are not open, or when its weights are not on
    this machine.
    """
    holding = [recipe for recipe in recipes if modality in recipe.fields]
    if len({_network_identity(recipe, modality) for recipe in holding}) != 1:
        names = ", ".join(recipe.fields[modality]["name"] for recipe in holding) or "none"
        raise CaeavError(
            f"the joined stores have {names} as {modality} backbones; adapters are placed inside one",
            hint="join stores of one visual and one audio backbone: --set stores.tokens=[...]",
        )
    backbone = TokenJob.load_part(holding[0], modality)
    live = getattr(backbone, "live", None)
    if live is None:
        raise CaeavError(
            f"no adapters can be placed inside {backbone.name}: its blocks are not open",
            hint="extract with a Swin-V2 (--visual swinv2-large) and an HTS-AT (--audio hts-at or clap), "
            "or use the ladder placement",
        )
    return live()


def known_dtype(name: str) -> str:
    """`name`; raises `CaeavError` where it names no number format of stores."""
    if name not in DTYPES:
        raise CaeavError(f"unknown dtype {name!r}", hint=choices(name, DTYPES))
    return name


def _network_identity(recipe: Recipe, modality: str) -> str:
    """All that decides the network and its input, but not which of its taps a store holds."""
    part = recipe.fields[modality]
    rest = {key: x for key, x in part.items() if key not in ("taps", "settings")}
    settings = {key: x for key, x in part.get("settings", {}).items() if key != "taps"}
    return json.dumps([rest, settings], sort_keys=True)


def _store_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `StoreOptions` that lead to these fields of a recipe."""
    return {
        "decoder": fields["decoder"]["name"],
        "dtype": fields["dtype"],
        "shard_clips": fields["shard_clips"],
        "compute": ComputeOptions(**fields.get("compute", {})),
        "backend": fields.get(BACKEND_FIELD, DEFAULT_BACKEND),
    }


def _text_backbones(visual: ModelChoice | str, audio: ModelChoice | str) -> dict[str, TextBackbone]:
    """The text backbones by modality, one for both where the choices are the same."""
    first = make(text_backbones, visual)
    same = ModelChoice.of(visual) == ModelChoice.of(audio)
    return {VISUAL: first, AUDIO: first if same else make(text_backbones, audio)}


def _uses_torch(parts: Sequence[Component]) -> bool:
    return any(hasattr(part, "module") for part in parts)


def _joined(*names: str) -> str:
    """The components' names as the readable part of a folder's name, each once."""
    return slug("-".join(name.replace(":", "-").replace(".", "_") for name in dict.fromkeys(names)))
