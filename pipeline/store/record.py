"""What one clip is inside a store: named arrays and a JSON side record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Record:
    """Arrays of one clip (tap -> `[T, L, C]`, or caption tokens `[W, C]` and mask `[W]`) with its facts and texts.

    `info` holds JSON values only: `notes`, `frames_ok`, `audio_ok`, `facts`, and for captions `texts`.
    """

    key: str
    arrays: Mapping[str, NDArray[np.generic]]
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A clip that could not be processed: at which stage, why, after how many attempts."""

    key: str
    stage: str
    reason: str
    attempts: int
