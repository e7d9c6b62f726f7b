"""Shards made on a cluster: whatever happens to its processes, the store has the bytes of a local run.

The cluster consists of threads in this process; actors, orders, answers and staging are real. What only Ray can show
is in `tests/pipeline/extract/cluster/test_ray.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from failing_steps import failpoint
from thread_cluster import Killed, ThreadCluster, use_clusters

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.extract import local
from caeav.pipeline.extract.cluster import actor as actor_module
from caeav.pipeline.extract.cluster import driver, ray_cluster, shards
from caeav.pipeline.extract.cluster.options import ClusterOptions
from caeav.pipeline.extract.identity import MediaChanged
from caeav.pipeline.media.workers.pool import WorkerPool
from caeav.pipeline.store import StoreError, StoreReader, StoreWriter, list_stores
from caeav.pipeline.store.staged import StagedShard
from caeav.pipeline.store.state import StoreState, inspect

pytestmark = pytest.mark.usefixtures("inline")
STEPS = ("sync_file", "sync_folder", "rename", "remove", "make_folder", "link_file")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[ThreadCluster]], list[ThreadCluster]]:
    """`use(Kind)`: make extraction use clusters of this kind; the returned list fills with those it uses."""
    monkeypatch.setattr(actor_module, "WorkerPool", local.WorkerPool)
    return lambda kind: use_clusters(monkeypatch, kind)


WANTED: dict[str, dict[str, str]] = {}


@pytest.fixture
def wanted(
    small: Any, inline: None, tmp_path: Path, contents: Callable[[Path], dict[str, str]]
) -> Callable[[str], dict[str, str]]:
    """`wanted(backend)`: the files of a local run."""

    def of(backend: str = "webdataset") -> dict[str, str]:
        if backend not in WANTED:
            small.extract(tmp_path / "wanted", backend)
            WANTED[backend] = contents(tmp_path / "wanted")
        return WANTED[backend]

    return of


def extract(small: Any, home: Path, backend: str = "webdataset", **options: Any) -> None:
    small.extract(home, backend, cluster=ClusterOptions(**options))


def states(home: Path) -> list[StoreState]:
    """What is in the stores of a home."""
    return [inspect(info.path) for info in list_stores(home / "stores")]


@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
def test_a_cluster_makes_the_bytes_of_a_local_run(
    backend: str, small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any
) -> None:
    """Tokens and captions come from one decoding; no order is given twice, and staging is removed."""
    used = use(ThreadCluster)
    extract(small, tmp_path / "home", backend)
    assert contents(tmp_path / "home") == wanted(backend)
    assert sorted(
        (order["orders"].keys() - {"0", "1"}, len(order["orders"])) for order in used[0].orders
    ) == [
        (set(), 2),
        (set(), 2),
    ]
    assert len(used[0].actors) == 2
    extract(small, tmp_path / "home", backend)
    assert len(used) == 1 and contents(tmp_path / "home") == wanted(
        backend
    )  # nothing is due: no cluster is started


def test_a_grown_data_set_only_has_its_missing_clips_made(
    small: Any, tmp_path: Path, use: Any, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With new clips, new labels and a retried quarantined clip."""
    home, grown = tmp_path / "home", small.grown(tmp_path / "media")
    for place in (home, tmp_path / "local"):
        small.extract(place)
    grown.extract(tmp_path / "local", retry_failed=True)
    used = use(ThreadCluster)
    grown.extract(home, retry_failed=True, cluster=ClusterOptions())
    assert contents(home) == contents(tmp_path / "local")
    made = [row[0] for order in used[0].orders for row in order["orders"]["0"]["clips"]]
    assert made == [small.manifest.clips[3].key, "more"]


