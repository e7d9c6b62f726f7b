"""Swin-V2 of timm, opened up: every block as its two residual halves, so that adapters can act between them.

Needs the `learned` extra. Tokens `[BT, L, C]` are timm's `[BT, H, W, C]` grids row by row. Nothing is computed here
that timm does not compute: walking the halves gives its own forward bit for bit. timm keeps the merging at the start
of a stage; here, as in the reference, it ends the stage before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.native import import_torchvision

NAMES = ("swinv2_large_window12_192", "swinv2_base_window12_192")
"""The models of the papers; any `swinv2_*` of timm works."""


@dataclass(frozen=True)
class SwinBlock:
    """One block in two halves: `x + attention(x)`, then `x + mlp(x)`. Norms come last in each (post-norm)."""

    block: Any
    height: int
    width: int

    def attention(self, x: Tensor) -> Tensor:
        """Increment of (shifted) window attention, `[BT, L, C]` -> `[BT, L, C]`."""
        block = self.block
        grid = block._attn(x.view(x.shape[0], self.height, self.width, x.shape[-1]))
        return block.drop_path1(block.norm1(grid)).view_as(x)  # type: ignore[no-any-return]

    def mlp(self, x: Tensor) -> Tensor:
        """Increment of the feed-forward part."""
        block = self.block
        return block.drop_path2(block.norm2(block.mlp(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SwinStage:
    """The blocks of one resolution and the merging that leads to the next."""

    tokens: int
    channels: int
    height: int
    width: int
    blocks: tuple[SwinBlock, ...]
    merging: nn.Module | None

    def merge(self, x: Tensor) -> Tensor:
        """Tokens of this stage -> tokens entering the next; the last stage has no next."""
        if self.merging is None:
            raise ValueError("the last stage is not merged")
        grid = x.view(x.shape[0], self.height, self.width, self.channels)
        return self.merging(grid).flatten(1, 2)  # type: ignore[no-any-return]


class LiveSwinV2:
    """A timm Swin-V2 for adapters inside it; inputs are normalised frames `[BT, 3, H, W]`, or `[BT, H * W, 3]` as the
    tap `visual.frames` holds them."""

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        self._model = cast(Any, model)
        layers = list(self._model.layers)
        stages = []
        for i, layer in enumerate(layers):
            height, width = layer.output_resolution
            stages.append(
                SwinStage(
                    tokens=height * width,
                    channels=layer.blocks[0].dim,
                    height=height,
                    width=width,
                    blocks=tuple(SwinBlock(block, height, width) for block in layer.blocks),
                    merging=layers[i + 1].downsample if i + 1 < len(layers) else None,
                )
            )
        self.stages = tuple(stages)

    def embed(self, frames: Tensor) -> Tensor:
        """Frames -> tokens entering the first stage."""
        if frames.ndim == 3:
            frames = frames.view(-1, *self._model.patch_embed.img_size, 3).permute(0, 3, 1, 2)
        return self._model.patch_embed(frames).flatten(1, 2)  # type: ignore[no-any-return]

    def norm(self, x: Tensor) -> Tensor:
        """The final norm, over the last stage's tokens."""
        return self._model.norm(x)  # type: ignore[no-any-return]


def create_swin_v2(name: str = NAMES[0], options: Mapping[str, Any] | None = None) -> LiveSwinV2:
    """A Swin-V2 of timm by its name, with random weights and without class head; `options` go to timm.

    Raises `CaeavError` when timm is not installed or has no such Swin-V2.
    """
    if not name.startswith("swinv2_"):
        raise CaeavError(f"{name!r} is not a Swin-V2 of timm", hint=f"choose {' or '.join(NAMES)}")
    import_torchvision()  # timm imports it, and it may not fit the installed torch
    try:
        import timm
    except ModuleNotFoundError as error:
        raise CaeavError(f"Swin-V2 needs {error.name}", hint="pip install 'caeav[learned]'") from error
    if not timm.is_model(name):
        raise CaeavError(
            f"timm {timm.__version__} has no model {name!r}", hint=f"choose {' or '.join(NAMES)}"
        )
    return LiveSwinV2(timm.create_model(name, pretrained=False, num_classes=0, **(options or {})))
