"""Masks laid over frames: what sounds keeps its colour and has a visible edge; the rest is dimmed."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from caeav.model.tasks.avs.prediction import Masks


@pytest.mark.parametrize("hue", [0.0, 0.17, 0.33, 0.5, 0.67, 0.83])
def test_the_edge_of_a_mask_is_visible_on_any_hue(hue: float) -> None:
    colour = np.array([round(255 * part) for part in colorsys.hsv_to_rgb(hue, 1.0, 1.0)], np.uint8)
    frames = np.full((1, 160, 160, 3), colour)
    probability = np.zeros((1, 32, 32), np.float32)
    probability[0, 8:24, 8:24] = 1.0  # pixels 40 to 120 of the frame
    shown = Masks(probability)._overlay(0, frames[0])
    assert (shown[80, 80] == colour).all()
    inside, edge, outside = (shown[80, x].astype(int) for x in (80, 40, 20))
    for other in (inside, outside):
        assert np.abs(edge - other).max() >= 120
    assert outside.max() < 110
