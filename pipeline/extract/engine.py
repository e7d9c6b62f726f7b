"""The engine of both stages: recipes and a manifest in, finished stores out, however often it is interrupted.

Clips that are due go, in order, to killable child processes, each decoded once for all stores that want it; what
is cheap is computed there, the rest on devices (`device/runner.py`). What comes back is kept at once, gathered shard
by shard and published as soon as a shard is whole. Only so many clips are under way at a time, however many there are.

What is done before a run begins: seeing whether its stores fit together and what its user may not have meant, and
loading what computes.
"""

from __future__ import annotations

import heapq
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract.collect import Assembly, Complete, Filling, Gatherer, decoded, open_stores
from caeav.pipeline.extract.decode_job import in_worker, why_no_answer, worker_settings
from caeav.pipeline.extract.identity import MediaCheck
from caeav.pipeline.extract.jobs import Job, sampling_of
from caeav.pipeline.extract.options import Meter, Remark, Report, RunOptions, StageSummary, failure_limit
from caeav.pipeline.media.workers.pool import Failure, Outcome, Request, WorkerPool
from caeav.pipeline.store import Quarantined, Recipe, Record, find_other_recipes

if TYPE_CHECKING:
    from caeav.pipeline.extract.device.batches import Unit
    from caeav.pipeline.extract.device.runner import Runner


MEDIA_ROOT = "media_root"
"""File beside a data set's stores: where its media was read last. Stores themselves do not know."""


def fit_together(recipes: Sequence[Recipe]) -> None:
    """One decode serves all: the same decoder, the same segments; and no store twice."""
    names = [recipe.folder_name for recipe in recipes]
    if len(set(names)) < len(names):
        raise CaeavError(f"the same store is asked for twice: {', '.join(names)}", hint="name each once")
    shared = {
        (r.fields["decoder"]["name"], r.fields["sampling"]["segments"], r.fields["sampling"]["segment_s"])
        for r in recipes
    }
    if len(shared) > 1:
        raise CaeavError(
            "stores made together must share decoder and segments", hint="run the command once for each"
        )


def other_recipes(home: Home, dataset: str, recipe: Recipe) -> list[str]:
    """What to say about stores of other recipes when a new store is begun: it is easily not what was meant."""
    if any((home.stores / dataset).glob(f"{recipe.folder_name}*")):  # its slices too
        return []
    return [
        f"a new store is made; {other.path.name} was made by another recipe: {'; '.join(other.differences)}"
        for other in find_other_recipes(home.stores, dataset, recipe)
        if not any(text.startswith(("fields.visual: ", "fields.audio: ")) for text in other.differences)
    ]  # a store of another modality is another thing, not another recipe for the same


def moved_media(note: Path, root: str, same: bool) -> list[str]:
    """What to say when the media lay elsewhere the last time; `same`: what is recorded of them is so there, too."""
    before, now = note.read_bytes() if note.is_file() else b"", os.fsencode(root)
    if before == now:
        return []
    with suppress(FileNotFoundError):  # the other stage, begun at the same moment, has just written it
        publish_bytes(note, now)
    if not before:
        return []
    alike = "; what is recorded of it is the same there" if same else ""
    return [f"the media was in {os.fsdecode(before)} before, it is now in {root}{alike}"]


