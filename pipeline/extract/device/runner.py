"""From a decoded clip to its results from devices: prepare in threads, batch, compute, convert in threads.

Imports torch; a run without a component for a device never imports this module. The caller bounds what is in flight: it
submits clips only as fast as they are settled.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import torch
from numpy.typing import NDArray

from caeav.manifests.core.util import usable_cores
from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.extract.components import media_input
from caeav.pipeline.extract.device.batches import Batch, Batches, Unit
from caeav.pipeline.extract.device.devices import choose_devices, device_name, steady
from caeav.pipeline.extract.device.isolate import BatchSizes
from caeav.pipeline.extract.device.network import as_stored
from caeav.pipeline.extract.device.streams import DeviceWorker, Made, networks
from caeav.pipeline.extract.progress import Meter
from caeav.pipeline.extract.records import ComputeFailed
from caeav.pipeline.media.clip import DecodedClip, Sampling

MAX_HELPERS = 8
CLOSE_S = 10.0

Arrays = Mapping[str, NDArray]  # type: ignore[type-arg]
Result = Arrays | str | Exception
"""Arrays as stored, or a text; an exception is why there are none."""
Settle = Callable[[Unit, str, Result, Mapping[str, object]], None]
"""Takes the result of a unit for a key, with facts about the computation."""


class Runner:
    """Computes clips on devices.

    Calls from its threads: `settle` with results, `fail` with what ends the run, `nudge` when something is done.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        devices: Sequence[str],
        settle: Settle,
        fail: Callable[[BaseException], None],
        remark: Callable[[str], None],
        meter: Meter,
        nudge: Callable[[], None],
    ) -> None:
        self._nudge = nudge
        self._settle = settle
        self._fail = fail
        self._meter = meter
        self._stack = ExitStack()
        devices_found = choose_devices(devices)
        self._stack.enter_context(steady())
        self._facts = {"name": device_name(devices_found[0]), "torch": torch.__version__.partition("+")[0]}
        self._sizes = BatchSizes(remark)
        self._ready: queue.Queue[Batch | None] = queue.Queue()
        self._lock = threading.Lock()
        self._busy = 0
        self._helpers = ThreadPoolExecutor(_helpers(), thread_name_prefix="caeav-prepare")
        self._batches = Batches(self._launch, pinned=devices_found[0].type == "cuda")
        nets = {}
        for i, device in enumerate(devices_found):
            if device not in nets:
                nets[device] = networks(units, device, first=i == 0)
        self._workers = [
            DeviceWorker(device, nets[device], self._ready, self._sizes, self._finish_batch, fail, meter)
            for device in devices_found
        ]

    @staticmethod
    def resources(devices: Sequence[str]) -> dict[str, int]:
        """What can be busy, and how many of it there are, for a `Meter`."""
        return {"device": len(choose_devices(devices)), "helpers": _helpers()}

    @property
    def idle(self) -> bool:
        """Whether nothing is being prepared, computed or converted; clips may wait in incomplete batches."""
        with self._lock:
            return self._busy == 0

    def expect(self, unit: Unit, places: Iterable[tuple[int, int]]) -> None:
        """The clips a unit will get: (shard, place in it) each; called before anything else."""
        self._batches.expect(unit, places)

    def submit(
        self, unit: Unit, shard: int, place: int, key: str, clip: DecodedClip, sampling: Sampling
    ) -> None:
        """Compute a decoded clip."""
        self._begun()
        self._helpers.submit(self._guarded, self._prepare, unit, shard, place, key, clip, sampling)

    def miss(self, unit: Unit, shard: int, place: int) -> None:
        """An expected clip will not be submitted."""
        self._batches.miss(unit, shard, place)

    def flush(self) -> bool:
        """Compute incomplete batches as they are; only while `idle`."""
        return self._batches.flush()

    def close(self) -> None:
        """End all threads; wait a little for what is being computed."""
        self._helpers.shutdown(wait=False, cancel_futures=True)
        while True:  # batches that will not be computed
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        for _ in self._workers:
            self._ready.put(None)
        for worker in self._workers:
            worker.thread.join(CLOSE_S)
        self._stack.close()

    def _begun(self) -> None:
        with self._lock:
            self._busy += 1

    def _done(self) -> None:
        """Count first, then nudge: the thread that is nudged may be waiting for `idle`."""
        with self._lock:
            self._busy -= 1
        self._nudge()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        """An error in a helper thread ends the run instead of vanishing."""
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._fail(error)
        finally:
            self._done()

    def _prepare(
        self, unit: Unit, shard: int, place: int, key: str, clip: DecodedClip, sampling: Sampling
    ) -> None:
        try:
            if isinstance(unit.part, TorchBackbone):
                with self._meter.busy("helpers", "prepare"), torch.inference_mode():
                    item = unit.part.prepare(media_input(clip, unit.modality, sampling))
                    self._batches.add(unit, shard, place, key, item)
            else:
                self._batches.add(unit, shard, place, key, clip)
        except Exception as error:  # noqa: BLE001 - costs this clip in this store, with the reason
            self._batches.miss(unit, shard, place)
            self._settle(unit, key, error, {})

    def _launch(self, batch: Batch) -> None:
        self._begun()
        self._ready.put(batch)

    def _finish_batch(self, batch: Batch, made: Mapping[int, Made], failed: Mapping[int, str]) -> None:
        """The results of a batch are on the host: have helper threads convert them to the store's form."""
        unit = batch.unit
        facts: dict[str, object] = dict(self._facts)
        if self._sizes.rows(unit) < unit.rows:
            facts["rows"] = self._sizes.rows(unit)
        for row, key in batch.keys.items():
            self._begun()
            self._helpers.submit(
                self._guarded, self._convert, unit, key, made.get(row), failed.get(row), facts
            )
        self._done()

    def _convert(
        self, unit: Unit, key: str, made: Made | None, reason: str | None, facts: Mapping[str, object]
    ) -> None:
        if made is None:
            self._settle(unit, key, ComputeFailed(reason or "no result"), facts)
            return
        with self._meter.busy("helpers", "prepare"):
            result = made if isinstance(made, str) else as_stored(made, unit.dtype)
        self._settle(unit, key, result, facts)


def _helpers() -> int:
    return max(2, min(MAX_HELPERS, usable_cores()))
