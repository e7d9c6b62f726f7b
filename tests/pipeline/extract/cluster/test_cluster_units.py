"""The options and parts of a cluster run, without a cluster."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_until

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.extract.cluster import ray_cluster
from caeav.pipeline.extract.cluster.driver import Size, actors_for
from caeav.pipeline.extract.cluster.options import ClusterOptions, address_of
from caeav.pipeline.extract.cluster.ray_cluster import RayCluster
from caeav.pipeline.extract.cluster.shards import MAX_DEATHS, ShardTask
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.staged import open_staging, remove_staging, sees_staging


@pytest.mark.parametrize(
    ("engine", "address"),
    [("local", None), ("ray", ""), ("ray://head:10001", "ray://head:10001"), ("ray://[::1]:10001",) * 2],
)
def test_engine_names_become_addresses(engine: str, address: str | None) -> None:
    assert address_of(engine) == address


@pytest.mark.parametrize("engine", ["rai", "ray://head", "ray://head:x", "ray:head:10001", "", "spark"])
def test_unknown_engines_are_refused_with_the_known_ones(engine: str) -> None:
    with pytest.raises(CaeavError, match=r"unknown engine .*\n.*local, ray, ray://host:port"):
        address_of(engine)


@pytest.mark.parametrize("devices", ["0", "0,1", "cpu,cpu", "cuda:1", "gpu"])
def test_devices_that_ray_assigns_cannot_be_chosen(devices: str) -> None:
    with pytest.raises(CaeavError, match=r"hands out devices itself\n.*auto, cpu, cuda"):
        ClusterOptions(devices=devices)
    with pytest.raises(CaeavError, match="leave out one of them"):
        ClusterOptions(devices="cpu", accelerator="A100")


ONE, SIX, GPUS = {"CPU": 1.0}, {"CPU": 6.0}, {"CPU": 16.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
HEAD = {"memory": 1e9}


@pytest.mark.parametrize(
    ("nodes", "options", "on_devices", "wanted"),
    [
        ([HEAD, ONE, ONE, ONE], {}, False, Size(1, 0, 3, ("cpu",))),
        ([SIX, SIX], {}, False, Size(4, 0, 2, ("cpu",) * 4)),
        ([SIX, SIX], {"workers": 2}, True, Size(2, 0, 6, ("cpu",) * 2)),
        ([SIX], {"workers": 6, "actors": 9}, True, Size(6, 0, 9, ("cpu",) * 4)),
        ([HEAD], {}, False, Size(4, 0, 1, ("cpu",) * 4)),  # machines may join later
        ([GPUS, GPUS, SIX], {}, True, Size(8, 1, 4, ("0",))),
        ([GPUS], {"workers": 12}, True, Size(12, 1, 1, ("0",))),
        ([GPUS], {}, False, Size(4, 0, 4, ("cpu",) * 4)),  # no component runs on a GPU
        ([GPUS], {"devices": "cpu"}, True, Size(4, 0, 4, ("cpu",) * 4)),
        ([SIX, GPUS], {"accelerator": "A100"}, True, Size(8, 1, 2, ("0",))),
        ([GPUS], {"accelerator": "H100"}, True, Size(4, 1, 1, ("0",))),  # waits for such a machine
        ([HEAD], {"devices": "cuda", "actors": 4}, True, Size(4, 1, 4, ("0",))),
    ],
)
def test_size_and_number_of_actors_follow_from_the_nodes(
    nodes: Sequence[Mapping[str, float]], options: Any, on_devices: bool, wanted: Size
) -> None:
    assert actors_for(nodes, ClusterOptions(**options), on_devices) == wanted


def test_a_clip_is_blamed_only_after_three_deaths_while_running_alone() -> None:
    task = ShardTask(0, (0,), 9)
    assert task.died(["a", "b", "c"], {"x"}, machine=False) is None and task.alone == ["a", "b", "c"]
    assert task.died(["b"], {"a"}, machine=True) is None and task.alone == [
        "a",
        "b",
        "c",
    ]  # counts against no clip
    assert task.died(["b"], {"a"}, machine=False) is None and task.alone == ["b", "c"]
    assert task.died(["b"], set(), machine=False) is None
    assert task.died(["c"], {"b"}, machine=False) is None and task.alone == ["c"]  # b succeeded
    assert task.died(["c"], set(), machine=False) is None
    guilty = task.died(["c"], set(), machine=False)
    assert guilty is not None and (guilty.key, guilty.stage, guilty.attempts) == ("c", "compute", 3)
    assert task.alone == [] and task.deaths == 0
    for _ in range(MAX_DEATHS - 1):
        assert task.died([], {"a"}, machine=False) is None
    with pytest.raises(CaeavError, match="what is finished is kept"):
        task.died([], {"a"}, machine=False)


def test_staging_is_recognised_by_its_token_and_removed_with_its_content(tmp_path: Path) -> None:
    assert not sees_staging(tmp_path, "t")
    open_staging(tmp_path, "t")
    (tmp_path / "staging" / "1" / "shards").mkdir(parents=True)
    (tmp_path / "staging" / "1" / "shards" / "x").write_bytes(b"x")
    assert sees_staging(tmp_path, "t") and not sees_staging(tmp_path, "u")
    open_staging(tmp_path, "u")
    assert sees_staging(tmp_path, "u") and [path.name for path in (tmp_path / "staging").iterdir()] == [
        "token"
    ]
    remove_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "staging").symlink_to(tmp_path)
    remove_staging(tmp_path)
    assert tmp_path.is_dir()  # a link in an untrusted store is not followed


def test_a_file_system_without_locks_is_an_error_with_a_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match=r"has no locks: No locks available\n.*NFS"):
        WriterLock(tmp_path / ".lock")


def test_ray_is_imported_only_for_a_cluster() -> None:
    code = (
        "import sys, caeav.cli.app as app; app.build(); import caeav.pipeline.extract.tokens, "
        "caeav.pipeline.extract.cluster.driver; print('ray' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CaeavError, match=r'needs the package ray.*\n.*pip install "caeav\[ray\]"'):
        RayCluster("", print)


@pytest.mark.parametrize(
    ("kind", "text", "machine"),
    [
        ("ActorDiedError", "The actor is dead because its worker process has died.", False),
        ("ActorDiedError", "The actor died because its node has died.", True),
        ("ActorUnavailableError", "RPC error: its worker process has died, or not", True),
        ("RayError", "anything else", True),
    ],
)
def test_only_the_death_of_a_process_counts_against_its_clips(
    kind: str, text: str, machine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
    errors.ActorDiedError = type("ActorDiedError", (errors.RayError,), {})
    errors.ActorUnavailableError = type("ActorUnavailableError", (errors.RayError,), {})

    def get(call: object) -> None:
        raise getattr(errors, kind)(text)

    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    ray = SimpleNamespace(
        is_initialized=lambda: True, get_runtime_context=lambda: context, get=get, exceptions=errors
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ray_cluster.ActorLost) as lost:
        RayCluster("", print).answer("call")
    assert lost.value.machine is machine and lost.value.left is ("node has died" in text)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("http://127.0.0.1:1/", "this is no host:port"),
        ("head", "this is no host:port"),
        ("127.0.0.1:99999", ""),
    ],
)
def test_an_address_without_a_cluster_is_an_error_at_once(
    address: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would retry for minutes."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(CaeavError, match=rf"no Ray cluster answers at {address}: .*{why}.*\n.*host:6379"):
        RayCluster("", print)
    with pytest.raises(CaeavError, match=r"no Ray cluster answers at ray://127\.0\.0\.1:2"):
        RayCluster("ray://127.0.0.1:2", print)


@pytest.mark.parametrize(
    ("fails", "why", "error"),
    [
        (2, ray_cluster.NOT_STARTED, ""),
        (3, ray_cluster.NOT_STARTED, r"no Ray cluster answers at ray://.*: .*Starting Ray client server"),
        (1, "wrong version", r"no Ray cluster answers at ray://.*: wrong version"),
        (1, "Ray Client requires pip package `ray[client]`", r"Ray's client.*grpcio.*\n.*caeav\[ray\]"),
    ],
)
def test_a_client_whose_server_did_not_start_tries_again(
    fails: int, why: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def init(address: str, **_: object) -> None:
        seen.append(address)
        if len(seen) <= fails:
            raise ConnectionError(f"{why}. See a log")

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "ray://{}:{}".format(*server.getsockname())
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
        if error:
            with pytest.raises(CaeavError, match=error):
                RayCluster(address, print)
        else:
            assert f"ray://{RayCluster(address, print).address}" == address
    assert seen == [address] * (fails if error else fails + 1)


def test_a_dead_head_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        context = SimpleNamespace(gcs_address=address)
        connected = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
        monkeypatch.setitem(sys.modules, "ray", connected)
        cluster = RayCluster("", print)
        monkeypatch.setattr(ray_cluster, "SHORT_S", 0.05)
        with cluster:
            before = cluster._answered_s
            wait_until(lambda: cluster._answered_s > before)
            cluster.check()
            server.close()
            cluster._ours = False
            wait_until(lambda: cluster.nodes() is None)
            monkeypatch.setattr(ray_cluster, "HEAD_S", 0.0)
            with pytest.raises(
                CaeavError, match=rf"head of the Ray cluster at {address} does not answer any more\n"
            ):
                cluster.check()


def test_cluster_options_are_refused_with_the_local_engine() -> None:
    from caeav.cli.stage import cluster_options

    assert cluster_options("local", None, 3, "0,1", "", False) is None
    for given in ((3, "", False), (None, "A100", False), (None, "", True)):
        with pytest.raises(CaeavError, match=r"without a cluster\n.*--engine ray"):
            cluster_options("local", given[0], None, "auto", *given[1:])
    assert cluster_options("ray", 3, 2, "cpu", "", True) == ClusterOptions(
        actors=3, workers=2, devices="cpu", mixed_devices=True
    )
