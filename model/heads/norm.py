"""What a head does to its inputs first. Backbones differ in scale; `none` is the reference."""

from __future__ import annotations

from torch import Tensor, nn

from caeav.model.adapters.layers import TokenBatchNorm

KINDS = {"none": nn.Identity, "batch": TokenBatchNorm, "layer": nn.LayerNorm}


class ChannelNorm(nn.Module):
    """Standardises every channel over the batch (`batch`) or every token over its channels (`layer`)."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.norm: nn.Module = KINDS[kind](channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> the same shape."""
        return self.norm(x)  # type: ignore[no-any-return]

    def again(self, x: Tensor) -> Tensor:
        """Other inputs, brought to the scale of those seen so far, from which nothing is learnt about that scale.

        Without this, inputs that only training has (negatives) would shift what scoring normalises by.
        """
        norm = self.norm
        return norm.remembered(x) if isinstance(norm, TokenBatchNorm) else norm(x)
