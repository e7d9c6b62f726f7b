"""Clip cards: everything a page shows of one clip, as values for the page's script.

A row of a run's predictions gives truth, prediction, agreement, routing and selected tokens; a store gives captions;
the media, where they are still there, frames and audio. A card without media says why and shows the rest.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Clip
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.masks import unpack_mask
from caeav.model.report.page import Card, data_uri
from caeav.model.tasks.ave.prediction import BACKGROUND

Row = Mapping[str, Any]

PICTURES_BYTES = 9 << 20
"""Bytes of media in a page; cards after that have none. A third more in base64, and with Plotly still below 20 MB."""
BEST_ANSWERS = 5
MASK_SIDE = 64
TRUE_COLOUR, SAID_COLOUR = (46, 139, 87, 150), (224, 123, 57, 150)


class Seen(Protocol):
    """A preview of a clip's media, as the command makes it (`pipeline/media/preview.py`)."""

    @property
    def key(self) -> str:
        """The clip's."""
        ...

    @property
    def strip(self) -> bytes:
        """A JPEG with the frames side by side, or nothing."""
        ...

    @property
    def sound(self) -> bytes:
        """A PNG of the audio, or nothing."""
        ...

    @property
    def problem(self) -> str:
        """Why there is no preview; empty otherwise."""
        ...


Look = Callable[[Sequence[Clip]], Iterable[Seen]]
"""Makes previews of clips, in any order."""


@dataclass
class Media:
    """Previews of the clips that cards are about, within the bytes that a page may have."""

    look: Look
    left: int = PICTURES_BYTES
    held: dict[str, Seen] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)

    def fetch(self, clips: Sequence[Clip]) -> None:
        """Make the previews of those clips that have none yet."""
        new = [clip for clip in clips if clip.key not in self.held and clip.key not in self.without]
        if self.left <= 0:
            self.without |= {clip.key for clip in new}
            return
        for seen in self.look(new):
            self.left -= len(seen.strip) + len(seen.sound)
            if self.left > 0:
                self.held[seen.key] = seen
            else:
                self.without.add(seen.key)

    def onto(self, card: Card, key: str) -> Card:
        """The card with the preview of the clip, or why there is none."""
        seen = self.held.get(key)
        if seen is None:
            said = "left out: the page would become too large" if key in self.without else ""
            return {**card, "problem": said}
        return {
            **card,
            "strip": data_uri("jpeg", seen.strip),
            "sound": data_uri("png", seen.sound),
            "problem": f"no picture and no sound: {seen.problem}" if seen.problem else "",
        }


def bare_card(clip: Clip, segments: int, segment_s: float) -> Card:
    """A card of a clip with its own facts only."""
    starts = [clip.start_s + t * segment_s for t in range(segments)]
    return {
        "title": clip.key,
        "split": clip.split,
        "labels": list(clip.labels()),
        "notes": [],
        "score": None,
        "confidence": None,
        "together": None,
        "question": "",
        "truth": "",
        "problem": "",
        "times": [f"{s:.4g}" for s in starts],
        "strip": "",
        "sound": "",
        "rows": [{"name": "truth", "cells": _named(_events(clip, segments, segment_s))}]
        if clip.events
        else [],
        "masks": [],
        "agreement": None,
        "agreement_name": "",
        "answers": [],
        "captions": [],
        "routing": [],
        "experts": [],
        "chosen": None,
        "search": " ".join((clip.key, *clip.labels())).lower(),
    }


def with_row(card: Card, row: Row, classes: Sequence[str], experts: Sequence[str], tokens: int) -> Card:
    """The card with what a run predicted; `experts`: what the weights of an AVMoE layer belong to; `tokens`: of the
    deepest visual tap."""
    said = next((row[name] for name in ("agreement", "caste_gate") if row.get(name)), None)
    known = [value for value in said or () if value is not None]
    card = {
        **card,
        "title": row["key"],
        "split": row["split"],
        "labels": list(row["labels"] or ()),
        "notes": list(row["notes"] or ()),
        "score": row["score"],
        "confidence": row["confidence"],
        "agreement": said,
        "agreement_name": "agreement" if row.get("agreement") else "CASTE's gate",
        "together": sum(known) / len(known) if known else None,
        "routing": [
            [place, [_short(w) for w in weights]] for place, weights in (row.get("routing") or {}).items()
        ],
        "experts": list(experts),
        "chosen": _grid((row.get("chosen") or {}).get("visual"), tokens),
        "search": " ".join((row["key"], *(row["labels"] or ()), row.get("question") or "")).lower(),
    }
    return {**card, **_of_task(row, classes)}


