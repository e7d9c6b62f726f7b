"""The ladder placement: adapters beside cached taps, stage by stage; no backbone in memory.

`x_s = tap_s + merge_s(delta_{s-1})`, where `delta` is everything adapters have added so far. Taps are visual
`[B, T, L, C]` and audio `[B, T, M, D]`, paired from the deep end; shallower taps without a partner are not used.

A stage follows the reference's paired block (REFERENCE section 3), with one difference that caching forces: a tap is a
stage's output, so the frozen attention and MLP increments are already in it, and there is one block a stage.

    with pairs:    e = x + CASTE(x);  x1 = x + p1(e_own | e_other);  x2 = x1 + p2(x1_own | x1_other)
    without:       x2 = x + CASTE(x)

p1 and p2 are pairs of AVMoE, or of LAVISH or DG-SCT in its place. As in the reference, CASTE only changes what the p1
experts see, unless the stage has none.

In the live backbone a change of a stage's tokens would run through the patch merging and the blocks after it. The
ladder has only the cached taps; `LowRankMerge`, learned and without bias, stands for that first-order response: no
change below means exactly no change above.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError, InputSpec, TokenBatch, TrunkOutput
from caeav.model.adapters.case import CaptionGuidance
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.correspondence import Correspondence, Match
from caeav.model.adapters.layers import clip_view, square_side
from caeav.model.adapters.parts import Pair, Trace, build_caste, build_pair, caste_residuals, trunk_output
from caeav.pipeline.store.record import Tap


def merge_patches(x: Tensor, side: int) -> Tensor:
    """Concatenate 2x2 neighbours of a `side x side` grid: `[BT, side^2, C]` -> `[BT, side^2 / 4, 4C]`.

    Order within a patch: (0,0), (1,0), (0,1), (1,1) as (row, column), the backbones' own.
    """
    half = side // 2
    rows, _, channels = x.shape
    grid = x.reshape(rows, half, 2, half, 2, channels)  # [BT, row, in-row, column, in-column, C]
    return grid.permute(0, 1, 3, 4, 2, 5).reshape(rows, half * half, 4 * channels)


def pool_tokens(x: Tensor, tokens: int) -> Tensor:
    """Adaptive average pooling to `tokens` tokens: over the grid where both counts are squares, else along the axis."""
    own, wanted = square_side(x.shape[1]), square_side(tokens)
    channels_first = x.transpose(1, 2)
    if own is not None and wanted is not None:
        grid = F.adaptive_avg_pool2d(channels_first.reshape(x.shape[0], -1, own, own), wanted)
        return grid.flatten(2).transpose(1, 2)
    return F.adaptive_avg_pool1d(channels_first, tokens).transpose(1, 2)


class LowRankMerge(nn.Module):
    """From one stage's tokens and channels to the next's: merge patches or pool tokens, then `C -> rank -> C'`."""

    def __init__(self, below: Tap, above: Tap, rank: int) -> None:
        super().__init__()
        side = square_side(below.tokens)
        merges = side is not None and side % 2 == 0 and below.tokens == 4 * above.tokens
        self.merge_side = side if merges else None
        self.tokens = above.tokens
        self.down = nn.Linear(below.channels * (4 if merges else 1), rank, bias=False)
        self.up = nn.Linear(rank, above.channels, bias=False)

    def forward(self, delta: Tensor) -> Tensor:
        """`[BT, L, C]` of the stage below -> `[BT, L', C']` of the stage above."""
        if self.merge_side is not None:
            delta = merge_patches(delta, self.merge_side)
        elif delta.shape[1] != self.tokens:
            delta = pool_tokens(delta, self.tokens)
        return self.up(self.down(delta))  # type: ignore[no-any-return]


class LadderStage(nn.Module):
    """The adapters beside one pair of taps, and the merges that bring the change of the stage below."""

    def __init__(
        self,
        number: int,
        taps: tuple[Tap, Tap],
        below: tuple[Tap, Tap] | None,
        config: AdapterConfig,
    ) -> None:
        super().__init__()
        visual, audio = taps
        self.place = f"stage{number + 1}"
        self.merge_visual = self.merge_audio = None
        if below is not None:
            self.merge_visual = LowRankMerge(below[0], visual, config.ladder.rank)
            self.merge_audio = LowRankMerge(below[1], audio, config.ladder.rank)
        self.caste_visual = self.caste_audio = None
        if config.caste.enabled:
            own_gate = not config.caste.shared_agreement
            self.caste_visual = build_caste(visual, audio, config, own_gate=own_gate)
            self.caste_audio = build_caste(audio, visual, config, own_gate=own_gate)
        self.p1 = build_pair(visual, audio, config) if config.pairs_at(number) else None
        self.p2 = build_pair(visual, audio, config) if config.pairs_at(number) else None

    def forward(self, taps: Pair, change: Pair | None, segments: int, trace: Trace) -> Pair | None:
        """What adapters add to this stage's taps, given what they added in the stage below; None is nothing."""
        x, out = taps, None
        if change is not None and self.merge_visual is not None and self.merge_audio is not None:
            out = Pair(self.merge_visual(change.visual), self.merge_audio(change.audio))
            x = taps + out
        enriched = x
        if self.caste_visual is not None and self.caste_audio is not None:
            residual = caste_residuals(self.caste_visual, self.caste_audio, x, segments, trace)
            if self.p1 is None:
                return residual if out is None else out + residual
            enriched = x + residual
        if self.p1 is None or self.p2 is None:
            return out
        first = self.p1(enriched, f"{self.place}.p1", trace)
        second = self.p2(x + first, f"{self.place}.p2", trace)
        added: Pair = first + second
        return added if out is None else out + added


