"""What a model is told about its inputs before it is built, and what a batch and a trunk's output hold.

`B` clips, `T` segments, `L`/`M` visual/audio tokens per segment, `C`/`D` their channels, `W` caption tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.correspondence import Match
from caeav.pipeline.store.record import Tap


class AdapterError(CaeavError):
    """Adapters asked for what the inputs do not offer."""


@dataclass(frozen=True, slots=True)
class CaptionSpec:
    """Caption tokens of one modality: up to `tokens` of `channels` channels."""

    tokens: int
    channels: int


@dataclass(frozen=True)
class InputSpec:
    """Shapes of everything a run's stores offer, taps from shallow to deep.

    `other`: taps of neither modality, such as `motion.<name>`; a task may read them, adapters do not.
    """

    segments: int
    visual: tuple[Tap, ...]
    audio: tuple[Tap, ...]
    visual_caption: CaptionSpec | None = None
    audio_caption: CaptionSpec | None = None
    other: tuple[Tap, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """What a run's network is built for.

    `segment_s`: length of a segment. `facts`: what else the task takes from the manifest (JSON values).
    """

    dataset: str
    classes: tuple[str, ...]
    segment_s: float
    spec: InputSpec
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Inputs:
        """The inverse of `as_json`."""
        spec = value["spec"]
        captions = {
            name: CaptionSpec(**spec[name]) if spec[name] else None
            for name in ("visual_caption", "audio_caption")
        }
        return cls(
            dataset=value["dataset"],
            classes=tuple(value["classes"]),
            segment_s=value["segment_s"],
            spec=InputSpec(
                segments=spec["segments"],
                visual=tuple(Tap(**tap) for tap in spec["visual"]),
                audio=tuple(Tap(**tap) for tap in spec["audio"]),
                other=tuple(Tap(**tap) for tap in spec.get("other", ())),
                **captions,
            ),
            facts=value.get("facts", {}),
        )


@dataclass
class TokenBatch:
    """Tokens and captions of `B` clips, and the targets of their samples, by default one per clip.

    `visual`, `audio`: tap -> `[B, T, L, C]`. Captions: tokens `[B, W, C]` and mask `[B, W]` (True: a real token), None
    when the run joins no caption store. `frames_ok`, `audio_ok`: bool `[B, T]`. `targets`: what the task predicts;
    `extra`: its further inputs (a question), and taps of neither modality. `clip_of`: where several samples share a
    clip, the place `[N]` of each sample's clip, else None; `keys`, `targets` and `extra` (except taps) then have the
    first axis `N`. `sound_from`: where stress may have put other sounds to the frames, which it is in each second
    `[B, T]`: 0 its own, 1 of the same clip at another time, 2 another clip's.
    """

    keys: list[str]
    visual: dict[str, Tensor]
    audio: dict[str, Tensor]
    frames_ok: Tensor
    audio_ok: Tensor
    visual_caption: Tensor | None = None
    visual_caption_mask: Tensor | None = None
    audio_caption: Tensor | None = None
    audio_caption_mask: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    clip_of: Tensor | None = None
    sound_from: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TokenBatch:
        """Everything on `device`; tokens (not masks or targets) cast to `dtype` when given."""

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None, non_blocking=True)

        def move_if_any(x: Tensor | None) -> Tensor | None:
            return None if x is None else move(x)

        return replace(
            self,
            visual={name: move(x) for name, x in self.visual.items()},
            audio={name: move(x) for name, x in self.audio.items()},
            frames_ok=self.frames_ok.to(device),
            audio_ok=self.audio_ok.to(device),
            visual_caption=move_if_any(self.visual_caption),
            visual_caption_mask=move_if_any(self.visual_caption_mask),
            audio_caption=move_if_any(self.audio_caption),
            audio_caption_mask=move_if_any(self.audio_caption_mask),
            targets={name: x.to(device) for name, x in self.targets.items()},
            extra={name: move(x) for name, x in self.extra.items()},
            clip_of=move_if_any(self.clip_of),
            sound_from=move_if_any(self.sound_from),
        )


@dataclass
class TrunkOutput:
    """What a trunk hands to the head: visual `[B, T, L, C]`, audio `[B, T, M, D]`, and what adapters found on the way.

    `agreement`: `[B, T]` in 0..1, how well audio and visual agree (None without CASTE). `losses`: named scalars to be
    weighted and added (load balance, ...). `aux`: tensors for objectives and reports. A trunk told to `keep_stages`
    also leaves there `stage<i>.visual` `[B, T, L, C]` for each of its `visual_stages` and, with CASE,
    `unguided.visual`, the tokens as they were before it. `match`: what the agreement was made of, where all CASTE
    adapters share it. `visual_weights` `[B, T, L]`, `audio_weights` `[B, T, M]`: what each token counts in the mean of
    its segment (DG-SCT); None: all alike.
    """

    visual: Tensor
    audio: Tensor
    agreement: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    aux: dict[str, Tensor] = field(default_factory=dict)
    match: Match | None = None
    visual_weights: Tensor | None = None
    audio_weights: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self.visual.device

    def pooled_visual(self) -> Tensor:
        """The mean visual token of every segment, `[B, T, C]`."""
        return token_mean(self.visual, self.visual_weights)

    def pooled_audio(self) -> Tensor:
        """The mean audio token of every segment, `[B, T, D]`."""
        return token_mean(self.audio, self.audio_weights)


def token_mean(tokens: Tensor, weights: Tensor | None) -> Tensor:
    """`[B, T, L, C]` -> `[B, T, C]`, weighted by `[B, T, L]` that add up to 1 in every segment, or plain."""
    if weights is None:
        return tokens.mean(dim=2)
    return (weights.to(tokens.dtype).unsqueeze(-2) @ tokens).squeeze(-2)


class Epoch(NamedTuple):
    """One pass of training over the data; random draws in it depend on these two values and the row alone."""

    seed: int
    number: int


NEGATIVE = "negative.visual"
"""Extra input: frame tokens of other clips, under the deepest visual tap read, for heads that compare pairs."""


class ClipData(Protocol):
    """What a `BatchTransform` may ask of the data that a batch was read from."""

    clip_of: Sequence[int]
    """The clip of each row, as its place in `clips`."""

    @property
    def clips(self) -> Sequence[str]:
        """The keys of the clips."""
        ...

    def clips_of(self, rows: Sequence[int]) -> list[int]:
        """The clips of these rows, each once, in the order of the rows."""
        ...

    def clip_arrays(self, clips: Sequence[int]) -> Mapping[str, Tensor]:
        """Every array read from these clips, `[B, ...]` each."""
        ...

    def segments(self, tap: str, clips: Tensor, segments: Tensor) -> Tensor:
        """Tokens of single segments: of `clips`, at `segments` (equal shapes `[...]`) -> `[..., L, C]`."""
        ...


class BatchTransform(Protocol):
    """Alters a batch just after it was read."""

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """`rows` of `data` were read into `batch`; `epoch` is None when scoring. Must not draw from anything else."""
        ...