def with_captions(card: Card, texts: Mapping[str, str]) -> Card:
    """The card with the captions of both modalities."""
    held = [[name, text] for name, text in sorted(texts.items(), reverse=True) if text]  # visual first
    return {**card, "captions": held, "search": " ".join((card["search"], *texts.values())).lower()}


def _of_task(row: Row, classes: Sequence[str]) -> Card:
    """What is particular to the task of the row, known by the form of its truth."""
    truth, said = row["truth"], row["prediction"]
    if isinstance(truth, str):
        best = np.argsort([-(p or 0.0) for p in row["probabilities"]], kind="stable")[:BEST_ANSWERS]
        answers = [[classes[k], row["probabilities"][k] or 0.0] for k in best.tolist()]
        return {"question": row["question"], "answers": answers, "truth": truth, "rows": []}
    if isinstance(truth, Mapping):
        return {"rows": _tracks(truth, said)}
    if row["probabilities"] and isinstance(row["probabilities"][0], list):
        wrong = [a != b for a, b in zip(truth, said, strict=True)]
        rows = [{"name": "truth", "cells": _named(truth)}]
        return {"rows": [*rows, {"name": "predicted", "cells": _named(said), "wrong": wrong}]}
    masks = [("true mask", truth, TRUE_COLOUR), ("predicted", said, SAID_COLOUR)]
    drawn = [{"name": name, "src": mask_strip(texts, colour)} for name, texts, colour in masks]
    return {"masks": drawn, "rows": []}


def _tracks(truth: Row, said: Row) -> list[dict[str, Any]]:
    """A line per class and modality that occurs: what is true, what is predicted."""
    lines: list[dict[str, Any]] = []
    for modality, verb in (("audio", "heard"), ("visual", "seen")):
        names = dict.fromkeys(n for track in (truth, said) for second in track[modality] for n in second)
        for name in names:
            true, found = ([name in second for second in track[modality]] for track in (truth, said))
            cells = [{"text": name if on else "", "on": on} for on in found]
            wrong = [a != b for a, b in zip(true, found, strict=True)]
            lines.append(
                {"name": f"{verb}, true", "cells": [{"text": name if on else "", "on": on} for on in true]}
            )
            lines.append({"name": f"{verb}, said", "cells": cells, "wrong": wrong})
    return lines


def _named(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": name, "on": name not in (BACKGROUND, "")} for name in names]


def _events(clip: Clip, segments: int, segment_s: float) -> list[str]:
    """The first label of every second."""
    named = []
    for t in range(segments):
        on = [event.label for event in clip.events if event.start_s <= t * segment_s < event.end_s]
        named.append(on[0] if on else BACKGROUND)
    return named


def _grid(chosen: Sequence[Sequence[int]] | None, tokens: int) -> dict[str, Any] | None:
    """Selected tokens of a square grid, None where they form none."""
    side = math.isqrt(tokens)
    if not chosen or not side or side * side != tokens:
        return None
    return {"side": side, "seconds": [list(second) for second in chosen]}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def mask_strip(texts: Sequence[str | None], colour: tuple[int, int, int, int]) -> str:
    """Masks side by side as one image, transparent where nothing sounds; an unknown mask is transparent."""
    from PIL import Image

    strip: NDArray[np.bool_] = np.zeros((MASK_SIDE, MASK_SIDE * len(texts)), bool)
    for t, text in enumerate(texts):
        if text is None:
            continue
        try:
            mask = unpack_mask(text)
        except CaeavError:
            continue
        places = [np.arange(MASK_SIDE) * side // MASK_SIDE for side in mask.shape]
        strip[:, t * MASK_SIDE : (t + 1) * MASK_SIDE] = mask[np.ix_(*places)]
    image = Image.fromarray(strip.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *colour[:3]])
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True, transparency=bytes([0, colour[3]]))
    return data_uri("png", data.getvalue())
