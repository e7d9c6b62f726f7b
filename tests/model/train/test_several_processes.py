"""Training in two processes: what they make together is what one makes alone, whatever happens to them on the way.

The processes are started once for all comparisons, which `several_processes.py` makes, in float64.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from several_processes import CASES, HEADS, write_home
from torch import nn

from caeav.cli import surroundings
from caeav.cli.several import one_of_several
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.adapters.whole_batch import Part, SharingError, gather, sharing
from caeav.model.train.config_file import resolve_config
from caeav.model.train.evaluate import choose_device
from caeav.model.train.experiment import prepare
from caeav.model.train.launch import environments
from caeav.model.train.log import read_metrics
from caeav.model.train.processes import ONE, Processes, from_environment
from caeav.model.train.resume import LAST
from caeav.model.train.runs import METRICS, Run, list_runs

WORKER = Path(__file__).parents[2] / "several_processes.py"
CLOSE = 1e-9
SETS = [
    "training.batch_size=12",
    "training.epochs=3",
    "training.checkpoint_every_steps=1",
    "training.workers=0",
]
SETS += ["model.head.width=16", "model.head.hidden=16", "model.head.visual_in=16", "model.head.audio_in=16"]
COMMAND = [sys.executable, "-m", "caeav.cli", "train", "--task", "ave", "--dataset", "tiny"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *COMMAND[1:]]
INJECT = ["model.adapters.placement=inject", "model.adapters.inject_from=stage1"]
DEADLINE_S = 1200


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case -> the differences between one process and two."""
    root = tmp_path_factory.mktemp("several")
    for task in HEADS:
        write_home(root / task, task)
    running = [
        subprocess.Popen([sys.executable, str(WORKER), str(root)], env=env, stdout=subprocess.PIPE, text=True)
        for env in environments([None, None], dict(os.environ))
    ]
    try:
        said, _ = (process.communicate(timeout=DEADLINE_S)[0] for process in running)
    finally:
        for process in running:
            process.kill()
    lines = [json.loads(line) for line in said.splitlines()]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_a_batch_each_equal_one(
    compared: dict[str, dict[str, Any]], case: str
) -> None:
    assert compared.keys() == CASES.keys()
    found = compared[case]
    assert found["steps"] >= 2
    if case == "bf16":
        # Half precision rounds the rows of another batch differently, and a second may then fall to another class.
        assert found["losses"] < 0.05
        return
    for what in ("state", "records", "scores", "agreement"):
        assert found[what] < CLOSE, (what, found)


# ---- the command ---------------------------------------------------------------------------------------------


def command(home: Home, *more: str, start: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
    sets = [x for setting in SETS for x in ("--set", setting)] if "--resume" not in more else []
    start = start if sets else start[: start.index("train") + 1]
    environment = {**os.environ, "CAEAV_PROCESS_TIMEOUT_S": "60", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*start, *sets, "--home", str(home.root), *more],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def children(process: subprocess.Popen[str], count: int) -> list[int]:
    """The processes that it started, in order."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(found := path.read_text().split()) < count:
        assert process.poll() is None, finished(process)
        time.sleep(0.05)
    return [int(pid) for pid in found]


def when_begun(home: Home) -> Run:
    """The newest run, once it has published a state."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        for run in list_runs(home)[-1:]:
            if (run.checkpoints / LAST).exists():
                return run
        time.sleep(0.05)
    raise AssertionError("no run began")


def gone(pids: list[int]) -> bool:
    """Whether these processes have ended."""
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    return not any(path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z" for path in states)


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks for child processes as Linux lists them"
)
def test_a_killed_process_ends_the_other_and_the_run_is_resumed(make_home: Any) -> None:
    """Then a signal ends both, and at last, resumed by torchrun, the run ends like any other."""
    home = make_home()
    killed = command(home, "--set", "training.epochs=8", "--devices", "cpu,cpu")
    pids = children(killed, 2)
    run = when_begun(home)
    os.kill(pids[1], signal.SIGKILL)
    status, out, err = finished(killed)
    assert status == 128 + signal.SIGKILL and out == "" and gone(pids), err
    assert "process 1 was ended by SIGKILL" in err
    assert "another process of this training has stopped" in err and f"--resume {run.name}" in err
    assert err.count("  run       ") == 1, "one of them speaks"

    stopped = command(home, "--resume", run.name, "--devices", "cpu,cpu")
    pids = children(stopped, 2)
    time.sleep(0.5)
    stopped.send_signal(signal.SIGTERM)
    status, _, err = finished(stopped)
    assert status == 128 + signal.SIGTERM and gone(pids) and "interrupted" in err and "Traceback" not in err

    status, out, err = finished(command(home, "--resume", run.name, "--json", start=TORCHRUN))
    assert status == 0, err
    assert json.loads(out) == run.result() and list_runs(home) == [run]
    assert [record["epoch"] for record in read_metrics(run.folder / METRICS)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert run.read("environment.json")["processes"] == 2 and run.config().training.device == "auto"


def test_one_of_several_ends_without_the_interpreter_s_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """There torch's threads, which want its lock once more, now and then abort a process that has done all its work."""
    monkeypatch.setattr(surroundings, "_at_once", False)
    monkeypatch.setattr("caeav.model.train.processes.joined", nullcontext)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with one_of_several() as processes:
        assert processes.count == 2
    assert surroundings._at_once


def test_an_error_of_all_processes_is_reported_once(make_home: Any) -> None:
    home = make_home(captions=False)
    status, out, err = finished(command(home, "--devices", "cpu,cpu"))
    assert status == 1 and out == "" and err.count("error: ") == 1 and "Traceback" not in err
    assert list_runs(home) == []


# ---- parts of a batch ----------------------------------------------------------------------------------------


def test_a_batch_is_divided_by_clips_in_order_of_appearance() -> None:
    clip_of = [7, 3, 7, 5, 9, 3]  # samples 0 and 2 share a clip, 1 and 5 another
    parts = [Part.of(clip_of, rank, 3) for rank in range(3)]
    assert [part.clips for part in parts] == [(1, 1, 2)] * 3
    assert [part.places for part in parts] == [(0, 2), (1, 5), (3, 4)]
    assert [part.first_clip for part in parts] == [0, 1, 2] and parts[0].size == 6
    few = [Part.of([4, 4], rank, 3) for rank in range(3)]
    assert [part.idle for part in few] == [True, True, False]
    assert [part.places for part in few] == [(0,), (0,), (0, 1)]


def test_one_process_draws_and_gathers_as_without_sharing() -> None:
    part = Part.of([0, 1, 2], 0, 1)
    x = torch.randn(6, 4, 8)
    layers = nn.ModuleList([nn.Dropout(0.4), nn.BatchNorm1d(4)]).train()

    def seen() -> list[torch.Tensor]:
        torch.manual_seed(5)
        attended = F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)
        noise = torch.randn(6, 2)
        return [*(layer(x) for layer in layers), attended, noise, torch.empty(6, 3).exponential_(), gather(x)]

    plain = seen()
    with sharing(part):
        found = seen()
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b)