def why_no_file(path: Path) -> str:
    """In a few words why there is no media file at `path`; empty when there is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "file not found"
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return f"file cannot be looked at ({error.strerror})"
    return "" if stat.S_ISREG(mode) else "not a regular file"


class Loader:
    """Loads what computes on devices, once each, and says so beforehand, since it may take minutes."""

    def __init__(self, remark: Remark) -> None:
        self._remark = remark
        self._done: list[object] = []

    def __call__(self, job: Job) -> None:
        """All of a job; raises `CaeavError` for weights that cannot be used."""
        for part in (*job.parts.values(), *job.texts.values()):
            if hasattr(part, "module") and not any(part is done for done in self._done):
                self._remark(f"loading {part.name}")
                part.module()
                self._done.append(part)


SETUP = "caeav.pipeline.extract.decode_job:setup"
"""What a child process runs."""


def run_stage(
    manifest: Manifest,
    jobs: Sequence[tuple[Job, Complete]],
    home: Home,
    run: RunOptions,
    report: Report,
    remark: Remark,
) -> list[StageSummary]:
    """Make or finish the stores of `jobs` for `manifest` below `home`, decoding each clip at most once.

    Raises `CaeavError` where nothing can be done; KeyboardInterrupt passes through, and finished clips stay.
    """
    began = time.monotonic()
    limit = failure_limit(run.max_failed, len(manifest.clips))
    if not manifest.clips:
        raise CaeavError(f"data set {manifest.dataset!r} has no clips", hint="caeav manifest check")
    fit_together([job.recipe for job, _ in jobs])
    folder = home.stores / manifest.dataset
    places = [folder / (job.recipe.folder_name + run.part.suffix) for job, _ in jobs]
    media = MediaCheck(manifest, places, run.changed, remark)
    media.refuse()
    load = Loader(remark)
    for (job, _), place in zip(jobs, places, strict=True):
        if not place.exists():
            load(job)
    said = [other_recipes(home, manifest.dataset, job.recipe) for job, _ in jobs]
    with ExitStack() as stack:
        wanted = [(job.recipe, complete) for job, complete in jobs]
        stores = open_stores(stack, folder, manifest, wanted, run, remark, media.settle)
        said[0] += moved_media(folder / MEDIA_ROOT, manifest.media_root, not media.changes)
        for store, remarks in zip(stores, said, strict=True):
            remarks += store.writer.remarks
        for remarks in said:
            for text in remarks:
                remark(text)
        due = [len(store.shard_of) for store in stores]
        for (job, _), clips in zip(jobs, due, strict=True):
            if clips:
                load(job)
        work = _Work([job for job, _ in jobs], stores, media, Path(manifest.media_root), run, report, remark)
        try:
            work.run()
        finally:
            media.finish([store.writer.path for store in stores])
        return [
            StageSummary(
                path=store.writer.path,
                recipe=store.writer.recipe,
                stored=done.stored,
                expected=done.expected,
                bytes=done.bytes,
                quarantined=store.writer.quarantined,
                due=due[i],
                seconds=time.monotonic() - began,
                notes=dict(sorted(work.notes[i].items())),
                remarks=(*said[i], *work.remarks),
                max_failed=limit,
                busy_s=work.meter.seconds(),
                limit=work.meter.limit(),
                media=tuple(x for x in media.changes if x.store == store.writer.path.name),
            )
            for i, store in enumerate(stores)
            for done in [store.writer.finish()]
        ]


class _Work:
    """The clips one run has to do: from requests to child processes to settled records."""

    def __init__(
        self,
        jobs: Sequence[Job],
        stores: Sequence[Filling],
        media: MediaCheck,
        root: Path,
        run: RunOptions,
        report: Report,
        remark: Remark,
    ) -> None:
        self.notes: list[Counter[str]] = [Counter() for _ in jobs]
        self.remarks: list[str] = []
        self._jobs, self._stores, self._root, self._run = jobs, stores, root, run
        self._remark, self._media = remark, media
        self._lost: dict[str, str] = {}
        self._due: dict[str, list[int]] = {}
        alike: dict[tuple[int, ...], list[int]] = {}
        placed = [((store.writer.place(key), key) for key in store.shard_of) for store in stores]
        for key in dict.fromkeys(
            key for _, key in heapq.merge(*placed)
        ):  # shards are closed in order everywhere
            why = why_no_file(self._path(self._clip(key)))
            if why:
                self._lost[key] = why
            else:
                wanting = [i for i, s in enumerate(stores) if key in s.shard_of]
                self._due[key] = alike.setdefault(tuple(wanting), wanting)
        self._away = any(not in_worker(part) for job in jobs for part in job.parts.values())
        self._workers = min(run.workers, max(1, len(self._due)))
        self.meter = Meter(self._resources())
        self._gatherer = Gatherer(stores, report, self.meter, self._fail)
        self._assembly = Assembly(jobs, self._settle)
        self._pool: WorkerPool | None = None
        self._runner: Runner | None = None
        self._units: Mapping[int, Sequence[Unit]] = {}
        self._lock = threading.Lock()
        self._room = 4 * self._workers
        self._under_way = self._decoding = 0
        self._left = len(self._due)
        self._over = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do everything that is due; no child process is started, and no torch imported, when nothing is."""
        try:
            self._gatherer.begin()
            for key, why in self._lost.items():
                lost = Quarantined(key, "media", f"{why}: {self._clip(key).media}", 1)
                for store in self._stores:
                    if key in store.shard_of:
                        self._gatherer.settle(store, key, lost)
            if self._due:
                self._compute()
        except KeyboardInterrupt:
            self._gatherer.hurry()
            raise
        finally:
            self._gatherer.close()
        if self._error is not None:
            raise self._error

    def _compute(self) -> None:
        settings = worker_settings(self._jobs)
        with ExitStack() as stack:
            if self._away:
                self._start_runner(stack)
            pool = WorkerPool(SETUP, settings, workers=self._workers, deadline_s=self._run.deadline_s)
            self._pool = stack.enter_context(pool)
            for outcome in self._pool.map(self._requests()):
                self._take(outcome)
            self._over.wait()

    def _start_runner(self, stack: ExitStack) -> None:
        from caeav.pipeline.extract.device.batches import make_units
        from caeav.pipeline.extract.device.runner import Runner

        self._units = make_units(self._jobs)
        units = [unit for some in self._units.values() for unit in some]
        self._runner = Runner(
            units, self._run.devices, self._assembly.made, self._fail, self._say, self.meter, self._nudge
        )
        stack.callback(self._runner.close)
        for unit in units:
            store = self._stores[unit.store]
            self._runner.expect(
                unit, [(store.shard_of[key], store.place(key)) for key in store.shard_of if key in self._due]
            )
        lanes = self._resources()["device"]
        self._room += (2 * lanes + 1) * max(unit.rows for unit in units)

    def _resources(self) -> dict[str, int]:
        resources = {"workers": self._workers, "writer": 1}
        if self._away and self._due:
            from caeav.pipeline.extract.device.runner import Runner

            resources |= Runner.resources(self._run.devices)
        return resources

    def _clip(self, key: str) -> Clip:
        return next(store for store in self._stores if key in store.shard_of).clip(key)

    def _path(self, clip: Clip) -> Path:
        return self._root / clip.media

    def _requests(self) -> Iterator[Request | None]:
        """Clips in order, None while too many are under way; runs in the pool's thread."""
        for key, jobs in self._due.items():
            while not self._enter():
                yield None
            clip = self._clip(key)
            yield {"id": key, "path": str(self._path(clip)), "start_s": clip.start_s, "jobs": jobs}

    def _enter(self) -> bool:
        with self._lock:
            if self._under_way < self._room:
                self._under_way += 1
                self._decoding += 1
                return True
            stuck = self._decoding == 0
        if stuck and self._runner is not None and self._runner.quiet:
            self._runner.flush()  # clips wait for others in batches that this room does not hold
        return False

    def _take(self, outcome: Outcome) -> None:
        """One clip has come out of its child process, or never will."""
        key, jobs = outcome.id, self._due[outcome.id]
        failure = outcome.failure
        if failure is None:
            wrong = why_no_answer(outcome, {job: self._jobs[job] for job in jobs})
            failure = Failure("decode", wrong, 1) if wrong else None
        if failure is not None:
            reason = " ".join(failure.reason.split())
            entry = Quarantined(key, failure.stage, reason, failure.attempts)
            self._miss(key, jobs)
            for job in jobs:
                self._settle(job, key, entry)
        else:
            self._media.decoded(self._clip(key).media)
            spent = outcome.info["spent"]
            self.meter.add("workers", "decode", spent["decode"])
            self.meter.add("workers", "backbone", spent["compute"])
            for job in jobs:
                rate = str(self._jobs[job].recipe.fields["sampling"]["rate_hz"])
                self.notes[job].update({note["code"] for note in outcome.info["clips"][rate]["notes"]})
            away = self._assembly.arrived(outcome, jobs)
            self._miss(key, [job for job in jobs if job not in away])
            for job in away:
                self._submit(job, outcome)
        with self._lock:
            self._decoding -= 1
        self._nudge()

    def _submit(self, job: int, outcome: Outcome) -> None:
        assert self._runner is not None
        clip, store = decoded(outcome, self._jobs[job]), self._stores[job]
        for unit in self._units[job]:
            self._runner.submit(
                unit,
                store.shard_of[outcome.id],
                store.place(outcome.id),
                outcome.id,
                clip,
                sampling_of(self._jobs[job].recipe),
            )

    def _miss(self, key: str, jobs: Sequence[int]) -> None:
        """No batch is to wait for this clip in the stores of these jobs."""
        for job in jobs:
            for unit in self._units.get(job, ()):
                assert self._runner is not None
                self._runner.miss(unit, self._stores[job].shard_of[key], self._stores[job].place(key))

    def _settle(self, job: int, key: str, result: Record | Quarantined) -> None:
        """A clip is done in one store; from any thread."""
        if not self._gatherer.settle(self._stores[job], key, result):
            return
        with self._lock:
            self._under_way -= 1
            self._left -= 1
            over = self._left == 0
        if over:
            self._over.set()
        self._nudge()

    def _nudge(self) -> None:
        if self._pool is not None:
            self._pool.nudge()

    def _say(self, text: str) -> None:
        self.remarks.append(text)
        self._remark(text)

    def _fail(self, error: BaseException) -> None:
        """Something broke in another thread: the main thread raises it; from any thread."""
        with self._lock:
            self._error = self._error or error
        if self._pool is not None:
            self._pool.interrupt(error)
        self._over.set()
