"""The agreement gate: how well sound and picture of one segment fit together (REFERENCE section 2.1).

Rows `BT` = clips x segments; own tokens `[BT, L, C]`, the other modality's `[BT, M, D]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNIT_EPS = 1e-12


class AgreementGate(nn.Module):
    """Two weights a segment that add up to 1: trust space (they agree) or time (they do not).

    Both token means are projected to `width`; a small MLP on `[p, q, p-q, p*q]` plus their cosine with
    opposite signs gives the logits. The gradient flows through the cosine as well.
    """

    def __init__(self, channels: int, other_channels: int, width: int = 128) -> None:
        super().__init__()
        self.self_proj = nn.Linear(channels, width)
        self.other_proj = nn.Linear(other_channels, width)
        self.mlp_in = nn.Linear(4 * width, width // 2)
        self.mlp_out = nn.Linear(width // 2, 2)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """`[BT, L, C]` and `[BT, M, D]` -> weights `[BT, 2]` (spatial, temporal)."""
        return self.weigh(own.mean(dim=1), other.mean(dim=1))

    def weigh(self, own_mean: Tensor, other_mean: Tensor) -> Tensor:
        """The same from token means `[BT, C]`, `[BT, D]`."""
        p, q = self.self_proj(own_mean), self.other_proj(other_mean)  # [BT, width]
        cosine = (F.normalize(p, dim=-1, eps=UNIT_EPS) * F.normalize(q, dim=-1, eps=UNIT_EPS)).sum(-1)
        hidden = F.relu(self.mlp_in(torch.cat([p, q, p - q, p * q], dim=-1)))
        logits = self.mlp_out(hidden) + torch.stack([cosine, -cosine], dim=-1)
        return torch.softmax(logits, dim=-1)
