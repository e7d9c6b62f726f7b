"""Objects that are pictures of the user's: placed, turned, moved and drawn with their alpha.

How an object moves tells nothing of its class here: motions are drawn from `GENTLE`, which keep a picture
about upright and of one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, hypot, sin

import numpy as np
from numpy.random import Generator

from caeav.manifests.synthetic.material_media import resized
from caeav.manifests.synthetic.sprites import Field, Image, Movement

GENTLE = ("bounce", "glide", "hop", "sway")
BRIGHTNESS = (0.85, 1.1)


@dataclass(frozen=True)
class PictureBody:
    """A moving picture of one shot; `image`: float32 [h, w, 4] at its size in pixels, colours multiplied by alpha."""

    image: Image
    movement: Movement

    def draw(self, canvas: Image, t: float) -> tuple[int, int, Field]:
        """Draw it as it is at `t` seconds; the top, left and coverage of the window, as `sprites.stamp` gives them."""
        return paste(canvas, self.image, *self.movement.at(t))


def look_of(picture: Image, radius_px: float, rng: Generator) -> Image:
    """A picture at the size of an object: its longer side is 2 * `radius_px`, perhaps mirrored, brighter or darker."""
    height, width = picture.shape[:2]
    factor = 2 * radius_px / max(height, width)
    small = resized(picture, max(1, round(factor * height)), max(1, round(factor * width)))
    if rng.random() < 0.5:
        small = small[:, ::-1]
    shade = np.array([rng.uniform(*BRIGHTNESS)] * 3 + [1.0], dtype=np.float32)
    return np.asarray(small * shade)


def paste(
    canvas: Image, image: Image, x_px: float, y_px: float, scale: float, angle: float
) -> tuple[int, int, Field]:
    """Draw `image` [h, w, 4] with its middle at (x, y) onto `canvas` [H, W, 3] in place; it may lie partly outside.

    Returns the top and left of the window that was drawn in, and how much of each pixel in it is covered, 0..1.
    """
    height, width = image.shape[:2]
    reach = ceil(hypot(height, width) / 2 * scale) + 1
    top, left = max(0, int(y_px) - reach), max(0, int(x_px) - reach)
    window = canvas[top : max(0, int(y_px) + reach + 1), left : max(0, int(x_px) + reach + 1)]
    if not window.size:
        return 0, 0, np.zeros((0, 0), dtype=np.float32)
    rows, columns = (np.arange(size, dtype=np.float32) for size in window.shape[:2])
    dy = (rows + np.float32(top + 0.5 - y_px))[:, None] / np.float32(scale)
    dx = (columns + np.float32(left + 0.5 - x_px))[None, :] / np.float32(scale)
    c, s = np.float32(cos(angle)), np.float32(sin(angle))
    pixels = _sampled(
        image, dy * c - dx * s + np.float32(height / 2), dx * c + dy * s + np.float32(width / 2)
    )
    cover = np.clip(pixels[..., 3], 0, 1)
    window *= 1 - cover[..., None]
    window += pixels[..., :3]
    return top, left, cover


def _sampled(image: Image, y: Image, x: Image) -> Image:
    """`image` at fractional places (0 is its upper or left edge), transparent outside: float32 [..., 4]."""
    height, width = image.shape[:2]
    framed = np.zeros((height + 3, width + 3, 4), dtype=np.float32)
    framed[1 : height + 1, 1 : width + 1] = image
    y, x = np.clip(y + 0.5, 0, height + 1), np.clip(x + 0.5, 0, width + 1)
    row, column = y.astype(np.intp), x.astype(np.intp)
    v, u = (y - row)[..., None], (x - column)[..., None]
    upper = framed[row, column] * (1 - u) + framed[row, column + 1] * u
    lower = framed[row + 1, column] * (1 - u) + framed[row + 1, column + 1] * u
    return np.asarray(upper * (1 - v) + lower * v, dtype=np.float32)
