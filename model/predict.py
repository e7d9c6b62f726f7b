"""A trained run applied to the tokens of one clip: arrays in, what happens in every segment out.

Decoding a media file into these arrays is the command's business; nothing here can open one.
Shapes: `T` segments, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.errors import CaeavError
from caeav.model.batch import TokenBatch
from caeav.model.config import RunConfig
from caeav.model.experiment import load_best
from caeav.model.runs import Inputs, Run
from caeav.model.task import TASKS
from caeav.model.train import autocast, choose_device

BACKGROUND = "background"


@dataclass(frozen=True)
class Prediction:
    """What a run says about one clip.

    `events`: one name a segment (`background`: nothing that is both seen and heard); `probability`: of that
    name; `table`: `[T, K + 1]`, the last column background; `agreement`: `[T]` in 0..1, None without CASTE.
    """

    key: str
    start_s: float
    segment_s: float
    classes: tuple[str, ...]
    events: tuple[str, ...]
    probability: tuple[float, ...]
    table: NDArray[np.float32]
    agreement: tuple[float, ...] | None

    def rows(self) -> list[dict[str, Any]]:
        """One row a segment: its times in the file, event, probability, agreement (None without CASTE)."""
        return [
            {
                "start_s": self.start_s + t * self.segment_s,
                "end_s": self.start_s + (t + 1) * self.segment_s,
                "event": self.events[t],
                "probability": self.probability[t],
                "agreement": None if self.agreement is None else self.agreement[t],
            }
            for t in range(len(self.events))
        ]

    def spans(self) -> list[tuple[str, float, float]]:
        """Runs of segments with the same event: name, start and end in seconds; background left out."""
        found: list[tuple[str, float, float]] = []
        for row in self.rows():
            if row["event"] == BACKGROUND:
                continue
            if found and found[-1][0] == row["event"] and found[-1][2] == row["start_s"]:
                found[-1] = (row["event"], found[-1][1], row["end_s"])
            else:
                found.append((row["event"], row["start_s"], row["end_s"]))
        return found


class Predictor:
    """A run's best weights, ready for clips."""

    def __init__(self, config: RunConfig, inputs: Inputs, model: nn.Module, device: torch.device) -> None:
        self.config, self.inputs, self.device = config, inputs, device
        self._task = TASKS[config.task]
        self._model = model.to(device).eval()

    @classmethod
    def load(cls, run: Run, device: str = "auto") -> Predictor:
        """Build the run's network and load its best weights; raises `CaeavError`."""
        config, inputs = run.config(), run.inputs()
        model = TASKS[config.task].build(inputs.spec, inputs.classes, config)
        load_best(run, model)
        return cls(config, inputs, model, choose_device(device))

    @torch.no_grad()
    def predict(
        self,
        key: str,
        arrays: Mapping[str, NDArray[np.generic]],
        info: Mapping[str, Any],
        start_s: float = 0.0,
    ) -> Prediction:
        """Predict one clip from its taps (and caption arrays, when the run uses captions), by name as in a store."""
        batch = self._batch(key, arrays, info).to(self.device, torch.float32)
        with autocast(self.device, self.config.training.precision):
            output = self._model(batch)
        chosen, table = self._task.read(output)  # [1, T], [1, T, K + 1]
        agreement = output.trunk.agreement
        names = (*self.inputs.classes, BACKGROUND)
        probability = table[0].gather(-1, chosen[0].unsqueeze(-1)).squeeze(-1)
        return Prediction(
            key=key,
            start_s=start_s,
            segment_s=self.inputs.segment_s,
            classes=self.inputs.classes,
            events=tuple(names[int(i)] for i in chosen[0]),
            probability=tuple(probability.tolist()),
            table=table[0].cpu().numpy().astype(np.float32),
            agreement=None if agreement is None else tuple(agreement[0].float().tolist()),
        )

    def _batch(
        self, key: str, arrays: Mapping[str, NDArray[np.generic]], info: Mapping[str, Any]
    ) -> TokenBatch:
        spec = self.inputs.spec
        wanted: dict[str, tuple[int, ...]] = {
            tap.name: (spec.segments, tap.tokens, tap.channels) for tap in (*spec.visual, *spec.audio)
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
                f"the arrays of clip {key!r} do not fit the run:\n  " + "\n  ".join(faults),
                hint="tokenise the clip by the recipes in the run's stores.json",
            )
        held = {name: torch.from_numpy(np.array(arrays[name])).unsqueeze(0) for name in wanted}
        return TokenBatch(
            keys=[key],
            visual={tap.name: held[tap.name] for tap in spec.visual},
            audio={tap.name: held[tap.name] for tap in spec.audio},
            frames_ok=self._flags(info, "frames_ok"),
            audio_ok=self._flags(info, "audio_ok"),
            visual_caption=held.get("visual_caption"),
            visual_caption_mask=held.get("visual_caption_mask"),
            audio_caption=held.get("audio_caption"),
            audio_caption_mask=held.get("audio_caption_mask"),
        )

    def _flags(self, info: Mapping[str, Any], name: str) -> Tensor:
        """`[1, T]`, True where the clip's segment holds real media."""
        flags = np.broadcast_to(np.asarray(info.get(name, True), bool), (self.inputs.spec.segments,))
        return torch.from_numpy(flags.copy()).unsqueeze(0)
