"""What the inject placement needs of live frozen backbones, as interfaces: the caller loads them and hands them in.

Tokens are `[BT, L, C]` (visual) and `[BT, M, D]` (audio), row `b * T + t`. A visual block can be run half by half,
since adapters add to it between its two residual halves; an audio block runs whole. Nothing here decodes, downloads
or imports a backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError
from caeav.pipeline.store import Recipe
from caeav.pipeline.store.record import Tap


class VisualBlock(Protocol):
    """A frozen block `x + attention(x)`, then `x + mlp(x)`."""

    def attention(self, x: Tensor) -> Tensor:
        """What the first half adds: `[BT, L, C]` -> `[BT, L, C]`."""
        ...

    def mlp(self, x: Tensor) -> Tensor:
        """What the second half adds: `[BT, L, C]` -> `[BT, L, C]`."""
        ...


class VisualStage(Protocol):
    """Blocks over `tokens` tokens of `channels` channels, and the patch merging that ends the stage."""

    @property
    def tokens(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def blocks(self) -> Sequence[VisualBlock]: ...
    def merge(self, x: Tensor) -> Tensor:
        """Tokens entering the next stage; never called on the last."""
        ...


class AudioStage(Protocol):
    """The same with whole blocks, from tokens to tokens."""

    @property
    def tokens(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]: ...
    def merge(self, x: Tensor) -> Tensor:
        """Tokens entering the next stage; never called on the last."""
        ...


class LiveVisual(Protocol):
    """A frozen visual backbone; `module` holds its weights."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def stages(self) -> Sequence[VisualStage]: ...
    def embed(self, frames: Tensor) -> Tensor:
        """Prepared frames `[BT, ...]` -> tokens entering the first stage."""
        ...

    def norm(self, x: Tensor) -> Tensor:
        """The final norm, over the last stage's tokens."""
        ...


class LiveAudio(Protocol):
    """A frozen audio backbone; `module` holds its weights. Its final norm, if any, is not used."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def stages(self) -> Sequence[AudioStage]: ...
    def embed(self, windows: Tensor) -> Tensor:
        """Audio windows `[BT, samples]` -> tokens entering the first stage."""
        ...


@dataclass(frozen=True)
class Live:
    """Both backbones of a model, with as many stages each."""

    visual: LiveVisual
    audio: LiveAudio

    def __post_init__(self) -> None:
        visual, audio = len(self.visual.stages), len(self.audio.stages)
        if visual != audio:
            raise AdapterError(
                f"backbones of {visual} visual and {audio} audio stages cannot be paired stage by stage",
                hint="inject needs backbones with equally many stages, such as Swin-V2 and HTS-AT with 4 each",
            )

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """The modules that hold the frozen weights, visual and audio."""
        return self.visual.module, self.audio.module

    def taps(self, stage: int) -> tuple[Tap, Tap]:
        """The taps at the end of a stage, counted from 0, named as stores name them."""
        visual, audio = self.visual.stages[stage], self.audio.stages[stage]
        return (
            Tap(f"visual.stage{stage + 1}", visual.tokens, visual.channels),
            Tap(f"audio.stage{stage + 1}", audio.tokens, audio.channels),
        )


LiveOpener = Callable[[Sequence[Recipe]], Live]
"""Builds the backbones of token stores from their recipes; the caller, who may load backbones, passes one in."""


def pair_blocks(visual: int, audio: int) -> list[int | None]:
    """For every visual block the audio block that runs beside it, None where it runs alone.

    Equal depths pair one to one; otherwise every `visual / audio`-th visual block has a partner, so that with 18 and
    6 blocks audio block `m` is paired with visual block `3m + 2`.
    """
    if audio < 1 or visual % audio:
        raise AdapterError(
            f"a stage of {visual} visual and {audio} audio blocks cannot be paired",
            hint="inject needs as many visual as audio blocks in a stage, or a whole multiple of them",
        )
    every = visual // audio
    return [j // every if (j + 1) % every == 0 else None for j in range(visual)]
