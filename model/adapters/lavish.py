"""LAVISH's adapter (CVPR 2023): tokens read the other modality through a few latents, then a bottleneck.

It is AVMoE's cross-modal expert without a router beside it:

    R  = latents + softmax_N(latents c^T) c        K latents read the context c first
    x' = x + attn_gate * softmax_K(x R^T) R        then every token reads the latents
    y  = out_gate * post_norm(up_bn(up(relu(down_bn(down(pre_norm x'))))))

Both modalities have one, each the other's context. The published code has equal tokens and channels in both streams
and no map between them; where they differ, `ContextMaps` brings the other modality here ("LAVisH*" in DG-SCT's tables).
Own tokens `x` `[BT, N, C]`, the other modality's `[BT, M, D]`.
"""

from __future__ import annotations

from torch import Tensor, nn

from caeav.model.adapters.config import LatentStart
from caeav.model.adapters.moe import ContextMaps, CrossExpert, read_context


class LavishAdapter(CrossExpert):
    """One adapter; what it adds to `x` is returned, not yet added.

    maps: None where both modalities have equal tokens and channels. latent_start: `zeros` as in the AVS and AVQA
    copies, where all latents get the same gradient and stay one. Further options: `CrossExpert`.
    """

    def __init__(
        self,
        channels: int,
        bottleneck: int,
        groups: int,
        latents: int,
        *,
        maps: ContextMaps | None,
        latent_start: LatentStart = "uniform",
        gate_init: float = 0.0,
        scaled: bool = False,
        **options: bool,
    ) -> None:
        super().__init__(channels, bottleneck, groups, latents, gate_init=gate_init, scaled=scaled, **options)
        self.maps = maps
        if latent_start == "zeros":
            nn.init.zeros_(self.latent_tokens)

    def read(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """What the latents read of the context, `[BT, K, C]`, and the context's mean `[BT, C]`."""
        queries = self.queries()
        if self.maps is None:
            return read_context(queries, other), other.mean(dim=1)
        (read,), mean = self.maps.read(other, [queries])
        return read, mean

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """`x` `[BT, N, C]`, `other` `[BT, M, D]` -> `[BT, N, C]`."""
        return self.output(self.prepare(x, self.read(other)[0]))
