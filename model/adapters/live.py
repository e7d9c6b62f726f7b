"""What adapters need of live frozen backbones; the real ones live elsewhere and are handed in by the caller.

Tokens are `[BT, L, C]` (visual) and `[BT, M, D]` (audio), row `b * T + t`. A visual block is open between its two
residual halves, an audio block is whole. Nothing here decodes, downloads or imports a backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from caeav.model.adapters.build import AdapterError
from caeav.pipeline.store import Recipe
from caeav.pipeline.store.record import Tap


class VisualBlock(Protocol):
    """A frozen block `x + attention(x)`, then `x + mlp(x)`."""

    def attention(self, x: Tensor) -> Tensor:
        """Increment of the first half, `[BT, L, C]` -> `[BT, L, C]`."""
        ...

    def mlp(self, x: Tensor) -> Tensor:
        """Increment of the second half."""
        ...


class VisualStage(Protocol):
    """Blocks over `tokens` tokens of `channels` channels, and the merging that ends the stage."""

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
    """The same with whole blocks, tokens in and tokens out."""

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
        """Windows of sound `[BT, samples]` -> tokens entering the first stage."""
        ...


@dataclass(frozen=True)
class Live:
    """Both backbones of a model, with as many stages each."""

    visual: LiveVisual
    audio: LiveAudio

    def __post_init__(self) -> None:
        seen, heard = len(self.visual.stages), len(self.audio.stages)
        if seen != heard:
            raise AdapterError(
                f"backbones of {seen} visual and {heard} audio stages cannot be walked together",
                hint="inject needs backbones with as many stages each, as Swin-V2 and HTS-AT with 4",
            )

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """What holds the frozen weights."""
        return self.visual.module, self.audio.module

    def taps(self, stage: int) -> tuple[Tap, Tap]:
        """The taps at the end of a stage, counted from 0, named as stores name them."""
        seen, heard = self.visual.stages[stage], self.audio.stages[stage]
        return (
            Tap(f"visual.stage{stage + 1}", seen.tokens, seen.channels),
            Tap(f"audio.stage{stage + 1}", heard.tokens, heard.channels),
        )


LiveOpener = Callable[[Sequence[Recipe]], Live]
"""Makes the backbones of token stores from their recipes; given by whoever may load backbones."""


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
