"""Scores of constant predictions, by hand: the best one on the training targets, by the task's own metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from caeav.model.adapters.batch import Inputs, InputSpec
from caeav.model.tasks.avqa.loss import UNLISTED
from caeav.model.tasks.avqa.task import ANSWER, TYPE
from caeav.model.tasks.avs.task import BITS, KNOWN
from caeav.model.tasks.avvp.task import AUDIO, LABELS, VISUAL
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import RunConfig
from caeav.model.train.config_file import resolve_config


def majority(task: str, train: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> float:
    inputs = Inputs("d", ("bell", "dog"), 1.0, InputSpec(4, (), ()), {"mask_size": [2, 4]})
    config: RunConfig = resolve_config(task, "none")
    return TASKS[task].majority_score(inputs, config, train, targets)


def seconds(*clips: str) -> dict[str, torch.Tensor]:
    """`"bb.d"` -> one-hot labels of bell, dog and background."""
    index = torch.tensor([["bd.".index(c) for c in clip] for clip in clips])
    return {LABELS: F.one_hot(index, 3).float()}


@pytest.mark.parametrize("task", ["ave", "ave-weak"])
def test_ave_answers_what_most_seconds_of_train_are(task: str) -> None:
    assert majority(task, seconds("bbbb", "d..."), seconds("bd..", "....")) == pytest.approx(100 / 8)
    assert majority(task, seconds("bb..", "d..."), seconds("bd..", "....")) == pytest.approx(600 / 8)
    # What most seconds of the scored split are is not looked at.
    assert majority(task, seconds("bbbd"), seconds("ddd.")) == 0


def test_avqa_answers_each_type_of_question_with_its_own_most_frequent_answer() -> None:
    train = {TYPE: torch.tensor([0, 0, 0, 1, 1, 1]), ANSWER: torch.tensor([4, 4, 2, UNLISTED, UNLISTED, 3])}
    asked = {TYPE: torch.tensor([0, 0, 1, 1, 2]), ANSWER: torch.tensor([4, 2, 3, UNLISTED, 3])}
    assert majority("avqa", train, asked) == pytest.approx(
        100 * 2 / 5
    )  # never right where no list has the answer
    unlisted = {TYPE: torch.tensor([1, 1, 1]), ANSWER: torch.tensor([UNLISTED, UNLISTED, 3])}
    assert majority("avqa", train, unlisted) == pytest.approx(100 / 3)
    others = {TYPE: torch.tensor([0, 0, 0]), ANSWER: torch.tensor([2, 2, 2])}
    assert majority("avqa", train, others) == 0


def test_avvp_answers_the_most_frequent_class_in_both_modalities_all_the_time() -> None:
    train = {LABELS: torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
    bell = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])  # [T, K]
    half, one = 2 * 2 / (2 * 2 + 2), 2 * 1 / (2 * 1 + 3)
    seen = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = majority("avvp", train, {AUDIO: bell.unsqueeze(0), VISUAL: seen.unsqueeze(0)})
    assert found == pytest.approx(100 * (half + one + one) / 3)
    dog = torch.tensor([[0.0, 1.0]] * 4).unsqueeze(0)
    assert majority("avvp", train, {AUDIO: dog, VISUAL: dog}) == 0  # the scored split's own majority is dog


@pytest.mark.parametrize("task", ["avs-s4", "avs-ms3"])
def test_avs_answers_one_mask_for_every_frame(task: str) -> None:
    def packed(*rows: list[int]) -> dict[str, torch.Tensor]:
        bits = torch.from_numpy(np.packbits(np.array(rows, np.uint8), axis=-1)).unsqueeze(0)  # [1, T, bytes]
        return {BITS: bits, KNOWN: torch.ones(1, len(rows), dtype=torch.bool)}

    left, right = [1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 1, 1]
    assert majority(task, packed(left, left, left, right), packed(left, right)) == pytest.approx(50)
    assert majority(task, packed(left, left, left, right), packed(left, left)) == pytest.approx(100)
    assert majority(task, packed(left, left, left, right), packed(right, right)) == pytest.approx(0, abs=1e-6)
    # Where no mask is known, the values there do not count.
    train = packed(left, right, right, right)
    train[KNOWN][0, 1:] = False
    assert majority(task, train, packed(left, left)) == pytest.approx(100)
