"""Audio-visual segmentation (AVSBench S4 and MS3): which pixels sound, frame by frame.

Masks come with the rows of the manifest; some frames have none. They are kept in RAM as bits. The head decodes at its
own size, and masks are compared at the official one. Shapes: `N` samples, `T` frames, `H x W` pixels of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.masks import pack_mask, unpack_mask
from caeav.model.adapters.batch import Inputs, TokenBatch, TrunkOutput
from caeav.model.adapters.trunk import Trunk
from caeav.model.adapters.whole_batch import gathered
from caeav.model.tasks.avs.config import AvsHeadConfig, AvsLossConfig, AvsMetricConfig
from caeav.model.tasks.avs.head import AvsHead, AvsOutput
from caeav.model.tasks.avs.loss import (
    mask_loss,
    masked_divergence,
    masked_similarity,
    nearest_sound_divergence,
)
from caeav.model.tasks.avs.metric import AvsMetric, best_f, frame_iou, measure
from caeav.model.tasks.avs.prediction import Masks
from caeav.model.tasks.base import Scorer, Scores, Task
from caeav.model.tasks.bootstrap import SAMPLES, Evidence, mean_of
from caeav.model.tasks.config import HeadConfig, LossConfig, MetricConfig, RunConfig
from caeav.model.tasks.sample import Sample

BITS, KNOWN, GROUPS = "masks", "known", "groups"
COUNT_SUFFIX = " sounding)"
"""End of the names of groups by number of objects."""
MASKED = {
    "similarity": masked_similarity,
    "divergence": masked_divergence,
    "nearest": nearest_sound_divergence,
}


class AvsModel(nn.Module):
    """The head, with its masks resized to the official size."""

    def __init__(self, head: AvsHead, guided: bool, size: tuple[int, int]) -> None:
        super().__init__()
        self.decoder, self.guided, self.size = head, guided, size

    def forward(self, trunk: TrunkOutput) -> AvsOutput:
        """The output of a trunk that keeps its stages -> `AvsOutput` with masks `[B, T, H, W]`."""
        maps = [x for n, x in trunk.aux.items() if n.startswith("stage") and n.endswith(".visual")]
        maps[-1] = trunk.visual if self.guided else trunk.aux.get("unguided.visual", trunk.visual)
        output: AvsOutput = self.decoder(maps, trunk.audio, trunk.audio_weights)
        if output.mask_logits.shape[-2:] == self.size:
            return output
        logits = F.interpolate(
            output.mask_logits.float(), size=self.size, mode="bilinear", align_corners=False
        )
        return output._replace(mask_logits=logits)


class AvsTask(Task):
    """The registered tasks `avs-s4` and `avs-ms3`, which differ in data and preset."""

    metric = "mean_iou"
    head_config: ClassVar[type[HeadConfig]] = AvsHeadConfig
    loss_config: ClassVar[type[LossConfig]] = AvsLossConfig
    metric_config: ClassVar[type[MetricConfig]] = AvsMetricConfig
    outcome_columns: ClassVar[Mapping[str, Any]] = {
        "truth": [""],
        "prediction": [""],
        "probabilities": [0.0],
        "f_measure": 0.0,
    }
    keeps_stages = True
    probe_refusal = "a mask needs the places of tokens, which their mean does not have"

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """`mask_size`: height and width of the first mask, which all must share; `groups`: names of groups of clips."""
        texts = (text for rows in splits.values() for s in rows for text in s.clip.extra.get("masks", ()))
        first = next((text for text in texts if text is not None), None)
        if first is None:
            raise CaeavError(
                f"no clip of data set {manifest.dataset!r} has a mask",
                hint="--dataset avs-s4 or avs-ms3, or one whose clips have `masks` (docs/TASKS.md)",
            )
        named = [groups_of(sample) for rows in splits.values() for sample in rows]
        counts = {count: None for *_, count in filter(None, named) if count.endswith(COUNT_SUFFIX)}
        names = {name: None for groups in named for name in groups if name not in counts}
        return {"mask_size": list(unpack_mask(first).shape), "groups": [*sorted(names), *sorted(counts)]}

    def classes(self, manifest: Manifest, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The groups of clips in the table of scores: S4's categories; MS3's objects and their number, if its rows name
        them."""
        return manifest.classes or tuple(facts["groups"])

    def describe(self, inputs: Inputs) -> str:
        """The size of a mask."""
        height, width = inputs.facts["mask_size"]
        return f"masks of {height}x{width} pixels"

    def targets(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`masks` `[N, T, bytes]`, a bit per pixel; `known` `[N, T]`; `groups` `[N, K]`, those the clip is in."""
        frames = inputs.spec.segments
        height, width = inputs.facts["mask_size"]
        bits = np.zeros((len(samples), frames, (height * width + 7) // 8), np.uint8)
        known = torch.zeros(len(samples), frames, dtype=torch.bool)
        for row, sample in enumerate(samples):
            texts = list(sample.clip.extra.get("masks", ()))
            if len(texts) != frames or not any(texts):
                raise CaeavError(
                    f"clip {sample.key} has {len(texts)} mask entries, {sum(map(bool, texts))} of them masks; "
                    f"allowed: {frames} entries, at least one a mask",
                    hint="give it masks in the official files, or take it out of its split, and extract again",
                )
            for t, text in enumerate(texts):
                if text is not None:
                    bits[row, t] = _bits(text, (height, width), sample.key)
                    known[row, t] = True
        groups = torch.zeros(len(samples), len(inputs.classes), dtype=torch.bool)
        for row, sample in enumerate(samples):
            held = groups_of(sample)
            groups[row] = torch.tensor([name in held for name in inputs.classes], dtype=torch.bool)
        return {BITS: torch.from_numpy(bits), KNOWN: known, GROUPS: groups}

    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """Temporal gates, TPAVI and decoder over the maps of all stages."""
        assert isinstance(config, AvsHeadConfig)
        widths = [tap.channels for tap in trunk.visual_stages]
        height, width = inputs.facts["mask_size"]
        return AvsModel(AvsHead(widths, trunk.audio_channels, config), config.guided, (height, width))

    def gather_output(self, output: AvsOutput, config: LossConfig) -> AvsOutput:
        """The maps are large; only the masked losses read them."""
        assert isinstance(config, AvsLossConfig)
        whole: AvsOutput = gathered(output if config.masked else output._replace(maps=[], audio=[]))
        return whole

    def losses(self, output: AvsOutput, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """Of the masks, and of the audio against what they cover."""
        known, truth = batch.targets[KNOWN], masks_of(batch.targets, output.mask_logits.shape[-2:])
        losses = {"mask": mask_loss(output.mask_logits[known].unsqueeze(0), truth[known].unsqueeze(0))}
        assert isinstance(config.loss, AvsLossConfig)
        if config.loss.masked:
            masked = MASKED[config.loss.masked_kind]
            losses["masked"] = masked(output.mask_logits, output.maps, output.audio)
        return losses

    def decode(self, output: AvsOutput, inputs: Inputs, config: RunConfig, sample: Sample) -> Masks:
        """The masks."""
        return Masks(output.mask_logits[0].float().sigmoid().cpu().numpy())

    def outcomes(
        self,
        output: AvsOutput,
        batch: TokenBatch,
        samples: Sequence[Sample],
        inputs: Inputs,
        config: RunConfig,
    ) -> list[dict[str, Any]]:
        """The masks of every frame as texts of a manifest, true (None: not known) and predicted, and the mean
        probability within the predicted one; the score is the mean IoU of the known frames. `f_measure`: M_F of the
        clip in 0..1, None where it has no known frame or where a call has several clips."""
        assert isinstance(config.metric, AvsMetricConfig)
        single = config.metric.clips_per_call == 1
        size = output.mask_logits.shape[-2:]
        true, known = masks_of(batch.targets, size), batch.targets[KNOWN]
        rows = []
        for i, sample in enumerate(samples):
            chance = output.mask_logits[i].float().sigmoid()  # [T, H, W]
            said = chance > 0.5
            pixels = said.flatten(1).sum(dim=1)
            inside = (chance * said).flatten(1).sum(dim=1) / pixels.clamp_min(1)
            measured = measure(output.mask_logits[i][known[i]], true[i][known[i]])
            scored = bool(known[i].any())
            rows.append(
                {
                    "labels": list(groups_of(sample)),
                    "truth": [
                        pack_mask(mask.cpu().numpy()) if ok else None
                        for mask, ok in zip(true[i], known[i].tolist(), strict=True)
                    ],
                    "prediction": [pack_mask(mask.cpu().numpy()) for mask in said],
                    "probabilities": inside.tolist(),
                    "score": float(measured["iou"].mean()) if scored else None,
                    "f_measure": best_f(measured["curves"], measured["empty"]) if scored and single else None,
                    "confidence": float(torch.maximum(chance, 1 - chance).mean()),
                }
            )
        return rows

    def build_scorer(self, inputs: Inputs, config: RunConfig) -> AvsScorer:
        """A new scorer."""
        assert isinstance(config.metric, AvsMetricConfig)
        return AvsScorer(inputs.classes, config.metric.clips_per_call)

    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """M_J of the one mask for all frames that does best in training: the mean mask, cut at the best threshold."""
        height, width = inputs.facts["mask_size"]
        mean = mean_mask(train, (height, width))
        masks = [mean > float(mean.max()) * i / 12 for i in range(1, 12)]
        best = max(masks, key=lambda mask: constant_ious(mask, train).mean().item())
        return 100 * float(constant_ious(best, targets).mean())


def groups_of(sample: Sample) -> tuple[str, ...]:
    """The groups that a clip is in: its category, or its objects and then their number."""
    extra = sample.clip.extra
    if "objects" in extra:
        return (*extra["objects"], f"({len(extra['objects'])}{COUNT_SUFFIX}")
    return (extra["category"],) if extra.get("category") else ()


def _bits(text: str, size: tuple[int, int], key: str) -> np.typing.NDArray[np.uint8]:
    mask = unpack_mask(text)
    if mask.shape != size:
        raise CaeavError(
            f"a mask of clip {key} is {mask.shape[0]}x{mask.shape[1]} pixels, the first one {size[0]}x{size[1]}",
            hint="bring all masks to one size in the official files and extract again",
        )
    return np.packbits(mask.reshape(-1))


def masks_of(targets: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
    """Bits `[..., bytes]` -> masks, bool `[..., H, W]`."""
    bits = targets[BITS]
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    pixels = ((bits.unsqueeze(-1) >> shifts) & 1).bool().flatten(-2)[..., : size[0] * size[1]]
    return pixels.reshape(*pixels.shape[:-1], *size)


def known_masks(targets: Mapping[str, Tensor], size: Sequence[int]) -> Iterator[Tensor]:
    """The known masks `[A, H, W]` of each clip in turn, since pixels take far more memory than bits."""
    for bits, known in zip(targets[BITS], targets[KNOWN], strict=True):
        yield masks_of({BITS: bits}, size)[known]


def mean_mask(targets: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """Fraction of the known masks that cover a pixel: `[H, W]`."""
    total = torch.zeros(size)
    for masks in known_masks(targets, size):
        total += masks.sum(dim=0)
    return total / targets[KNOWN].sum()


def constant_ious(mask: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """IoU of one bool mask `[H, W]` with every known mask."""
    logits = mask.float() * 2 - 1
    known = known_masks(targets, mask.shape)
    return torch.cat([frame_iou(logits.expand(truth.shape), truth) for truth in known])


class AvsScorer(Scorer):
    """M_J and M_F over the frames with a known mask."""

    def __init__(self, classes: Sequence[str], clips_per_call: int) -> None:
        self._classes = classes
        self._metric = AvsMetric(clips_per_call)
        self._groups: list[Tensor] = []

    def measure(self, output: Any, batch: TokenBatch) -> dict[str, Tensor]:
        """Of the frames with a mask, see `measure` of the metric; `frames` `[B]`, how many; `groups` `[B, K]`."""
        truth, known = masks_of(batch.targets, output.mask_logits.shape[-2:]), batch.targets[KNOWN]
        clips = [
            measure(logits[frames], masks[frames])
            for logits, masks, frames in zip(output.mask_logits, truth, known, strict=True)
        ]
        joined = {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}
        return {**joined, "frames": known.sum(dim=1).cpu(), GROUPS: batch.targets[GROUPS].cpu()}

    def take(self, measured: Mapping[str, Tensor]) -> None:
        """Count a batch, clip by clip."""
        counts = measured["frames"].tolist()
        clips = {name: torch.split(measured[name], counts) for name in ("iou", "curves", "empty")}
        for i in range(len(counts)):
            self._metric.take(**{name: parts[i] for name, parts in clips.items()})
        self._groups += measured[GROUPS].unbind()

    def result(self) -> Scores:
        """M_J in percent; with one clip per call, also both scores of every group of clips."""
        score = self._metric.compute()
        details = {
            "f_measure": 100 * score.f_measure,
            "clips_per_call": float(score.clips_per_call),
            "frames": float(score.frames),
            "empty_frames": float(score.empty_frames),
        }
        single = score.clips_per_call == 1
        rows = self._rows(100 * score.calls) if single else ()
        evidence = Evidence(
            {"mean_iou": mean_of(score.calls[:, 0]), "f_measure": mean_of(score.calls[:, 1])},
            SAMPLES if single else f"calls of {score.clips_per_call} clips",
        )
        why = "the rows name none (docs/DATASETS.md)" if single else "several clips are scored in a call"
        return Scores(100 * score.mean_iou, len(self._groups), rows, details, evidence, "" if rows else why)

    def _rows(self, calls: Tensor) -> tuple[dict[str, Any], ...]:
        groups = torch.stack(self._groups)
        found = [(name, calls[groups[:, i]]) for i, name in enumerate(self._classes)]
        return tuple(
            {"class": name, "clips": len(own)}
            | dict(zip(("mean_iou", "f_measure"), own.mean(dim=0).tolist(), strict=True))
            for name, own in found
            if len(own)
        )


AVS_S4, AVS_MS3 = AvsTask("avs-s4"), AvsTask("avs-ms3")
