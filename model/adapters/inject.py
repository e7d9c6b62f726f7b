"""The inject placement: adapters inside live frozen backbones, as in the reference (REFERENCE section 3).

The stages of both backbones are walked in parallel; `live.pair_blocks` says which blocks run side by side. With tokens
`v0`, `a0` entering a paired block, a stage with AVMoE computes

    e = (v0, a0) + CASTE(v0, a0)          in the first paired block of the stage; else e = (v0, a0)
    v = v0 + attention(v0) + p1(e).v      a = block(a0) + p1(e).a
    v = v + mlp(v) + p2(v, a).v           a = a + p2(v, a).a          (p2 sees v and a before this line)

LAVISH and DG-SCT take AVMoE's places. A stage without any of them adds CASTE's residual to the stream after
`attention`. The backbone's own final norm comes after CASE.

Frozen weights get no gradient, but gradients flow through frozen blocks to the adapters below them; nothing is recorded
before the first adapter. The backbones run in eval mode also while training (the reference's did not, see
`InjectConfig`), are not part of the model's parameters or state, and follow its device and dtype.

`inject_from: stageK` puts adapters in stage K and deeper only. Nothing trainable comes before, so the output of stage
K-1 is a constant of the clip: starting from its cached tap (`visual.stage{K-1}`, `audio.stage{K-1}`) gives what the
whole run from frames gives, in outputs and gradients, up to the rounding of the tap. It is another model than one with
adapters in all stages. Frozen parts in training mode have no constant output to replay; the two are refused together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError, InputSpec, TokenBatch, TrunkOutput
from caeav.model.adapters.case import CaptionGuidance
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.layers import clip_view
from caeav.model.adapters.live import AudioStage, Live, VisualBlock, VisualStage, pair_blocks
from caeav.model.adapters.parts import Pair, Trace, build_caste, build_pair, caste_residuals, trunk_output
from caeav.pipeline.store.record import Tap

FRAMES, WINDOWS = "visual.frames", "audio.windows"
"""Taps of raw inputs: prepared frames and audio windows `[B, T, ...]`, as the live backbones take them."""


class InjectStage(nn.Module):
    """The adapters of one stage. The frozen stage itself is not part of this module."""

    def __init__(self, number: int, live: Live, config: AdapterConfig) -> None:
        super().__init__()
        self.place = f"stage{number + 1}"
        self.discard_frozen_audio = config.inject.discard_frozen_audio
        visual, audio = live.taps(number)
        depths = len(live.visual.stages[number].blocks), len(live.audio.stages[number].blocks)
        self.partners = pair_blocks(*depths)
        adapted = number + 1 >= first_stage(config)
        self.caste_visual = self.caste_audio = None
        if adapted and config.caste.enabled:
            self.caste_visual = build_caste(visual, audio, config)
            self.caste_audio = build_caste(audio, visual, config)
        pairs = depths[1] if adapted and config.pairs_at(number) else 0
        self.p1 = nn.ModuleList(build_pair(visual, audio, config) for _ in range(pairs))
        self.p2 = nn.ModuleList(build_pair(visual, audio, config) for _ in range(pairs))

    def forward(self, x: Pair, stages: tuple[VisualStage, AudioStage], segments: int, trace: Trace) -> Pair:
        """Tokens entering the stage -> tokens at its end, before merging."""
        visual, audio = stages
        for j, partner in enumerate(self.partners):
            block = visual.blocks[j]
            if partner is None:
                visual_half = x.visual + block.attention(x.visual)
                x = Pair(visual_half + block.mlp(visual_half), x.audio)
                continue
            residual = self._caste(x, segments, trace) if partner == 0 else None
            if self.p1:
                x = self._with_moe(x, residual, partner, block, audio.blocks[partner], trace)
            else:
                x = Pair(x.visual + block.attention(x.visual), audio.blocks[partner](x.audio))
                x = x if residual is None else x + residual
                x = Pair(x.visual + block.mlp(x.visual), x.audio)
        return x

    def _with_moe(
        self,
        x: Pair,
        residual: Pair | None,
        number: int,
        block: VisualBlock,
        audio_block: Callable[[Tensor], Tensor],
        trace: Trace,
    ) -> Pair:
        place = f"{self.place}.block{number + 1}"
        enriched = x if residual is None else x + residual
        first = self.p1[number](enriched, f"{place}.p1", trace)
        audio = enriched.audio if self.discard_frozen_audio else audio_block(x.audio)
        x = Pair(x.visual + block.attention(x.visual), audio) + first
        second: Pair = self.p2[number](x, f"{place}.p2", trace)
        return Pair(x.visual + block.mlp(x.visual), x.audio) + second

    def _caste(self, x: Pair, segments: int, trace: Trace) -> Pair | None:
        if self.caste_visual is None or self.caste_audio is None:
            return None
        return caste_residuals(self.caste_visual, self.caste_audio, x, segments, trace)


def first_stage(config: AdapterConfig) -> int:
    """Number, from 1, of the first stage with adapters."""
    return int(config.inject_from.removeprefix("stage"))


class InjectTrunk(nn.Module):
    """All stages with their adapters and, after the last, caption guidance and the visual backbone's final norm.

    `spec` says what batches hold: the taps before `inject_from`, or else frames and windows. With all gates at zero
    and no CASE the output is the frozen backbones' own. `visual_channels`, `audio_channels`: of the output.
    `visual_stages`: the visual outputs of the stages that are run, and of those before them that are cached;
    `keep_stages`: leave all of them in `aux`, and the tokens before CASE.
    """

    def __init__(self, spec: InputSpec, live: Live, config: AdapterConfig) -> None:
        super().__init__()
        self.keep_stages = False
        self._live = live  # no nn.Module itself, so the frozen modules do not become submodules of this one
        self._frozen_train_mode = config.inject.frozen_train_mode
        for module in live.modules:
            module.requires_grad_(False)
        depth = len(live.visual.stages)
        self.first = first_stage(config)
        if self.first > depth:
            raise AdapterError(
                f"inject_from is {config.inject_from}, the backbones have {depth} stages",
                hint=f"set inject_from to stage1 .. stage{depth}",
            )
        self.replayed = _find_start(spec, live, self.first)
        if self.replayed and self._frozen_train_mode:
            raise AdapterError(
                f"frozen_train_mode is true and inject_from is {config.inject_from}, which starts from cached taps; "
                "those were made in eval mode",
                hint="set inject.frozen_train_mode to false, or train from frames and windows",
            )
        self.stages = nn.ModuleList(InjectStage(i, live, config) for i in range(depth))
        begin = self.first - 1 if self.replayed else 0
        held = {tap.name for tap in spec.visual}
        self._before = [i for i in range(begin) if live.taps(i)[0].name in held]
        self.visual_stages = tuple(live.taps(i)[0] for i in (*self._before, *range(begin, depth)))
        last = live.taps(depth - 1)
        self.visual_channels, self.audio_channels = (tap.channels for tap in last)
        deep = replace(spec, visual=last[:1], audio=last[1:])
        self.guidance = CaptionGuidance(deep, config.case) if config.case.enabled else None
        self.train(self.training)

    def forward(self, batch: TokenBatch) -> TrunkOutput:
        """A batch's taps (or frames and windows) and captions -> tokens for the head, agreement, losses, aux.

        `aux` also holds `stage<i>.visual` `[B, T, L, C]`, the tokens at the end of a stage, before merging and CASE:
        for the stages that are run, with `keep_stages` for all `visual_stages`.
        """
        live = self._live
        trace = Trace()
        before = self._before if self.keep_stages else []
        stage_ends = {f"stage{i + 1}.visual": batch.visual[live.taps(i)[0].name] for i in before}
        x, begin, segments = self._start(batch)
        for i in range(begin, len(self.stages)):
            visual, audio = live.visual.stages[i], live.audio.stages[i]
            if i > begin or self.replayed:
                below = live.visual.stages[i - 1], live.audio.stages[i - 1]
                x = Pair(below[0].merge(x.visual), below[1].merge(x.audio))
            # Nothing before the first adapter needs a gradient.
            with torch.set_grad_enabled(torch.is_grad_enabled() and i + 1 >= self.first):
                x = self.stages[i](x, (visual, audio), segments, trace)
            stage_ends[f"stage{i + 1}.visual"] = clip_view(x.visual, segments)
        output = trunk_output(
            x, trace, self.guidance, batch, segments, live.visual.norm, keep_unguided=self.keep_stages
        )
        output.aux.update(stage_ends)
        return output

    def match(self, batch: TokenBatch) -> None:
        """None: the deepest taps come too late for an agreement that adapters share; each keeps a gate of its own."""

    @torch.no_grad()
    def frozen_visual(self, tokens: Tensor) -> Tensor:
        """The frozen visual backbone alone, without any adapter, on what batches hold: frames or the replayed tap.

        `[B, T, ...]` -> `[B, T, L, C]`.
        """
        visual = self._live.visual
        x, begin = tokens.flatten(0, 1), self.first - 1 if self.replayed else 0
        for i in range(begin, len(visual.stages)):
            x = visual.stages[i - 1].merge(x) if i else visual.embed(x)
            for block in visual.stages[i].blocks:
                x = x + block.attention(x)
                x = x + block.mlp(x)
        return clip_view(visual.norm(x), tokens.shape[1])

    def train(self, mode: bool = True) -> InjectTrunk:
        """Set the mode; the frozen backbones stay in eval mode unless `frozen_train_mode` is on."""
        super().train(mode)
        for module in self._live.modules:
            module.train(mode and self._frozen_train_mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InjectTrunk:
        for module in (super(), *self._live.modules):
            cast(Any, module)._apply(fn, recurse)
        return self

    def _start(self, batch: TokenBatch) -> tuple[Pair, int, int]:
        """The tokens to start from, the stage they enter (cached ones after merging), and the segments a clip."""
        if self.replayed:
            visual_tap, audio_tap = self._live.taps(self.first - 2)
            visual, audio = batch.visual[visual_tap.name], batch.audio[audio_tap.name]
            return Pair(visual.flatten(0, 1), audio.flatten(0, 1)), self.first - 1, visual.shape[1]
        frames, windows = batch.visual[FRAMES], batch.audio[WINDOWS]
        x = Pair(self._live.visual.embed(frames.flatten(0, 1)), self._live.audio.embed(windows.flatten(0, 1)))
        return x, 0, frames.shape[1]


def _find_start(spec: InputSpec, live: Live, first: int) -> bool:
    """Whether to start from cached taps; raises `AdapterError` when the inputs offer neither taps nor frames."""
    offered = {tap.name: tap for tap in (*spec.visual, *spec.audio)}
    if first > 1:
        wanted = live.taps(first - 2)
        if all(tap.name in offered for tap in wanted):
            for tap in wanted:
                _require_shape(offered[tap.name], tap)
            return True
        names = [tap.name for tap in wanted]
    else:
        names = [FRAMES, WINDOWS]
    if FRAMES in offered and WINDOWS in offered:
        return False
    raise AdapterError(
        f"inject_from stage{first} starts from {' and '.join(names)}, the inputs hold {sorted(offered)}",
        hint="extract with the same backbones and their stage taps, or set inject_from to the stage after a cached tap",
    )


def _require_shape(given: Tap, needed: Tap) -> None:
    if (given.tokens, given.channels) != (needed.tokens, needed.channels):
        raise AdapterError(
            f"cached {given.name} has {given.tokens} tokens of {given.channels} channels, the live backbone "
            f"{needed.tokens} of {needed.channels}",
            hint="extract with the backbone the adapters are placed in",
        )
