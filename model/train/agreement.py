"""How far the agreement of audio and frames is true: ROC area, calibration error, and the calibration that a run keeps.

A run with a shared agreement is calibrated on the split that chose its best epoch: a temperature and a bias, kept in
`agreement.json`. It is fitted to labels of seconds, or, where there are none, to pairs
mismatched on purpose: the same split with sounds of other clips. It is judged by the truth of a generated set,
elsewhere by such pairs. Shapes: `N` clips, `T` segments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.remembered import media_root
from caeav.manifests.synthetic.truth import Truth, read_truth, truth_of
from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.adapters.trunk import Trunk
from caeav.model.tasks.config import StressConfig
from caeav.model.train.data import SplitData
from caeav.model.train.evaluate import autocast, each_batch
from caeav.model.train.experiment import Experiment
from caeav.model.train.runs import Run
from caeav.model.train.stress import Stress

AGREEMENT_FILE = "agreement.json"
MEANING = "probability that audio and frames belong together"
GATE = "CASTE's gate"
BY_TRUTH = "truth of the generated set"
BY_LABELS = "labels of seconds"
BY_MISMATCH = "pairs mismatched on purpose"
OTHER_CLIP, OTHER_TIME = "sound of another clip", "sound of another time"
BINS = 10
WEAK_AUC = 0.6
"""Below it a run says that its agreement tells little."""
RIDGE = 1e-3
"""Pulls temperature and bias towards 1 and 0 a little, so that they stay finite where the two classes separate."""
TINY = 1e-7

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """`p = sigmoid(logit / temperature + bias)`; `auc`: how well logits rank what it was fitted to, None if unknown."""

    temperature: float = 1.0
    bias: float = 0.0
    auc: float | None = None

    @classmethod
    def of(cls, held: Mapping[str, Any]) -> Calibration:
        """From what `agreement.json` holds."""
        return cls(float(held["temperature"]), float(held["bias"]), held.get("auc"))

    def apply(self, logits: Floats) -> Floats:
        """Logits to probabilities."""
        return np.asarray(1 / (1 + np.exp(-(logits / self.temperature + self.bias))))

    @classmethod
    def fit(cls, logits: Floats, truth: Flags) -> Calibration:
        """The most likely one for `logits` of which `truth` is known, by Newton's method; itself 1 and 0 without both
        kinds of truth."""
        if truth.all() or not truth.any():
            return cls()
        x = torch.from_numpy(logits.copy())
        y = torch.from_numpy(truth.astype(np.float64))
        free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(x * free[0].exp() + free[1], y)
            loss = loss + RIDGE * free.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        solver.step(closure)  # type: ignore[no-untyped-call]
        slope, bias = free.detach().tolist()
        return cls(math.exp(-slope), bias)


def read_calibration(run: Run) -> Calibration | None:
    """The run's, None for a run without a shared agreement, or not trained to its end."""
    if not (run.folder / AGREEMENT_FILE).exists():
        return None
    return Calibration.of(run.read(AGREEMENT_FILE))


def weak_agreement(auc: float | None) -> str:
    """What to say of an agreement that hardly ranks anything where it was calibrated; empty for a better one."""
    if auc is None or auc >= WEAK_AUC:
        return ""
    return f"agreement tells little in this run: AUC {auc:.2f} where it was calibrated, and chance has 0.5"


def auc(scores: Floats, truth: Flags) -> float | None:
    """Area under the ROC curve, equal scores counting half; None without both kinds of truth."""
    positive = int(truth.sum())
    negative = truth.size - positive
    if not positive or not negative:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of equal scores
    area = float(rank[place][truth].sum()) - positive * (positive + 1) / 2
    return area / (positive * negative)


def reliability(probabilities: Floats, truth: Flags) -> list[dict[str, float]]:
    """A row for each tenth of 0..1 that occurs: how many seconds, mean predicted probability, observed frequency."""
    tenth = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return [
        {
            "seconds": int(held.sum()),
            "predicted": float(probabilities[held].mean()),
            "observed": float(truth[held].mean()),
        }
        for number in range(BINS)
        if (held := tenth == number).any()
    ]


