"""The side that holds the stores' locks: it orders shards from actors and adopts what they staged.

An order may be carried out twice, by a process that was believed dead or as a copy of one that is slow: each attempt
has a folder of its own, the bytes are the same, and the first that arrives is adopted. So the shard is the task, and
its index in the store the commit: an interrupted command orders what has no index.
"""

from __future__ import annotations

import base64
import binascii
import json
import statistics
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted, ignore
from caeav.pipeline.extract.cluster.actor import suspects
from caeav.pipeline.extract.cluster.options import GPU, ClusterOptions
from caeav.pipeline.extract.cluster.ray_cluster import AT_ONCE, ActorLost
from caeav.pipeline.extract.cluster.shards import MAX_FAULTS, ShardTask, group_shards, open_plans, order_of
from caeav.pipeline.extract.collect import Collector, OpenStore
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.device.options import CPU
from caeav.pipeline.extract.identity import MediaCheck
from caeav.pipeline.extract.jobs import Job
from caeav.pipeline.extract.preflight import why_no_file
from caeav.pipeline.extract.progress import Meter, Progress
from caeav.pipeline.store import Quarantined
from caeav.pipeline.store.adopt import Adopted
from caeav.pipeline.store.backend import BadIndex, backend_of
from caeav.pipeline.store.errors import DamagedStore
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.staged import STAGING, open_staging, remove_staging, remove_tree

WAIT_S = 1.0
SIZE_S = 10.0
"""So often the cluster is asked for its size: machines come and go."""
SLOW_S = 20.0
SLOW_TIMES = 3.0
"""A shard that takes so many times as long as the others is ordered from a second actor, when one is free."""
TELL_S = 30.0
MAX_START_DEATHS = 3
MAX_GROUP = 4
"""Decoding processes of an actor, unless told otherwise."""
MAX_CPU_DEVICES = 4


class Cluster(Protocol):
    """What the driver needs of a cluster; see `RayCluster`."""

    address: str

    def __enter__(self) -> Cluster: ...
    def __exit__(self, *_: object) -> None: ...
    def check(self) -> None: ...
    def nodes(self) -> list[dict[str, float]] | None: ...
    def start(self, settings: str, cpus: int, gpus: int, accelerator: str) -> Any: ...
    def call(self, actor: Any, method: str, *arguments: str) -> Any: ...
    def wait(self, calls: Sequence[Any], timeout_s: float) -> list[Any]: ...
    def answer(self, call: Any) -> str: ...
    def kill(self, actors: Any) -> None: ...


@dataclass(frozen=True)
class Size:
    """What one actor is given, and how many there may be."""

    cpus: int
    gpus: int
    actors: int
    devices: tuple[str, ...]


@dataclass(eq=False)
class Actor:
    """An actor: `calls` are those it has not answered; without `resources` it is still being set up."""

    handle: Any
    resources: dict[str, int] | None = None
    tasks: dict[str, ShardTask] = field(default_factory=dict)
    careful: bool = False
    watched: bool = False
    busy: Counter[tuple[str, str]] = field(default_factory=Counter)
    done: dict[str, list[int]] = field(default_factory=dict)


