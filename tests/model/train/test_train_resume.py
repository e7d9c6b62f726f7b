"""Interrupted trainings: stopped anywhere and resumed, they end as if undisturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import StopAt, StopError
from stopping import train_logged as go

import caeav.model.train.resume as resume_module
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.train.checkpoint import CheckpointError, write_tensors
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import Experiment, prepare, reopen
from caeav.model.train.log import read_metrics
from caeav.model.train.loop import Watcher
from caeav.model.train.resume import (
    BEST,
    LAST,
    PENDING,
    Progress,
    generator_states,
    restore_generators,
    settle_best,
)
from caeav.model.train.runs import METRICS, Run, create_run

SEED = int(os.environ.get("CAEAV_RESUME_SEED", random.randrange(1 << 30)))
"""Seed of everything random here; a failure prints it, and it can be set to repeat that failure."""

SMALL = [
    "training.epochs=3",
    "training.batch_size=12",
    "model.adapters.avmoe.num_skip=2",
    "training.device=cpu",
    "model.adapters.avmoe.latents=4",
    "model.head.width=16",
    "model.head.hidden=16",
    "model.head.visual_in=16",
    "model.head.audio_in=16",
]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that are the same whichever other tests run."""
    print(f"CAEAV_RESUME_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


def new_run(home: Home) -> tuple[Experiment, Run]:
    experiment = prepare(home, resolve_config(assignments=SMALL, options={"dataset": "tiny"}))
    return experiment, create_run(home, experiment.config)


def metrics(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in read_metrics(run.folder / METRICS)]


def files(run: Run) -> dict[str, bytes]:
    return {name: (run.checkpoints / name).read_bytes() for name in (LAST, BEST, "state.json")}


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "run"}


@pytest.fixture(scope="module")
def undisturbed(tiny_home: Home) -> tuple[Run, dict[str, Any]]:
    experiment, run = new_run(tiny_home)
    return run, go(experiment, run)


def assert_the_same(run: Run, result: dict[str, Any], undisturbed: tuple[Run, dict[str, Any]]) -> None:
    assert json.dumps(metrics(run)) == json.dumps(
        metrics(undisturbed[0])
    )  # also the order, in which losses are summed
    assert files(run) == files(undisturbed[0])
    assert comparable(result) == comparable(undisturbed[1])


@pytest.mark.parametrize(("epoch", "batch"), [(1, 2), (2, None), (3, 3)])
def test_a_run_stopped_in_any_epoch_resumes_as_if_undisturbed(
    tiny_home: Home,
    undisturbed: tuple[Run, dict[str, Any]],
    chance: random.Random,
    epoch: int,
    batch: int | None,
) -> None:
    experiment, run = new_run(tiny_home)
    with pytest.raises(StopError):
        go(experiment, run, StopAt(epoch, batch))
    torch.manual_seed(chance.randrange(1 << 30))  # whatever state the new process happens to be in
    assert_the_same(run, go(reopen(tiny_home, run), run), undisturbed)


class BatchCounter(Watcher):
    """Counts the batches of each epoch."""

    def __init__(self) -> None:
        self.batches: dict[int, int] = {}

    def batch(self, epoch: int, samples: int) -> None:
        self.batches[epoch] = self.batches.get(epoch, 0) + 1


@pytest.mark.parametrize(("epoch", "batch"), [(1, 2), (2, 1)])
def test_a_run_stopped_within_an_epoch_resumes_after_the_last_saved_step(
    tiny_home: Home,
    undisturbed: tuple[Run, dict[str, Any]],
    chance: random.Random,
    epoch: int,
    batch: int,
) -> None:
    often = resolve_config(
        assignments=[*SMALL, "training.checkpoint_every_steps=1", "training.workers=0"],
        options={"dataset": "tiny"},
    )
    experiment = prepare(tiny_home, often)
    run = create_run(tiny_home, experiment.config)
    with pytest.raises(StopError):
        go(experiment, run, StopAt(epoch, batch))
    torch.manual_seed(chance.randrange(1 << 30))
    counted = BatchCounter()
    result = go(reopen(tiny_home, run), run, counted)
    assert counted.batches[epoch] == counted.batches[epoch + 1] - batch
    assert_the_same(run, result, undisturbed)


def test_generator_states_are_restored() -> None:
    legacy = np.random.rand
    resume_module.seed_epoch(3, 7)
    _ = random.random(), legacy(5), torch.rand(3)
    states = generator_states()
    first = random.random(), legacy(700).tolist(), torch.rand(9).tolist()
    resume_module.seed_epoch(1, 1)
    restore_generators(states)
    assert first == (random.random(), legacy(700).tolist(), torch.rand(9).tolist())


