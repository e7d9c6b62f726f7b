"""Audio-visual question answering (MUSIC-AVQA): a row is a question about a clip; many rows share one.

Answers are the data set's own list where it has one, words those of the training questions in their order, both saved
in the run. Shapes: `N` samples, `B` of a batch, `T` segments, `W` words, `L` tokens, `C` channels.

Frames of other videos for the matching network of AVQA as the reference draws them, from seed, epoch and row alone.

They bypass the adapters: a network with adapters can tell them by that alone. The revision takes other clips of the
batch (heads/avqa.py).

Shapes: `B` samples, `T` segments, `L` tokens, `C` channels, `V` videos of the split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.clip import SPLITS, Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import (
    NEGATIVE,
    BatchTransform,
    ClipData,
    Epoch,
    Inputs,
    TokenBatch,
    TrunkOutput,
)
from caeav.model.tasks.avqa.head import AvqaHead, AvqaOutput
from caeav.model.tasks.avqa.loss import MATCH_WEIGHT, UNLISTED, answer_loss, avqa_loss
from caeav.model.tasks.avqa.metric import QUESTION_TYPES, AvqaMetric
from caeav.model.tasks.avqa.prediction import Answer
from caeav.model.tasks.base import Scores, Task
from caeav.model.tasks.bootstrap import Evidence
from caeav.model.tasks.config import LossConfig, NotNegative, RunConfig
from caeav.model.tasks.heads import AvqaHeadConfig, HeadConfig
from caeav.model.tasks.sample import Sample

if TYPE_CHECKING:
    from caeav.model.adapters.trunk import Trunk


REFERENCE_FRAMES = 60
"""Frames a clip that the reference's rejection counts with, left from longer clips."""


class Negatives:
    """Adds `negative.visual` `[B, T, L, C]` in training: tokens of the deepest visual tap that the run reads.

    For each segment a random number below `T V` (REFERENCE section 6); its quotient by `T` is the video, the remainder
    the segment; drawn anew while its quotient by 60 is the clip's own video, which hardly ever keeps the own one out.
    A split of one video has no negatives.
    """

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """A `BatchTransform`."""
        videos = len(data.clips)
        if epoch is None or videos < 2:
            return batch
        tap = list(batch.visual)[-1]
        found = [
            _mixed(
                np.random.default_rng([*epoch, row]), data.clip_of[row], videos, batch.visual[tap].shape[1]
            )
            for row in rows
        ]
        clips, segments = (torch.tensor(np.stack(x)) for x in zip(*found, strict=True))
        return replace(batch, extra={**batch.extra, NEGATIVE: data.segments(tap, clips, segments)})


