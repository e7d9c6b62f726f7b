"""A device worker: one thread that drives one device, so that copying in, computing and copying out overlap.

On a GPU a batch is copied in, computed and copied out on three streams, and the next batch is begun before the last
one is back on the host; on a CPU there is nothing to copy. Shapes: `T` segments, `L` tokens, `C` channels.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.extract.device.batches import Batch, Unit
from caeav.pipeline.extract.device.isolate import BatchSizes, Results, caption_pass, token_pass
from caeav.pipeline.extract.device.network import CaptionNetwork, TokenNetwork
from caeav.pipeline.extract.progress import Meter

UNDER_WAY = 2
"""Batches begun on a GPU before the first of them is waited for."""

Network = TokenNetwork | CaptionNetwork
Made = Mapping[str, Tensor] | str
"""What came out for one row: taps `[T, L, C]` on the CPU, or a text."""
Finished = Callable[[Batch, Mapping[int, Made], Mapping[int, str]], None]
"""Takes a finished batch: what was made by row, and reasons by row."""


@dataclass
class _Flight:
    """A batch on its way; `done` happens when its results are on the host."""

    batch: Batch
    made: Results[Any]
    failed: dict[int, str]
    done: torch.cuda.Event | None = None
    timed: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    held: list[Any] = field(default_factory=list)


def networks(units: Sequence[Unit], device: torch.device, first: bool) -> dict[int, Network]:
    """Each unit's network on a device; further devices get copies of their own, since a module lies on one device."""
    found: dict[int, Network] = {}
    for unit in units:
        part = unit.part if first else unit.load_copy()
        found[unit.number] = (
            TokenNetwork(part, device, unit.compute, unit.dtype)
            if isinstance(part, TorchBackbone)
            else CaptionNetwork(part, device, unit.compute)
        )
    return found


class DeviceWorker:
    """Takes batches from `ready` until it finds None there; calls `fail` with what ends it early."""

    def __init__(
        self,
        device: torch.device,
        nets: Mapping[int, Network],
        ready: queue.Queue[Batch | None],
        sizes: BatchSizes,
        finished: Finished,
        fail: Callable[[BaseException], None],
        meter: Meter,
    ) -> None:
        self.device = device
        self._nets = nets
        self._ready = ready
        self._sizes = sizes
        self._finished = finished
        self._fail = fail
        self._meter = meter
        self._gpu = device.type == "cuda"
        self._in = torch.cuda.Stream(device) if self._gpu else None  # type: ignore[no-untyped-call]
        self._out = torch.cuda.Stream(device) if self._gpu else None  # type: ignore[no-untyped-call]
        self.thread = threading.Thread(target=self._run, name=f"caeav-{device}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        flights: deque[_Flight] = deque()
        try:
            with torch.cuda.device(self.device) if self._gpu else nullcontext():
                while True:
                    try:
                        batch = self._ready.get(block=not flights)
                    except queue.Empty:
                        self._finish(flights.popleft())
                        continue
                    if batch is None:
                        break
                    flights.append(self._begin(batch))
                    if len(flights) >= (UNDER_WAY if self._gpu else 1):
                        self._finish(flights.popleft())
                while flights:
                    self._finish(flights.popleft())
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._fail(error)

    def _begin(self, batch: Batch) -> _Flight:
        """Start computing a batch."""
        network = self._nets[batch.unit.number]
        began = time.perf_counter()
        if isinstance(network, CaptionNetwork):
            texts, failed = caption_pass(batch, network, self._sizes)
            self._meter.add("device", "backbone", time.perf_counter() - began)
            return _Flight(batch, texts, failed)
        if not self._gpu:
            taps, failed = token_pass(batch, network, self._sizes, lambda host: host)
            self._meter.add("device", "backbone", time.perf_counter() - began)
            return _Flight(batch, taps, failed)
        return self._begin_on_gpu(batch, network)

    def _begin_on_gpu(self, batch: Batch, network: TokenNetwork) -> _Flight:
        assert self._in is not None and self._out is not None
        compute = torch.cuda.current_stream()
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        held: list[Any] = [batch.host]  # pinned memory must outlive its copy

        def upload(host: Tensor) -> Tensor:
            held.append(host)
            with torch.cuda.stream(cast(torch.cuda.Stream, self._in)):
                x = host.to(self.device, non_blocking=True)
            compute.wait_stream(cast(torch.cuda.Stream, self._in))
            x.record_stream(compute)
            start.record(compute)
            return x

        made, failed = token_pass(batch, network, self._sizes, upload)
        end.record(compute)
        self._out.wait_stream(compute)
        copies: Results[dict[str, Tensor]] = []
        with torch.cuda.stream(self._out):
            for rows, taps in made:
                on_host = {
                    name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for name, x in taps.items()
                }
                for name, x in taps.items():
                    on_host[name].copy_(x, non_blocking=True)
                    x.record_stream(self._out)
                copies.append((rows, on_host))
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(self._out)
        return _Flight(batch, copies, failed, done, (start, end), held)

    def _finish(self, flight: _Flight) -> None:
        """Wait until the results of a batch are on the host and hand them on."""
        if flight.done is not None:
            flight.done.synchronize()
        if flight.timed is not None:
            self._meter.add("device", "backbone", flight.timed[0].elapsed_time(flight.timed[1]) / 1000)
        made: dict[int, Made] = {}
        for rows, result in flight.made:
            for row in rows:
                made[row] = (
                    result[row] if isinstance(result, list) else {name: x[row] for name, x in result.items()}
                )
        self._finished(flight.batch, made, flight.failed)
