"""Steps, epochs and the choice of the best epoch, each compared with a value found in another way."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import train_logged
from torch import Tensor, nn
from torch.utils import deterministic

from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import Epoch, TokenBatch, TrunkOutput
from caeav.model.tasks.base import TASKS, Scores
from caeav.model.tasks.bootstrap import Evidence
from caeav.model.tasks.config import OptimiserConfig, RunConfig, ScheduleConfig
from caeav.model.train.checkpoint import (
    CheckpointError,
    load_into,
    parameter_counts,
    read_tensors,
    trainable_state,
    write_tensors,
)
from caeav.model.train.config_file import resolve_config
from caeav.model.train.data import SplitData, epoch_order
from caeav.model.train.evaluate import choose_device, score
from caeav.model.train.experiment import Experiment, prepare, reopen
from caeav.model.train.log import read_metrics
from caeav.model.train.loop import Trainer, Watcher, exact_on_cpu
from caeav.model.train.losses import weighted_losses
from caeav.model.train.network import Network, Output
from caeav.model.train.optimiser import lr_factor, make_optimiser, set_lr
from caeav.model.train.resume import LAST, Progress, seed_epoch
from caeav.model.train.runs import METRICS, create_run
from caeav.model.train.session import train

CPU = torch.device("cpu")
PLAIN = ["training.device=cpu", "schedule.warmup_epochs=0", "schedule.name=none", "training.workers=0"]


def plain_config(*more: str, recipe: str = "none") -> RunConfig:
    return resolve_config(preset=recipe, assignments=[*PLAIN, *more], options={"dataset": "tiny"})


class Linear(nn.Module):
    """A linear stand-in for a network that records how it is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(16, 1)
        self.dropout = nn.Dropout(0.0)
        self.modes: list[bool] = []

    def forward(self, batch: TokenBatch) -> Output:
        x = batch.visual["visual.stage2"]
        self.modes.append(self.training)
        return Output(self.head(x.float().mean(dim=(1, 2))), TrunkOutput(x, x))


class LinearTask:
    """A loss that is a mean over clips, whatever the batch; `event` is its name and 1 its weight."""

    name, metric = "linear", "accuracy"

    def losses(self, found: Tensor, batch: TokenBatch, config: RunConfig) -> Mapping[str, Tensor]:
        return {"event": (found[:, 0] - batch.targets["labels"][:, 0, 0]).square().mean()}


@pytest.fixture(scope="module")
def experiment(tiny_home: Home) -> Experiment:
    return prepare(tiny_home, plain_config())


def trainer(
    experiment: Experiment,
    folder: Path,
    *settings: str,
    data: SplitData | None = None,
    values: Sequence[float] = (1.0,) * 9,
    details: Sequence[float] = (),
) -> Trainer:
    """Of a linear model on the tiny train split (35 clips); `values`: what each epoch scores."""
    scores: Iterator[Scores] = iter(
        [
            Scores(value, 1, details={"other": other, "count": other}, evidence=Evidence({"other": ()}))  # type: ignore[dict-item]
            for value, other in zip(values, details or values, strict=True)
        ]
    )
    return Trainer(
        LinearTask(),  # type: ignore[arg-type]
        plain_config(*settings),
        Linear(),
        CPU,
        data or experiment.data["train"],
        lambda: next(scores),
        folder,
    )


# ---- one step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "accumulation"), [(12, 1), (3, 4), (7, 3), (50, 1)])
def test_every_clip_of_a_step_weighs_the_same_even_in_a_ragged_last_step(
    experiment: Experiment, tmp_path: Path, size: int, accumulation: int
) -> None:
    """The accumulated gradient is that of the mean loss over all clips of the step, computed at once here."""
    made = trainer(
        experiment,
        tmp_path,
        f"training.batch_size={size}",
        f"training.accumulation={accumulation}",
        "training.epochs=2",
    )
    data, group = experiment.data["train"], size * accumulation
    steps = math.ceil(35 / group)
    rows = [
        epoch_order(35, 0, epoch)[i * group : (i + 1) * group].tolist()
        for epoch in (1, 2)
        for i in range(steps)
    ]
    seen = []
    original = made._step

    def compared(factor: float) -> None:
        batch = data.batch(rows[len(seen)])
        loss = LinearTask().losses(made.model(batch).found, batch, made.config)["event"]
        wanted = torch.autograd.grad(loss, list(made.model.parameters()))
        found = [p.grad for p in made.model.parameters()]
        torch.testing.assert_close(found, list(wanted), atol=1e-5, rtol=1e-4)
        seen.append(factor)
        original(factor)

    made._step = compared  # type: ignore[method-assign]
    progress = made.fit()
    assert len(seen) == progress.step == 2 * steps