Drawn = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Numbers of videos and of their segments, both `[T]`."""


def _mixed(rng: np.random.Generator, own: int, videos: int, segments: int) -> Drawn:
    numbers = rng.integers(videos * segments, size=segments)
    # A single rejected block may be all there is, in a set of a few videos.
    while videos * segments > REFERENCE_FRAMES and (rejected := numbers // REFERENCE_FRAMES == own).any():
        numbers[rejected] = rng.integers(videos * segments, size=int(rejected.sum()))
    return numbers // segments, numbers % segments


QUESTION, ANSWER, TYPE = "question", "answer", "type"
PAD, UNKNOWN = "<pad>", "<unk>"
MIN_WORDS = 14
"""Places for words in a question: the official number, more where a question is longer."""


class AvqaLossConfig(LossConfig):
    """The answer, and whether sound and picture belong together."""

    answer: NotNegative = 1.0
    match: NotNegative = MATCH_WEIGHT


class AvqaTask(Task):
    """The registered task `avqa`."""

    name = "avqa"
    metric = "accuracy"
    sample_noun = "question"
    head_config: ClassVar[type[HeadConfig]] = AvqaHeadConfig
    loss_config: ClassVar[type[LossConfig]] = AvqaLossConfig

    def samples(self, manifest: Manifest) -> Sequence[Sample]:
        """One a question, in the manifest's order; the split is the question's."""
        return tuple(
            Sample(f"{clip.key}+{row['id']}", clip, row["split"], row)
            for clip in manifest.clips
            for row in clip.extra.get("questions", ())
            if row["split"] in SPLITS
        )

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """`words`, the padding first and unknown ones last; `answers`; `places` for words in a question."""
        train = splits["train"]
        words = dict.fromkeys(word for sample in train for word in sample.detail["words"])
        answers = manifest.classes or tuple(dict.fromkeys(sample.detail["answer"] for sample in train))
        longest = max((len(s.detail["words"]) for rows in splits.values() for s in rows), default=0)
        return {
            "words": [PAD, *words, UNKNOWN],
            "answers": list(answers),
            "places": max(MIN_WORDS, longest),
        }

    def classes(self, manifest: Manifest, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The answers."""
        if not facts["answers"]:
            raise CaeavError(
                f"data set {manifest.dataset!r} has no questions in its train split",
                hint="--dataset music-avqa, or one whose clips have `questions` (docs/TASKS.md)",
            )
        return tuple(facts["answers"])

    def describe(self, inputs: Inputs) -> str:
        """Sizes of both vocabularies."""
        return f"{len(inputs.classes)} answers, {len(inputs.facts['words'])} words"

    def targets(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`answer` `[N]`, -1 for one that is in no list; `type` `[N]`, the place in `QUESTION_TYPES`."""
        answers = {name: i for i, name in enumerate(inputs.classes)}
        types = {kind: i for i, kind in enumerate(QUESTION_TYPES)}
        faults = {str(s.detail["type"]) for s in samples if tuple(s.detail["type"]) not in types}
        if faults:
            raise CaeavError(
                f"unknown question types: {', '.join(sorted(faults)[:5])}",
                hint=f"the official ones are {', '.join(' '.join(kind) for kind in types)}",
            )
        return {
            ANSWER: torch.tensor(
                [answers.get(s.detail["answer"], UNLISTED) for s in samples], dtype=torch.long
            ),
            TYPE: torch.tensor([types[tuple(s.detail["type"])] for s in samples], dtype=torch.long),
        }

    def extra_inputs(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`question` `[N, W]`, indices of words, padded."""
        words = {word: i for i, word in enumerate(inputs.facts["words"])}
        asked = torch.full((len(samples), inputs.facts["places"]), words[PAD], dtype=torch.long)
        for row, sample in enumerate(samples):
            found = [_index(word, words) for word in sample.detail["words"][: asked.shape[1]]]
            asked[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        return {QUESTION: asked}

    def transforms(self, config: RunConfig) -> tuple[BatchTransform, ...]:
        """Frames of other videos, in training, where they do not come from the batch."""
        head = config.model.head
        assert isinstance(head, AvqaHeadConfig) and isinstance(config.loss, AvqaLossConfig)
        return (Negatives(),) if config.loss.match and head.negatives == "mixed" else ()

    def sample_of(self, clip: Clip, text: str) -> Sample:
        """A question as typed: cut at blanks, without the mark at its end."""
        words = text.strip().rstrip("?？.! ").split()
        if not words:
            raise CaeavError("a run of task avqa answers a question", hint='ask one: --question "..."')
        return Sample(clip.key, clip, "", {"words": words, "text": text.strip()})

    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """Question encoder, grounding, matching."""
        assert isinstance(config, AvqaHeadConfig)
        widths = trunk.visual_channels, trunk.audio_channels
        return AvqaHead(*widths, len(inputs.classes), len(inputs.facts["words"]), config)

    def forward(self, head: nn.Module, trunk: TrunkOutput, batch: TokenBatch) -> AvqaOutput:
        """With the question and, in training, frames of other videos."""
        return head(  # type: ignore[no-any-return]
            trunk, batch.extra[QUESTION], batch.extra.get(NEGATIVE), batch.clip_of
        )

    def losses(self, found: AvqaOutput, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The official two; without frames of others only the answer's."""
        answer = batch.targets[ANSWER]
        if found.match_negative is None:
            return {"answer": answer_loss(found.answer_logits, answer)}
        loss = avqa_loss(found.answer_logits, found.match_positive, found.match_negative, answer)
        return loss._asdict()

    def decode(self, found: AvqaOutput, inputs: Inputs, config: RunConfig, sample: Sample) -> Answer:
        """The likeliest answers."""
        words = {word.lower() for word in inputs.facts["words"]}
        return Answer.of(
            sample.detail["text"],
            inputs.classes,
            found.answer_logits[0].float().softmax(dim=-1),
            tuple(word for word in sample.detail["words"] if word.lower() not in words),
        )

    def build_scorer(self, inputs: Inputs, config: RunConfig) -> AvqaScorer:
        """A fresh scorer."""
        return AvqaScorer()

    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """Accuracy of giving each of the nine types of question its most frequent training answer."""
        pairs = zip(train[TYPE].tolist(), train[ANSWER].tolist(), strict=True)
        counts = Counter(pair for pair in pairs if pair[1] != UNLISTED)
        best = {kind: answer for (kind, answer), _ in reversed(counts.most_common())}
        given = torch.tensor([best.get(kind, -2) for kind in targets[TYPE].tolist()], dtype=torch.long)
        return float((given == targets[ANSWER]).double().mean()) * 100


def _index(word: str, words: Mapping[str, int]) -> int:
    """A word's place; as typed, else with a small or a large first letter."""
    for form in (word, word.lower(), word.capitalize()):
        if form in words:
            return words[form]
    return words[UNKNOWN]


class AvqaScorer:
    """Share of right answers: of all questions, of each type, of each modality."""

    def __init__(self) -> None:
        self._metric = AvqaMetric()
        self._questions = 0

    def add(self, found: Any, batch: TokenBatch) -> None:
        """Take in one batch."""
        kinds = [QUESTION_TYPES[i] for i in batch.targets[TYPE].tolist()]
        self._metric.update(found.answer_logits, batch.targets[ANSWER], kinds)
        self._questions += len(batch.keys)

    def result(self) -> Scores:
        """Accuracy in percent; a row for every type that was asked."""
        score = self._metric.compute()
        rows = tuple(
            {"type": " ".join(kind), "questions": score.questions[kind], "accuracy": 100 * share}
            for kind, share in score.per_type.items()
        )
        details = {modality.lower(): 100 * share for modality, share in score.per_modality.items()}
        right = torch.tensor([hit for _, hit in score.asked])
        of_all = torch.ones_like(right)
        asked = {
            m.lower(): torch.tensor([kind[0] == m for kind, _ in score.asked]) for m in score.per_modality
        }
        parts = {name: (right & of, of) for name, of in {"accuracy": of_all, **asked}.items()}
        return Scores(100 * score.accuracy, self._questions, rows, details, Evidence(parts))


AVQA = AvqaTask()