class ClusterExtraction:
    """Makes the due clips of open stores on a cluster; an `Extraction` of the engine."""

    def __init__(
        self,
        context: RunContext,
        jobs: Sequence[Job],
        stores: Sequence[OpenStore],
        media: MediaCheck,
        cluster: Callable[[], Cluster],
    ) -> None:
        assert context.options.cluster is not None
        self.notes: list[Counter[str]] = [Counter() for _ in jobs]
        self.remarks: list[str] = []
        self.meter = Meter({})
        self._context, self._jobs, self._stores, self._media = context, jobs, stores, media
        self._options: ClusterOptions = context.options.cluster
        self._connect = cluster
        self._root = Path(context.manifest.media_root)
        self._token = uuid.uuid4().hex
        self._adopted = Adopted()
        self._actors: list[Actor] = []
        self._calls: dict[Any, tuple[Actor, str]] = {}
        self._waiting: deque[ShardTask] = deque()
        self._tasks: list[ShardTask] = []
        self._took_s: list[float] = []
        self._settled = self._failed = self._total = 0
        self._kind = ""
        self._start_deaths = 0
        self._sized_s = self._told_s = 0.0

    def run(self) -> None:
        """Have all shards made and adopt them; on the way out all actors are ended and staging is removed."""
        self._publish_kept()
        self._lose_missing()
        self._tasks = group_shards(self._stores)
        if not self._tasks:
            return
        self._waiting.extend(self._tasks)
        self._total = self._settled + sum(task.clips for task in self._tasks)
        with ExitStack() as stack:
            cluster = stack.enter_context(self._connect())
            for store in self._stores:
                stack.callback(remove_staging, store.writer.path)
                open_staging(store.writer.path, self._token)
            stack.callback(lambda: cluster.kill([actor.handle for actor in self._actors]))
            self._report()
            self._told_s = time.monotonic()
            while not all(task.done for task in self._tasks):
                cluster.check()
                self._size(cluster)
                self._hand_out(cluster)
                for call in cluster.wait(list(self._calls), WAIT_S):
                    self._take(cluster, call)

    def _publish_kept(self) -> None:
        """Publish the shards of which an interrupted run on one machine had made every clip."""
        errors: list[BaseException] = []
        collector = Collector(self._stores, ignore, self.meter, errors.append)
        try:
            collector.begin()
        finally:
            collector.close()
        if errors:
            raise errors[0]

    def _lose_missing(self) -> None:
        """Quarantine the clips that have no file; what an actor does not see is another matter."""
        why: dict[str, str] = {}
        for store in self._stores:
            for plan in store.writer.plan():
                for key in plan.missing:
                    media = store.writer.clip(key).media
                    if key not in why:
                        why[key] = why_no_file(self._root / media)
                    if why[key]:
                        store.writer.quarantine(Quarantined(key, "media", f"{why[key]}: {media}", 1))
        self._settled = self._failed = sum(map(bool, why.values()))

    def _size(self, cluster: Cluster) -> None:
        """Have as many actors as fit the cluster, as asked for, or as there are shards left."""
        now = time.monotonic()
        if self._actors and now - self._sized_s < SIZE_S:
            return
        nodes = cluster.nodes()
        if nodes is None:
            return
        self._sized_s = now
        size = actors_for(nodes, self._options, any(job.device_parts for job in self._jobs))
        left = sum(not task.done for task in self._tasks)
        for _ in range(min(size.actors, left) - len(self._actors)):
            settings = json.dumps(self._settings(size))
            actor = Actor(cluster.start(settings, size.cpus, size.gpus, self._options.accelerator))
            self._actors.append(actor)
            self._calls[cluster.call(actor.handle, "set_up")] = (actor, "")
        if not any(actor.resources for actor in self._actors) and now - self._told_s > TELL_S:
            self._told_s = now
            gpu = f" and {counted(size.gpus, 'GPU')}" if size.gpus else ""
            self._remark(
                f"waiting for {counted(len(self._actors), 'actor')} to start, each on {counted(size.cpus, 'CPU')}{gpu}"
            )

    def _settings(self, size: Size) -> dict[str, Any]:
        context = self._context
        return {
            "token": self._token,
            "home": str(context.home.root),
            "dataset": context.manifest.dataset,
            "media_root": context.manifest.media_root,
            "stores": [str(store.writer.path) for store in self._stores],
            "recipes": [job.recipe.as_json() for job in self._jobs],
            "workers": size.cpus,
            "devices": size.devices,
            "deadline_s": context.options.deadline_s,
        }

    def _hand_out(self, cluster: Cluster) -> None:
        """Give waiting shards to actors that have room, and a copy of a slow one when none waits."""
        for actor in self._actors:
            while actor.resources and not actor.careful and len(actor.tasks) < AT_ONCE:
                task = self._next(actor)
                if task is None:
                    break
                attempt = f"{task.number:06d}-{uuid.uuid4().hex[:12]}"
                order = json.dumps(
                    order_of(task, attempt, open_plans(task, self._stores), self._stores, self._media)
                )
                task.attempts[attempt] = time.monotonic()
                actor.tasks[attempt], actor.careful = task, bool(task.alone)
                self._calls[cluster.call(actor.handle, "make", order)] = (actor, attempt)
            if actor.resources and actor.tasks and not actor.watched:
                actor.watched = True
                self._calls[cluster.call(actor.handle, "watch")] = (actor, "watch")

    def _next(self, actor: Actor) -> ShardTask | None:
        """The next shard for an actor; one with suspects only for an actor that has nothing else under way."""
        for task in list(self._waiting):
            if not task.alone or not actor.tasks:
                self._waiting.remove(task)
                return task
        if self._waiting or actor.tasks or not self._took_s:
            return None
        slow_s = max(SLOW_S, SLOW_TIMES * statistics.median(self._took_s))
        running = [
            task for task in self._tasks if not task.done and len(task.attempts) == 1 and not task.alone
        ]
        oldest = min(running, key=lambda task: min(task.attempts.values()), default=None)
        if oldest is None or time.monotonic() - min(oldest.attempts.values()) < slow_s:
            return None
        return oldest

    def _take(self, cluster: Cluster, call: Any) -> None:
        """Take the answer of a call, or the end of its actor."""
        if call not in self._calls:  # of an actor that was given up while this was looked at
            return
        actor, what = self._calls.pop(call)
        try:
            answer = json.loads(cluster.answer(call))
        except ActorLost as lost:
            self._lose(cluster, actor, lost)
            return
        if what == "watch":
            self._take_watch(actor, answer)
            return
        if not what:
            self._take_set_up(actor, answer)
            return
        task = actor.tasks.pop(what)
        actor.careful = False
        actor.done.pop(what, None)
        took_s = time.monotonic() - task.attempts.pop(what)
        if not task.done and self._took(task, what, answer):
            self._took_s.append(took_s)
        for store in task.stores:
            remove_tree(self._place(store, what))
        if not task.done and not task.attempts and task not in self._waiting:
            self._waiting.appendleft(task)
        self._report()

    def _take_watch(self, actor: Actor, answer: Mapping[str, Any]) -> None:
        actor.watched = False
        actor.done = {name: counts for name, counts in answer["done"].items() if name in actor.tasks}
        busy = Counter({(resource, stage): seconds for resource, stage, seconds in answer["busy"]})
        for (resource, stage), seconds in (busy - actor.busy).items():
            self.meter.add(resource, stage, seconds)
        actor.busy = busy
        self._report()

    def _take_set_up(self, actor: Actor, answer: Mapping[str, Any]) -> None:
        _raise(answer)
        kind = self._kind = self._kind or answer["kind"]
        if answer["kind"] != kind and not self._options.mixed_devices:
            raise CaeavError(
                f"{answer['host']} computes with {answer['kind']}, another one with {kind}: they may not give the same "
                "bytes",
                hint="choose machines of one kind (--accelerator-type), or allow it: --mixed-devices",
            )
        if not self._options.mixed_devices:
            self._check_stored(answer["host"], answer["device"])
        self._start_deaths = 0
        actor.resources = answer["resources"]
        self._tell(answer)
        self._count_resources()

    def _check_stored(self, host: str, device: str) -> None:
        """Raise `CaeavError` when what is stored already was computed on a device of another name."""
        for job, store in zip(self._jobs, self._stores, strict=True):
            writer = store.writer
            index = next(iter(writer.indexes.values()), None) if job.device_parts else None
            if index is None:
                continue
            facts = backend_of(writer.recipe).open(writer.folder, index).info(0)["facts"]
            stored = facts.get("device", {}).get("name", device)
            if stored != device:
                raise CaeavError(
                    f"{host} computes on {device}, what {writer.path.name} holds was computed on {stored}: they may "
                    "not give the same bytes",
                    hint="choose machines with that device (--accelerator-type), or allow it: --mixed-devices",
                )

    def _count_resources(self) -> None:
        """What can be busy: all actors, and this process, which adopts."""
        ready = Counter[str]()
        for actor in self._actors:
            ready.update(actor.resources or {})
        self.meter.resize({**ready, "driver": 1})

    def _lose(self, cluster: Cluster, actor: Actor, lost: ActorLost) -> None:
        """An actor is gone: its shards wait again, and it is replaced."""
        if actor not in self._actors:
            return
        self._actors.remove(actor)
        self._calls = {call: of for call, of in self._calls.items() if of[0] is not actor}
        cluster.kill([actor.handle])
        self._sized_s = 0.0
        self._count_resources()
        if actor.resources is None and not lost.left:
            self._start_deaths += 1
            if self._start_deaths >= MAX_START_DEATHS:
                raise CaeavError(
                    f"{self._start_deaths} actors died while they were set up: {lost.why}",
                    hint="install caeav with the same versions on all machines; Ray's logs say more",
                )
        for attempt, task in actor.tasks.items():
            del task.attempts[attempt]
            if task.done:
                continue
            guilty = task.died(*suspects(self._stores[min(task.stores)].writer.path, attempt), lost.machine)
            if guilty is not None:
                for store, plan in open_plans(task, self._stores).items():
                    if guilty.key in plan.missing:
                        self._stores[store].writer.quarantine(guilty)
                self._failed += 1
            for store in task.stores:
                remove_tree(self._place(store, attempt))
            self._settle(task)
            if not task.done and not task.attempts and task not in self._waiting:
                self._waiting.appendleft(task)
        self._report()

    def _place(self, store: int, attempt: str) -> Path:
        return self._stores[store].writer.path / STAGING / attempt

    def _took(self, task: ShardTask, attempt: str, answer: Mapping[str, Any]) -> bool:
        """Adopt what an attempt at a task has staged; False when it is not there or not what it should be."""
        if "error" in answer:
            self._again(task, answer["what"])
            if task.faults >= MAX_FAULTS:
                _raise(answer)
            return False
        self._tell(answer)
        self._media.digested({name: bytes.fromhex(taken) for name, taken in answer["media"].items()})
        try:
            with self.meter.busy("driver", "adopt"):
                for store, plan in open_plans(task, self._stores).items():
                    self._adopt(store, plan.number, attempt, answer["stores"][str(store)])
        except (FileNotFoundError, DamagedStore, BadIndex, binascii.Error, KeyError, ValueError) as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self._again(task, why)
            if task.faults >= MAX_FAULTS:
                raise CaeavError(
                    f"shard {task.number}, made {task.faults} times on the cluster, did not arrive: {why}",
                    hint="look after the file system of --home: all machines must see what one of them writes; "
                    "what is finished is kept, run the same command again",
                ) from None
            return False
        self._settle(task)
        return task.done

    def _again(self, task: ShardTask, why: str) -> None:
        task.faults += 1
        self._remark(f"shard {task.number} was not made: {why}; attempt {task.faults} of {MAX_FAULTS}")

    def _adopt(self, store: int, number: int, attempt: str, made: Mapping[str, Any]) -> None:
        """Quarantine what could not be made of a shard, then take its files over."""
        writer = self._stores[store].writer
        plan = writer.plan_shard(number)
        missing = set(plan.missing) if plan else set()
        for entry in [Quarantined(*row) for row in made["quarantined"]]:
            if entry.key in missing:
                writer.quarantine(entry)
                self._failed += 1
        plan = writer.plan_shard(number)
        if plan is not None:
            if not made["index"]:
                raise ValueError(f"shard {number} was not made")
            index = backend_of(writer.recipe).decode_index(base64.b64decode(made["index"], validate=True))
            if index.number != number:
                raise ValueError(f"shard {index.number} was made instead of {number}")
            source = StoreFolder(self._place(store, attempt))
            for facts in index.files:
                if (size := (source.path / facts.name).stat().st_size) != facts.bytes:
                    raise ValueError(f"{facts.name} has {size} bytes instead of {facts.bytes}")
            writer.adopt(source, [index], self._adopted)
        self.notes[store].update(made["notes"])

    def _settle(self, task: ShardTask) -> None:
        """A task with nothing left to do is done."""
        if not task.done and not open_plans(task, self._stores):
            task.done = True
            self._settled += task.clips

    def _tell(self, answer: Mapping[str, Any]) -> None:
        for text in answer["remarks"]:
            if text not in self.remarks:
                self._remark(text)

    def _remark(self, text: str) -> None:
        self.remarks.append(text)
        self._context.remark(text)

    def _report(self) -> None:
        """Clips done: those of finished shards, and those that are under way in actors."""
        under_way: dict[int, list[int]] = {}
        for actor in self._actors:
            for attempt, counts in actor.done.items():
                if attempt in actor.tasks and not actor.tasks[attempt].done:
                    task = id(actor.tasks[attempt])
                    under_way[task] = max(under_way.get(task, [0, 0]), counts)
        done = self._settled + sum(counts[0] for counts in under_way.values())
        failed = self._failed + sum(counts[1] for counts in under_way.values())
        self._context.on_clip(Progress(min(done, self._total), failed, self._total, self.meter.limit()))


