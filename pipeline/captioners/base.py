"""What a captioner is: a frozen model, or a rule, that writes text for the frames or the sound of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from caeav.pipeline.media.clip import DecodedClip


class Captioner(Protocol):
    """Writes one caption a clip for one modality; never sees labels.

    One that runs on the device also has `module() -> nn.Module`, frozen, in eval mode: the engine moves it to a
    device and calls `caption`, in inference mode, with batches of one size, in which empty places are clips without
    picture and sound. `caption` moves its inputs to where the module lies.
    """

    name: str
    modality: Literal["visual", "audio"]
    runs_in: Literal["worker", "device"]
    rate_hz: int | None

    def describe(self) -> Mapping[str, Any]:
        """JSON values that decide its text: model, prompt, settings."""
        ...

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text a clip; an empty text says that the modality is missing."""
        ...
