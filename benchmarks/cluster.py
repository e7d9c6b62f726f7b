"""Tokens and captions made on a Ray cluster whose parts are killed at random: are the bytes those of one machine?

    python benchmarks/cluster.py [--kills 50] [--clips 48] [--nodes 3] [--seed 0] [--kinds actor node ...]

Runs a head and some nodes of one CPU each on this machine (`ray.cluster_utils`). Each round makes two stores (tokens
and captions, WebDataset and Zarr by turns) with `caeav extract --engine ray` in a new home, while parts are killed with
SIGKILL or as named below. A command that ended by it is run again, the same. Then every file is compared with that of a
local run. Exit status 1 when any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from caeav.pipeline.store.media_record import PREFIX, read_record

OBJECT_STORE_BYTES = 80 << 20
MARK = "CAEAV_TRIAL"
"""A variable in the environment of all that is started, and so known as ours."""
BACKENDS = ("webdataset", "zarr")
LONGEST_S = 400.0
TRIES = 4
"""To start a head: on a busy machine Ray gives up early."""
MOST = 8
"""Kills during one command."""
VANISH_S = 5.0
LOOPBACK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "OMP_NUM_THREADS": "1",
}
"""Several nodes on one busy machine, and on its loopback address alone, as on systems without real clusters."""
LONG_AGO_S = 1_000_000_000
"""One old time for all media: of young files a home records that their times say nothing yet."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--shard-clips", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KILLS, default=list(KILLS))
    args = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="caeav-cluster-") as folder:
        trial = Trial(Path(folder), args)
        try:
            trial.prepare()
            trial.run()
        except KeyboardInterrupt:
            print("interrupted; so far:")
        finally:
            trial.stop()
    print(f"{trial.rounds} rounds of 2 stores of {args.clips} clips, {time.monotonic() - began_s:.0f} s\n")
    print("| killed | times | command ended, was run again | seconds from the kill to the end (median) |")
    print("|---|---|---|---|")
    for kind in args.kinds:
        took = sorted(trial.took_s[kind])
        median = f"{took[len(took) // 2]:.0f}" if took else "-"
        print(f"| {KILLS[kind]} | {trial.killed[kind]} | {trial.ended[kind]} | {median} |")
    print(
        f"| all | {sum(trial.killed.values())} | {sum(trial.ended.values())} | |\n\n"
        f"{trial.compared} files compared with the local run's, {len(trial.differences)} differences"
    )
    for name in trial.differences:
        print(name)
    return 1 if trial.differences else 0


