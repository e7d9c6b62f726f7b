"""A trained run applied to the tokens of one clip: arrays in, what the task finds in it out.

Decoding a media file into these arrays is the command's business; nothing here can open one.
Shapes: `T` segments.

A prediction for people and programs: a JSON file, a picture, and whatever files the task's prediction adds.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.clip import Clip
from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import Inputs, TokenBatch
from caeav.model.adapters.live import LiveOpener
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import RunConfig
from caeav.model.tasks.prediction import BLUE, INK, Frames, Panel, SegmentTimes, TaskPrediction, plain
from caeav.model.tasks.sample import Sample
from caeav.model.train.checkpoint import load_fitting
from caeav.model.train.evaluate import autocast, choose_device
from caeav.model.train.network import build_network
from caeav.model.train.runs import Run, modalities_read
from caeav.model.train.session import best_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PICTURE, SOUND = "picture", "sound"


@dataclass(frozen=True)
class Prediction:
    """What a run says about one clip; `agreement`: `[T]` in 0..1, how well sound and picture agree, None without
    CASTE; `missing`: for each of the `T` segments what the media do not have there."""

    key: str
    times: SegmentTimes
    decoded: TaskPrediction
    agreement: tuple[float, ...] | None
    missing: tuple[tuple[str, ...], ...] = ()

    def agreements(self) -> list[float | None] | None:
        """Of the segments with media; None for one that lacks picture or sound, where there is nothing to agree."""
        if self.agreement is None:
            return None
        lacks = self.missing or ((),) * self.times.segments
        return [None if lacks[t] else self.agreement[t] for t in range(self.times.shown)]

    def rows(self) -> list[dict[str, Any]]:
        """The task's table; where a row is a segment, with its agreement and what is missing in it."""
        rows = self.decoded.rows(self.times)
        if "segment" not in rows[0]:
            return rows
        found = self.agreements()
        if found is not None:
            cells = ["-" if a is None else a for a in found]
            rows = [{**row, "agreement": a} for row, a in zip(rows, cells, strict=True)]
        missing = self.missing[: self.times.shown]
        if any(missing):
            rows = [
                {**row, "missing": ", ".join(lacks) or "-"} for row, lacks in zip(rows, missing, strict=True)
            ]
        return rows

    def remarks(self) -> list[str]:
        """What the reader should know besides."""
        read_as = {PICTURE: ("the nearest picture", "black ones"), SOUND: ("silence", "silence")}
        said = []
        for what, (instead, always) in read_as.items():
            lacks = [what in lacks for lacks in self.missing[: self.times.shown]]
            if lacks and all(lacks):
                said.append(f"no {what} in the whole clip: the run was given {always}")
            elif any(lacks):
                words = "segment" if sum(lacks) == 1 else "segments"
                said.append(
                    f"no {what} in {words} {self.times.segment_list(lacks)}: the run was given {instead} there"
                )
        if self.times.shown < self.times.segments:
            said.append(
                f"the media end at {self.times.end_s:.5g} s: {self.times.shown} of the {self.times.segments} segments "
                "that the run reads hold media and are shown"
            )
        return [*said, *self.decoded.remarks()]


