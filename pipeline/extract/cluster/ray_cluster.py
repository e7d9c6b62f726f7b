"""Ray, as little of it as is needed: connect, start actors, call them, wait. The only module that imports ray.

Actors get and give strings. Nothing of Ray Data, no objects in its store beyond these strings. Ray sends no usage
statistics from here.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import usable_cores
from caeav.pipeline.extract.cluster.actor import ShardMaker
from caeav.pipeline.extract.progress import Remark

HEAD_S = 10.0
STUCK_S = 20.0
"""Ray itself ends the process after 60 s without its head, whatever is under way, with a message of its own."""
SHORT_S = 2.0
OBJECT_STORE_BYTES = 80 << 20
CLIENT_TRIES = 3
NOT_STARTED = "Starting Ray client server failed"
AT_ONCE = 2
"""Shards under way in one actor, so that its device does not run dry between them."""


class ActorLost(Exception):
    """An actor is gone and with it its answer.

    `machine`: its machine or the way there failed, not its own process; `left`: the machine is there no more.
    """

    def __init__(self, why: str, machine: bool, left: bool = False) -> None:
        self.why, self.machine, self.left = why, machine, left
        super().__init__(why)


class RayCluster:
    """A connection to a cluster; a context manager. What runs there of this connection ends with it."""

    def __init__(self, address: str, remark: Remark) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise CaeavError(
                f"--engine ray needs the package ray, which does not load: {error}",
                hint='pip install "caeav[ray]"; on every machine of the cluster, the same versions',
            ) from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, address, remark)
        where = address.removeprefix("ray://") or str(ray.get_runtime_context().gcs_address)
        self.address = where
        self._answered_s = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> RayCluster:
        threading.Thread(target=self._watch_head, name="caeav-head", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ray.shutdown()  # without a head this takes some seconds
        self._over.set()

    def check(self) -> None:
        """Raise `CaeavError` when the head of the cluster has not answered for a while."""
        if time.monotonic() - self._answered_s > HEAD_S:
            raise self._gone()

    def _watch_head(self) -> None:
        """Note when the head answered last; end the process where Ray, without a head, does not let go of it."""
        while not self._over.wait(SHORT_S):
            if self._answers():
                self._answered_s = time.monotonic()
            elif time.monotonic() - self._answered_s > HEAD_S + STUCK_S:
                sys.stderr.write(f"\nerror: {self._gone()}\n")
                sys.stderr.flush()
                os._exit(1)

    def _gone(self) -> CaeavError:
        return CaeavError(
            f"the head of the Ray cluster at {self.address} does not answer any more",
            hint="finished shards are kept; once a cluster is there again, run the same command",
        )

    def _answers(self) -> bool:
        return not _why_silent(self.address)

    def nodes(self) -> list[dict[str, float]] | None:
        """The resources of each machine that is there: `CPU`, `GPU`, ...; None while the head does not answer."""
        if not self._answers():
            return None
        return [dict(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]

    def start(self, settings: str, cpus: int, gpus: int, accelerator: str) -> Any:
        """An actor with these resources, once there is room for it."""
        kind = {"accelerator_type": accelerator} if accelerator else {}
        calls = AT_ONCE + 1  # and one that watches; by number, since a client knows no concurrency groups
        remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=calls, **kind)(ShardMaker)
        return remote.options(max_restarts=0, max_task_retries=0).remote(settings)

    def call(self, actor: Any, method: str, *arguments: str) -> Any:
        """Begin a call; what comes back stands for its answer."""
        return getattr(actor, method).remote(*arguments)

    def wait(self, calls: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those of `calls` that are over, as soon as there is one."""
        if not calls:
            time.sleep(timeout_s)
            return []
        try:
            return list(self._ray.wait(list(calls), num_returns=1, timeout=timeout_s)[0])
        except ConnectionError:  # of a client, whose connection is gone
            raise self._gone() from None

    def answer(self, call: Any) -> str:
        """The answer of a call that is over; raises `ActorLost`."""
        errors = self._ray.exceptions
        try:
            return str(self._ray.get(call))
        except errors.RayError as error:
            text = " ".join(str(error).split())
            own = isinstance(error, errors.ActorDiedError) and "worker process has died" in text
            raise ActorLost(text[-400:], machine=not own, left="its node has died" in text) from None
        except ConnectionError:
            raise self._gone() from None

    def kill(self, actors: Iterable[Any]) -> None:
        """End actors at once."""
        for actor in actors if self._answers() else ():
            with suppress(Exception):  # one that is dead, or a cluster that is
                self._ray.kill(actor)


def _connect(ray: Any, address: str, remark: Remark) -> None:
    """Connect to the cluster at `address`, or as `ClusterOptions.address` says where that is empty."""
    ours = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in ours}
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    wanted = address or os.environ.get("RAY_ADDRESS", "")
    if wanted not in ("", "auto", "local") and (why := _why_silent(wanted.removeprefix("ray://"))):
        raise _no_cluster(wanted, why)  # Ray would try for minutes
    try:
        _init(ray, wanted or "auto", **quiet)
        remark(f"on the Ray cluster at {wanted or ray.get_runtime_context().gcs_address}")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if wanted and wanted != "auto":
            raise _no_cluster(wanted, " ".join(str(error).split())[:300]) from None
        cores = usable_cores()
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        remark(f"no Ray cluster runs here; one was started for this command, on this machine ({cores} CPUs)")
    finally:
        for number, handler in handlers.items():  # Ray has put its own in their place
            signal.signal(number, handler)


def _init(ray: Any, address: str, **options: Any) -> None:
    """`ray.init`, tried again where the cluster says that it could not start the server for this client.

    Ray's proxy forks while its threads are at work, and on a busy machine what it forks may end at once.
    """
    for left in reversed(range(CLIENT_TRIES)):
        try:
            ray.init(address=address, **options)
            return
        except (ConnectionError, RuntimeError) as error:
            if not left or NOT_STARTED not in str(error):
                raise


def _no_cluster(address: str, why: str) -> CaeavError:
    if "ray[client]" in why:
        return CaeavError(
            "--engine ray://... needs Ray's client, of whose packages one does not load (grpcio)",
            hint='pip install "caeav[ray]"',
        )
    return CaeavError(
        f"no Ray cluster answers at {address}: {why}",
        hint="give the address of a running one, as host:6379 in RAY_ADDRESS or as --engine ray://host:10001; where it "
        "asks for a token, set RAY_AUTH_MODE=token as on the cluster",
    )


def _why_silent(address: str) -> str:
    """Why nobody answers at `host:port`; empty when somebody does."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return "this is no host:port"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), SHORT_S):
            return ""
    except (OSError, OverflowError) as error:
        return str(getattr(error, "strerror", None) or error)
