"""Which tokens matter: hard top-k by energy, and CASE's differentiable selector (REFERENCE sections 2.4, 2.7).

A token's energy is its squared length. Rows `BT`, tokens `L`, channels `C`; `k = max(1, int(L * ratio))`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_TEMPERATURE = 1e-3
MIN_SUM = 1e-6


def selected_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` a `ratio` keeps: truncated, at least 1 (double precision, as the reference)."""
    return max(1, int(tokens * ratio))


@torch.no_grad()
def top_tokens(x: Tensor, ratio: float) -> Tensor:
    """Indices `[BT, k]` (in no particular order) of the most energetic tokens of `[BT, L, C]`."""
    # Lengths rank like energies and need no squared copy of the tokens; half precision would make ties.
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    length = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return torch.topk(length, selected_count(x.shape[1], ratio), dim=1, sorted=False).indices


def token_topk_mask(x: Tensor, ratio: float) -> Tensor:
    """1 for the most energetic tokens, 0 for the others: `[BT, L, C]` -> `[BT, L, 1]`, no gradient."""
    index = top_tokens(x, ratio)
    return x.new_zeros(x.shape[:2]).scatter_(1, index, 1.0).unsqueeze(-1)


class TokenSelector(nn.Module):
    """Soft weights of the selected tokens, summing to 1 in every segment.

    Eval: `1/k` for each of the `k` most energetic tokens, without gradient. Train: a softmax over energies plus
    Gumbel noise, cut below its `k`-th largest value and renormalised; gradients reach the tokens and the
    temperature.

    whole: a selected token weighs 1 instead, an unselected one 0, in training as in eval mode. The gradient in
    training is that of the probabilities (straight through), so it reaches unselected tokens as well.
    """

    def __init__(self, ratio: float, *, whole: bool = False) -> None:
        super().__init__()
        self.ratio = ratio
        self.whole = whole
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`[BT, L, C]` -> weights `[BT, L, 1]` and, in training, the uncut probabilities `[BT, L]`.

        `noise`: `[BT, L]` drawn from Exp(1), for reproducing a call; drawn here when absent.
        """
        if not self.training:
            mask = token_topk_mask(x, self.ratio)
            if self.whole:
                return mask, None
            return mask / mask.sum(dim=1, keepdim=True).clamp_min(MIN_SUM), None
        energy = x.square().sum(dim=-1)
        if noise is None:
            noise = torch.empty_like(energy).exponential_()
        logits = (energy - noise.log()) / self.temperature.clamp_min(MIN_TEMPERATURE)
        probabilities = torch.softmax(logits, dim=-1)  # [BT, L]
        k = selected_count(x.shape[1], self.ratio)
        if self.whole:
            best = logits.detach().topk(k, dim=-1).indices  # logits do not underflow
            chosen = torch.zeros_like(probabilities).scatter_(1, best, 1.0)
            return (chosen + (probabilities - probabilities.detach())).unsqueeze(-1), probabilities
        threshold = probabilities.detach().topk(k, dim=-1).values[:, -1:]
        kept = probabilities * (probabilities >= threshold)
        return (kept / kept.sum(dim=-1, keepdim=True).clamp_min(MIN_SUM)).unsqueeze(-1), probabilities