@pytest.mark.parametrize("at", ["write_tensors", "settle_best", "publish_text"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_stopped_between_two_files_of_its_state_resumes_as_if_undisturbed(
    tiny_home: Home,
    undisturbed: tuple[Run, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    epoch: int,
) -> None:
    """Before `last` is written, after it but before the best weights are renamed, and before `state.json`."""
    experiment, run = new_run(tiny_home)
    original = getattr(resume_module, at)

    def stop(*given: Any, **named: Any) -> Any:
        first = given[0]
        reached = metrics(run)[-1]["epoch"] if metrics(run) else 0
        if reached == epoch and not (at == "write_tensors" and first.name == PENDING):
            raise StopError
        return original(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(resume_module, at, stop)
        with pytest.raises(StopError):
            go(experiment, run)
    assert_the_same(run, go(reopen(tiny_home, run), run), undisturbed)


def test_pending_best_weights_are_renamed_when_their_state_is_read(tmp_path: Path) -> None:
    """Killed right after the last epoch's state was saved: no later save would rename the best weights."""
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam([{"params": list(model.parameters()), "names": ["weight", "bias"]}])
    progress = Progress(epoch=3, best_epoch=3)
    resume_module.save_progress(tmp_path, model, optimiser, progress, is_best=False)
    write_tensors(tmp_path / PENDING, {"x": torch.zeros(1)}, {"epoch": 3})
    resume_module.load_progress(tmp_path, model, optimiser)
    assert resume_module.read_facts(tmp_path / BEST)["epoch"] == 3 and not (tmp_path / PENDING).exists()


def test_pending_best_weights_of_an_epoch_that_was_not_finished_are_dropped(tmp_path: Path) -> None:
    for epoch, name in ((2, BEST), (5, PENDING)):
        write_tensors(tmp_path / name, {"x": torch.full((1,), float(epoch))}, {"epoch": epoch})
    settle_best(tmp_path, Progress(epoch=4, best_epoch=2))
    assert not (tmp_path / PENDING).exists()
    assert resume_module.read_facts(tmp_path / BEST)["epoch"] == 2


def test_pending_best_weights_without_any_state_are_dropped(tmp_path: Path) -> None:
    write_tensors(tmp_path / PENDING, {"x": torch.zeros(1)}, {"epoch": 1})
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam([{"params": list(model.parameters()), "names": ["weight", "bias"]}])
    progress, mid_epoch = resume_module.load_progress(tmp_path, model, optimiser)
    assert progress == Progress() and not mid_epoch.loss_sums and not mid_epoch.generators
    assert not list(tmp_path.iterdir())


def test_the_name_of_the_best_weights_is_synced_before_anything_builds_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(
        resume_module, "sync_folder", lambda folder: synced.append((folder, (folder / BEST).exists()))
    )
    write_tensors(tmp_path / PENDING, {"x": torch.zeros(1)}, {"epoch": 3})
    settle_best(tmp_path, Progress(epoch=3, best_epoch=3))
    assert synced == [(tmp_path, True)] and not (tmp_path / PENDING).exists()


def test_a_state_with_other_counters_is_of_another_version(tmp_path: Path) -> None:
    write_tensors(tmp_path / LAST, {"model.weight": torch.zeros(1, 1)}, {"epoch": 1, "steps": 2})
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam([{"params": list(model.parameters()), "names": ["weight", "bias"]}])
    with pytest.raises(CheckpointError, match=r"holds the counters \['epoch', 'steps'\]"):
        resume_module.load_progress(tmp_path, model, optimiser)


def child(home: Home, run: Run) -> int:
    """The training in a process of its own: its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            go(reopen(home, run), run)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # a child of pytest must not go on as pytest
    return pid


def test_a_run_killed_at_random_moments_resumes_as_if_undisturbed(
    tiny_home: Home, undisturbed: tuple[Run, dict[str, Any]], chance: random.Random
) -> None:
    """SIGKILL twice, each time somewhere in the run; then the rest undisturbed."""
    _, run = new_run(tiny_home)
    for _ in range(2):
        pid = child(tiny_home, run)
        time.sleep(chance.uniform(0.0, 1.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert os.waitpid(child(tiny_home, run), 0)[1] == 0
    result = run.result()
    assert result is not None
    assert_the_same(run, result, undisturbed)


def test_a_finished_run_is_not_trained_again(
    tiny_home: Home, undisturbed: tuple[Run, dict[str, Any]]
) -> None:
    run, result = undisturbed
    before = files(run)

    class Never(Watcher):
        def begin(self, progress: Progress, epochs: int) -> None:
            assert progress.epoch == epochs

        def batch(self, epoch: int, samples: int) -> None:
            raise AssertionError("trained on a batch")

        def epoch(self, record: Mapping[str, Any]) -> None:
            raise AssertionError("another epoch")

    assert comparable(go(reopen(tiny_home, run), run, Never())) == comparable(result)
    assert files(run) == before


def test_a_run_whose_labels_changed_is_not_resumed(tiny_home: Home) -> None:
    experiment, run = new_run(tiny_home)
    with pytest.raises(StopError):
        go(experiment, run, StopAt(2, 1))
    stores = json.loads((run.folder / "stores.json").read_text())
    stores["labels"] = "0" * 64
    stores["stores"][0]["fingerprint"] = "2" * 64
    stores["stores"][1]["digest"] = "1" * 64
    (run.folder / "stores.json").write_text(json.dumps(stores))
    with pytest.raises(CaeavError, match="has changed") as caught:
        reopen(tiny_home, run)
    assert "labels or splits of tiny: 000000000000" in str(caught.value)
    assert "captions store stores/tiny/captions-tinycaptions" in str(caught.value)
    assert f"fingerprint {'2' * 64} -> " in str(caught.value) and f"digest {'1' * 64} -> " in str(
        caught.value
    )
