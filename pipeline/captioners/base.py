"""What a captioner is: a frozen model, or a rule, that writes text for the frames or the sound of a clip.

Choosing what of a clip is captioned, and making one caption of several: rules without chance, no model.

A clip's caption may come from several pictures or several stretches of sound; each gives a text, and the distinct
ones are kept in the order of time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from caeav.pipeline.media.clip import DecodedClip

ENDS = (".", "!", "?", "…", "。")


def evenly(real: Sequence[bool], count: int) -> list[int]:
    """Places of `count` segments evenly spread over those that hold real media; a short clip repeats some.

    One segment is the middle one; empty when nothing is real.
    """
    places = [place for place, ok in enumerate(real) if ok]
    return [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)] if places else []


def tidy(text: str) -> str:
    """One line, single blanks, no control characters; the words stay as the model wrote them."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def one_caption(texts: Sequence[str]) -> str:
    """The distinct texts in order, each a sentence of its own; a single one stays as it is.

    Texts are the same when they differ in letter case and final stops only.
    """
    distinct: dict[str, str] = {}
    for text in map(tidy, texts):
        same = text.rstrip("".join(ENDS)).casefold()
        if same:
            distinct.setdefault(same, text)
    found = list(distinct.values())
    if len(found) <= 1:
        return "".join(found)
    return " ".join(text if text.endswith(ENDS) else f"{text}." for text in found)


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
