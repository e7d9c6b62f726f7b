"""The AVS objectives (AVSBench; REFERENCE section 5): masks, and audio similar to what the mask covers.

S4 has a mask of the first frame only and MS3 of all five: the loss reads as many frames as there are masks. The
reference's script for S4 uses the mask loss alone, the one for MS3 adds `0.5 * masked_divergence`. Its nearest-sound
variant compares frames across the batch, so its value depends on the batch.
`B` clips, `T` frames, `S` mask size, `C` channels of a map of `h x w`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def mask_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """BCE over the pixels of the annotated frames: logits `[B, T, S, S]`, masks `[B, A, S, S]`, the first `A <= T`."""
    known = mask_logits[:, : masks.shape[1]]
    return F.binary_cross_entropy_with_logits(known, masks.to(known.dtype))


def masked_similarity(mask_logits: Tensor, maps: Sequence[Tensor], audio: Sequence[Tensor]) -> Tensor:
    """S4: `-log cos` between audio and the mean of the map under the (thresholded) mask; mean over frames and maps.

    Logits `[B, T, S, S]`, maps `[B, T, C, h, w]`, audio `[B, T, C]` per scale. No gradient to the mask.
    """
    probability = mask_logits.detach().sigmoid()
    losses = []
    for grid, aligned in zip(maps, audio, strict=True):
        chosen = (_pool(probability, grid) > 0.5).to(grid.dtype).unsqueeze(2)
        pooled = (grid * chosen).sum(dim=(-2, -1)) / (chosen.sum(dim=(-2, -1)) + EPS)  # [B, T, C]
        cosine = (F.normalize(pooled, dim=-1) * F.normalize(aligned, dim=-1)).sum(dim=-1)
        losses.append(-(F.relu(cosine) + EPS).log().mean())
    return torch.stack(losses).mean()


def masked_divergence(mask_logits: Tensor, maps: Sequence[Tensor], audio: Sequence[Tensor]) -> Tensor:
    """MS3: `KL(softmax(audio) || softmax(masked map))`, summed over frames and channels, mean over maps.

    Shapes as in `masked_similarity`. The mask pools *logits*, then takes their sigmoid; the masked map is averaged
    over all places, covered or not, and nothing is normalised (the flags the reference ships).
    """
    pooled = _soft_pooled(mask_logits, maps)
    losses = [_divergence(aligned.flatten(0, 1), own) for own, aligned in zip(pooled, audio, strict=True)]
    return torch.stack(losses).mean()


def nearest_sound_divergence(mask_logits: Tensor, maps: Sequence[Tensor], audio: Sequence[Tensor]) -> Tensor:
    """MS3, optional: what the mask covers should resemble what it covers in the frame that sounds most similar.

    For every frame of the batch the other frame with the nearest audio (Euclidean, unit length) is the target:
    `KL(softmax(nearest) || softmax(own))` of the masked maps, here scaled to unit length, summed, mean over maps.
    Gradients reach both frames, not the choice.
    """
    losses = []
    for own, aligned in zip(_soft_pooled(mask_logits, maps), audio, strict=True):
        flat = F.normalize(aligned.detach().flatten(0, 1), dim=-1)
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.fill_diagonal_(torch.inf).argmin(dim=0)
        unit = F.normalize(own, dim=-1)
        losses.append(_divergence(unit[nearest], unit))
    return torch.stack(losses).mean()


def _pool(mask: Tensor, grid: Tensor) -> Tensor:
    """`[B, T, S, S]` averaged down to the places of a map: `[B, T, h, w]`."""
    height, width = grid.shape[-2:]
    return F.adaptive_avg_pool2d(mask, (height, width))


def _soft_pooled(mask_logits: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps weighted by the sigmoid of the pooled logits and averaged over places: `[BT, C]` per scale."""
    pooled = []
    for grid in maps:
        weights = _pool(mask_logits, grid).sigmoid()  # [B, T, h, w]
        pooled.append((torch.einsum("btchw,bthw->btc", grid, weights) / weights[0, 0].numel()).flatten(0, 1))
    return pooled


def _divergence(target: Tensor, other: Tensor) -> Tensor:
    return F.kl_div(other.log_softmax(dim=-1), target.log_softmax(dim=-1), reduction="sum", log_target=True)
