"""What a measurement reads beside the clock: peaks of memory, counts of arithmetic, and what the machine could do.

For `modules.py`. The resident set is what a user's machine must hold; what is alive, the bytes torch has allocated at
the same moment, is the same on every run and is what a GPU's allocator reports. The limit of a computation is the
larger of two times: its products at the rate of a large plain product, and its unavoidable traffic (inputs, parameters
and outputs once forward; they and as many gradients backward) at the rate of a plain copy, both measured here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


class PeakWatch:
    """Largest memory use above the start while inside: resident set on the CPU, allocator's bytes on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0

    def __enter__(self) -> PeakWatch:
        self.start = self._now()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self.stop = threading.Event()
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - self.start
        else:
            self.stop.set()
            self.thread.join()

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def _watch(self) -> None:
        while not self.stop.is_set():
            self.peak = max(self.peak, self._now() - self.start)
            time.sleep(0.0005)


def live_peak(run: Callable[[], None], device: torch.device) -> int:
    """The most bytes of tensors that `run` had alive at once, above what was there before."""
    if device.type == "cuda":
        with PeakWatch(device) as watch:
            run()
        return watch.peak
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def count_products(run: Callable[[], None]) -> int:
    """Floating-point operations of the matrix products and convolutions in `run`, two for a multiply-add."""

    def with_addend(_: Any, left: Any, right: Any, *__: Any, **___: Any) -> int:
        return 2 * int(torch.Size(left).numel()) * int(right[-1])

    left_out = aten.addmm_, aten.baddbmm_, aten.addbmm  # by the counter as it comes
    more: dict[Any, Any] = dict.fromkeys(left_out, with_addend)
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        run()
    return int(counter.get_total_flops())


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Operations a second of a large product in `dtype`, bytes a second (read and written) of a large copy."""
    wide, long = (8192, 2**28) if device.type == "cuda" else (2048, 2**26)
    left = torch.randn(wide, wide, device=device).to(dtype)
    source = torch.zeros(long, device=device)
    target = torch.empty_like(source)
    product_s = best_seconds(lambda: left @ left, device)
    copy_s = best_seconds(lambda: target.copy_(source), device)
    return {"operations": 2 * wide**3 / product_s, "bytes": 2 * source.nbytes / copy_s}


def best_seconds(run: Callable[[], object], device: torch.device, rounds: int = 10) -> float:
    """The least wall time of `rounds` calls, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
