"""Audio-visual question answering (MUSIC-AVQA): a sample is a question about a clip; many samples share a clip.

Answers are the data set's own list if it has one, else those of the training questions, words those of the training
questions, each in order of appearance; both are saved in the run. Shapes: `N` samples, `W` words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.clip import SPLITS, Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import some_of
from caeav.model.adapters.batch import (
    NEGATIVE,
    BatchTransform,
    ClipData,
    Epoch,
    Inputs,
    TokenBatch,
    TrunkOutput,
)
from caeav.model.adapters.trunk import Trunk
from caeav.model.tasks.avqa.config import AvqaHeadConfig, AvqaLossConfig
from caeav.model.tasks.avqa.head import AvqaHead, AvqaOutput
from caeav.model.tasks.avqa.loss import UNLISTED, answer_loss, avqa_loss
from caeav.model.tasks.avqa.metric import QUESTION_TYPES, AvqaMetric
from caeav.model.tasks.avqa.prediction import Answer
from caeav.model.tasks.base import Scorer, Scores, Task
from caeav.model.tasks.bootstrap import Evidence
from caeav.model.tasks.config import HeadConfig, LossConfig, RunConfig
from caeav.model.tasks.sample import Sample

QUESTION, ANSWER, TYPE = "question", "answer", "type"
PAD, UNKNOWN = "<pad>", "<unk>"
MIN_WORDS = 14
"""Places for words in a question: the official number; more if a question is longer."""
REFERENCE_FRAMES = 60
"""Frames per clip that the reference's rejection assumes; a remnant of longer clips."""


