"""Trainings that version 0.1.0 began: they go on with the dropout masks which that version would have drawn in CASE."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_weights import random_double
from stopping import StopAt, StopError
from stopping import train_logged as go
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.adapters.case import AttentionUnit, FeedForwardUnit
from caeav.model.adapters.earlier_draws import use_earlier_draws
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import Experiment, prepare, reopen
from caeav.model.train.log import read_metrics
from caeav.model.train.processes import Processes
from caeav.model.train.provenance import describe_environment
from caeav.model.train.resume import LAST
from caeav.model.train.runs import ENVIRONMENT, METRICS, Run, create_run
from caeav.model.train.session import train

DOUBLE = torch.float64
SMALL = [
    "training.epochs=2",
    "training.batch_size=12",
    "training.device=cpu",
    "training.workers=0",
    *(f"model.head.{name}=16" for name in ("width", "hidden", "visual_in", "audio_in")),
]


def masks(seed: int, *wanted: tuple[tuple[int, ...], float]) -> list[Tensor]:
    """What version 0.1.0 multiplied tensors of these shapes by, at these rates, one after the other: 16 bits of a draw
    say whether an element stays."""
    torch.manual_seed(seed)
    made = []
    for shape, rate in wanted:
        count = torch.Size(shape).numel()
        words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        numbers = words.view(torch.int16)[:count].to(DOUBLE) + 2**15  # 0 .. 65535
        made.append((numbers >= round(rate * 2**16)).to(DOUBLE).view(shape) / (1 - rate))
    return made


@pytest.mark.parametrize("masked", [False, True])
def test_an_attention_unit_drops_weights_then_what_it_adds(masked: bool) -> None:
    unit = random_double(AttentionUnit(6, heads=2, weight_dropout=0.3, dropout=0.4), seed=1).train()
    assert use_earlier_draws(unit)
    query, source = torch.randn(3, 5, 6, dtype=DOUBLE), torch.randn(3, 7, 6, dtype=DOUBLE)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 4:] = not masked
    of_weights, of_sum = masks(5, ((3, 2, 5, 7), 0.3), ((3, 5, 6), 0.4))
    attn = unit.attn
    q, k, v = (
        f(x).view(3, -1, 2, 3).transpose(1, 2)
        for f, x in ((attn.query, query), (attn.key, source), (attn.value, source))
    )
    logits = (q @ k.transpose(2, 3) / 3**0.5).masked_fill(~mask[:, None, None], float("-inf"))
    mixed = (logits.softmax(-1) * of_weights) @ v
    wanted = unit.norm(query + of_sum * attn.out(mixed.transpose(1, 2).reshape(3, 5, 6)))
    torch.manual_seed(5)
    torch.testing.assert_close(unit(query, source, mask if masked else None), wanted)


def test_a_feed_forward_unit_drops_its_hidden_layer_then_what_it_adds() -> None:
    unit = random_double(FeedForwardUnit(5, dropout=0.25), seed=1).train()
    assert use_earlier_draws(unit)
    x = torch.randn(3, 7, 5, dtype=DOUBLE)
    of_hidden, of_sum = masks(5, ((3, 7, 10), 0.25), ((3, 7, 5), 0.25))
    wanted = unit.norm(x + of_sum * unit.fc_out(unit.fc_in(x).relu() * of_hidden))
    torch.manual_seed(5)
    torch.testing.assert_close(unit(x), wanted)


@pytest.mark.parametrize(
    "unit",
    [
        AttentionUnit(4, heads=2).eval(),
        FeedForwardUnit(4).eval(),
        AttentionUnit(4, heads=2, weight_dropout=0.0, dropout=0.0).train(),
        FeedForwardUnit(4, dropout=0.0).train(),
    ],
)
def test_nothing_is_drawn_in_eval_mode_or_at_rate_zero(unit: nn.Module) -> None:
    tokens = [torch.ones(2, 3, 4)] * (2 if isinstance(unit, AttentionUnit) else 1)
    wanted = unit(*tokens)
    use_earlier_draws(unit)
    before = torch.get_rng_state()
    torch.testing.assert_close(unit(*tokens), wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_units_keep_their_weights_and_rates() -> None:
    unit = AttentionUnit(4, heads=2, weight_dropout=0.3, dropout=0.4)
    names = list(unit.state_dict())
    use_earlier_draws(unit)
    assert list(unit.state_dict()) == names and unit.dropout.p == 0.4
    assert not use_earlier_draws(nn.Linear(2, 2))


def new_run(home: Home, *settings: str, began: str | None = None) -> tuple[Experiment, Run]:
    """A run, as `began` left it that made its folder but trained nothing yet."""
    experiment = prepare(home, resolve_config(assignments=[*SMALL, *settings], options={"dataset": "tiny"}))
    run = create_run(home, experiment.config)
    if began is not None:
        then = describe_environment(experiment.device)
        run.write(ENVIRONMENT, then | {"packages": {**then["packages"], "caeav": began}})
    return experiment, run


def losses(run: Run) -> list[str]:
    return [json.dumps(row["losses"]) for row in read_metrics(run.folder / METRICS)]


def test_a_training_begun_earlier_draws_so_however_often_it_is_resumed(tiny_home: Home) -> None:
    undisturbed, stopped = (new_run(tiny_home, began="0.1.0") for _ in range(2))
    go(*undisturbed)
    experiment, run = stopped
    for stop in (StopAt(1, None), StopAt(2, 2)):
        with pytest.raises(StopError):
            go(experiment, run, stop)
        assert run.read(ENVIRONMENT)["begun_with"] == "0.1.0"
        experiment = reopen(tiny_home, run)
    go(experiment, run)
    assert losses(run) == losses(undisturbed[1])
    assert (run.checkpoints / LAST).read_bytes() == (undisturbed[1].checkpoints / LAST).read_bytes()


@pytest.mark.parametrize(
    ("began", "settings", "same"),
    [
        ("0.1.0", [], False),
        ("0.1.0", ["training.precision=bf16"], True),
        ("0.1.0", ["model.adapters.case.enabled=false"], True),
        ("0.2.0", [], True),
    ],
)
def test_only_draws_of_earlier_trainings_in_case_differ(
    tiny_home: Home, began: str, settings: list[str], same: bool
) -> None:
    first = []
    for version in (began, None):
        experiment, run = new_run(tiny_home, *settings, began=version)
        with pytest.raises(StopError):
            go(experiment, run, StopAt(1, None))
        first.append(losses(run))
    assert (first[0] == first[1]) is same


class Pair(Processes):
    """The first of two processes, the other one of which is not there."""

    def agree(self, make: Any) -> Any:
        return make()


def test_several_processes_refuse_to_go_on_with_draws_of_one(tiny_home: Home) -> None:
    experiment, run = new_run(tiny_home, began="0.1.0")
    with pytest.raises(
        CaeavError, match=r"begun by caeav 0\.1\.0, and 2 processes cannot repeat the dropout"
    ):
        train(replace(experiment, processes=Pair(0, 2)), run)
