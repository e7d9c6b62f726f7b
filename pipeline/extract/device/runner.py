"""Everything between a decoded clip and its results from devices: prepare in threads, batch, compute, bring home.

Imports torch; a run without a component for a device never imports this. What is in flight is bounded by the
caller, who hands in clips only as fast as they are settled. Shapes: `T` segments, `L` tokens, `C` channels.
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
from caeav.pipeline.extract.decode_job import frames_of, windows_of
from caeav.pipeline.extract.device.batches import Batch, Batches, Unit
from caeav.pipeline.extract.device.devices import choose_lanes, device_name, steady
from caeav.pipeline.extract.device.isolate import Sizes
from caeav.pipeline.extract.device.network import as_stored
from caeav.pipeline.extract.device.streams import Lane, Made, networks
from caeav.pipeline.extract.options import Meter
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

    From its threads are called: `settle`, `fail` with what ends the run, `nudge` when something has been done.
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
        devices_found = choose_lanes(devices)
        self._stack.enter_context(steady())
        self._facts = {"name": device_name(devices_found[0]), "torch": torch.__version__.partition("+")[0]}
        self._sizes = Sizes(remark)
        self._ready: queue.Queue[Batch | None] = queue.Queue()
        self._lock = threading.Lock()
        self._busy = 0
        self._helpers = ThreadPoolExecutor(_helpers(), thread_name_prefix="caeav-prepare")
        self._batches = Batches(self._launch, pinned=devices_found[0].type == "cuda")
        nets = {}
        for i, device in enumerate(devices_found):
            if device not in nets:
                nets[device] = networks(units, device, first=i == 0)
        self._lanes = [
            Lane(device, nets[device], self._ready, self._sizes, self._landed, fail, meter)
            for device in devices_found
        ]

    @staticmethod
    def resources(devices: Sequence[str]) -> dict[str, int]:
        """What can be busy, and how many of it there are, for a `Meter`."""
        return {"device": len(choose_lanes(devices)), "helpers": _helpers()}

    @property
    def quiet(self) -> bool:
        """Whether nothing is being prepared, computed or brought home; clips may wait in incomplete batches."""
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
        """An expected clip will not come."""
        self._batches.miss(unit, shard, place)

    def flush(self) -> bool:
        """Compute incomplete batches as they are; only while `quiet`."""
        return self._batches.flush()

    def close(self) -> None:
        """End all threads; what is being computed is waited for a little."""
        self._helpers.shutdown(wait=False, cancel_futures=True)
        while True:  # batches that nobody will settle
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        for _ in self._lanes:
            self._ready.put(None)
        for lane in self._lanes:
            lane.thread.join(CLOSE_S)
        self._stack.close()

    def _begun(self) -> None:
        with self._lock:
            self._busy += 1

    def _done(self) -> None:
        """Said after it was counted, whoever counts: who is told may find `quiet` what it waits for."""
        with self._lock:
            self._busy -= 1
        self._nudge()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        """What goes wrong in a helper thread ends the run instead of vanishing."""
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
                    seen = (
                        frames_of(clip, sampling) if unit.modality == "visual" else windows_of(clip, sampling)
                    )
                    item = unit.part.prepare(seen)
                    self._batches.add(unit, shard, place, key, item)
            else:
                self._batches.add(unit, shard, place, key, clip)
        except Exception as error:  # noqa: BLE001 - costs this clip in this store, and is said
            self._batches.miss(unit, shard, place)
            self._settle(unit, key, error, {})

    def _launch(self, batch: Batch) -> None:
        self._begun()
        self._ready.put(batch)

    def _landed(self, batch: Batch, made: Mapping[int, Made], failed: Mapping[int, str]) -> None:
        """A batch has landed: bringing its clips into the store's form is done by the helpers."""
        unit = batch.unit
        facts: dict[str, object] = dict(self._facts)
        if self._sizes.rows(unit) < unit.rows:
            facts["rows"] = self._sizes.rows(unit)
        for row, key in batch.keys.items():
            self._begun()
            self._helpers.submit(self._guarded, self._bring, unit, key, made.get(row), failed.get(row), facts)
        self._done()

    def _bring(
        self, unit: Unit, key: str, made: Made | None, reason: str | None, facts: Mapping[str, object]
    ) -> None:
        if made is None:
            self._settle(unit, key, ComputeFailed(reason or "no result"), facts)
            return
        with self._meter.busy("helpers", "prepare"):
            result = made if isinstance(made, str) else as_stored(made, unit.dtype)
        self._settle(unit, key, result, facts)


class ComputeFailed(Exception):
    """Why a network gave nothing for a clip; the text is the whole reason."""


def _helpers() -> int:
    return max(2, min(MAX_HELPERS, usable_cores()))