def actors_for(nodes: Sequence[Mapping[str, float]], options: ClusterOptions, uses_devices: bool) -> Size:
    """What each actor is given on a cluster of these machines, and how many fit it.

    On GPUs an actor for each, with its share of its machine's CPUs; otherwise actors of up to `MAX_GROUP` CPUs.
    """
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1 and node.get("CPU", 0) >= 1]
    if options.accelerator:
        with_gpu = [node for node in with_gpu if f"accelerator_type:{options.accelerator}" in node]
    asked = options.devices == GPU or bool(options.accelerator)
    if asked or (uses_devices and options.devices != CPU and with_gpu):
        share = min((int(node["CPU"] // node["GPU"]) for node in with_gpu), default=MAX_GROUP)
        cpus = options.workers or max(1, share)
        fitting = sum(int(min(node["GPU"], node["CPU"] // cpus)) for node in with_gpu)
        return Size(cpus, 1, options.actors or max(1, fitting), ("0",))
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    cpus = options.workers or min([MAX_GROUP, *cores])
    fitting = sum(each // cpus for each in cores)
    return Size(cpus, 0, options.actors or max(1, fitting), (CPU,) * min(cpus, MAX_CPU_DEVICES))


def _raise(answer: Mapping[str, Any]) -> None:
    """Raise what an actor says went wrong."""
    if answer.get("error") == "user":
        raise CaeavError(answer["what"], hint=answer["hint"])
    if answer.get("error") == "disk":
        raise OSError(answer["errno"], answer["what"])
    if "error" in answer:
        raise RuntimeError(f"on the cluster: {answer['what']}\n{answer['trace']}")
