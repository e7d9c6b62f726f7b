"""What training minimises: the task's losses, the adapters' own, the correspondence of audio and frames
(`correspondence.py`), and three light objectives, each with its weight.

The light objectives are defined here, since the published method names them but gives no formula (reasons in
docs/OBJECTIVES.md). They read `TrunkOutput.aux` and `.agreement` and know no task; an objective whose source a model
lacks (CASE, CASTE) is absent. Each is a float32 scalar.
Shapes: `B` clips, `T` segments, `P` projected channels, `L` tokens, `W` caption tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.tasks.base import Task
from caeav.model.tasks.config import RunConfig
from caeav.model.train.correspondence import correspondence
from caeav.model.train.network import Output

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.02, 1.0
TINY = 1e-12
CONTRAST, CONSISTENCY, ENTROPY = "caption_contrast", "consistency", "selection_entropy"
CORRESPONDENCE = "correspondence"


class _Bounded(torch.autograd.Function):
    """A clamp whose gradient vanishes at a bound only if it pushes outwards; a plain clamp would be stuck there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        outwards = ((x <= low) & (grad > 0)) | (
            (x >= high) & (grad < 0)
        )  # descent steps against the gradient
        return grad.masked_fill(outwards, 0.0), None, None


def bounded_temperature(temperature: Tensor) -> Tensor:
    """A learned temperature, clamped to 0.02 .. 1 on its log scale."""
    # Far below the lower bound the logarithm's gradient would explode; the value is clamped anyway.
    log = temperature.clamp_min(0.1 * MIN_TEMPERATURE).log()
    bounds = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    return _Bounded.apply(log, *bounds).exp()  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def same_caption(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Which clips have equal captions: tokens `[B, W, C]`, mask `[B, W]` -> bool `[B, B]`; padding is ignored."""
    flat = tokens.float()
    if mask is not None:
        flat = torch.cat([flat * mask.unsqueeze(-1), mask.unsqueeze(-1).float()], dim=-1)
    group: Tensor = torch.unique(flat.flatten(1), dim=0, return_inverse=True)[1]  # [B]
    return group.unsqueeze(0) == group.unsqueeze(1)


def caption_contrast(segments: Tensor, captions: Tensor, same: Tensor, temperature: Tensor) -> Tensor:
    """Symmetric InfoNCE between clips and captions: `[B, T, P]`, `[B, P]`, bool `[B, B]`, scalar -> scalar.

    A clip is the mean of its projected segments. Clips with the same caption are not negatives of each other; without
    negatives the loss is 0.
    """
    clips = F.normalize(segments.float().mean(dim=1), dim=-1)
    logits = clips @ F.normalize(captions.float(), dim=-1).t() / bounded_temperature(temperature.float())
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same & ~own, -torch.inf)  # [B, B], clip by caption
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def consistency(visual: Tensor, audio: Tensor, agreement: Tensor) -> Tensor:
    """Mean over segments of `agreement * (1 - cos)`: `[B, T, P]` twice, `[B, T]` -> scalar.

    The agreement is a fixed weight here: a learned one would escape the loss by disagreeing.
    """
    apart = 1 - F.cosine_similarity(visual.float(), audio.float(), dim=-1)
    return (agreement.detach().float() * apart).mean()


def selection_entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy of the selector's `[B, T, L]`, divided by the largest possible one; 0 for a single token."""
    tokens = probabilities.shape[-1]
    if tokens == 1:
        return probabilities.float().sum() * 0.0
    # At probability 0 the slope is infinite, which the softmax behind it turns into NaN.
    entropy: Tensor = torch.special.entr(probabilities.float().clamp_min(TINY)).sum(dim=-1)  # [B, T]
    return entropy.mean() / math.log(tokens)


def guidance_losses(trunk: TrunkOutput, batch: TokenBatch) -> dict[str, Tensor]:
    """The objectives whose sources this model has, unweighted and averaged over modalities."""
    aux, found = trunk.aux, {}
    device = trunk.device.type
    with torch.autocast(device, enabled=False):
        if (
            "proj_visual_caption" in aux
            and batch.visual_caption is not None
            and batch.audio_caption is not None
        ):
            same_visual = same_caption(batch.visual_caption, batch.visual_caption_mask)
            same_audio = same_caption(batch.audio_caption, batch.audio_caption_mask)
            temperature = aux["contrastive_temperature"]
            found[CONTRAST] = (
                caption_contrast(aux["proj_visual"], aux["proj_visual_caption"], same_visual, temperature)
                + caption_contrast(aux["proj_audio"], aux["proj_audio_caption"], same_audio, temperature)
            ) / 2
        if "proj_visual" in aux and trunk.agreement is not None:
            found[CONSISTENCY] = consistency(aux["proj_visual"], aux["proj_audio"], trunk.agreement)
        if "selected_visual" in aux:  # in training only
            found[ENTROPY] = (
                selection_entropy(aux["selected_visual"]) + selection_entropy(aux["selected_audio"])
            ) / 2
    return found


def weighted_losses(task: Task, output: Output, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
    """Weighted losses by name, whose sum is minimised; a weight of 0 leaves a loss out."""
    named = {
        **task.losses(output.found, batch, config),
        **output.trunk.losses,
        **guidance_losses(output.trunk, batch),
    }
    weights = config.loss.model_dump()
    if output.trunk.match is not None and weights[CORRESPONDENCE]:
        labels = task.together(batch.targets, training=True)
        named[CORRESPONDENCE] = correspondence(output.trunk.match, labels, batch)
    return {name: loss * weights[name] for name, loss in named.items() if weights[name]}