class Predictor:
    """A run's best weights, ready for clips."""

    def __init__(self, config: RunConfig, inputs: Inputs, model: nn.Module, device: torch.device) -> None:
        self.config, self.inputs, self.device = config, inputs, device
        self._task = TASKS[config.task]
        self._model = model.to(device).eval()

    @classmethod
    def load(cls, run: Run, device: str = "auto", live: LiveOpener | None = None) -> Predictor:
        """Build the run's network and load its best weights; raises `CaeavError`.

        `live` opens the backbones where the run's adapters sit inside them.
        """
        config, inputs = run.config(), run.inputs()
        opened = None
        if live is not None and config.model.adapters.placement == "inject":
            opened = live(run.token_recipes())
        build = partial(build_network, TASKS[config.task], inputs, config.model, opened)
        model = load_fitting(build, best_weights(run))  # a run folder may come from anywhere
        return cls(config, inputs, model, choose_device(device))

    def check(self, question: str) -> None:
        """Raise `CaeavError` for a question that the task does not answer, or for none where it needs one."""
        self._task.sample_of(Clip("", "", 0.0, 0.0), question)

    @torch.no_grad()
    def predict(
        self,
        key: str,
        arrays: Mapping[str, NDArray[np.generic]],
        info: Mapping[str, Any],
        start_s: float = 0.0,
        question: str = "",
    ) -> Prediction:
        """Predict one clip from its taps (and caption arrays, when the run uses captions), by name as in a store.

        `info` is the record's: where the media end (`facts`), which segments are real (`frames_ok`, `audio_ok`) and,
        if known, `silent`. `question` is for tasks that answer one. Raises `CaeavError` for arrays or a question that
        do not fit.
        """
        spec = self.inputs.spec
        times = SegmentTimes(
            start_s, self.inputs.segment_s, spec.segments, info.get("facts", {}).get("media_s")
        )
        clip = Clip(key, "", start_s, spec.segments * self.inputs.segment_s)
        sample = self._task.sample_of(clip, question)
        batch = self._batch(sample, arrays, info).to(self.device, torch.float32)
        with autocast(self.device, self.config.training.precision):
            output = self._model(batch)
        agreement = output.trunk.agreement
        return Prediction(
            key=key,
            times=times,
            decoded=self._task.decode(output.found, self.inputs, self.config, sample),
            agreement=None if agreement is None else tuple(agreement[0].float().tolist()),
            missing=self._missing(info, times),
        )

    def _missing(self, info: Mapping[str, Any], times: SegmentTimes) -> tuple[tuple[str, ...], ...]:
        """For each segment, what of the modalities that the run reads is not there.

        Sound is real where it fills half a segment; in one that the end of the media cuts off, where anything is heard.
        """
        segments, modalities = self.inputs.spec.segments, modalities_read(self.config)
        seen, heard = (self._flags(info, name)[0].tolist() for name in ("frames_ok", "audio_ok"))
        silent = info.get("silent") or [False] * segments
        start_s, end_s = times.bounds(times.shown - 1)
        if info.get("silent") and end_s - start_s < times.segment_s:
            heard[times.shown - 1] = True
        heard = [ok and not nothing for ok, nothing in zip(heard, silent, strict=True)]
        there = {PICTURE: ("visual", seen), SOUND: ("audio", heard)}
        return tuple(
            tuple(name for name, (modality, ok) in there.items() if modality in modalities and not ok[t])
            for t in range(segments)
        )

    def _batch(
        self, sample: Sample, arrays: Mapping[str, NDArray[np.generic]], info: Mapping[str, Any]
    ) -> TokenBatch:
        spec = self.inputs.spec
        wanted: dict[str, tuple[int, ...]] = {
            tap.name: (spec.segments, tap.tokens, tap.channels)
            for tap in (*spec.visual, *spec.audio, *spec.other)
        }
        for name, caption in (("visual_caption", spec.visual_caption), ("audio_caption", spec.audio_caption)):
            if self.config.captions and caption is not None:
                wanted |= {name: (caption.tokens, caption.channels), f"{name}_mask": (caption.tokens,)}
        faults = [
            f"{name}: {list(arrays[name].shape) if name in arrays else 'absent'}; allowed: {list(shape)}"
            for name, shape in wanted.items()
            if name not in arrays or arrays[name].shape != shape
        ]
        if faults:
            raise CaeavError(
                f"the arrays of clip {sample.key!r} do not fit the run:\n  " + "\n  ".join(faults),
                hint="tokenise the clip by the recipes in the run's stores.json",
            )
        held = {name: torch.from_numpy(np.array(arrays[name])).unsqueeze(0) for name in wanted}
        return TokenBatch(
            keys=[sample.key],
            visual={tap.name: held[tap.name] for tap in spec.visual},
            audio={tap.name: held[tap.name] for tap in spec.audio},
            frames_ok=self._flags(info, "frames_ok"),
            audio_ok=self._flags(info, "audio_ok"),
            visual_caption=held.get("visual_caption"),
            visual_caption_mask=held.get("visual_caption_mask"),
            audio_caption=held.get("audio_caption"),
            audio_caption_mask=held.get("audio_caption_mask"),
            extra={tap.name: held[tap.name] for tap in spec.other}
            | self._task.extra_inputs(self.inputs, [sample]),
        )

    def _flags(self, info: Mapping[str, Any], name: str) -> Tensor:
        """`[1, T]`, True where the clip's segment holds real media."""
        flags = np.broadcast_to(np.asarray(info.get(name, True), bool), (self.inputs.spec.segments,))
        return torch.from_numpy(flags.copy()).unsqueeze(0)


