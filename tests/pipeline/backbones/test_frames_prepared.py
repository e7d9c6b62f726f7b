"""Frames are prepared as by the libraries whose features are to be reproduced."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    FrameSettings,
    prepare_frames,
)
from caeav.pipeline.backbones.native import import_torchvision

needs_vision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="no torchvision")


def image(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth and rough regions and an edge, at which resizers differ most."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    base = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], axis=-1) * 90 + 128
    base[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 60)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def settings(size: int, preset: str, **more: Any) -> FrameSettings:
    return FrameSettings(**{"size": (size, size), **PRESETS[preset], **more})


@needs_vision
@pytest.mark.parametrize("shape", [(360, 640), (240, 135), (100, 100)])
def test_reference_is_torchvisions_resize_of_tensors_without_antialias(shape: tuple[int, int]) -> None:
    import_torchvision()
    from torchvision.transforms import InterpolationMode, Normalize, Resize

    frames = np.stack([image(*shape), image(*shape)[::-1]])
    x = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255
    x = Resize((192, 192), interpolation=InterpolationMode.BICUBIC, antialias=False)(x)
    wanted = Normalize(IMAGENET_MEAN, IMAGENET_STD)(x)
    found = prepare_frames(frames, settings(192, "reference"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("shape", [(360, 640), (640, 360), (135, 240), (301, 217)])
@pytest.mark.parametrize("crop", [0.9, 1.0, 0.875])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_published_is_what_timm_does_with_pillow(
    shape: tuple[int, int], crop: float, interpolation: str
) -> None:
    import_torchvision()
    from PIL import Image
    from timm.data.transforms_factory import transforms_imagenet_eval

    transform = transforms_imagenet_eval(
        224, crop_pct=crop, interpolation=interpolation, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    frame = image(*shape)
    wanted = transform(Image.fromarray(frame))
    [found] = prepare_frames(frame[None], settings(224, "published", crop=crop, interpolation=interpolation))
    step = 1 / 255 / min(IMAGENET_STD)
    difference = (found - wanted).abs()
    assert difference.max() <= 2.01 * step  # of 256 steps; some values are rounded the other way
    assert (difference > 0.01 * step).float().mean() < 0.02


def test_presets_differ_where_frames_are_reduced() -> None:
    frames = image(360, 640)[None]
    found = {name: prepare_frames(frames, settings(64, name, crop=0.9)) for name in PRESETS}
    assert all(x.shape == (1, 3, 64, 64) and x.dtype == torch.float32 for x in found.values())
    names = sorted(found)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (found[a] - found[b]).abs().mean() > 0.02, (a, b)


def test_whole_keeps_the_border_and_published_does_not() -> None:
    frame = np.zeros((1, 90, 160, 3), dtype=np.uint8)
    frame[:, :, :16] = 255
    left = {
        name: prepare_frames(frame, settings(32, name))[0, 0, :, 0].max() for name in ("whole", "published")
    }
    assert left["whole"] > 2 and left["published"] < -2


def test_nearest_interpolation_adds_no_values() -> None:
    found = prepare_frames(
        image(50, 70)[None], settings(24, "whole", interpolation="nearest", mean=(0,) * 3, std=(1,) * 3)
    )
    values = set(np.unique(image(50, 70)).tolist())
    assert {round(v * 255) for v in found.unique().tolist()} <= values


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4)), np.zeros((2, 4, 4, 3)), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(frames: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        prepare_frames(frames, settings(8, "whole"))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("crop", "rows", "columns"),
    [(1.0, range(0, 60, 2), range(40, 160, 2)), (0.5, range(15, 45), range(70, 130))],
)
def test_a_target_that_is_not_square_is_cropped_from_the_centre(
    turned: bool, crop: float, rows: range, columns: range
) -> None:
    y, x = np.mgrid[:60, :200]
    frame, size = np.stack([y, x, x + 0 * y], axis=-1).astype(np.uint8), (30, 60)
    if turned:
        frame, size = frame.transpose(1, 0, 2), size[::-1]
    plain = FrameSettings(size, "crop", crop, "nearest", True, "uint8", mean=(0.0,) * 3, std=(1.0,) * 3)
    [found] = (prepare_frames(frame[None], plain) * 255).round().int().numpy()
    found = found.transpose(0, 2, 1) if turned else found
    assert found[0, :, 0].tolist() == list(rows)
    assert found[1, 0].tolist() == list(columns)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": [0.5, 0.5]}, "give three numbers each"),
        ({"std": [1.0, 1.0, 1.0, 1.0]}, "give three numbers each"),
        ({"std": [1.0, 0.0, 1.0]}, "std above 0"),
        ({"crop": 0.0}, r"give a share in \(0, 1\]"),
        ({"crop": 1.01}, r"give a share in \(0, 1\]"),
        ({"size": [8]}, "in pixels"),
        ({"size": [8, 0]}, "in pixels"),
        ({"size": [8, 8.0]}, "in pixels"),
        ({"interpolation": "lanczos"}, "bicubic, bilinear, nearest"),
        ({"pixels": "int8"}, "float, uint8"),
    ],
)
def test_invalid_frame_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    usual = FrameSettings((8, 8), crop=1.0).as_json()
    assert FrameSettings.parse(usual) == FrameSettings((8, 8))
    with pytest.raises(CaeavError, match=message):
        FrameSettings.parse({**usual, **wrong})
