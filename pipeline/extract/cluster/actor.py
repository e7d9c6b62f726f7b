"""What runs on another machine: it builds the jobs from recipes and makes whole shards, two at a time.

Settings, orders and answers are JSON; nothing else passes between it and the process that ordered, and records go to
the disk alone. While the devices finish one shard the decoding processes begin the next. Which clips are under way is
noted in a file beside the shard, so that it is known which may have ended this process.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import socket
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.weights import remember_at
from caeav.pipeline.extract.collect import Filling
from caeav.pipeline.extract.components import decoder_remark
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.decode_job import SETUP, worker_settings
from caeav.pipeline.extract.jobs import Complete, Job, job_of
from caeav.pipeline.extract.local import LocalExtraction
from caeav.pipeline.extract.places import Place, place_of
from caeav.pipeline.extract.preflight import Loader, why_no_file
from caeav.pipeline.extract.progress import Progress
from caeav.pipeline.media.workers.pool import WorkerPool
from caeav.pipeline.store import Recipe, Record
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.staged import STAGING, ShardOrder, StagedShard, sees_staging

ONE_PATH = "put the media on a file system that all machines mount at the same path"
UNDER_WAY = "under-way"
"""File beside a staged shard: `+key` when a clip begins, `-key` when it is settled."""


class ShardMaker:
    """Makes shards as ordered. Its methods take and give JSON; what goes wrong is in the answer, as `error`."""

    def __init__(self, settings: str) -> None:
        self._settings: Mapping[str, Any] = json.loads(settings)
        self._stores = [Path(path) for path in self._settings["stores"]]
        self._root = Path(self._settings["media_root"])
        self._jobs: list[Job] = []
        self._complete: list[Complete] = []
        self._lasting = ExitStack()
        self._pool: WorkerPool | None = None
        self._decoding = threading.Lock()
        self._completing = threading.Lock()
        self._lock = threading.Lock()
        self._remarks: list[str] = []
        self._running: dict[str, LocalExtraction] = {}
        self._progress: dict[str, Progress] = {}
        self._busy: Counter[tuple[str, str]] = Counter()
        self._whole: dict[str, bytes] = {}

    def set_up(self) -> str:
        """Look whether all is here that the shards need, and load it -> `kind` (what decides bytes), `resources`."""
        return _answer(self._set_up)

    def make(self, order: str) -> str:
        """Make one shard, of one store or of several -> index, quarantine and notes of each, and digests of media."""
        return _answer(partial(self._make, json.loads(order)))

    def watch(self) -> str:
        """Clips that are done and failed, by attempt, and busy seconds of this process so far."""
        with self._lock:
            busy = Counter(self._busy)
            for extraction in self._running.values():
                busy.update(extraction.meter.spent())
            done = {name: [seen.done, seen.failed] for name, seen in self._progress.items()}
        return json.dumps({"done": done, "busy": [[*what, seconds] for what, seconds in busy.items()]})

    def _set_up(self) -> dict[str, Any]:
        given = self._settings
        for store in self._stores:
            if not sees_staging(store, given["token"]):
                raise CaeavError(
                    f"{_here()} does not see the store's folder {store} of the machine that runs the command",
                    hint="put --home on a file system that all machines mount at the same path",
                )
        if not self._root.is_dir():
            raise CaeavError(
                f"{_here()} does not see the media folder {self._root}",
                hint=ONE_PATH,
            )
        place_of(self._root)
        remember_at(Home(Path(given["home"])), self._remarks.append)
        for each in given["recipes"]:
            recipe = Recipe(each["kind"], each["name"], each["fields"])
            if remark := decoder_remark(recipe):
                raise CaeavError(
                    f"{_here()}: {remark}, which may not give the same bytes",
                    hint="install the same versions on all machines",
                )
            job = job_of(recipe)
            self._jobs.append(job)
            self._complete.append(self._one_at_a_time(job.complete(given["devices"])))
        uses_devices = any(hasattr(part, "module") for job in self._jobs for part in job.components)
        load = Loader(self._remarks.append)
        for job in self._jobs:
            load(job)
        device, version = self._steady() if uses_devices else ("", "")
        settings = worker_settings(self._jobs)
        workers, deadline_s = given["workers"], given["deadline_s"]
        pool = WorkerPool(SETUP, settings, workers=workers, deadline_s=deadline_s)
        self._pool = self._lasting.enter_context(pool)
        resources = {"workers": workers, "writer": 1}
        if any(job.device_parts for job in self._jobs):
            from caeav.pipeline.extract.device.runner import Runner

            resources |= Runner.resources(given["devices"])
        return {
            "kind": _kind(version),
            "device": device,
            "resources": resources,
            "host": _here(),
            "remarks": self._told(),
        }

    def _steady(self) -> tuple[str, str]:
        """Compute reproducibly for as long as this process lives -> the device's name in records, and its kind."""
        import torch

        from caeav.pipeline.extract.device.devices import choose_devices, device_name, steady

        device = choose_devices(self._settings["devices"])[0]
        self._lasting.enter_context(steady())
        name = device_name(device)
        kind = f"{name} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else name
        return name, f"{kind}, torch {torch.__version__}"

    def _one_at_a_time(self, complete: Complete) -> Complete:
        """The texts of two shards are not embedded at once: tokenizers are not made for it."""

        def locked(records: Sequence[Record], place: Callable[[str], int]) -> list[Record]:
            with self._completing:
                return complete(records, place)

        return locked

    def _make(self, ordered: Mapping[str, Any]) -> dict[str, Any]:
        name = ordered["attempt"]
        orders = {int(store): ShardOrder.from_json(x) for store, x in ordered["orders"].items()}
        media_at = place_of(self._root)  # one an attempt: its spool belongs to it
        self._check_media(media_at, orders.values(), ordered["media"])
        with ExitStack() as stack:
            staged = []
            for number, (job, store) in enumerate(zip(self._jobs, self._stores, strict=True)):
                place = store / STAGING / name
                if number in orders:
                    place.mkdir()  # not its parents: what was staged for a run that is over was removed
                staged.append(StagedShard(StoreFolder(store), job.recipe, orders.get(number), place))
            first = self._stores[min(orders)] / STAGING / name
            notes = stack.enter_context((first / UNDER_WAY).open("w", buffering=1, encoding="ascii"))
            read: dict[str, str] = {}
            extraction = LocalExtraction(
                self._context(name),
                self._jobs,
                [Filling(shard, complete) for shard, complete in zip(staged, self._complete, strict=True)],
                lambda media: read.update({media: self._digest(media_at, media).hex()}),
                place=media_at,
                spool_in=Path(tempfile.gettempdir()),
                keep=False,
                alone=ordered["alone"],
                watch=lambda key, begins: notes.write(f"{'+' if begins else '-'}{key}\n"),
                pool=self._shared_pool,
            )
            with self._lock:
                self._running[name] = extraction
            try:
                extraction.run()
            finally:
                with self._lock:
                    self._busy.update(self._running.pop(name).meter.spent())
                    self._progress.pop(name, None)
        return {
            "stores": {
                number: {
                    "index": base64.b64encode(shard.index.encode()).decode() if shard.index else "",
                    "quarantined": [
                        [entry.key, entry.stage, entry.reason, entry.attempts] for entry in shard.quarantined
                    ],
                    "notes": extraction.notes[number],
                }
                for number, shard in enumerate(staged)
                if number in orders
            },
            "media": dict(sorted(read.items())),
            "remarks": [*extraction.remarks, *self._told()],
        }

    def _context(self, attempt: str) -> RunContext:
        given = self._settings
        manifest = Manifest(
            dataset=given["dataset"],
            segments=1,
            segment_s=1.0,
            classes=(),
            clips=(),
            media_root=str(self._root),
        )
        options = RunOptions(given["workers"], given["deadline_s"], devices=tuple(given["devices"]))
        return RunContext(manifest, Home(Path(given["home"])), options, partial(self._progressed, attempt))

    def _progressed(self, attempt: str, progress: Progress) -> None:
        with self._lock:
            self._progress[attempt] = progress

    def _told(self) -> list[str]:
        """Remarks since the last call."""
        with self._lock:
            told, self._remarks[:] = list(self._remarks), []
        return told

    def _check_media(self, place: Place, orders: Iterable[ShardOrder], seen: Mapping[str, str]) -> None:
        """Raise `CaeavError` for a file that is not here, or is another one: the one who ordered has `seen` it.

        Of media at an address only the object is fetched that was listed.
        """
        names = list(dict.fromkeys(row[1] for order in orders for row in order.clips))
        for media in names:
            if why := why_no_file(self._root / media):
                raise CaeavError(
                    f"{_here()} does not see {self._root / media}, which the machine that runs the command sees: {why}",
                    hint=ONE_PATH,
                )
        for media, here in ({} if place.url else place.digests(names)).items():
            if media in seen and here.hex() != seen[media]:
                raise CaeavError(
                    f"{_here()} sees another file at {self._root / media} than the machine that runs the command saw",
                    hint=ONE_PATH + "; where it was replaced meanwhile, run the command again",
                )

    def _digest(self, place: Place, media: str) -> bytes:
        """The digest of all bytes of media that were just read."""
        with self._lock:
            if media in self._whole:
                return self._whole[media]
        found = place.whole_digest(media)
        with self._lock:
            self._whole[media] = found
        return found

    @contextmanager
    def _shared_pool(self) -> Iterator[WorkerPool]:
        """The decoding processes, for one shard at a time."""
        assert self._pool is not None
        with self._decoding:
            yield self._pool