class LadderTrunk(nn.Module):
    """All stages and, after the last, caption guidance. With every adapter off it returns the last taps.

    `visual_channels`, `audio_channels`: of the output. `visual_stages`: the visual taps it reads; with `keep_stages` it
    leaves each of them, as adapted, in `aux`.
    """

    def __init__(self, spec: InputSpec, config: AdapterConfig) -> None:
        super().__init__()
        self.keep_stages = False
        if not spec.visual or not spec.audio:
            raise AdapterError(
                f"the ladder needs a tap of each modality, got {len(spec.visual)} visual, {len(spec.audio)} audio",
                hint="extract with a visual and an audio backbone that declare taps",
            )
        depth = min(len(spec.visual), len(spec.audio))
        pairs = list(zip(spec.visual[-depth:], spec.audio[-depth:], strict=True))
        self.visual_stages = tuple(visual for visual, _ in pairs)
        self.names = [(visual.name, audio.name) for visual, audio in pairs]
        self.visual_channels, self.audio_channels = (tap.channels for tap in pairs[-1])
        adapted = config.caste.enabled or config.exchanges()
        self.stages = nn.ModuleList(
            LadderStage(i, pair, pairs[i - 1] if i else None, config)
            for i, pair in enumerate(pairs if adapted else [])
        )
        self.guidance = CaptionGuidance(spec, config.case) if config.case.enabled else None
        caste = config.caste
        self.correspondence = None
        if caste.enabled and caste.shared_agreement:
            self.correspondence = Correspondence(*pairs[-1], caste.gate_dim, caste.agreement_dropout)
        self._agreement_gradient = caste.agreement_gradient

    def forward(self, batch: TokenBatch) -> TrunkOutput:
        """A batch's taps and captions -> tokens for the head, agreement, losses and auxiliary tensors."""
        segments = batch.visual[self.names[-1][0]].shape[1]
        trace, match = Trace(), self.match(batch)
        if match is not None:
            shared = match.logits().sigmoid().flatten()
            trace.shared = shared if self._agreement_gradient else shared.detach()
        change: Pair | None = None
        stage_ends = {}
        for i in range(len(self.names)):
            taps = self._taps(batch, i)
            if self.stages:
                change = self.stages[i](taps, change, segments, trace)
            if self.keep_stages:
                visual = taps.visual if change is None else taps.visual + change.visual
                stage_ends[f"stage{i + 1}.visual"] = clip_view(visual, segments)
        x = self._taps(batch, -1) if change is None else self._taps(batch, -1) + change
        output = trunk_output(x, trace, self.guidance, batch, segments, keep_unguided=self.keep_stages)
        output.aux.update(stage_ends)
        output.match = match
        return output

    def match(self, batch: TokenBatch) -> Match | None:
        """What the shared agreement is made of; runs no adapter. None where adapters have gates of their own."""
        if self.correspondence is None:
            return None
        visual_tap, audio_tap = self.names[-1]
        return self.correspondence(batch.visual[visual_tap], batch.audio[audio_tap])  # type: ignore[no-any-return]

    def frozen_visual(self, tokens: Tensor) -> Tensor:
        """The deepest visual tap `[B, T, L, C]` as it is: it is the frozen backbone's own output."""
        return tokens

    def _taps(self, batch: TokenBatch, stage: int) -> Pair:
        visual, audio = self.names[stage]
        return Pair(batch.visual[visual].flatten(0, 1), batch.audio[audio].flatten(0, 1))