def calibration_error(rows: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: predicted minus observed, absolute, averaged over the seconds."""
    total = sum(row["seconds"] for row in rows)
    return sum(row["seconds"] * abs(row["predicted"] - row["observed"]) for row in rows) / total


@dataclass(frozen=True)
class Judged:
    """An agreement, as `caeav eval` shows it.

    quantity: what was judged, `MEANING` or `GATE`. against: what was taken as true. by_kind: the AUC for each kind of
    misalignment, or of pairs mismatched on purpose. auc and calibration_error are None where only one kind of truth
    occurs; the error also for a gate, which claims no probability.
    """

    quantity: str
    against: str
    seconds: int
    auc: float | None
    calibration_error: float | None
    by_kind: Mapping[str, Mapping[str, Any]]
    reliability: Sequence[Mapping[str, float]]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Seconds:
    """Flat arrays over the seconds with both media: logits of agreement, what is true, and the kind of each."""

    logits: Floats
    truth: Flags
    kinds: NDArray[np.str_]
    against: str

    def judged(self, calibration: Calibration | None) -> Judged:
        """The numbers; without a calibration it is a gate."""
        rows = [] if calibration is None else reliability(calibration.apply(self.logits), self.truth)
        return Judged(
            quantity=GATE if calibration is None else MEANING,
            against=self.against,
            seconds=len(self.truth),
            auc=auc(self.logits, self.truth),
            calibration_error=calibration_error(rows) if rows else None,
            by_kind=self._by_kind(calibration),
            reliability=rows,
        )

    def _by_kind(self, calibration: Calibration | None) -> dict[str, dict[str, Any]]:
        found = {}
        natural = self.kinds == ""  # pairs as recorded, which every kind of mismatch is held against
        for kind in sorted({*self.kinds.tolist()} - {""}):
            held = (self.kinds == kind) | natural
            logits, truth = self.logits[held], self.truth[held]
            rows = [] if calibration is None else reliability(calibration.apply(logits), truth)
            found[kind] = {
                "seconds": int((self.kinds == kind).sum()),
                "auc": auc(logits, truth),
                "calibration_error": calibration_error(rows) if rows else None,
            }
        return found


def judge(
    experiment: Experiment, model: nn.Module, split: str, calibration: Calibration | None
) -> Judged | None:
    """The agreement of `model` on `split`, against the truth of a generated set or mismatched pairs.

    None for a model without CASTE. `calibration`: the run's.
    """
    logits, present = read_logits(experiment, model, experiment.data[split])
    if logits is None:
        return None
    known = generated_truth(experiment, split)
    if known is None:
        return _mismatched(experiment, model, split, logits, present).judged(calibration)
    truth, kinds = np.array([clip.together for clip in known]), np.array([clip.kind for clip in known])
    each = np.broadcast_to(kinds[:, None], truth.shape)
    return Seconds(logits[present], truth[present], each[present], BY_TRUTH).judged(calibration)


def calibrate(experiment: Experiment, model: nn.Module, split: str) -> dict[str, Any] | None:
    """What `agreement.json` holds: the calibration of `model`, fitted on `split`; None without a shared agreement."""
    if getattr(getattr(model, "trunk", None), "correspondence", None) is None:
        return None
    logits, present = read_logits(experiment, model, experiment.data[split])
    if logits is None or not present.any():
        return None
    seconds = experiment.task.together(experiment.targets[split], training=False).seconds
    if seconds is None:
        found = _mismatched(experiment, model, split, logits, present, kinds=(OTHER_CLIP,))
    else:
        truth = seconds.amax(dim=-1).numpy() > 0.5
        found = Seconds(logits[present], truth[present], np.full(int(present.sum()), "all"), BY_LABELS)
    calibration = Calibration.fit(found.logits, found.truth)
    said = found.judged(calibration)
    return {
        "temperature": calibration.temperature,
        "bias": calibration.bias,
        "meaning": MEANING,
        "split": split,
        "against": said.against,
        "auc": said.auc,
        "calibration_error": said.calibration_error,
        "reliability": [dict(row) for row in said.reliability],
    }


@torch.no_grad()
def read_logits(experiment: Experiment, model: nn.Module, data: SplitData) -> tuple[Floats | None, Flags]:
    """Logits `[N, T]` of the agreement of every clip of `data`, and where both media are there; None without CASTE."""
    if not hasattr(model, "trunk"):
        return None, np.zeros(0, bool)
    training = model.training
    first: dict[int, int] = {}
    for row, clip in enumerate(data.clip_of):
        first.setdefault(clip, row)
    rows = [first[clip] for clip in range(len(data.clips))]
    found, present = [], []
    model.eval()

    def measure(batch: TokenBatch, first: int) -> dict[str, Tensor]:
        on_device = batch.to(experiment.device, torch.float32)
        with autocast(experiment.device, experiment.config.training.precision):
            logits = _logits(cast(Trunk, model.trunk), on_device)
        held = {} if logits is None else {"logits": logits.cpu()}
        return {"present": batch.frames_ok & batch.audio_ok, **held}

    try:
        for measured in each_batch(measure, data, rows, experiment.config, experiment.processes):
            if "logits" not in measured:
                return None, np.zeros(0, bool)
            found.append(measured["logits"])
            present.append(measured["present"])
    finally:
        model.train(training)
    return torch.cat(found).numpy(), torch.cat(present).numpy()


def _logits(trunk: Trunk, batch: TokenBatch) -> Tensor | None:
    """Logits `[B, T]` of a shared agreement, for which no adapter need run, or of the adapters' own gates."""
    if (match := trunk.match(batch)) is not None:
        return match.logits().double()
    output = trunk(batch)
    return None if output.agreement is None else agreement_logits(output)


def agreement_logits(trunk: TrunkOutput) -> Tensor:
    """Of a trunk that has an agreement, in float64 `[B, T]`."""
    if trunk.match is not None:
        return trunk.match.logits().double()
    assert trunk.agreement is not None
    return trunk.agreement.double().clamp(TINY, 1 - TINY).logit()


def generated_truth(experiment: Experiment, split: str) -> list[Truth] | None:
    """The truth of a split's clips, each of `T` seconds; None where they are not all of a generated set."""
    try:
        root = media_root(experiment.home, experiment.config.dataset)
    except CaeavError:  # the media are gone, and with them the truth
        return None
    truths = read_truth(root)
    by_clip = {sample.clip.key: sample.clip for sample in experiment.joined.splits[split]} if truths else {}
    found = [truth_of(by_clip[key], truths) for key in experiment.data[split].clips] if truths else []
    segments = experiment.inputs.spec.segments
    known = [truth for truth in found if truth is not None and len(truth.together) == segments]
    return known if known and len(known) == len(found) else None


def _mismatched(
    experiment: Experiment,
    model: nn.Module,
    split: str,
    logits: Floats,
    present: Flags,
    kinds: Sequence[str] = (OTHER_CLIP, OTHER_TIME),
) -> Seconds:
    """Pairs as recorded, said to belong together, and as many of each kind that do not."""
    data, segments = experiment.data[split], experiment.inputs.spec.segments
    altered = {
        OTHER_CLIP: StressConfig(swap=1.0) if len(data.clips) > 1 else None,
        OTHER_TIME: StressConfig(shift=segments // 2) if segments > 1 else None,
    }
    parts = [logits[present]]
    names = [np.full(len(parts[0]), "", dtype="U32")]
    for kind in kinds:
        if (strengths := altered[kind]) is None:
            continue
        other, there = read_logits(experiment, model, data.transformed(Stress(strengths)))
        assert other is not None
        parts.append(other[there])
        names.append(np.full(len(parts[-1]), kind, dtype="U32"))
    labels = np.concatenate(names)
    return Seconds(np.concatenate(parts), labels == "", labels, BY_MISMATCH)
