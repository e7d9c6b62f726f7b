"""A trained run applied to the tokens of one clip: arrays in, prediction out.

Decoding a media file into these arrays is the command's business. Shapes: `T` segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.clip import Clip
from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import Inputs, TokenBatch, TrunkOutput
from caeav.model.adapters.live import LiveOpener
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import RunConfig
from caeav.model.tasks.prediction import SegmentTimes, TaskPrediction
from caeav.model.tasks.sample import Sample
from caeav.model.train.agreement import (
    GATE,
    Calibration,
    agreement_logits,
    read_calibration,
    weak_agreement,
)
from caeav.model.train.checkpoint import load_fitting
from caeav.model.train.data import as_batch, taps_of
from caeav.model.train.evaluate import autocast, choose_device
from caeav.model.train.network import build_network
from caeav.model.train.provenance import modalities_read
from caeav.model.train.runs import Run
from caeav.model.train.session import best_weights

FRAMES, AUDIO = "picture", "sound"
"""What can be missing in a segment, as prediction.json names it."""


@dataclass(frozen=True)
class Prediction:
    """What a run predicts for one clip. `agreement`: how likely audio and frames belong together, `[T]` in 0..1; None
    without CASTE. `calibrated`: whether it is that probability; else it is what CASTE's gate says, which may mean
    anything. `missing`: what the media lack in each of the `T` segments. `weak`: what to say of an agreement that tells
    little."""

    key: str
    times: SegmentTimes
    decoded: TaskPrediction
    agreement: tuple[float, ...] | None
    missing: tuple[tuple[str, ...], ...] = ()
    calibrated: bool = False
    weak: str = ""

    @property
    def agreement_name(self) -> str:
        """What `agreement` is called in tables and images."""
        return "agreement" if self.calibrated else GATE

    def agreements(self) -> list[float | None] | None:
        """Agreement per segment with media; None where frames or audio are missing, so that nothing can agree."""
        if self.agreement is None:
            return None
        lacks = self.missing or ((),) * self.times.segments
        return [None if lacks[t] else self.agreement[t] for t in range(self.times.shown)]

    def rows(self) -> list[dict[str, Any]]:
        """The task's table; rows that are segments also get their agreement and what they lack."""
        rows = self.decoded.rows(self.times)
        if "segment" not in rows[0]:
            return rows
        found = self.agreements()
        if found is not None:
            cells = ["-" if a is None else a for a in found]
            rows = [{**row, self.agreement_name: a} for row, a in zip(rows, cells, strict=True)]
        missing = self.missing[: self.times.shown]
        if any(missing):
            rows = [
                {**row, "missing": ", ".join(lacks) or "-"} for row, lacks in zip(rows, missing, strict=True)
            ]
        return rows

    def remarks(self) -> list[str]:
        """What the reader should know about the prediction."""
        substitutes = {FRAMES: ("the nearest picture", "black ones"), AUDIO: ("silence", "silence")}
        remarks = []
        for what, (instead, throughout) in substitutes.items():
            lacks = [what in lacks for lacks in self.missing[: self.times.shown]]
            if lacks and all(lacks):
                remarks.append(f"no {what} in the whole clip: the run was given {throughout}")
            elif any(lacks):
                words = "segment" if sum(lacks) == 1 else "segments"
                remarks.append(
                    f"no {what} in {words} {self.times.segment_list(lacks)}: the run was given {instead} there"
                )
        if self.times.shown < self.times.segments:
            remarks.append(
                f"the media end at {self.times.end_s:.5g} s: {self.times.shown} of the {self.times.segments} segments "
                "that the run reads hold media and are shown"
            )
        if self.weak and self.agreement is not None:
            remarks.append(self.weak)
        return [*remarks, *self.decoded.remarks()]