class Trial:
    """A cluster, a data set, and rounds of killing."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args = folder, args
        os.environ.update(LOOPBACK | {MARK: str(os.getpid())})
        self.wanted: dict[str, dict[str, str]] = {}
        self.random = random.Random(args.seed)
        self.rounds = self.compared = 0
        self.killed, self.ended = Counter[str](), Counter[str]()
        self.took_s: dict[str, list[float]] = defaultdict(list)
        self.differences: list[str] = []
        self.head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        self.cluster: Any = None
        self.command: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Rounds of both formats until so many kills were made; each kind comes once before any comes twice."""
        while sum(self.killed.values()) < self.args.kills or self.rounds < len(BACKENDS):
            backend, home = BACKENDS[self.rounds % len(BACKENDS)], self.folder / f"round-{self.rounds}"
            self.round(home, backend)
            self.compare(home, backend)
            self.rounds += 1
            print(f"round {self.rounds}, {sum(self.killed.values())} kills, {len(self.differences)} differences",
                  file=sys.stderr, flush=True)  # fmt: skip

    def prepare(self) -> None:
        """Make the media, and both stores in both formats on this machine alone."""
        media = self.folder / "media"
        caeav("synthesise", "--home", str(self.folder / "home"), "--root", str(media),
              "--clips", str(self.args.clips), "--seconds", "4", "--size", "64", "--fps", "5")  # fmt: skip
        for path in media.rglob("*"):
            os.utime(path, (LONG_AGO_S, LONG_AGO_S))
        for backend in BACKENDS:
            home = self.folder / f"local-{backend}"
            caeav(*self.arguments(home, backend))
            self.wanted[backend] = dict(files(home / "stores"))

    def compare(self, home: Path, backend: str) -> None:
        """Note the files that differ from those of this machine alone; the home is removed."""
        wanted, found = self.wanted[backend], dict(files(home / "stores"))
        self.differences += [
            f"{home.name}: {name}"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]
        self.compared += len(found)
        shutil.rmtree(home)

    def arguments(self, home: Path, backend: str) -> list[str]:
        return ["extract", "--captions", "--dataset", "synthetic", "--root", str(self.folder / "media"), "--home",
                str(home), "--shard-clips", str(self.args.shard_clips), "--backend", backend]  # fmt: skip

    @property
    def log(self) -> Path:
        """What the command says."""
        return self.folder / "log"

    def begin(self, home: Path, backend: str) -> None:
        """Start the command."""
        with self.log.open("w") as log:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "caeav.cli", *self.arguments(home, backend), "--engine", "ray"],
                env={**os.environ, "RAY_ADDRESS": self.cluster.address}, stdout=log, stderr=log,
            )  # fmt: skip

    def round(self, home: Path, backend: str) -> None:
        """One command until it is done, and kills meanwhile."""
        kills: list[tuple[str, float]] = []
        again = 0
        until_s = time.monotonic() + LONGEST_S
        while True:
            self.ensure_cluster()
            self.begin(home, backend)
            last = self.disturb(kills, until_s)
            try:
                status = self.command.wait(timeout=max(1.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise SystemExit(f"not done after {kills}:\n{self.log.read_text()}") from None
            said = self.log.read_text()
            if status == 0:
                break
            again += 1
            if last not in ("driver", "head") or again > 9:
                raise SystemExit(f"the command ended with status {status} after {kills}:\n{said}")
            if last == "head" and "the head of the Ray cluster" not in said:
                raise SystemExit(f"the head was killed, and the command said:\n{said}")
            self.ended[last] += 1
        for kind, at_s in kills:
            self.took_s[kind].append(time.monotonic() - at_s)

    def disturb(self, kills: list[tuple[str, float]], until_s: float) -> str:
        """Kill at random moments while actors work, at most `MOST` times a command -> the last kind that ends it."""
        last = ""
        for _ in range(self.random.randint(1, MOST)):
            while not self.actors():
                time.sleep(0.1)
                if self.command.poll() is not None or time.monotonic() > until_s:
                    return last
            pause_s = time.monotonic() + self.random.uniform(0.0, 3.0)
            while time.monotonic() < pause_s and self.command.poll() is None:
                time.sleep(0.05)
            left = self.args.kills - sum(self.killed.values())
            if self.command.poll() is not None or not left:
                return last
            kind = self.random.choice(
                [kind for kind in self.args.kinds if not self.killed[kind]] or self.args.kinds
            )
            if not ACTS[kind](self):
                continue
            self.killed[kind] += 1
            kills.append((kind, time.monotonic()))
            if kind in ("driver", "head"):
                return kind
        return last

    def actors(self) -> list[psutil.Process]:
        """The processes of actors."""
        return [process for process in of_cluster() if process.name().startswith("ray::ShardMaker")]

    def kill_actor(self) -> bool:
        return self.signal_one(self.actors(), signal.SIGKILL)

    def stop_actor(self) -> bool:
        """It is there and does nothing any more: a straggler."""
        return self.signal_one(self.actors(), signal.SIGSTOP)

    def kill_decoder(self) -> bool:
        children = [child for actor in self.actors() for child in actor.children(recursive=True)]
        return self.signal_one(children, signal.SIGKILL)

    def signal_one(self, processes: list[psutil.Process], number: int) -> bool:
        if not processes:
            return False
        with suppress(psutil.NoSuchProcess):
            self.random.choice(processes).send_signal(number)
            return True
        return False

    def kill_raylet(self) -> bool:
        if not self.nodes():
            return False
        node = self.random.choice(self.nodes())
        node.kill_raylet(check_alive=False)
        self.replace(node)
        return True

    def remove_node(self) -> bool:
        if not self.nodes():
            return False
        node = self.random.choice(self.nodes())
        self.replace(node)
        return True

    def replace(self, node: Any) -> None:
        """Remove a node ungracefully; another one joins."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()

    def add_node(self) -> None:
        """A node more, if it starts within the time that Ray gives it: on a busy machine it may not."""
        try:
            self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
        except Exception as error:  # Ray raises no other
            print(f"a node did not start: {error}", file=sys.stderr)

    def kill_driver(self) -> bool:
        self.command.kill()
        return True

    def kill_head(self) -> bool:
        self.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.command.wait(timeout=120)  # it may finish: actors outlive the head for a while
        self.stop_cluster()
        return True

    def vanish(self) -> bool:
        """Remove a file that waits to be adopted, as soon as there is one: it waits for a moment only."""
        until_s = time.monotonic() + VANISH_S
        while time.monotonic() < until_s and self.command.poll() is None:
            for path in self.folder.glob("round-*/stores/*/*/staging/*/shards*/**/*"):
                with suppress(OSError):
                    if path.is_file() and path.stat().st_nlink == 1:  # the store has no name for it yet
                        path.unlink()
                        return True
        return False

    def nodes(self) -> list[Any]:
        return list(self.cluster.worker_nodes)

    def ensure_cluster(self) -> None:
        """A cluster with all of its nodes."""
        from ray.cluster_utils import Cluster

        for left in reversed(range(TRIES)):
            if self.cluster is not None:
                break
            try:
                self.cluster = Cluster(initialize_head=True, connect=False, head_node_args=self.head)
            except Exception as error:
                if not left:
                    raise
                print(f"the head did not start: {error}", file=sys.stderr)
                self.stop_cluster()
        while len(self.cluster.worker_nodes) < self.args.nodes:
            self.add_node()
        for process in of_cluster():  # one that was stopped, of a command that is over
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def stop_cluster(self) -> None:
        if self.cluster is not None:
            with suppress(Exception):  # some of it is dead
                self.cluster.shutdown()
        self.cluster = None
        for process in of_cluster():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self) -> None:
        if self.command is not None and self.command.poll() is None:
            self.command.kill()
        self.stop_cluster()


ACTS: dict[str, Callable[[Trial], bool]] = {
    "actor": Trial.kill_actor,
    "stopped": Trial.stop_actor,
    "decoder": Trial.kill_decoder,
    "raylet": Trial.kill_raylet,
    "node": Trial.remove_node,
    "driver": Trial.kill_driver,
    "head": Trial.kill_head,
    "staged": Trial.vanish,
}
KILLS = {
    "actor": "an actor",
    "stopped": "an actor, stopped (SIGSTOP)",
    "decoder": "a decoding process",
    "raylet": "a raylet (Ray's process of a machine)",
    "node": "all of a machine",
    "driver": "the command itself",
    "head": "the cluster's head",
    "staged": "a file in staging, removed",
}


def of_cluster() -> list[psutil.Process]:
    """The processes of Ray that this one has started, directly or not."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            ours = process.pid != os.getpid() and process.environ().get(MARK) == str(os.getpid())
            if ours and not any("caeav.cli" in part for part in process.cmdline()):
                found.append(process)
    return found


def files(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file below a folder with its sha256; of what is recorded of media not the digests a kill costs."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name.startswith(PREFIX):
            seen = read_record(path.with_name(path.name.removeprefix(PREFIX))) or {}
            data = repr({name: replace(facts, whole=b"") for name, facts in seen.items()}).encode()
        yield path.relative_to(folder).as_posix(), hashlib.sha256(data).hexdigest()


def caeav(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "caeav.cli", *arguments], check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