class AvqaTask(Task):
    """The registered task `avqa`."""

    name = "avqa"
    metric = "accuracy"
    sample_noun = "question"
    head_config: ClassVar[type[HeadConfig]] = AvqaHeadConfig
    loss_config: ClassVar[type[LossConfig]] = AvqaLossConfig
    outcome_columns: ClassVar[Mapping[str, Any]] = {
        "question": "",
        "truth": "",
        "prediction": "",
        "probabilities": [0.0],
    }
    probe_refusal = (
        "an answer follows from question and clip together, which one layer on pooled tokens cannot join"
    )

    def samples(self, manifest: Manifest) -> Sequence[Sample]:
        """One per question, in the manifest's order; the split is the question's."""
        return tuple(
            Sample(f"{clip.key}+{row['id']}", clip, row["split"], row)
            for clip in manifest.clips
            for row in clip.extra.get("questions", ())
            if row["split"] in SPLITS
        )

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """`words`, with padding first and the unknown word last; `answers`; `places` for words in a question."""
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
        """`answer` `[N]`, -1 if it is not listed; `type` `[N]`, an index of `QUESTION_TYPES`."""
        answers = {name: i for i, name in enumerate(inputs.classes)}
        types = {kind: i for i, kind in enumerate(QUESTION_TYPES)}
        unknown = {str(s.detail["type"]) for s in samples if tuple(s.detail["type"]) not in types}
        if unknown:
            raise CaeavError(
                f"unknown question types: {some_of(sorted(unknown))}",
                hint=f"the official ones are {', '.join(' '.join(kind) for kind in types)}",
            )
        return {
            ANSWER: torch.tensor(
                [answers.get(s.detail["answer"], UNLISTED) for s in samples], dtype=torch.long
            ),
            TYPE: torch.tensor([types[tuple(s.detail["type"])] for s in samples], dtype=torch.long),
        }

    def extra_inputs(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`question` `[N, W]`: indices of words, padded."""
        words = {word: i for i, word in enumerate(inputs.facts["words"])}
        questions = torch.full((len(samples), inputs.facts["places"]), words[PAD], dtype=torch.long)
        for row, sample in enumerate(samples):
            found = [_index(word, words) for word in sample.detail["words"][: questions.shape[1]]]
            questions[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        return {QUESTION: questions}

    def transforms(self, config: RunConfig) -> tuple[BatchTransform, ...]:
        """Frames of other videos in training, unless they come from the batch."""
        head = config.model.head
        assert isinstance(head, AvqaHeadConfig) and isinstance(config.loss, AvqaLossConfig)
        return (Negatives(),) if config.loss.match and head.negatives == "mixed" else ()

    def sample_of(self, clip: Clip, question: str) -> Sample:
        """With a question as typed, split at blanks, without its question mark."""
        words = question.strip().rstrip("?？.! ").split()
        if not words:
            raise CaeavError("a run of task avqa answers a question", hint='ask one: --question "..."')
        return Sample(clip.key, clip, "", {"words": words, "text": question.strip()})

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

    def losses(self, output: AvqaOutput, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The official two; without negative frames only the answer's."""
        answer = batch.targets[ANSWER]
        if output.match_negative is None:
            return {"answer": answer_loss(output.answer_logits, answer)}
        loss = avqa_loss(output.answer_logits, output.match_positive, output.match_negative, answer)
        return loss._asdict()

    def decode(self, output: AvqaOutput, inputs: Inputs, config: RunConfig, sample: Sample) -> Answer:
        """The likeliest answers."""
        words = {word.lower() for word in inputs.facts["words"]}
        return Answer.of(
            sample.detail["text"],
            inputs.classes,
            output.answer_logits[0].float().softmax(dim=-1),
            tuple(word for word in sample.detail["words"] if word.lower() not in words),
        )

    def outcomes(
        self,
        output: AvqaOutput,
        batch: TokenBatch,
        samples: Sequence[Sample],
        inputs: Inputs,
        config: RunConfig,
    ) -> list[dict[str, Any]]:
        """The answer, true and predicted, and the probabilities of all answers."""
        table = output.answer_logits.float().softmax(dim=-1).cpu()  # [N, answers]
        chosen = output.answer_logits.argmax(dim=-1).tolist()
        right = (output.answer_logits.argmax(dim=-1) == batch.targets[ANSWER]).tolist()
        return [
            {
                "labels": [" ".join(sample.detail["type"])],
                "question": sample.detail["text"],
                "truth": sample.detail["answer"],
                "prediction": inputs.classes[chosen[i]],
                "probabilities": table[i].tolist(),
                "score": float(right[i]),
                "confidence": float(table[i, chosen[i]]),
            }
            for i, sample in enumerate(samples)
        ]

    def build_scorer(self, inputs: Inputs, config: RunConfig) -> AvqaScorer:
        """A new scorer."""
        return AvqaScorer()

    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """Accuracy of the most frequent training answer to each of the nine types of question."""
        pairs = zip(train[TYPE].tolist(), train[ANSWER].tolist(), strict=True)
        counts = Counter(pair for pair in pairs if pair[1] != UNLISTED)
        best = {kind: answer for (kind, answer), _ in reversed(counts.most_common())}
        answered = torch.tensor([best.get(kind, -2) for kind in targets[TYPE].tolist()], dtype=torch.long)
        return float((answered == targets[ANSWER]).double().mean()) * 100


def _index(word: str, words: Mapping[str, int]) -> int:
    """A word's index: as typed, else in small letters, else capitalised."""
    for form in (word, word.lower(), word.capitalize()):
        if form in words:
            return words[form]
    return words[UNKNOWN]


class AvqaScorer(Scorer):
    """Accuracy over all questions, of each type and of each modality."""

    def __init__(self) -> None:
        self._metric = AvqaMetric()

    def measure(self, output: Any, batch: TokenBatch) -> dict[str, Tensor]:
        """`hit` `[B]`, and `type` `[B]` as in the targets."""
        hit = output.answer_logits.argmax(dim=-1) == batch.targets[ANSWER]
        return {"hit": hit.cpu(), TYPE: batch.targets[TYPE].cpu()}

    def take(self, measured: Mapping[str, Tensor]) -> None:
        """Count a batch."""
        kinds = [QUESTION_TYPES[i] for i in measured[TYPE].tolist()]
        self._metric.take(measured["hit"].tolist(), kinds)

    def result(self) -> Scores:
        """Accuracy in percent; a row for every type that occurs."""
        score = self._metric.compute()
        rows = tuple(
            {"type": " ".join(kind), "questions": score.questions[kind], "accuracy": 100 * share}
            for kind, share in score.per_type.items()
        )
        details = {modality.lower(): 100 * share for modality, share in score.per_modality.items()}
        right = torch.tensor([hit for _, hit in score.each])
        counted = {"accuracy": torch.ones_like(right)}
        for modality in score.per_modality:
            counted[modality.lower()] = torch.tensor([kind[0] == modality for kind, _ in score.each])
        evidence = Evidence({name: (right & of, of) for name, of in counted.items()})
        return Scores(100 * score.accuracy, len(right), rows, details, evidence)


AVQA = AvqaTask()


class Negatives:
    """Negatives as the reference draws them: frames of other videos, from seed, epoch and row alone.

    A `BatchTransform`: in training, adds `negative.visual` `[B, T, L, C]`, tokens of the deepest visual tap read. They
    bypass the adapters, so a network with adapters can tell them apart by that alone; the revision takes other clips of
    the batch instead (`head.py`). `B` samples, `T` segments, `L` tokens, `C` channels, `V` videos of the split.

    For each segment a random number below `T V` (REFERENCE section 6); its quotient by `T` is the video, the remainder
    the segment. It is drawn again while its quotient by 60 is the clip's own video, which hardly ever keeps that one
    out. A split of one video has no negatives.
    """

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """Leaves batches for scoring as they are."""
        videos = len(data.clips)
        if epoch is None or videos < 2:
            return batch
        tap = list(batch.visual)[-1]
        segments = batch.visual[tap].shape[1]
        drawn = [
            _draw(np.random.default_rng([*epoch, row]), data.clip_of[row], videos, segments) for row in rows
        ]
        clips, places = (torch.tensor(np.stack(x)) for x in zip(*drawn, strict=True))
        return replace(batch, extra={**batch.extra, NEGATIVE: data.segments(tap, clips, places)})


def _draw(
    rng: np.random.Generator, own: int, videos: int, segments: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of videos and of their segments, both `[T]`."""
    numbers = rng.integers(videos * segments, size=segments)
    # In a set of few videos the rejected block may be all there is.
    while videos * segments > REFERENCE_FRAMES and (rejected := numbers // REFERENCE_FRAMES == own).any():
        numbers[rejected] = rng.integers(videos * segments, size=int(rejected.sum()))
    return numbers // segments, numbers % segments
