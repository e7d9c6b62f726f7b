"""Ground-truth masks inside manifest rows: a boolean image as the base64 text of a 1-bit PNG, and back.

A row that carries its masks can be trained on without the data set's folder. The text is data like that of any other
file: its size is capped, only PNG is opened, and an error says why a text is not a mask.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError

Mask = NDArray[np.bool_]

MAX_SIDE = 4096
MAX_TEXT = 4 * 2**20
"""Characters of one mask; those of AVSBench (224 x 224) have about 700."""


def pack_mask(mask: Mask) -> str:
    """The text of a mask, bool `[H, W]`, True where the sounding object is."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(mask).save(data, "PNG")  # a bool array becomes a 1-bit image
    return base64.b64encode(data.getvalue()).decode("ascii")


def unpack_mask(text: str) -> Mask:
    """The mask of a text, bool `[H, W]`; raises `CaeavError` when the text is not a mask."""
    from PIL import Image

    if len(text) > MAX_TEXT:
        raise _refused(f"it has {len(text)} characters, allowed are {MAX_TEXT}")
    try:
        data = io.BytesIO(base64.b64decode(text, validate=True))
        with Image.open(data, formats=["PNG"]) as image:
            if max(image.size) > MAX_SIDE:
                raise _refused(f"it is {image.width} x {image.height}, allowed are {MAX_SIDE} pixels a side")
            if image.mode != "1":
                raise _refused(f"its pixels are of mode {image.mode!r}, they must be 1-bit")
            return np.array(image, dtype=np.bool_)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _refused(str(error) or type(error).__name__) from error


def _refused(why: str) -> CaeavError:
    return CaeavError(
        f"a mask in the manifest cannot be read: {why}",
        hint="build the manifest again from the official masks: caeav manifest build",
    )
