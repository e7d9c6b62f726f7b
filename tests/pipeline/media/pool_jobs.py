"""Jobs for the pool's tests, which misbehave as decoders do on hostile media."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caeav.pipeline.media.clip import DecodeError

Answer = tuple[dict[str, Any], dict[str, Any]]


def setup(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Answer]:
    """`settings["fail"]` makes the setup itself fail."""
    if settings.get("fail") == "raise":
        raise ValueError("no such model")
    if settings.get("fail") == "abort":
        os.abort()

    def job(request: Mapping[str, Any]) -> Answer:
        return ACTIONS[request.get("do", "echo")](request)

    return job


def echo(request: Mapping[str, Any]) -> Answer:
    n = request.get("n", 3)
    arrays = {
        "f": np.arange(n, dtype=np.float32).reshape(1, n),
        "u": np.full((2, n), 7, dtype=np.uint8),
        "b": np.array([True, False, True]),
        "empty": np.zeros((0, 4), dtype=np.int64),
        "one": np.float64(2.5).reshape(()),
    }
    threads = os.environ.get("OMP_NUM_THREADS")
    return arrays, {"pid": os.getpid(), "said": request.get("say"), "threads": threads}


def sleep(request: Mapping[str, Any]) -> Answer:
    time.sleep(request.get("seconds", 1000))
    return echo(request)


def with_grandchild(request: Mapping[str, Any]) -> Answer:
    """Start a process that outlives a killed parent, write both process ids to a file, and hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path(request["tell"]).write_text(f"{os.getpid()} {child.pid}")
    return sleep(request)


def once(request: Mapping[str, Any]) -> Answer:
    """Crash the first time, succeed the second."""
    marker = Path(request["marker"])
    if not marker.exists():
        marker.touch()
        os.abort()
    return echo(request)


def big(request: Mapping[str, Any]) -> Answer:
    return {"frames": np.full((10, 720, 1280, 3), request["value"], dtype=np.uint8)}, {}


def hungry(request: Mapping[str, Any]) -> Answer:
    return {"a": np.ones(16 * 2**30, dtype=np.uint8)}, {}


def refuse(request: Mapping[str, Any]) -> Answer:
    raise DecodeError("the file has no video and no audio stream")


def mistake(request: Mapping[str, Any]) -> Answer:
    raise KeyError("lost")


def leave(request: Mapping[str, Any]) -> Answer:
    os._exit(3)


def killed(request: Mapping[str, Any]) -> Answer:
    os.kill(os.getpid(), signal.SIGKILL)
    return sleep(request)


def pickled(request: Mapping[str, Any]) -> Answer:
    return {"x": np.array([{"object": 1}], dtype=object)}, {}


def nonsense(request: Mapping[str, Any]) -> Answer:
    """Send arbitrary bytes to the parent, as a compromised decoder could."""
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, bytes.fromhex(request["hex"]))
        except OSError:
            continue
    return sleep(request)


ACTIONS: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
    "echo": echo,
    "sleep": sleep,
    "grandchild": with_grandchild,
    "abort": lambda request: os.abort(),
    "once": once,
    "big": big,
    "hungry": hungry,
    "refuse": refuse,
    "mistake": mistake,
    "leave": leave,
    "killed": killed,
    "pickled": pickled,
    "nonsense": nonsense,
}
