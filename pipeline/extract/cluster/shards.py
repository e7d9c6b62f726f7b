"""The shards to be made on a cluster: how often each was tried, and which clip may be what ends the processes.

A process that dies costs the shards it had under way one attempt each. The clips that were under way with it are
suspects: the next attempt makes them first, each alone. A clip that was alone under way in `STRIKES` deaths in a row is
what kills, and is quarantined; one that gets through is suspected no longer. Deaths of machines strike nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.extract.collect import OpenStore
from caeav.pipeline.extract.identity import MediaCheck
from caeav.pipeline.store import Quarantined, ShardPlan
from caeav.pipeline.store.staged import ShardOrder

STRIKES = 3
MAX_DEATHS = 12
MAX_FAULTS = 3
"""So often may an attempt end in an error, or what it staged be missing or damaged."""


@dataclass(eq=False)
class ShardTask:
    """Shard `number` of one or several stores, the same clips in each. `attempts`: those under way, by name."""

    number: int
    stores: Sequence[int]
    clips: int
    deaths: int = 0
    faults: int = 0
    alone: list[str] = field(default_factory=list)
    strikes: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, float] = field(default_factory=dict)
    done: bool = False

    def died(self, under_way: Sequence[str], settled: Iterable[str], machine: bool) -> Quarantined | None:
        """An attempt ended with its process, or with its `machine` -> the clip that is found to be the reason.

        Raises `CaeavError` when the shard has ended too many processes and no clip is to blame.
        """
        passed = set(settled)
        first_alone = bool(self.alone) and len(under_way) == 1 and under_way[0] in self.alone
        if machine:
            return None
        self.deaths += 1
        strikes = self.strikes.get(under_way[0], 0) + 1 if first_alone else 0
        self.strikes = {under_way[0]: strikes} if first_alone else {}
        if strikes >= STRIKES:
            self.deaths, self.alone, self.strikes = 0, [], {}
            reason = f"the process that computed it died {STRIKES} times, with no other clip under way"
            return Quarantined(under_way[0], "compute", reason, STRIKES)
        if self.deaths >= MAX_DEATHS:
            raise CaeavError(
                f"shard {self.number} was tried {self.deaths} times, and each time the process that made it died",
                hint="look into Ray's logs for the reason (often memory: fewer --workers, a smaller --batch); "
                "what is finished is kept, run the same command again",
            )
        left = [key for key in (*under_way, *self.alone) if key not in passed]
        self.alone = list(dict.fromkeys(left))
        return None


def group_shards(stores: Sequence[OpenStore]) -> list[ShardTask]:
    """The shards that need work, ascending; those of the same clips in several stores are one task."""
    tasks: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    missing: dict[tuple[int, tuple[str, ...]], set[str]] = {}
    for store, filling in enumerate(stores):
        for plan in filling.writer.plan():
            which = (plan.number, tuple(filling.writer.planned[plan.number]))
            tasks.setdefault(which, []).append(store)
            missing.setdefault(which, set()).update(plan.missing)
    return [
        ShardTask(which[0], tuple(tasks[which]), len(missing[which]))
        for which in sorted(tasks, key=lambda which: which[0])
    ]


def open_plans(task: ShardTask, stores: Sequence[OpenStore]) -> dict[int, ShardPlan]:
    """What is still to be done of a task, by store; empty when it is done."""
    plans = {store: stores[store].writer.plan_shard(task.number) for store in task.stores}
    return {store: plan for store, plan in plans.items() if plan is not None}


def order_of(
    task: ShardTask, attempt: str, plans: dict[int, ShardPlan], stores: Sequence[OpenStore], media: MediaCheck
) -> dict[str, object]:
    """The order for an attempt at a task, as JSON values; with the digests of its media, for actors to compare."""
    orders = {store: ShardOrder.of(stores[store].writer, plan) for store, plan in plans.items()}
    seen = media.seen(row[1] for order in orders.values() for row in order.clips)
    return {
        "attempt": attempt,
        "orders": {store: order.as_json() for store, order in orders.items()},
        "alone": task.alone,
        "media": {name: taken.hex() for name, taken in seen.items()},
    }
