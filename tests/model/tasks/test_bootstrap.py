"""Bootstrap intervals: equal to resampling by hand, over whole clips, reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caeav.model.tasks.ave.task import AveScorer
from caeav.model.tasks.avqa.task import ANSWER, TYPE, AvqaScorer
from caeav.model.tasks.avvp.head import AvvpOutput
from caeav.model.tasks.avvp.metric import clip_scores
from caeav.model.tasks.avvp.task import AUDIO, TIMED, VISUAL, AvvpScorer
from caeav.model.tasks.bootstrap import CLIPS, Evidence, intervals, mean_of
from caeav.model.train.config_file import resolve_config


class Batch:
    """As much of a `TokenBatch` as scorers read."""

    def __init__(self, size: int, **targets: torch.Tensor) -> None:
        self.keys, self.targets = [str(i) for i in range(size)], targets


def test_an_interval_is_of_the_ratio_of_sums_over_drawn_clips() -> None:
    up, down = torch.tensor([3.0, 0.0, 5.0, 1.0]), torch.tensor([4.0, 2.0, 5.0, 9.0])
    found = intervals(Evidence({"score": (up, down)}, CLIPS), seed=3, resamples=50)
    drawn = np.random.default_rng(3).multinomial(4, [0.25] * 4, size=50)
    ratios = [
        100 * sum(n * u for n, u in zip(row, up.tolist(), strict=True))
        / sum(n * d for n, d in zip(row, down.tolist(), strict=True))
        for row in drawn
    ]  # fmt: skip
    assert found.bounds["score"] == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])))
    assert (found.count, found.resamples, found.unit) == (4, 50, CLIPS)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(0.5, 0.1, size=400))
    low, high = intervals(Evidence({"m": mean_of(values)}, CLIPS)).bounds["m"]
    centre, half = 100 * float(values.mean()), 196 * float(values.std()) / 20
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=0.2)


def test_bounds_follow_from_the_seed() -> None:
    evidence = Evidence({"m": mean_of(torch.linspace(0, 1, 30))}, CLIPS)
    assert intervals(evidence).bounds == intervals(evidence).bounds
    assert intervals(evidence).bounds != intervals(evidence, seed=1).bounds


def test_questions_of_one_clip_are_drawn_together() -> None:
    hits, all_of = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4)
    grouped = Evidence({"a": (hits, all_of)}).by_clip([0, 0, 1, 1])
    assert [x.tolist() for x in grouped.parts["a"]] == [[2.0, 0.0], [2.0, 2.0]]
    assert intervals(grouped).bounds["a"] == (0.0, 100.0)  # two clips, all right or all wrong
    calls = Evidence({"a": (hits, all_of)}, "calls of 2 clips")
    assert calls.by_clip([0, 0, 1, 1]) is calls


def test_a_score_without_samples_has_no_interval() -> None:
    nothing, some = (torch.zeros(3), torch.zeros(3)), (torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 0, 0]))
    assert intervals(Evidence({"none": nothing, "some": some}, CLIPS)).bounds == {"some": (100.0, 100.0)}
    few = torch.tensor([0.25]), torch.tensor([0.5])
    assert intervals(Evidence({"few": few}, CLIPS)).bounds == {"few": (50.0, 50.0)}


def test_evidence_of_ave_adds_up_to_both_averages() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.nn.functional.one_hot(torch.tensor([[0, 2, 1, 2]] * 5), 3).float()
    found = type("Found", (), {})
    for by_batch in (False, True):
        scorer = AveScorer(("bell", "dog"), by_batch=by_batch)
        for rows in (slice(0, 4), slice(4, 5)):
            found.event_relevance, found.event_scores = logits[rows], logits[rows, :2]
            scorer.add(found, Batch(len(logits[rows]), labels=labels[rows]))  # type: ignore[arg-type]
        scores = scorer.result()
        assert scores.evidence is not None
        ((name, (up, down)),) = scores.evidence.parts.items()
        pooled = 100 * float(up.sum() / down.sum())
        assert pooled == pytest.approx(scores.details[name] if by_batch else scores.value)
        if by_batch:  # two batches count alike, whatever their size
            means = [100 * float(up[rows].sum() / down[rows].sum()) for rows in (slice(0, 4), slice(4, 5))]
            assert scores.value == pytest.approx(sum(means) / 2)


def test_evidence_of_avqa_is_the_score_of_every_modality() -> None:
    scorer = AvqaScorer()
    logits = torch.eye(3)[[0, 1, 2, 0]]
    batch = Batch(4, **{ANSWER: torch.tensor([0, 1, 0, 1]), TYPE: torch.tensor([0, 1, 2, 4])})
    scorer.add(type("Found", (), {"answer_logits": logits}), batch)  # type: ignore[arg-type]
    scores = scorer.result()
    assert scores.evidence is not None
    ratios = {name: 100 * float(up.sum() / down.sum()) for name, (up, down) in scores.evidence.parts.items()}
    assert ratios == {"accuracy": scores.value, **scores.details} == {
        "accuracy": 50.0, "audio": 100.0, "visual": 0.0, "audio-visual": 0.0
    }  # fmt: skip


def test_evidence_of_avvp_is_all_ten_numbers() -> None:
    rng = torch.Generator().manual_seed(1)
    frames = [torch.rand(6, 5, 2, generator=rng) for _ in range(4)]
    scorer = AvvpScorer(("bell", "dog"), 0.5)
    found = AvvpOutput(**{name: torch.ones(6, 2) for name in AvvpOutput._fields})._replace(
        audio_frame_prob=frames[0], visual_frame_prob=frames[1]
    )
    truth = {AUDIO: (frames[2] > 0.5).float(), VISUAL: (frames[3] > 0.5).float()}
    scorer.add(found, Batch(6, **truth, **{TIMED: torch.ones(6, dtype=torch.bool)}))  # type: ignore[arg-type]
    scores = scorer.result()
    assert scores.evidence is not None and len(scores.evidence.parts) == 10
    for name, (up, down) in scores.evidence.parts.items():
        assert 100 * float(up.sum() / down.sum()) == pytest.approx(scores.details[name]), name
    assert clip_scores(torch.tensor([0.3, 0.6, 0.5, 0.9]))["type_av"] == pytest.approx(0.6)


def test_the_average_over_batches_is_a_setting() -> None:
    config = resolve_config("ave", assignments=["metric.average=batches"])
    assert config.metric.average == "batches"  # type: ignore[attr-defined]
