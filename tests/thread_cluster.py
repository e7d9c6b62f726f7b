"""A cluster of threads in this process: actors, orders, answers and staging are real, only Ray is replaced."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any

import pytest

from caeav.pipeline.extract.cluster import ray_cluster
from caeav.pipeline.extract.cluster.actor import ShardMaker


class Killed(BaseException):
    """Stands in for the death of an actor's process."""


class ThreadCluster:
    """A `Cluster` of threads. `after(actor, method, answer)` may change an answer, wait, or raise `ActorLost`."""

    address = "this process"
    CPUS: tuple[float, ...] = (1.0, 1.0)

    def __init__(self, *_: object) -> None:
        self.threads = ThreadPoolExecutor(16)
        self.setting_up = threading.Lock()
        self.actors: list[ShardMaker] = []
        self.orders: list[dict[str, Any]] = []

    def __enter__(self) -> ThreadCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=True)
        for actor in reversed(self.actors):  # a process would end here
            actor._lasting.close()

    def check(self) -> None:
        """The head of this cluster is always alive."""

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": cpus} for cpus in self.CPUS]

    def start(self, settings: str, cpus: int, gpus: int, accelerator: str) -> ShardMaker:
        self.actors.append(ShardMaker(settings))
        return self.actors[-1]

    def call(self, maker: ShardMaker, method: str, *arguments: str) -> Future[str]:
        if method == "make":
            self.orders.append(json.loads(arguments[0]))
        number = self.actors.index(maker)

        def work() -> str:
            with (
                self.setting_up if method == "set_up" else nullcontext()
            ):  # they share torch's random numbers
                answer = getattr(maker, method)(*arguments)
            return self.after(number, method, answer, *arguments)

        return self.threads.submit(work)

    def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
        return answer

    def wait(self, calls: Sequence[Future[str]], timeout_s: float) -> list[Future[str]]:
        return list(wait(calls, 0.05, FIRST_COMPLETED).done)

    def answer(self, call: Future[str]) -> str:
        try:
            return call.result()
        except Killed:
            raise ray_cluster.ActorLost("killed", machine=False) from None

    def kill(self, actors: Any) -> None:
        """Do nothing: a thread cannot be killed, so it works on as a zombie process would."""


def use_clusters(monkeypatch: pytest.MonkeyPatch, kind: type[ThreadCluster]) -> list[ThreadCluster]:
    """Make extraction on a cluster use clusters of this kind; the returned list fills with those it uses."""
    used: list[ThreadCluster] = []

    def make(*_: object) -> ThreadCluster:
        used.append(kind())
        return used[-1]

    monkeypatch.setattr(ray_cluster, "RayCluster", make)
    return used
