"""Do device workers on the CPU scale as threads as they would as processes? One, two threads, two processes, in turns.

    python benchmarks/device_workers.py [--models timm:resnet18 swinv2-base hts-at] [--batches 2] [--rounds 5]

A device worker computes batches of two clips (10 frames of 192 to 224 pixels, or 10 windows of 1 s) on one thread of
torch and brings them into the store's format, as `extract/device/streams.py` does. Threads share one network; each
process has its own, built before the clock starts. Two workers of either kind are two runnable threads for the system's
scheduler, so on a busy machine they still compare fairly, while one against two does not. Random weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from caeav.pipeline.backbones import audio_backbones, visual_backbones
from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract.device.network import TokenNetwork, as_stored
from caeav.pipeline.extract.device.options import ComputeOptions

CLIPS_A_BATCH = 2


def ready(name: str) -> tuple[TokenNetwork, torch.Tensor]:
    """A network on the CPU and a prepared batch."""
    torch.set_num_threads(1)
    registry: Any = visual_backbones if name in visual_backbones else audio_backbones
    part: TorchBackbone = registry[name](ModelChoice(name, "random:0"))
    rng = np.random.default_rng(0)
    clip = (
        rng.integers(0, 256, (10, 360, 640, 3), dtype=np.uint8)
        if part.modality == "visual"
        else rng.normal(0, 0.1, (10, part.rate_hz or 0)).astype(np.float32)
    )
    batch = torch.stack([part.prepare(clip)] * CLIPS_A_BATCH)
    network = TokenNetwork(part, torch.device("cpu"), ComputeOptions(), "float16")
    network(batch)
    return network, batch


def compute(network: TokenNetwork, batch: torch.Tensor, batches: int) -> None:
    """What a device worker and the helper threads behind it do with some batches."""
    for _ in range(batches):
        taps = network(batch)
        for row in range(CLIPS_A_BATCH):
            as_stored({tap: x[row] for tap, x in taps.items()}, "float16")


def child(name: str, orders: Connection) -> None:
    """A process that computes as many batches as it is told, until it is told none."""
    network, batch = ready(name)
    orders.send("ready")
    while batches := orders.recv():
        compute(network, batch, batches)
        orders.send("done")


class Ways:
    """One backbone, ready to compute in each of the three ways."""

    def __init__(self, name: str, batches: int) -> None:
        self._batches = batches
        self._made = ready(name)
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(2)]
        self._orders = [here for here, _ in pipes]
        self._children = [spawn.Process(target=child, args=(name, there), daemon=True) for _, there in pipes]
        for process in self._children:
            process.start()
        for orders in self._orders:
            orders.recv()

    def alone(self) -> None:
        """One lane."""
        compute(*self._made, self._batches)

    def threads(self) -> None:
        """Two threads that share the network."""
        both = [threading.Thread(target=self.alone) for _ in range(2)]
        for each in both:
            each.start()
        for each in both:
            each.join()

    def processes(self) -> None:
        """Two processes."""
        for orders in self._orders:
            orders.send(self._batches)
        for orders in self._orders:
            orders.recv()

    def close(self) -> None:
        """End the processes."""
        for orders in self._orders:
            orders.send(0)
        for process in self._children:
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["timm:resnet18", "swinv2-base", "hts-at"])
    parser.add_argument("--batches", type=int, default=2, help="of two clips, a lane and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| backbone | one lane, clips/s | two threads | two processes | threads / processes, by round |")
    print("|---|---|---|---|---|")
    for name in options.models:
        ways = Ways(name, options.batches)
        rates: dict[str, list[float]] = {"alone": [], "threads": [], "processes": []}
        for turn in range(options.rounds):
            for way in sorted(rates, reverse=bool(turn % 2)):
                began = time.perf_counter()
                getattr(ways, way)()
                clips = CLIPS_A_BATCH * options.batches * (1 if way == "alone" else 2)
                rates[way].append(clips / (time.perf_counter() - began))
        ways.close()
        shown = [f"{statistics.median(rates[way]):.2f}" for way in rates]
        ratios = [a / b for a, b in zip(rates["threads"], rates["processes"], strict=True)]
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"| {name} | {' | '.join(shown)} | {each} (median {statistics.median(ratios):.2f}) |", flush=True
        )


if __name__ == "__main__":
    main()
