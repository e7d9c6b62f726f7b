"""The commands on a real Ray cluster on this machine: a head and three nodes of one core.

`benchmarks/cluster.py` does the same for longer and with more kills.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from module_files import load_module

pytestmark = pytest.mark.slow
LONGEST_S = 120.0


@pytest.fixture(scope="module")
def trial(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, needs: Callable[[str], None]
) -> Iterator[Any]:
    """The benchmark's trial; its cluster ends with this module."""
    with pytest.MonkeyPatch.context() as patch:
        module = load_module("cluster", repository / "benchmarks" / "cluster.py")
        for name, value in {**module.LOOPBACK, module.MARK: ""}.items():
            patch.setenv(name, value)  # Ray reads them when it is imported
        needs("ray")
        args = Namespace(kills=2, clips=16, shard_clips=4, nodes=3, seed=0, kinds=["actor", "node"])
        made = module.Trial(tmp_path_factory.mktemp("cluster"), args)
        with socket.create_server(("127.0.0.1", 0)) as free:
            made.head["ray_client_server_port"] = free.getsockname()[1]
        made.prepare()  # each test may run in a process of its own
        yield made
        made.stop()


def test_stores_equal_those_of_a_local_run_while_an_actor_and_a_machine_are_killed(trial: Any) -> None:
    trial.run()
    assert trial.differences == [] and trial.compared > 100
    assert trial.killed == {"actor": 1, "node": 1}


def test_captions_alone_by_rays_client(trial: Any) -> None:
    """From outside the cluster, through its client's port; every file's sha256 is that of a local run."""
    trial.ensure_cluster()
    home, module = trial.folder / "client", sys.modules["cluster"]
    port = trial.head["ray_client_server_port"]
    arguments = [x for x in trial.arguments(home, "zarr")[1:] if x != "--captions"]
    module.caeav("caption", *arguments, "--engine", f"ray://127.0.0.1:{port}", "--actors", "2")
    wanted = {name: of for name, of in trial.wanted["zarr"].items() if "tokens-" not in name}
    assert dict(module.files(home / "stores")) == wanted and len(wanted) > 10


def test_without_a_head_the_command_ends_and_the_same_one_continues(trial: Any) -> None:
    """The head is killed before any shard is made; the command then finishes without a cluster."""
    trial.ensure_cluster()
    home = trial.folder / "headless"
    trial.begin(home, "zarr")
    until_s = time.monotonic() + LONGEST_S
    while "on the Ray cluster at" not in trial.log.read_text():
        assert time.monotonic() < until_s, trial.log.read_text()
        time.sleep(0.05)
    trial.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    assert trial.command.wait(timeout=LONGEST_S) == 1
    said = trial.log.read_text()
    refused = r"error: the head of the Ray cluster at \S+:\d+ does not answer any more\n"
    assert re.search(refused + "  next: finished shards are kept; once a cluster is there again", said), said
    sys.modules["cluster"].caeav(*trial.arguments(home, "zarr"))
    trial.compare(home, "zarr")
    assert trial.differences == []
