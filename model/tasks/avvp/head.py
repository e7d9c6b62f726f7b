"""The AVVP head: which events of `K` classes are heard, which are seen, and in which seconds (REFERENCE section 4.2).

One group per class and modality, and one per class across both. Only whole-clip labels are needed to train it.
Batch-first and any `B`; the reference mixes the seconds of different clips and is usable with one clip only. Its
class tokens start at zero, so the classes are told apart by the token loss alone, at first. Frame probabilities are
the clip's times an attention; see `AvvpHeadConfig.bounded_attention` for what is odd about it.

The group transformer of the AVVP head: tokens become groups of segments (REFERENCE section 4.2).

Segments and group tokens first attend each other; then every segment is assigned to groups and every group becomes
the average of what was assigned to it. Shapes: `B` clips, `L` segments, `S` groups, `C` channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import TrunkOutput
from caeav.model.adapters.case import SplitAttention
from caeav.model.adapters.layers import PackedAttention
from caeav.model.tasks.heads import AvvpHeadConfig
from caeav.model.tasks.layers import ChannelNorm, linear_pool


class Grouped(NamedTuple):
    """`groups` `[B, S, C]`; `logits` `[B, S, L]`, how well every segment fits every group (softmax over `S`)."""

    groups: Tensor
    logits: Tensor


class GroupOutput(NamedTuple):
    """`groups` `[B, S, C]`, `logits` `[B, S, L]` as in `Grouped`; `segments` `[B, L, C]` as they were grouped, `own` as
    they left the blocks, in their own order."""

    groups: Tensor
    logits: Tensor
    segments: Tensor
    own: Tensor


class DropPath(nn.Module):
    """In training a clip skips the branch with probability `rate`; the others are scaled up in return."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ...]` -> `[B, ...]`."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.empty(x.shape[0], *(1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1 - self.rate) / (1 - self.rate)


class Mlp(nn.Module):
    """`fc_out(gelu(fc_in(x)))`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(width, hidden)
        self.fc_out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` -> `[..., width]`."""
        return self.fc_out(F.gelu(self.fc_in(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = PackedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, S + L, C]` -> the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PreAssign(nn.Module):
    """Group tokens look at the segments before these are assigned to them."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = SplitAttention(width, heads, dropout=0.0)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.post_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """`[B, S, C]`, `[B, L, C]` -> `[B, S, C]`."""
        tokens = tokens + self.attn(tokens, segments)
        return self.post_norm(tokens + self.mlp(self.norm2(tokens)))  # type: ignore[no-any-return]


class Assign(nn.Module):
    """Shares segments out among groups and averages each group's share.

    Soft: softmax over groups. Hard: the best group only, gradient of the soft one (straight through); in training
    the choice is drawn (Gumbel). Shares of a group are divided by their sum plus 1: an empty group stays near zero.
    """

    def __init__(self, width: int, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, segments: Tensor) -> Grouped:
        """`[B, S, C]`, `[B, L, C]` -> `Grouped`."""
        query = self.query(tokens) * tokens.shape[-1] ** -0.5
        logits = query @ self.key(segments).transpose(1, 2)  # [B, S, L]
        shares = self._share(logits)
        weights = shares / (shares.sum(dim=-1, keepdim=True) + 1.0)
        return Grouped(self.out(weights @ self.value(segments)), logits)

    def _share(self, logits: Tensor) -> Tensor:
        if not self.hard:
            return logits.softmax(dim=1)
        if self.training:
            logits = logits - torch.empty_like(logits).exponential_().log()
        soft = logits.softmax(dim=1)
        chosen = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        return chosen - soft.detach() + soft


class Grouping(nn.Module):
    """`S` group tokens and `L` segments in, `S` groups out."""

    def __init__(self, width: int, groups: int, heads: int, mlp_ratio: int, *, hard: bool = False) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.token_mixer = Mlp(groups, width // 2)
        self.token_mixer_norm = nn.LayerNorm(width)
        self.pre_assign = PreAssign(width, heads, mlp_ratio)
        self.assign = Assign(width, hard)
        self.new_norm = nn.LayerNorm(width)
        self.channel_mlp = Mlp(width, mlp_ratio * width)

    def forward(self, tokens: Tensor, segments: Tensor) -> Grouped:
        """`[B, S, C]`, `[B, L, C]` -> `Grouped`."""
        segments = self.norm_x(segments)
        mixed = self.token_mixer(self.norm_tokens(tokens).transpose(1, 2)).transpose(1, 2)
        tokens = self.pre_assign(self.token_mixer_norm(mixed), segments)
        assigned = self.assign(tokens, segments)
        groups = tokens + assigned.groups
        return Grouped(groups + self.channel_mlp(self.new_norm(groups)), assigned.logits)


class GroupTransformer(nn.Module):
    """Blocks over `[segments ; tokens]`, then the grouping of the segments by the tokens.

    With `other_segments` (a number `T`) the segments are first regrouped by the other modality's `T` segments:
    they are then indexed by those and carry their own values.
    """

    def __init__(
        self,
        width: int,
        groups: int,
        depth: int,
        heads: int = 8,
        *,
        mlp_ratio: int = 4,
        drop_path: float = 0.1,
        other_segments: int | None = None,
        hard_segments: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, drop_path) for _ in range(depth))
        self.han: Grouping | None = None
        if other_segments is not None:
            self.han = Grouping(width, other_segments, heads, mlp_ratio, hard=hard_segments)
        self.grouping = Grouping(width, groups, heads, mlp_ratio)

    def forward(self, segments: Tensor, tokens: Tensor, other: Tensor | None = None) -> GroupOutput:
        """`[B, L, C]`, tokens `[S, C]` or `[B, S, C]`, other `[B, T, C]` -> `GroupOutput`."""
        count = segments.shape[1]
        x = torch.cat([segments, tokens.expand(segments.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        own, tokens = x[:, :count], x[:, count:]
        segments = own
        if self.han is not None and other is not None:
            segments = self.han(other, own).groups
        grouped = self.grouping(tokens, segments)
        return GroupOutput(grouped.groups, grouped.logits, segments, own)


INIT_STD = 0.02


class MotionError(CaeavError):
    """Motion features missing or given although the head has no place for them."""


class AvvpOutput(NamedTuple):
    """Probabilities: `clip_prob`, `audio_prob`, `visual_prob` `[B, K]`; `*_frame_prob` `[B, T, K]`.

    `*_token_logits` `[K, K]`: class scores of the class tokens themselves. With the reference's attention frame
    probabilities reach 1.24.
    """

    clip_prob: Tensor
    audio_prob: Tensor
    visual_prob: Tensor
    audio_frame_prob: Tensor
    visual_frame_prob: Tensor
    audio_token_logits: Tensor
    visual_token_logits: Tensor


def frame_attention(logits: Tensor, *, bounded: bool) -> Tensor:
    """How much each second carries each class: assignment logits `[B, K, T]` -> `[B, K, T]`.

    `1 + softmax over time` of the assignment shares (the reference; close to 1 everywhere), or, `bounded`, the shares
    relative to the best second.
    """
    shares = logits.softmax(dim=1)
    return shares / shares.amax(dim=-1, keepdim=True) if bounded else 1 + shares.softmax(dim=-1)


class AvvpHead(nn.Module):
    """Mean tokens of both modalities (and motion features) -> groups per class -> probabilities.

    `motion_channels` is 512 in the reference (R(2+1)D features a second); None builds the head without motion.
    """

    def __init__(
        self,
        visual_channels: int,
        audio_channels: int,
        classes: int,
        segments: int,
        config: AvvpHeadConfig,
        motion_channels: int | None = None,
    ) -> None:
        super().__init__()
        width = config.width
        self.bounded_attention = config.bounded_attention
        self.audio_class_tokens = nn.Parameter(torch.zeros(classes, width))
        self.visual_class_tokens = nn.Parameter(torch.zeros(classes, width))
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        self.visual_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_in = nn.Linear(audio_channels, width)
        self.visual_in = nn.Linear(visual_channels, width)
        self.motion_in = None if motion_channels is None else nn.Linear(motion_channels, width)
        self.visual_fuse = None if motion_channels is None else nn.Linear(2 * width, width)

        def group(depth: int, other_segments: int | None = None) -> GroupTransformer:
            return GroupTransformer(
                width,
                classes,
                depth,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                drop_path=config.drop_path,
                other_segments=other_segments,
                hard_segments=config.hard_segments,
            )

        self.audio_group = group(config.audio_depth, segments)
        self.visual_group = group(config.visual_depth)
        self.cross_group = group(config.cross_depth)
        self.clip_prob = nn.Linear(width, 1)
        self.audio_prob = nn.Linear(width, 1)
        self.visual_prob = nn.Linear(width, 1)
        self.token_class = nn.Linear(width, classes)
        self.second_class = nn.Linear(width, classes) if config.own_seconds else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, trunk: TrunkOutput, motion: Tensor | None = None) -> AvvpOutput:
        """Tokens `[B, T, L, C]`, `[B, T, M, D]`, motion `[B, T, F]` -> `AvvpOutput`.

        Raises `MotionError` when motion features do not go with how the head was built.
        """
        heard = self.audio_in(self.audio_norm(trunk.audio.mean(dim=2)))  # [B, T, d]
        seen = self._fuse(self.visual_in(self.visual_norm(trunk.visual.mean(dim=2))), motion)
        visual = self.visual_group(seen, self.visual_class_tokens)
        audio = self.audio_group(heard, self.audio_class_tokens, seen)
        across = self.cross_group(audio.groups, visual.groups)
        audio_prob, audio_frames = self._seconds(self.audio_prob(audio.groups), audio)
        visual_prob, visual_frames = self._seconds(self.visual_prob(visual.groups), visual)
        return AvvpOutput(
            clip_prob=self.clip_prob(across.groups).sigmoid().squeeze(-1),
            audio_prob=audio_prob,
            visual_prob=visual_prob,
            audio_frame_prob=audio_frames,
            visual_frame_prob=visual_frames,
            audio_token_logits=self.token_class(self.audio_class_tokens),
            visual_token_logits=self.token_class(self.visual_class_tokens),
        )

    def _seconds(self, clip: Tensor, grouped: GroupOutput) -> tuple[Tensor, Tensor]:
        """Logits of the groups `[B, K, 1]` -> probabilities of the clip `[B, K]` and of its seconds `[B, T, K]`."""
        if self.second_class is not None:
            seconds = (self.second_class(grouped.own) + clip.transpose(1, 2)).sigmoid()
            return linear_pool(seconds), seconds
        attention = frame_attention(grouped.logits, bounded=self.bounded_attention)
        clip = clip.sigmoid()
        return clip.squeeze(-1), (clip * attention).transpose(1, 2)

    def _fuse(self, seen: Tensor, motion: Tensor | None) -> Tensor:
        if (motion is None) != (self.motion_in is None):
            raise MotionError(
                f"the head was built {'without' if self.motion_in is None else 'with'} motion features, "
                f"the batch has {'none' if motion is None else list(motion.shape)}",
                hint="set motion_channels to the width of the features, or to None for no features",
            )
        if self.motion_in is None or self.visual_fuse is None:
            return seen
        return self.visual_fuse(torch.cat([seen, self.motion_in(motion)], dim=-1))  # type: ignore[no-any-return]