def suspects(store: Path, attempt: str) -> tuple[list[str], set[str]]:
    """The clips that were under way when an attempt ended, in the order in which they began, and those settled."""
    try:
        lines = (store / STAGING / attempt / UNDER_WAY).read_text(encoding="ascii", errors="replace")
    except OSError:
        return [], set()
    begun = [line[1:] for line in lines.splitlines() if line.startswith("+")]
    settled = {line[1:] for line in lines.splitlines() if line.startswith("-")}
    return [key for key in begun if key not in settled], settled


def _answer(work: Callable[[], dict[str, Any]]) -> str:
    """What `work` gives, or what went wrong, as JSON: no exception is sent."""
    try:
        return json.dumps(work())
    except CaeavError as error:
        return json.dumps({"error": "user", "what": error.problem, "hint": error.hint})
    except OSError as error:
        path = str(error.filename or "")
        return json.dumps({"error": "disk", "what": str(error), "errno": error.errno or 0, "path": path})
    except Exception as error:  # noqa: BLE001 - the one who ordered raises it
        trace = "".join(traceback.format_exception(error))
        return json.dumps({"error": "bug", "what": f"{type(error).__name__}: {error}", "trace": trace})


def _here() -> str:
    return f"machine {socket.gethostname()} (pid {os.getpid()})"


def _kind(device: str) -> str:
    """What must be the same wherever shards of one store are made; the decoder's version is in the recipe."""
    import numpy

    return ", ".join(filter(None, (platform.machine(), device, f"numpy {numpy.__version__}")))
