"""The parts of the mask decoder against their formulas, without the reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from caeav.model.tasks.avs.config import AvsHeadConfig
from caeav.model.tasks.avs.head import FusionBlock, MaskDecoder, MaskOutput, Tpavi


def doubled(x: torch.Tensor, corners: bool) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=corners)


def test_a_fusion_block_adds_the_finer_map_and_doubles_with_aligned_corners() -> None:
    torch.manual_seed(0)
    block, last = FusionBlock(3, rectified=False), FusionBlock(3, skip=False)
    coarse, finer = torch.randn(2, 1, 3, 4, 4)
    assert block.skip_unit is not None and last.skip_unit is None
    wanted = doubled(block.out_unit(coarse + block.skip_unit(finer)), True)
    torch.testing.assert_close(block(coarse, finer), wanted)
    torch.testing.assert_close(last(coarse), doubled(last.out_unit(coarse), True))


def test_the_mask_is_made_of_the_finest_map_doubled_without_aligned_corners() -> None:
    torch.manual_seed(0)
    out, x = MaskOutput(3, 4, 2), torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(out(x), out.conv3(out.conv2(doubled(out.conv1(x), False)).relu()))


def test_every_map_enters_at_its_own_scale() -> None:
    torch.manual_seed(0)
    decoder = MaskDecoder(3, AvsHeadConfig(channels=2, out_channels=(3, 2), mask_size=32))
    maps = [torch.randn(1, 2, side, side) for side in (8, 4, 2)]
    x = decoder.fuse3(maps[2])
    x = decoder.fuse1(decoder.fuse2(x, maps[1]), maps[0])
    mask, seen = decoder.decode(maps)
    torch.testing.assert_close(mask, decoder.out(x))
    assert mask.shape == (1, 1, 32, 32)
    torch.testing.assert_close(seen, [m.relu() for m in maps])


def test_tpavi_without_audio_attends_to_all_places() -> None:
    torch.manual_seed(0)
    layer = Tpavi(8, 6, with_audio=False).double().eval()
    torch.nn.init.normal_(layer.out_bn.weight)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    places = x.flatten(1, 2)
    attention = layer.query(places) @ layer.key(places).transpose(1, 2) / 12
    wanted = layer.norm(x + layer.out_bn(layer.out_conv(attention @ layer.value(places))).view_as(x))
    found, audio = layer(x)
    torch.testing.assert_close(found, wanted)
    assert audio is None
