"""Training as a whole: it learns, repeats exactly and leaves a complete run; single steps: test_train_steps.py."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import train_logged
from tiny_home import tiny_stores, write_tiny_home

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.tasks.config import RunConfig, ScheduleConfig, StressConfig
from caeav.model.train.checkpoint import (
    CheckpointError,
    load_into,
    read_tensors,
    trainable_state,
    write_tensors,
)
from caeav.model.train.config_file import resolve_config
from caeav.model.train.evaluate import choose_device
from caeav.model.train.examine import examine, remarks
from caeav.model.train.experiment import Experiment, _empty_split_hint, prepare, reopen
from caeav.model.train.log import read_metrics
from caeav.model.train.loop import TrainingError
from caeav.model.train.optimiser import AGREEMENT, lr_factor, make_optimiser
from caeav.model.train.runs import METRICS, Run, create_run
from caeav.model.train.session import load_best, train

SMALL = [
    "training.epochs=6",
    "model.adapters.avmoe.num_skip=2",
    "model.adapters.avmoe.latents=4",
    "model.head.width=32",
    "model.head.hidden=32",
    "model.head.visual_in=32",
    "model.head.audio_in=32",
    "training.device=cpu",
    "schedule.warmup_epochs=0",
    "optimiser.lr=0.005",
]


def small_config(*more: str, recipe: str = "full") -> RunConfig:
    return resolve_config(preset=recipe, assignments=[*SMALL, *more], options={"dataset": "tiny"})


def train_once(home: Home, config: RunConfig, watchers: tuple[Any, ...] = ()) -> tuple[Run, dict[str, Any]]:
    experiment = prepare(home, config)
    run = create_run(home, experiment.config)
    return run, train_logged(experiment, run, *watchers)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.endswith("_s")} for record in records]


@pytest.fixture(scope="module")
def trained(tiny_home: Home) -> tuple[Run, dict[str, Any]]:
    return train_once(tiny_home, small_config("training.epochs=8"))


def test_it_learns_what_majority_cannot(trained: tuple[Run, dict[str, Any]]) -> None:
    _, result = trained
    assert result["scores"]["val"] > result["majority"]["val"] + 20
    assert result["scores"]["test"] > result["majority"]["test"] + 15


def test_both_modalities_are_needed(tiny_home: Home, trained: tuple[Run, dict[str, Any]]) -> None:
    alone = [
        train_once(tiny_home, small_config("training.epochs=8", recipe=recipe))[1]["scores"]["test"]
        for recipe in ("audio", "visual")
    ]
    assert trained[1]["scores"]["test"] > sum(alone) / 2 + 5


def test_the_run_folder_is_complete(trained: tuple[Run, dict[str, Any]]) -> None:
    run, result = trained
    for name in ("config.yaml", "inputs.json", "stores.json", "environment.json", "metrics.jsonl", "result.json",
                 "card.md", "adapter.safetensors", "checkpoints/best.safetensors", "checkpoints/last.safetensors",
                 "checkpoints/state.json"):  # fmt: skip
        assert (run.folder / name).is_file(), name
    assert [record["epoch"] for record in read_metrics(run.folder / METRICS)] == list(
        range(1, result["epochs"] + 1)
    )
    assert not list(run.folder.rglob(".part-*"))


def test_the_best_epoch_is_the_first_of_the_best_and_its_weights_are_kept(
    tiny_home: Home, trained: tuple[Run, dict[str, Any]]
) -> None:
    run, result = trained
    values = [record["accuracy"] for record in read_metrics(run.folder / METRICS)]
    assert result["best_epoch"] == values.index(max(values)) + 1
    experiment = reopen(tiny_home, run)
    model = experiment.build()
    load_best(run, model)
    assert experiment.score(model, "val").value == pytest.approx(max(values))
    assert experiment.score(model, "test").value == pytest.approx(result["scores"]["test"])


def test_the_score_does_not_depend_on_the_batch_size(
    tiny_home: Home, trained: tuple[Run, dict[str, Any]]
) -> None:
    run, result = trained
    config = run.config()
    other = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": 5})})
    experiment = prepare(tiny_home, other)
    model = experiment.build()
    load_best(run, model)
    assert experiment.score(model, "test").value == pytest.approx(result["scores"]["test"])


def test_the_test_split_is_scored_once_and_only_at_the_end(
    tiny_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = Experiment.score

    def counted(self: Experiment, model: torch.nn.Module, split: str, **options: Any) -> Any:
        asked.append(split)
        return original(self, model, split, **options)

    monkeypatch.setattr(Experiment, "score", counted)
    train_once(tiny_home, small_config("training.epochs=3", recipe="none"))
    assert asked == ["val", "val", "val", "val", "test"]


def test_selection_on_test_marks_run_and_card(tiny_home: Home) -> None:
    run, result = train_once(tiny_home, small_config("training.epochs=2", "select_on=test", recipe="none"))
    assert "selected-on-test" in run.name and result["select_on"] == "test"
    assert "Selected on test" in (run.folder / "card.md").read_text()
    assert {record["select_on"] for record in read_metrics(run.folder / METRICS)} == {"test"}


def test_the_same_seed_repeats_and_another_does_not(tiny_home: Home) -> None:
    runs = [train_once(tiny_home, small_config("training.epochs=1", f"seed={seed}"))[0] for seed in (4, 4, 5)]
    logs = [without_times(read_metrics(run.folder / METRICS)) for run in runs]
    weights = [(run.checkpoints / "last.safetensors").read_bytes() for run in runs]
    assert logs[0] == logs[1] and weights[0] == weights[1]
    assert logs[0] != logs[2]


def test_reading_from_the_store_gives_what_reading_from_ram_gives(tiny_home: Home) -> None:
    runs = [
        train_once(
            tiny_home, small_config("training.epochs=2", f"training.preload_mb={mb}", "training.workers=2")
        )[0]
        for mb in (0, 100)
    ]
    logs = [without_times(read_metrics(run.folder / METRICS)) for run in runs]
    assert logs[0] == logs[1]


def test_a_loss_that_is_not_a_number_stops_before_it_is_saved(tiny_home: Home) -> None:
    experiment = prepare(tiny_home, small_config(recipe="none"))
    run = create_run(tiny_home, experiment.config)
    for x in experiment.data["train"]._stacked.values():  # type: ignore[union-attr]
        if x.is_floating_point():
            x[3] = float("nan")
    with pytest.raises(TrainingError, match="epoch 1 gave infinite or NaN values: the loss "):
        train(experiment, run)
    assert not (run.checkpoints / "last.safetensors").exists()


class Root(torch.autograd.Function):
    """A finite loss whose gradient is NaN from the given call on."""

    calls, last = 0, 0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        Root.calls += 1
        ctx.sound = Root.calls < Root.last
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad if ctx.sound else grad * float("nan")


@pytest.mark.parametrize(("every", "kept"), [(0, None), (1, 2)])
def test_nan_weights_never_replace_a_sound_state(
    tiny_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, kept: int | None
) -> None:
    """The last step of the epoch, or one before a save within it, breaks the weights while every loss is finite."""
    settings = ["training.batch_size=12", "training.epochs=1", f"training.checkpoint_every_steps={every}"]
    experiment = prepare(tiny_home, small_config(*settings, recipe="none"))
    run = create_run(tiny_home, experiment.config)
    task = type(experiment.task)
    sound = task.losses

    def losses(self: Any, found: Any, batch: Any, config: RunConfig) -> dict[str, torch.Tensor]:
        return {name: Root.apply(x) for name, x in sound(self, found, batch, config).items()}

    monkeypatch.setattr(task, "losses", losses)
    monkeypatch.setattr(Root, "calls", 0)
    monkeypatch.setattr(Root, "last", 3 * 3)  # 35 clips are three steps, of three losses each
    with pytest.raises(TrainingError, match="epoch 1 gave infinite or NaN values: head"):
        train(experiment, run)
    path = run.checkpoints / "last.safetensors"
    if kept is None:
        assert not path.exists()
    else:
        tensors, facts = read_tensors(path)
        assert facts["step"] == kept
        assert all(bool(x.isfinite().all()) for x in tensors.values() if x.is_floating_point())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_an_error() -> None:
    with pytest.raises(CaeavError, match="finds no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"


def test_segments_without_any_media_are_reported_beside_the_scores_and_in_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_stores()
    made = tiny.tiny_record

    def ends_early(clip: Any, *more: Any) -> Any:
        record = made(clip, *more)
        seen, heard = (
            [True] * n + [False] * (tiny.SEGMENTS - n) for n in (tiny.SEGMENTS - 1, tiny.SEGMENTS - 2)
        )
        flags = {"frames_ok": seen, "audio_ok": heard} if clip.split == "test" else {}
        return replace(record, info={**record.info, **flags})

    monkeypatch.setattr(tiny, "tiny_record", ends_early)
    home = tiny.write_tiny_home(tmp_path / "home", counts={"train": 6, "val": 3, "test": 4})
    run, result = train_once(home, small_config("training.epochs=1", recipe="none"))
    assert result["bare"] == {
        "test": [4, 4 * tiny.SEGMENTS]
    }  # where one of the two is there, nothing is said
    said = f"neither frames nor audio, as past the end of the media: test 4 of {4 * tiny.SEGMENTS}."
    assert said in (run.folder / "card.md").read_text()
    experiment = reopen(home, run)
    scored = examine(experiment, experiment.build(), "test", strengths=StressConfig(mute=1.0))
    assert said in "".join(remarks(scored)) and scored.as_json()["bare"] == [4, 4 * tiny.SEGMENTS]
    assert "neither" not in "".join(remarks(examine(experiment, experiment.build(), "val")))


def test_a_split_without_clips_is_an_error_before_a_run_exists(tmp_path: Path) -> None:
    home = write_tiny_home(tmp_path / "home", counts={"train": 6, "test": 4})
    with pytest.raises(
        CaeavError, match="no usable clip in split 'val'; it has train 5, val 0, test 4"
    ) as error:
        prepare(home, small_config())
    assert "in a column split of the csv that --labels names" in error.value.hint
    assert not home.runs.exists()
    assert prepare(home, small_config("select_on=test"))


def test_a_split_whose_clips_are_all_in_quarantine_says_so(tiny_home: Home) -> None:
    joined = prepare(tiny_home, small_config()).joined
    joined = replace(
        joined,
        splits={**joined.splits, "val": joined.splits["val"][:0]},
        left_out={**joined.left_out, "val": ["a", "b"]},
    )
    hint = _empty_split_hint(joined, "val", "tiny")
    assert "all its clips (2 clips (a, b)) are in quarantine" in hint and "--retry-failed" in hint


def test_cosine_warms_up_and_ends_at_the_floor() -> None:
    config = ScheduleConfig(name="cosine", warmup_epochs=2, floor=0.1)
    factors = [lr_factor(config, step, 10, 10) for step in range(100)]
    assert factors[0] < factors[10] < factors[19] < 1.0
    assert factors[20] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[20:]))
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_step_schedule_is_the_reference_one() -> None:
    config = ScheduleConfig(name="step", warmup_epochs=0, step_epochs=3, step_factor=0.35)
    assert [lr_factor(config, 7 * epoch, 7, 9) for epoch in range(9)] == pytest.approx(
        [1, 1, 1, 0.35, 0.35, 0.35, 0.1225, 0.1225, 0.1225]
    )


def test_head_and_decay_groups(tiny_home: Home) -> None:
    experiment = prepare(tiny_home, small_config("optimiser.head_lr_factor=0.5", "optimiser.lr=0.1"))
    model = experiment.build()
    groups = make_optimiser(model, experiment.config.optimiser).param_groups
    rates = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    assert any(name.startswith("trunk.correspondence.") for name in rates)
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    for name, (lr, decay) in rates.items():
        assert lr == pytest.approx(0.05 if name.startswith(("head.", "trunk.correspondence.")) else 0.1)
        assert (decay > 0) == (shapes[name] > 1)


def test_scale_and_shift_of_the_agreement_have_a_rate_of_their_own(tiny_home: Home) -> None:
    """And nothing else has it; where the factor is 1 they learn as the rest of the head."""
    experiment = prepare(tiny_home, small_config("optimiser.head_lr_factor=0.5", "optimiser.lr=0.1"))
    model = experiment.build()
    rates = {}
    for factor in (1.0, 8.0):
        made = make_optimiser(model, experiment.config.optimiser, agreement_lr_factor=factor)
        rates[factor] = {name: group["lr"] for group in made.param_groups for name in group["names"]}
    changed = {name for name, rate in rates[8.0].items() if rate != rates[1.0][name]}
    assert changed == {*AGREEMENT}
    assert all(rates[8.0][name] == pytest.approx(0.4) for name in AGREEMENT)


def test_the_setting_lets_the_shift_of_the_agreement_move_further(tiny_home: Home) -> None:
    moved = []
    for factor in (1, 10):
        setting = f"model.adapters.caste.agreement_lr_factor={factor}"
        run, _ = train_once(tiny_home, small_config(setting, "training.epochs=1"))
        model = prepare(tiny_home, run.config()).build()
        load_best(run, model)
        moved.append(abs(float(model.get_parameter("trunk.correspondence.bias").detach())))
    assert moved[1] > 3 * moved[0] > 0


def test_foreign_weights_are_refused_with_every_difference(tiny_home: Home, tmp_path: Path) -> None:
    model = prepare(tiny_home, small_config(recipe="none")).build()
    state = dict(model.state_dict())
    first, second, *_ = state
    del state[first]
    state["stranger.weight"] = torch.zeros(2)
    state[second] = torch.zeros(3, 3, 3)
    write_tensors(tmp_path / "w.safetensors", state, {})
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(model, read_tensors(tmp_path / "w.safetensors")[0], tmp_path / "w.safetensors")
    text = str(caught.value)
    assert f"1 missing: {first}" in text and "1 unexpected: stranger.weight" in text
    assert f"1 of another shape: {second} [3, 3, 3]" in text
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("damage", [b"", b"\x80\x04K\x01.", b"\xff" * 64], ids=["empty", "pickle", "noise"])
def test_a_damaged_checkpoint_is_an_error_with_a_message(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(damage)
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        read_tensors(path)


def test_the_adapter_holds_what_is_trained_and_says_what_it_is_for(
    trained: tuple[Run, dict[str, Any]],
) -> None:
    run, result = trained
    tensors, facts = read_tensors(run.folder / "adapter.safetensors")
    assert sum(result["parameters"].values()) <= sum(x.numel() for x in tensors.values())
    assert facts["inputs"]["classes"] == ["bell", "dog", "drum"]
    frozen = torch.nn.Linear(2, 2)
    frozen.weight.requires_grad_(False)
    assert list(trainable_state(frozen)) == ["bias"]


def test_a_torn_metrics_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"epoch": 1}) + "\n" + '{"epoch": 2, "lo')
    assert read_metrics(path) == [{"epoch": 1}]