class Predictor:
    """A run's best weights, ready for clips."""

    def __init__(
        self,
        config: RunConfig,
        inputs: Inputs,
        model: nn.Module,
        device: torch.device,
        calibration: Calibration | None = None,
    ) -> None:
        self.config, self.inputs, self.device = config, inputs, device
        self._calibration = calibration
        self.weak = "" if calibration is None else weak_agreement(calibration.auc)
        """What to say of an agreement that tells little."""
        self._task = TASKS[config.task]
        self._model = model.to(device).eval()

    @classmethod
    def load(cls, run: Run, device: str = "auto", live: LiveOpener | None = None) -> Predictor:
        """Build the run's network and load its best weights; raises `CaeavError`.

        `live` opens the backbones where the adapters are placed inside them.
        """
        config, inputs = run.config(), run.inputs()
        opened = None
        if live is not None and config.model.adapters.placement == "inject":
            opened = live(run.token_recipes())
        build = partial(build_network, TASKS[config.task], inputs, config.model, opened)
        model = load_fitting(build, best_weights(run))  # a run folder may come from anywhere
        return cls(config, inputs, model, choose_device(device), read_calibration(run))

    def check(self, question: str) -> None:
        """Raise `CaeavError` for a question where the task answers none, or for none where it needs one."""
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
        """Predict one clip from its taps, and caption arrays if the run uses captions, named as in a store.

        `info` is the record's: where the media end (`facts`), which segments are real (`frames_ok`, `audio_ok`) and,
        if known, `silent`. Raises `CaeavError` for arrays or a question that do not fit.
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
        agreement = self._agreement(output.trunk)
        return Prediction(
            key=key,
            times=times,
            decoded=self._task.decode(output.found, self.inputs, self.config, sample),
            agreement=agreement,
            missing=self._missing(info, times),
            calibrated=self._calibration is not None,
            weak=self.weak,
        )

    def _agreement(self, trunk: TrunkOutput) -> tuple[float, ...] | None:
        """Of the one clip, calibrated if the run is."""
        if trunk.agreement is None:
            return None
        if self._calibration is None:
            return tuple(trunk.agreement[0].float().tolist())
        return tuple(self._calibration.apply(agreement_logits(trunk)[0].cpu().numpy()).tolist())

    def _missing(self, info: Mapping[str, Any], times: SegmentTimes) -> tuple[tuple[str, ...], ...]:
        """For each segment, which of the modalities that the run reads the media lack.

        Audio counts where it fills half a segment; in one that the end of the media cuts off, where it is not silent.
        """
        segments, modalities = self.inputs.spec.segments, modalities_read(self.config)
        frames, audio = (self._flags(info, name)[0].tolist() for name in ("frames_ok", "audio_ok"))
        silent = info.get("silent") or [False] * segments
        start_s, end_s = times.bounds(times.shown - 1)
        if info.get("silent") and end_s - start_s < times.segment_s:
            audio[times.shown - 1] = True
        audio = [ok and not mute for ok, mute in zip(audio, silent, strict=True)]
        present = {FRAMES: ("visual", frames), AUDIO: ("audio", audio)}
        return tuple(
            tuple(name for name, (modality, ok) in present.items() if modality in modalities and not ok[t])
            for t in range(segments)
        )

    def _batch(
        self, sample: Sample, arrays: Mapping[str, NDArray[np.generic]], info: Mapping[str, Any]
    ) -> TokenBatch:
        spec = self.inputs.spec
        wanted: dict[str, tuple[int, ...]] = {
            tap.name: (spec.segments, tap.tokens, tap.channels) for tap in taps_of(spec)
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
        held |= {name: self._flags(info, name) for name in ("frames_ok", "audio_ok")}
        batch = as_batch([sample.key], held, spec)
        batch.extra |= self._task.extra_inputs(self.inputs, [sample])
        return batch

    def _flags(self, info: Mapping[str, Any], name: str) -> Tensor:
        """`[1, T]`, True where the clip's segment holds real media."""
        flags = np.broadcast_to(np.asarray(info.get(name, True), bool), (self.inputs.spec.segments,))
        return torch.from_numpy(flags.copy()).unsqueeze(0)