JSON_FILE, PICTURE_FILE = "prediction.json", "prediction.png"


def report_json(prediction: Prediction, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, the agreement a segment (null without CASTE, or where picture or sound is missing) and what is
    missing in each, with `facts` (run, file, ...). Segments behind the end of the media are not in it."""
    shown = prediction.times.shown
    return {
        **facts,
        **prediction.decoded.as_json(prediction.times),
        "agreement": prediction.agreements(),
        "missing": [list(lacks) for lacks in prediction.missing[:shown]],
    }


def write_report(
    prediction: Prediction, folder: Path, title: str, facts: Mapping[str, Any], frames: Frames = ()
) -> list[Path]:
    """Publish everything about a prediction into `folder`; the files written."""
    text = json.dumps(report_json(prediction, facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files = {
        JSON_FILE: text.encode("utf-8", "backslashreplace"),  # \udcff of a file name is JSON's own escape
        PICTURE_FILE: picture(prediction, title, frames),
        **prediction.decoded.files(prediction.times),
    }
    for name, data in files.items():
        publish_bytes(folder / name, data)
    return [folder / name for name in files]


def folder_for(file: Path, folder: Path, question: str = "") -> Path:
    """`folder`, or, where a prediction for another file or question lies in it, the same with the first free number."""
    place, number = folder, 1
    while _is_another(place / JSON_FILE, file, question):
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def _is_another(report: Path, file: Path, question: str) -> bool:
    try:
        seen = json.loads(report.read_text(encoding="utf-8"))
        return Path(seen["file"]).resolve() != file.resolve() or seen.get("question", "") != question.strip()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # nothing there, or nothing worth keeping


def picture(prediction: Prediction, title: str, frames: Frames = ()) -> bytes:
    """A PNG: the task's panels below each other, then the agreement of sound and picture over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    times = prediction.times
    panels = list(prediction.decoded.panels(times, frames))
    agreements = prediction.agreements()
    if agreements is not None:
        panels.append(_agreement(agreements, times))
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(times.width_in, sum(heights) + 0.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # a figure draws on the canvas it was given to; no display is looked for
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    last = max((i for i, panel in enumerate(panels) if panel.timed), default=None)
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        if panel.timed:
            _over_time(axis, times, _below(prediction) if i == last else None)
        axis.spines[["top", "right"]].set_visible(False)
        panel.draw(axis)
    figure.suptitle(plain(title, 90), x=0.01, ha="left", fontsize=11, color=INK)
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _below(prediction: Prediction) -> str:
    """The name of the time axis, with what the media do not have in which segments."""
    names = dict.fromkeys(name for lacks in prediction.missing for name in lacks)
    lacks = {name: [name in lacks for lacks in prediction.missing] for name in names}
    where = {name: prediction.times.segment_list(found) for name, found in lacks.items()}
    said = "; ".join(f"no {name} in {numbers}" for name, numbers in where.items() if numbers)
    return "seconds" + (f"  (segments above; {said})" if said else "")


def _over_time(axis: Axes, times: SegmentTimes, label: str | None) -> None:
    """The time in the file from left to right; numbers and their name only below the last such panel."""
    axis.set_xlim(times.start_s, times.end_s)
    step = max(1, math.ceil(times.shown / 30))
    ticks = [times.bounds(t)[0] for t in range(0, times.shown, step)] + [times.end_s]
    axis.set_xticks(ticks, [""] * len(ticks) if label is None else [f"{tick:.5g}" for tick in ticks])
    if label is not None:
        axis.set_xlabel(label)


def _agreement(values: Sequence[float | None], times: SegmentTimes) -> Panel:
    """How well sound and picture agree, in the middle of every segment; a gap where one of them is missing."""

    def draw(axis: Axes) -> None:
        middles = [sum(times.bounds(t)) / 2 for t in range(times.shown)]
        heights = np.array([np.nan if value is None else value for value in values])
        axis.fill_between(middles, heights, color=BLUE, alpha=0.18, linewidth=0)
        axis.plot(middles, heights, color=BLUE, marker="o", markersize=4)
        axis.set_ylim(0, 1.05)
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylabel("agreement")
        axis.grid(axis="y", alpha=0.3)

    return Panel(1.1, draw)