def test_what_cannot_be_drawn_for_the_whole_batch_is_refused() -> None:
    with sharing(Part.of([0, 1], 0, 2)):
        for draw in (
            lambda: F.gumbel_softmax(torch.zeros(2, 3)),
            lambda: torch.rand(2),
            lambda: nn.MultiheadAttention(4, 2, dropout=0.1)(*[torch.zeros(1, 2, 4)] * 3),
        ):
            with pytest.raises(SharingError, match="random numbers for a part"):
                draw()
        with pytest.raises(RuntimeError, match="0 rows where this process holds 1"):
            F.dropout(torch.zeros(0, 3))


def test_settings_that_cannot_be_divided_are_refused(tiny_home: Home) -> None:
    two = Processes(0, 2, 0)
    for settings, said in (
        (["training.batch_size=1"], "a batch of 1 samples for 2 processes"),
        ([*INJECT, "model.adapters.inject.frozen_train_mode=true"], "frozen_train_mode is true"),
    ):
        config = resolve_config(
            "ave", assignments=["training.device=cpu", *settings], options={"dataset": "tiny"}
        )
        with pytest.raises(CaeavError, match=said):
            prepare(tiny_home, config, processes=two)


# ---- who they are --------------------------------------------------------------------------------------------


def test_the_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment() == ONE and ONE.main
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert from_environment() == Processes(5, 8, 1) and not from_environment().main
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(CaeavError, match="RANK='8', WORLD_SIZE='8'"):
        from_environment()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert from_environment() == ONE


def test_gpus_are_numbered_among_those_that_are_visible() -> None:
    seen = [env["CUDA_VISIBLE_DEVICES"] for env in environments([2, 0], {"CUDA_VISIBLE_DEVICES": "4,5,7"})]
    assert seen == ["7,4"] * 2
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments([3, 1], {})] == ["3,1"] * 2
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments([None, None], {})] == [""] * 2
    ranks = [(env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) for env in environments([0, 1], {})]
    assert ranks == [("0", "0", "2"), ("1", "1", "2")]
    with pytest.raises(CaeavError, match="GPU 3, but CUDA_VISIBLE_DEVICES=0,1 shows 2"):
        environments([0, 3], {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda").index is None
    second = Processes(3, 4, 1)
    assert choose_device("auto", second) == choose_device("cuda", second) == torch.device("cuda:1")
    assert choose_device("cpu", second).type == "cpu"
    for name, processes, said in (
        ("cuda:2", ONE, "GPU 2, but torch finds 2"),
        ("auto", Processes(2, 4, 2), "GPU 2, but torch finds 2"),
        ("cuda:1", second, "cuda:1 for 4 processes"),
        ("gpu", ONE, "unknown device 'gpu'"),
    ):
        with pytest.raises(CaeavError, match=said):
            choose_device(name, processes)
