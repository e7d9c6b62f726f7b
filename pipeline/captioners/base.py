"""What a captioner is: a frozen model, or a rule, that writes text for the frames or the audio of a clip.

A caption may come from several frames or several windows of audio: `evenly` chooses them, each gives a text, and
`one_caption` keeps the distinct texts in the order of time. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from caeav.pipeline.media.clip import DecodedClip

ENDS = (".", "!", "?", "…", "。")


def evenly(real: Sequence[bool], count: int) -> list[int]:
    """`count` segments evenly spread over those that hold real media; where there are fewer, some come twice.

    A single one is the middle one. Empty when nothing is real.
    """
    places = [place for place, ok in enumerate(real) if ok]
    return [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)] if places else []


def tidy(text: str) -> str:
    """The text in one line, with single blanks and no control characters; the words stay as they are."""
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
    """Writes one caption per clip for one modality; never sees labels.

    One that runs on a device also has `module() -> nn.Module`, frozen, in eval mode. The engine moves it to a device
    and calls `caption`, in inference mode, with batches of one size; empty places are clips without frames and audio.
    `caption` moves its inputs to where the module lies.
    """

    name: str
    modality: Literal["visual", "audio"]
    runs_in: Literal["worker", "device"]
    rate_hz: int | None

    def describe(self) -> Mapping[str, Any]:
        """JSON values that decide its texts: model, prompt, settings."""
        ...

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text per clip; an empty text says that the modality is missing."""
        ...