def test_a_clip_that_kills_its_process_is_quarantined(
    small: Any, tmp_path: Path, use: Any, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process dies whatever runs beside it; all other clips are stored with their usual bytes."""
    poison = small.manifest.clips[1].key
    real = local.WorkerPool._reply

    def answer(self: Any, request: Mapping[str, Any]) -> Any:
        if request["id"] == poison and threading.current_thread().name.startswith("ThreadPool"):
            raise Killed
        return real(self, request)

    monkeypatch.setattr(local.WorkerPool, "_reply", answer)
    used = use(ThreadCluster)
    extract(small, tmp_path / "home")
    alone = [order["alone"] for order in used[0].orders if order["orders"]["0"]["number"] == 0]
    assert alone == [[], *[[poison]] * shards.STRIKES, []]
    for info in list_stores(tmp_path / "home" / "stores"):
        reader = StoreReader.open(info.path)
        entries = {entry.key: entry for entry in reader.quarantined}
        assert sorted(entries) == sorted([poison, small.manifest.clips[3].key])
        assert (entries[poison].stage, entries[poison].attempts) == ("compute", shards.STRIKES)
        assert "died 3 times, with no other clip under way" in entries[poison].reason
        assert len(reader) == 2


def test_a_shard_with_suspected_clips_has_its_actor_to_itself(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspected clips come first and each alone; a second shard waits meanwhile."""
    monkeypatch.setattr(actor_module, "WorkerPool", WorkerPool)  # children, several at once
    keys = small.manifest.keys
    seen: list[list[str]] = []

    class Careful(ThreadCluster):
        CPUS = (2.0,)

        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make":
                order = json.loads(arguments[0])
                if not order["alone"]:
                    assert number == 0
                    raise Killed
                place = next((tmp_path / "home").rglob(f"staging/{order['attempt']}/under-way"))
                seen.append(place.read_text().split())
                assert len(list((tmp_path / "home").rglob("staging/*/under-way"))) == 1
            return answer

    def died(self: shards.ShardTask, *_: object) -> None:
        self.alone = [key for key in (keys[1], keys[2]) if keys.index(key) // 2 == self.number]

    monkeypatch.setattr(shards.ShardTask, "died", died)
    use(Careful)
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == wanted()
    assert sorted(seen) == sorted(
        [[f"+{keys[1]}", f"-{keys[1]}", f"+{keys[0]}", f"-{keys[0]}"], [f"+{keys[2]}", f"-{keys[2]}"]]
    )


def test_a_clip_that_fails_is_quarantined_as_in_a_local_run(
    small: Any, tmp_path: Path, use: Any, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quarantine has the same entries, and the shard without the clip has the same bytes."""
    answer, bad = local.WorkerPool._reply, small.manifest.keys[:2]  # all of a shard

    def failing(self: Any, request: Mapping[str, Any]) -> Any:
        arrays, info = answer(self, request)
        if request["id"] not in bad:
            return arrays, info
        left = {name: array for name, array in arrays.items() if not name.startswith("0/")}
        return left, {**info, "failed": {"0": "it cannot"}}

    monkeypatch.setattr(local.WorkerPool, "_reply", failing)
    small.extract(tmp_path / "local")
    use(ThreadCluster)
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == contents(tmp_path / "local")
    [tokens] = (tmp_path / "home").rglob("tokens-*/quarantine.jsonl")
    assert "it cannot" in tokens.read_text()


def test_a_shard_whose_processes_always_die_is_an_error(
    small: Any, tmp_path: Path, use: Any, assert_sound: Any
) -> None:
    class Deadly(ThreadCluster):
        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make":
                raise Killed
            return answer

    used = use(Deadly)
    with pytest.raises(CaeavError, match=f"was tried {shards.MAX_DEATHS} times, and each time the process"):
        extract(small, tmp_path / "home")
    assert len(used[0].orders) >= shards.MAX_DEATHS
    assert assert_sound(tmp_path / "home") == 0


def test_a_lost_machine_counts_against_no_clip(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any
) -> None:
    class Leaving(ThreadCluster):
        left = 20

        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make" and Leaving.left:
                Leaving.left -= 1
                raise ray_cluster.ActorLost("its machine has gone", machine=True)
            return answer

    used = use(Leaving)
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == wanted() and all(not order["alone"] for order in used[0].orders)


@pytest.mark.parametrize("what", ["gone", "cut", "flipped", "no index"])
@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
def test_a_damaged_staged_shard_is_made_again(
    backend: str, what: str, small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any
) -> None:
    turns = itertools.count()  # threads ask at the same time, and each gets its own number

    class Losing(ThreadCluster):
        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make" and next(turns) < 2:
                name = json.loads(arguments[0])["attempt"]
                # not every attempt: others are made and removed at the same time
                places = list((tmp_path / "home" / "stores").glob(f"*/*/staging/{name}"))
                files = sorted(path for place in places for path in place.rglob("*") if "shards" in str(path))
                file = [path for path in files if path.is_file()][-1]
                data = bytearray(file.read_bytes())
                data[len(data) // 2] ^= 1
                if what == "gone":
                    file.unlink()
                elif what == "no index":
                    made = json.loads(answer)
                    made["stores"]["1"]["index"] = made["stores"]["1"]["index"][:-8]
                    return json.dumps(made)
                else:
                    file.write_bytes(data if what == "flipped" else data[:-1])
            return answer

    used = use(Losing)
    extract(small, tmp_path / "home", backend)
    assert contents(tmp_path / "home") == wanted(backend)
    assert len(used[0].orders) == 4


def test_a_shard_that_never_arrives_is_an_error(
    small: Any, tmp_path: Path, use: Any, assert_sound: Any
) -> None:
    class Losing(ThreadCluster):
        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make":
                name = json.loads(arguments[0])["attempt"]
                for place in list((tmp_path / "home" / "stores").glob(f"*/*/staging/{name}")):
                    shutil.rmtree(place)
            return answer

    use(Losing)
    with pytest.raises(CaeavError, match=r"made 3 times on the cluster, did not arrive: FileNotFoundError"):
        extract(small, tmp_path / "home")
    assert assert_sound(tmp_path / "home") == 0


def test_a_straggler_is_overtaken_and_its_late_answer_ignored(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SLOW_S", 0.1)
    go_on = threading.Event()

    class Slow(ThreadCluster):
        seen: list[str] = []  # noqa: RUF012

        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make":
                shard = json.loads(arguments[0])["attempt"][:6]
                self.seen.append(shard)
                if shard == "000000" and self.seen.count(shard) == 1:
                    go_on.wait(20)
                elif self.seen.count("000000") == 2:
                    go_on.set()
                    time.sleep(0.3)  # the late one comes first
            return answer

    used = use(Slow)
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == wanted()
    assert sorted(used[0].seen) == ["000000", "000000", "000001"]


def test_killed_at_every_step_of_adoption(
    small: Any,
    tmp_path: Path,
    use: Any,
    wanted: Any,
    contents: Any,
    forked: Callable[[Callable[[], object]], int],
    die: Callable[..., None],
    assert_sound: Callable[[Path], int],
    fresh_home: Callable[[Path | None], Path],
) -> None:
    """The process that holds the locks is killed; the same command, with or without a cluster, makes the same bytes."""

    class Own(ThreadCluster):
        """With a single actor."""

        CPUS = (1.0,)

    use(Own)
    killed = 0
    for step in itertools.count(3, 11):
        home = fresh_home(None)

        def work(home: Path = home, step: int = step) -> None:
            failpoint(step, die, STEPS)
            extract(small, home)

        status = forked(work)
        assert_sound(home)
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"step {step}"
        killed += 1
        small.extract(home, cluster=ClusterOptions() if killed % 2 else None)
        assert contents(home) == wanted(), f"killed at step {step}"
    assert killed > 8


def test_devices_of_different_kinds_are_refused_unless_allowed(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any
) -> None:
    class Mixed(ThreadCluster):
        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "set_up" and number == 1:
                return json.dumps({**json.loads(answer), "kind": "other silicon"})
            return answer

    use(Mixed)
    with pytest.raises(CaeavError, match=r"computes with .*other silicon|another one with other silicon"):
        extract(small, tmp_path / "home")
    extract(small, tmp_path / "home", mixed_devices=True)
    assert contents(tmp_path / "home") == wanted()


def _show_actors(media: Path, patch: pytest.MonkeyPatch) -> None:
    """Let actors find the media in another folder than the command does."""
    start = ThreadCluster.start

    def elsewhere(self: ThreadCluster, settings: str, *rest: Any) -> Any:
        return start(self, json.dumps({**json.loads(settings), "media_root": str(media)}), *rest)

    patch.setattr(ThreadCluster, "start", elsewhere)


@pytest.mark.parametrize("what", ["store", "media folder", "file"])
def test_a_machine_without_store_or_media_ends_the_run(
    what: str,
    small: Any,
    tmp_path: Path,
    use: Any,
    wanted: Any,
    contents: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine lacks the file, not the clip: nothing is quarantined."""
    used = use(ThreadCluster)
    with monkeypatch.context() as patch:
        if what == "store":
            patch.setattr(actor_module, "sees_staging", lambda store, token: False)
            told = "does not see the store's folder"
        elif what == "file":
            patch.setattr(actor_module, "why_no_file", lambda path: "file not found")
            told = "which the machine that runs the command sees: file not found"
        else:
            _show_actors(tmp_path / "none", patch)
            told = "does not see the media folder"
        with pytest.raises(CaeavError, match=told) as refused:
            extract(small, tmp_path / "home")
    assert "mount at the same path" in str(refused.value) and len(used) == 1
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == wanted()


@pytest.mark.parametrize("what", ["ends", "length"])
def test_a_machine_that_sees_another_file_says_so(
    what: str,
    small: Any,
    tmp_path: Path,
    use: Any,
    wanted: Any,
    contents: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same path with other content: what it makes of it is not stored, and nothing is quarantined for it."""
    copy = tmp_path / "copy"
    shutil.copytree(small.media, copy)
    *_, own, lost = small.manifest.clips
    changed = copy / own.media
    data = changed.read_bytes()
    changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if what == "ends" else data + b"0")
    use(ThreadCluster)
    with monkeypatch.context() as patch:
        _show_actors(copy, patch)
        with pytest.raises(
            CaeavError, match=rf"^machine \S+ \(pid \d+\) sees another file at {changed} than"
        ):
            extract(small, tmp_path / "home")
    for state in states(tmp_path / "home"):
        assert set(state.indexes) <= {0} and list(state.quarantined) == [lost.key]
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == wanted()


def test_two_machines_that_read_other_bytes_of_one_file_end_the_run(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ends and length are the same; clips of one file in two shards. Then those that are stored are made anew."""
    monkeypatch.setattr(driver, "AT_ONCE", 1)  # one shard after the other
    shared, own = small.manifest.clips[0].media, small.manifest.clips[2].media

    class Other(ThreadCluster):
        CPUS = (1.0,)

        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            made = json.loads(answer)
            if method == "make" and own in made["media"]:
                return json.dumps({**made, "media": {**made["media"], shared: "1" * 32}})
            return answer

    use(Other)
    with pytest.raises(
        CaeavError, match=rf"{shared}: a machine of the cluster has read other bytes than"
    ) as refused:
        extract(small, tmp_path / "home")
    assert "--changed redo" in refused.value.hint
    assert [set(state.indexes) for state in states(tmp_path / "home")] == [{0}, {0}]
    use(ThreadCluster)
    with pytest.raises(MediaChanged) as changed:
        extract(small, tmp_path / "home")
    assert {change.key for change in changed.value.changes} == {small.manifest.keys[0]}
    small.extract(tmp_path / "home", cluster=ClusterOptions(), changed="redo")
    assert contents(tmp_path / "home") == wanted()


def test_what_is_adopted_leaves_staging_at_once(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "AT_ONCE", 1)
    seen: list[tuple[set[str], str]] = []

    class Looking(ThreadCluster):
        CPUS = (1.0,)

        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make":
                folders = (tmp_path / "home").rglob("staging/*/")
                seen.append(
                    ({path.name for path in folders if path.is_dir()}, json.loads(arguments[0])["attempt"])
                )
            return answer

    use(Looking)
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == wanted()
    assert len(seen) == 2 and all(there == {attempt} for there, attempt in seen)


def test_machines_that_go_while_their_actors_are_set_up_are_replaced(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any
) -> None:
    """However often; an actor that cannot be set up on a machine that stays is given up."""

    class Leaving(ThreadCluster):
        left = driver.MAX_START_DEATHS + 2

        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "set_up" and Leaving.left:
                Leaving.left -= 1
                raise ray_cluster.ActorLost("its node has died", machine=True, left=True)
            return answer

    class Broken(ThreadCluster):
        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            raise ray_cluster.ActorLost("it cannot import caeav", machine=True)

    use(Broken)
    with pytest.raises(CaeavError, match=r"3 actors died while they were set up: it cannot import caeav"):
        extract(small, tmp_path / "home")
    use(Leaving)
    extract(small, tmp_path / "home")
    assert contents(tmp_path / "home") == wanted() and not Leaving.left


def test_the_first_shards_of_several_actors_are_made_at_the_same_time(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any
) -> None:
    """No shard is there whose layout they could keep, and the later one comes first."""
    both, first = threading.Barrier(2), threading.Event()

    class Together(ThreadCluster):
        def after(self, number: int, method: str, answer: str, *arguments: str) -> str:
            if method == "make":
                both.wait(20)
                if '"number": 0' in arguments[0]:
                    first.wait(0.5)
            return answer

    used = use(Together)
    extract(small, tmp_path / "home", "zarr")
    assert contents(tmp_path / "home") == wanted("zarr")
    assert [order["orders"]["0"]["like"] for order in used[0].orders] == ["", ""]


def test_a_first_shard_whose_arrays_fit_no_other_is_refused(
    small: Any, tmp_path: Path, use: Any, assert_sound: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run on one machine: a Zarr array has one shape for all clips. What came first stays."""
    publish = StagedShard.publish

    def cut(self: StagedShard, plan: Any, records: Mapping[str, Any]) -> None:
        if plan.number == 1 and self.recipe.kind == "tokens":
            records = {
                key: replace(record, arrays={name: x[:-1] for name, x in record.arrays.items()})
                for key, record in records.items()
            }
        publish(self, plan, records)

    monkeypatch.setattr(StagedShard, "publish", cut)
    use(ThreadCluster)
    with pytest.raises(
        StoreError, match=r"audio\.stage1.*, and a Zarr array has one shape for all clips\n.*webdataset"
    ):
        extract(small, tmp_path / "home", "zarr")
    assert assert_sound(tmp_path / "home") == 0


def test_an_exception_on_the_cluster_is_raised_with_its_traceback(
    small: Any, tmp_path: Path, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of an actor")

    use(ThreadCluster)
    monkeypatch.setattr(actor_module.ShardMaker, "_check_media", broken)
    with pytest.raises(
        RuntimeError, match=r"on the cluster: ZeroDivisionError: of an actor\n(.|\n)*in _make"
    ):
        extract(small, tmp_path / "home")


def test_clips_in_the_journal_of_a_killed_local_run_are_published_or_made_again(
    small: Any, tmp_path: Path, use: Any, wanted: Any, contents: Any, forked: Any
) -> None:
    home = tmp_path / "home"

    def work() -> None:
        keep, answer = StoreWriter.keep, local.WorkerPool._reply

        def kept(self: StoreWriter, record: Any) -> None:
            keep(self, record)
            os.kill(os.getpid(), signal.SIGKILL)

        StoreWriter.keep = kept  # type: ignore[method-assign]
        local.WorkerPool._reply = lambda *given: (time.sleep(0.2), answer(*given))[1]
        small.extract(home)

    assert forked(work) == -signal.SIGKILL and list(home.rglob("journal/*.log"))
    use(ThreadCluster)
    extract(small, home)
    assert contents(home) == wanted() and not list(home.rglob("journal"))