def test_gradients_are_clipped_to_the_configured_norm(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[tuple[float, float]] = []
    original = nn.utils.clip_grad_norm_

    def recorded(parameters: Any, limit: float) -> Tensor:
        norm = original(parameters, limit)
        norms.append((float(norm), limit))
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", recorded)
    for precision in ("fp32", "fp16"):
        settings = ["training.epochs=1", "training.clip_norm=0.25", f"training.precision={precision}"]
        trainer(experiment, tmp_path / precision, *settings).fit()
    plain, scaled = norms[: len(norms) // 2], norms[len(norms) // 2 :]
    assert {limit for _, limit in norms} == {0.25}
    # The scale that keeps half precision from underflowing is taken off before gradients are measured.
    assert scaled[0][0] == pytest.approx(plain[0][0], rel=0.05)
    norms.clear()
    trainer(experiment, tmp_path / "off", "training.epochs=1", "training.clip_norm=0").fit()
    assert norms == []


def test_the_rate_of_a_step_is_the_schedules(experiment: Experiment, tmp_path: Path) -> None:
    settings = ["schedule.name=cosine", "training.epochs=2", "training.batch_size=12", "optimiser.lr=0.5"]
    settings.append("optimiser.head_lr_factor=1")
    made = trainer(experiment, tmp_path, *settings)
    rates: list[float] = []
    stepped = made.optimiser.step
    made.optimiser.step = lambda *a, **k: (rates.append(made.optimiser.param_groups[0]["lr"]), stepped())[1]  # type: ignore[method-assign]
    records: list[float] = []
    made.watchers = [RecordWatcher(lambda record: records.append(record["lr"]))]
    made.fit()
    wanted = [0.5 * lr_factor(made.config.schedule, step, 3, 2) for step in range(6)]
    assert rates == pytest.approx(wanted)
    assert records == pytest.approx([wanted[2], wanted[5]])


class RecordWatcher(Watcher):
    """Passes on the records of epochs."""

    def __init__(self, see: Callable[[Mapping[str, Any]], Any]) -> None:
        self._see = see

    def epoch(self, record: Mapping[str, Any]) -> None:
        self._see(record)


def test_the_state_is_saved_after_every_step_but_the_last(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of an epoch the state is saved once, after scoring."""
    places: list[int] = []

    def save(folder: Path, model: object, optimiser: object, progress: Progress, **_: object) -> None:
        places.append(progress.position)

    monkeypatch.setattr("caeav.model.train.loop.save_progress", save)
    every = ["training.epochs=1", "training.batch_size=10", "training.checkpoint_every_steps=1"]
    trainer(experiment, tmp_path, *every).fit()
    assert places == [10, 20, 30, 0]  # of 35 clips


def test_the_losses_of_an_epoch_are_means_over_clips(experiment: Experiment, tmp_path: Path) -> None:
    records: list[Mapping[str, Any]] = []
    settings = ["optimiser.lr=1e-12", "training.batch_size=16", "training.epochs=1"]
    made = trainer(experiment, tmp_path, *settings)
    made.watchers = [RecordWatcher(records.append)]
    whole = experiment.data["train"].batch(range(35))
    wanted = LinearTask().losses(made.model(whole).found, whole, made.config)["event"].item()
    made.fit()
    assert records[0]["losses"] == {"event": pytest.approx(wanted, rel=1e-4)}
    assert records[0]["loss"] == pytest.approx(wanted, rel=1e-4)


def test_the_network_learns_in_training_mode_whatever_mode_it_came_in(
    experiment: Experiment, tmp_path: Path
) -> None:
    made = trainer(experiment, tmp_path, "training.epochs=2")
    made.model.eval()
    made.fit()
    assert set(made.model.modes) == {True}


# ---- weights of losses ---------------------------------------------------------------------------------------


def test_every_loss_counts_by_its_weight_and_not_at_all_by_zero() -> None:
    class Three:
        def losses(self, found: Any, batch: Any, config: RunConfig) -> dict[str, Tensor]:
            return {"relevance": torch.tensor(2.0), "event": torch.tensor(3.0), "score": torch.tensor(5.0)}

    x = torch.zeros(1, 1, 1, 1)
    trunk = TrunkOutput(x, x, losses={"load_balance": torch.tensor(7.0)})
    weights = ["loss.relevance=0.5", "loss.event=0", "loss.score=3", "loss.load_balance=0.25"]
    config = plain_config(*weights)
    found = weighted_losses(Three(), Output(None, trunk), None, config)  # type: ignore[arg-type]
    assert {name: float(value) for name, value in found.items()} == {
        "relevance": 1.0,
        "score": 15.0,
        "load_balance": 1.75,
    }


# ---- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [
    ("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)
])  # fmt: skip
def test_precision_is_that_of_the_configuration_in_learning_and_in_scoring(
    tiny_home: Home, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype | None
) -> None:
    met: dict[bool, set[torch.dtype | None]] = {True: set(), False: set()}
    original = Network.forward

    def recorded(self: Network, batch: TokenBatch) -> Output:
        on = torch.is_autocast_enabled("cpu")
        met[self.training].add(torch.get_autocast_dtype("cpu") if on else None)
        return original(self, batch)

    monkeypatch.setattr(Network, "forward", recorded)
    config = plain_config(f"training.precision={precision}", "training.epochs=1", "model.head.width=16")
    prepared = prepare(tiny_home, config)
    run = create_run(tiny_home, prepared.config)
    result = train_logged(prepared, run)
    assert met == {True: {dtype}, False: {dtype}}
    [record] = read_metrics(run.folder / METRICS)
    assert math.isfinite(record["loss"]) and 0 <= result["scores"]["test"] <= 100
    _, facts = read_tensors(run.checkpoints / LAST)
    assert bool(facts["scaler"]) == (precision == "fp16")  # only half precision can underflow


def test_the_scale_of_half_precision_is_restored(experiment: Experiment, tmp_path: Path) -> None:
    trainer(experiment, tmp_path, "training.precision=fp16", "training.epochs=1").fit()
    tensors, facts = read_tensors(tmp_path / LAST)
    facts["scaler"]["scale"] = 128.0
    write_tensors(tmp_path / LAST, tensors, facts)
    again = trainer(experiment, tmp_path, "training.precision=fp16", "training.epochs=1")
    again.fit()
    assert again.scaler.get_scale() == 128.0


def test_on_a_cpu_algorithms_are_deterministic_and_the_setting_is_restored() -> None:
    switch: Any = deterministic
    for before in (False, True):
        torch.use_deterministic_algorithms(before)
        filled = switch.fill_uninitialized_memory
        try:
            with exact_on_cpu(CPU):
                assert torch.are_deterministic_algorithms_enabled()
                assert not switch.fill_uninitialized_memory
            assert torch.are_deterministic_algorithms_enabled() == before
            assert switch.fill_uninitialized_memory == filled
            with exact_on_cpu(torch.device("meta")):
                assert torch.are_deterministic_algorithms_enabled() == before
        finally:
            torch.use_deterministic_algorithms(False)


# ---- what seed and epoch decide ------------------------------------------------------------------------------


def test_order_changes_and_random_numbers_come_from_seed_and_epoch(
    experiment: Experiment, tmp_path: Path
) -> None:
    """Draws in batches and networks depend on the run's seed and the epoch's number."""
    plain, records = experiment.data["train"], []

    def recorded(batch: TokenBatch, rows: Sequence[int], data: SplitData, epoch: Epoch | None) -> TokenBatch:
        records.append((epoch, list(rows), float(torch.rand(()))))
        return batch

    for seed in (0, 4):
        settings = [f"seed={seed}", "training.epochs=2", "training.batch_size=50"]
        trainer(experiment, tmp_path / str(seed), *settings, data=plain.transformed(recorded)).fit()
    assert [epoch for epoch, _, _ in records] == [Epoch(0, 1), Epoch(0, 2), Epoch(4, 1), Epoch(4, 2)]
    for epoch, rows, drawn in records:
        assert rows == epoch_order(35, *epoch).tolist()
        seed_epoch(*epoch)
        assert drawn == float(torch.rand(()))
    assert len({tuple(rows) for _, rows, _ in records}) == len({drawn for _, _, drawn in records}) == 4


def test_all_three_generators_follow_seed_and_epoch() -> None:
    legacy = np.random.rand

    def drawn(seed: int, epoch: int) -> tuple[float, float, float]:
        seed_epoch(seed, epoch)
        return random.random(), float(legacy()), float(torch.rand(()))

    first, again, *others = (drawn(*which) for which in ((1, 2), (1, 2), (1, 3), (2, 2), (2, 1)))
    assert first == again
    for one in range(3):
        assert len({first[one], *(other[one] for other in others)}) == 4


def test_initial_weights_are_those_of_the_seed(tiny_home: Home, experiment: Experiment) -> None:
    torch.manual_seed(99)
    first = experiment.build().state_dict()
    again = experiment.build().state_dict()
    other = experiment.with_seed(1).build().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert experiment.with_seed(1).config.seed == 1
    assert experiment.with_seed(1).data is experiment.data


# ---- the best ------------------------------------------------------------------------------------------------


def test_peaks_are_the_best_of_each_number_over_all_epochs(experiment: Experiment, tmp_path: Path) -> None:
    made = trainer(
        experiment, tmp_path, "training.epochs=4", values=(2.0, 5.0, 5.0, 1.0), details=(7.0, 3.0, 9.0, 8.0)
    )
    progress = made.fit()
    assert (progress.best, progress.best_epoch) == (5.0, 2)  # the first of equals
    assert progress.peaks == {"accuracy": 5.0, "other": 9.0}  # `count` is no score: nothing supports it
    assert json.loads((tmp_path / "state.json").read_text())["peaks"] == progress.peaks


def test_scores_that_are_negative_or_zero_have_peaks_too(experiment: Experiment, tmp_path: Path) -> None:
    values = (-2.0, -1.0, -3.0)
    assert trainer(experiment, tmp_path, "training.epochs=3", values=values).fit().peaks["accuracy"] == -1.0


@pytest.mark.parametrize(("patience", "epochs", "stopped"), [(0, 6, False), (2, 4, True), (3, 5, True)])
def test_training_stops_after_so_many_epochs_without_gain(
    experiment: Experiment, tmp_path: Path, patience: int, epochs: int, stopped: bool
) -> None:
    settings = ["training.epochs=6", f"training.early_stop_epochs={patience}"]
    progress = trainer(experiment, tmp_path, *settings, values=(1.0, 3.0, 2.0, 3.0, 1.0, 1.0)).fit()
    assert (progress.epoch, progress.best_epoch, progress.stopped_early) == (epochs, 2, stopped)


@pytest.mark.parametrize("select_on", ["val", "test"])
def test_what_is_scored_at_the_end_are_the_weights_of_the_best_epoch(
    tiny_home: Home, monkeypatch: pytest.MonkeyPatch, select_on: str
) -> None:
    """With the second of three epochs the best, final scores, adapter and card come from its weights."""
    calls: list[tuple[str, dict[str, Tensor]]] = []
    values = iter([10.0, 30.0, 20.0])

    def scripted(self: Experiment, model: nn.Module, split: str, stress: Any = None, **_: Any) -> Scores:
        calls.append((split, {name: x.clone() for name, x in model.state_dict().items()}))
        return Scores(next(values, 5.0), 12)

    monkeypatch.setattr(Experiment, "score", scripted)
    config = plain_config("training.epochs=3", "model.head.width=16", f"select_on={select_on}")
    prepared = prepare(tiny_home, config)
    run = create_run(tiny_home, prepared.config)
    result = train(prepared, run)
    assert [split for split, _ in calls] == [select_on] * 3 + ["val", "test"]
    _, best, last, *final = (weights for _, weights in calls)
    assert not all(torch.equal(best[name], last[name]) for name in best)
    for weights in (*final, read_tensors(run.folder / "adapter.safetensors")[0]):
        assert all(torch.equal(x, best[name]) for name, x in weights.items())
    assert (result["best_epoch"], result["epochs"], result["stopped_early"]) == (2, 3, False)
    assert result["scores"] == {"val": 5.0, "test": 5.0} and run.result() == result
    assert (result["clips"], result["left_out"]) == (
        {"train": 35, "val": 12, "test": 12},
        {"train": 1, "val": 0, "test": 0},
    )
    said = {name: result[name] for name in ("run", "task", "recipe", "dataset", "seed", "metric", "rows")}
    assert said == {
        "run": run.name, "task": "ave", "recipe": "none", "dataset": "tiny", "seed": 0, "metric": "accuracy",
        "rows": "clips",
    }  # fmt: skip
    assert (result["select_on"], result["protocol"], result["augment"]) == (select_on, "honest", {})
    assert sum(result["parameters"].values()) == sum(x.numel() for x in prepared.build().parameters())
    assert "peaks" not in result and "leaks" not in result


def test_the_constant_answer_comes_from_the_targets_of_train(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        type(experiment.task),
        "majority_score",
        lambda self, inputs, config, train, of: asked.append((train, of)),
    )
    for split in ("train", "val", "test"):
        experiment.majority(split)
    for (found, of), split in zip(asked, ("train", "val", "test"), strict=True):
        assert found is experiment.targets["train"] and of is experiment.targets[split]


# ---- scoring -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
def test_scoring_runs_in_eval_mode_without_gradients_and_restores_the_mode(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, mode: bool
) -> None:
    model = experiment.build().train(mode)
    met: set[tuple[bool, bool]] = set()
    model.register_forward_pre_hook(lambda module, _: met.add((module.training, torch.is_grad_enabled())))
    scored = score(
        TASKS["ave"], model, experiment.data["val"], experiment.inputs, experiment.config, experiment.device
    )
    assert scored.clips == 12 and met == {(False, False)} and model.training == mode
    assert scored.evidence is not None and scored.evidence.unit == "clips"


@pytest.mark.parametrize("device", ["cpu", None])
def test_an_existing_run_is_opened_on_the_given_device(
    tiny_home: Home, monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "caeav.model.train.experiment.choose_device",
        lambda name, *_: (asked.append(name), torch.device("cpu"))[1],
    )
    run = create_run(tiny_home, plain_config("training.device=cuda"))
    reopen(tiny_home, run, device)
    assert asked == [device or "cuda"]


def test_auto_takes_the_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == wanted
        assert choose_device("cpu").type == "cpu"


# ---- the optimiser -------------------------------------------------------------------------------------------


def test_frozen_parameters_are_left_out_of_the_named_optimiser() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        made = make_optimiser(model, OptimiserConfig(name=name, weight_decay=0.5, lr=0.1))
        assert type(made) is kind
        held = {name: group for group in made.param_groups for name in group["names"]}
        assert held.keys() == {"0.bias", "1.weight", "1.bias"}
        assert [held[n]["weight_decay"] for n in ("0.bias", "1.weight")] == [0.0, 0.5]
        for _ in range(2):  # the factor is one of the base rate, not of the last one
            set_lr(made, 0.5)
        assert all(group["lr"] == pytest.approx(0.05) for group in made.param_groups)


def test_frozen_parameters_are_neither_saved_nor_counted() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "b": nn.Linear(3, 2)})
    model["b"].weight.requires_grad_(False)
    assert list(trainable_state(model)) == [
        "a.0.weight", "a.0.bias", "a.1.weight", "a.1.bias",
        "a.1.running_mean", "a.1.running_var", "a.1.num_batches_tracked", "b.bias",
    ]  # fmt: skip
    assert parameter_counts(model) == {"a.0": 9, "a.1": 6, "b": 2}


@pytest.mark.parametrize(("count", "end"), [(8, "x7"), (9, "x7 and 1 more")])
def test_of_many_differences_some_are_named_and_the_others_counted(count: int, end: str) -> None:
    strange = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)} | {
        f"x{i}": torch.zeros(1) for i in range(count)
    }
    with pytest.raises(CheckpointError) as caught:
        load_into(nn.Linear(1, 1), strange, Path("w"))
    assert caught.value.problem.splitlines()[1:] == [
        f"  {count} unexpected: {', '.join(f'x{i}' for i in range(7))}, {end}"
    ]


def test_schedules_by_hand() -> None:
    cosine = ScheduleConfig(name="cosine", warmup_epochs=0, floor=0.2)
    assert lr_factor(cosine, 0, 10, 4) == pytest.approx(1.0)
    assert lr_factor(cosine, 20, 10, 4) == pytest.approx(0.2 + 0.8 / 2)
    assert lr_factor(cosine, 40, 10, 4) == lr_factor(cosine, 50, 10, 4) == pytest.approx(0.2)
    warm = ScheduleConfig(name="step", warmup_epochs=1, step_epochs=1, step_factor=0.5)
    assert [lr_factor(warm, step, 2, 4) for step in range(6)] == pytest.approx(
        [1 / 3, 2 / 3, 0.5, 0.5, 0.25, 0.25]
    )
    assert lr_factor(ScheduleConfig(name="none", warmup_epochs=0), 99, 10, 4) == 1.0
