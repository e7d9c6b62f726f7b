"""Whether the tests would notice: small slips are put into the code, one at a time, and the tests named beside each
must fail.

    python benchmarks/mutants.py [PACKAGE|FILE ...] [--jobs N] [--changed-only [REF]]

The lists lie in `tests/mutants/<package>.yaml`, one mutant an entry:

    - file: model/train/loop.py             # where
      find: "lr = config.lr *"         # a snippet that occurs exactly once in that file
      replace: "lr = 2 * config.lr *"  # what it becomes; empty drops it
      tests: [tests/model/train/test_train_loop.py]  # files or test ids that should fail then
      equivalent: why nobody can tell  # only for a mutant that changes nothing; it is not run

Works on copies of the checkout in a scratch folder, never on the checkout; one copy a job. First all named tests are
run on an unchanged copy and must pass. A test that then fails, crashes or takes longer than `--timeout` kills the
mutant. Exit status 1 when less than 95 % of the mutants that are not equivalent are killed, 2 when a list is wrong: a
snippet that no longer fits, a test that is not there or fails without any mutant.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
LISTS = REPOSITORY / "tests" / "mutants"
PACKAGES = ("manifests", "pipeline", "model", "cli")
FACE = "caeav"
"""The folder of the Python interface: the package that the others are imported from."""
KEYS = {"file", "find", "replace", "tests", "equivalent"}
WANTED = 0.95
TIMEOUT_S = 300
KILLED, TIMED_OUT, SURVIVED, EQUIVALENT, ERROR = (
    "killed",
    "killed (timeout)",
    "SURVIVED",
    "equivalent",
    "ERROR",
)
PYTEST = ("-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider")
USAGE, NOTHING_COLLECTED = 4, 5  # pytest's; a conftest that cannot be imported gives USAGE too


@dataclass(frozen=True)
class Mutant:
    """One slip: in `file`, `find` becomes `replace`; `at`: its place in the lists."""

    at: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def apply(self, text: str) -> str:
        """The file's text with the slip in it."""
        return text.replace(self.find, self.replace, 1)


class Wrong(Exception):
    """A list that cannot be used as it is."""


def read_list(path: Path) -> list[Mutant]:
    """The mutants of one list; raises `Wrong` for an entry of another form."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except yaml.YAMLError as error:
        raise Wrong(f"{path.name}: {error}") from None
    mutants = []
    for number, entry in enumerate(entries, 1):
        at = f"{path.name}:{number}"
        texts = {k: v for k, v in entry.items() if k != "tests"} if isinstance(entry, dict) else {}
        if (
            not isinstance(entry, dict)
            or entry.keys() - KEYS
            or not {"file", "find", "replace"} <= entry.keys()
        ):
            raise Wrong(f"{at}: allowed keys: {', '.join(sorted(KEYS))}; file, find and replace are required")
        if not all(isinstance(value, str) for value in texts.values()):
            raise Wrong(f"{at}: every value is a text; quote it")
        tests = tuple(entry.get("tests") or ())
        if not tests and not entry.get("equivalent"):
            raise Wrong(f"{at}: names no test that should notice")
        mutants.append(Mutant(at, tests=tests, **texts))
    return mutants


def fault(mutant: Mutant, root: Path = REPOSITORY) -> str:
    """What is wrong with a mutant in the tree at `root`, or nothing."""
    path = root / mutant.file
    if not path.is_file():
        return f"{mutant.at}: no file {mutant.file}"
    text = path.read_text(encoding="utf-8")
    times = text.count(mutant.find) if mutant.find else 0
    if times != 1:
        return f"{mutant.at}: the snippet occurs {times} times in {mutant.file}, not once: {mutant.find!r}"
    if mutant.find == mutant.replace:
        return f"{mutant.at}: the replacement changes nothing in {mutant.file}"
    gone = [test for test in mutant.tests if not _is_there(test, root)]
    return f"{mutant.at}: no test {', '.join(gone)}" if gone else ""


def _is_there(test: str, root: Path) -> bool:
    """Whether a file of tests exists, or defines the test that an id names."""
    file, _, name = test.partition("::")
    path = root / file
    return path.is_file() and (
        not name or f"\ndef {name.partition('[')[0]}(" in path.read_text(encoding="utf-8")
    )


def chosen(only: Sequence[str], changed: frozenset[str] | None) -> list[Mutant]:
    """The listed mutants of the named packages, folders or files; with `changed`, only those they touch."""
    mutants = [mutant for path in sorted(LISTS.glob("*.yaml")) for mutant in read_list(path)]
    if only:
        unknown = [name for name in only if not any(_of(mutant, name) for mutant in mutants)]
        if unknown:
            raise Wrong(
                f"no mutant in {', '.join(unknown)}; packages: {', '.join(PACKAGES)}, or a file in one"
            )
        mutants = [mutant for mutant in mutants if any(_of(mutant, name) for name in only)]
    if changed is not None:
        touched = [{mutant.file, *(test.partition("::")[0] for test in mutant.tests)} for mutant in mutants]
        mutants = [mutant for mutant, files in zip(mutants, touched, strict=True) if files & changed]
    return mutants


def _of(mutant: Mutant, name: str) -> bool:
    return mutant.at == name or mutant.file == name or mutant.file.startswith(name.rstrip("/") + "/")


def changed_since(ref: str) -> frozenset[str]:
    """Files of the checkout that differ from `ref`, and new ones."""
    differing = _git("diff", "--name-only", ref)
    return frozenset(differing + _git("ls-files", "--others", "--exclude-standard"))


def _git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise Wrong(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


HEAVY = (
    *("numpy", "torch", "pydantic", "yaml", "safetensors.torch", "tqdm", "typer", "PIL.Image"),
    *("av", "hypothesis", "rich.console", "rich.table"),
)
SERVER = """
import importlib, json, os, signal, sys, time
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
import pytest
child = 0
def end(*_):
    try:
        if child:
            os.killpg(child, signal.SIGKILL)
    finally:
        os._exit(1)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, signal.SIG_IGN)  # of whoever started it, who then ends it
print("ready", flush=True)
for line in iter(sys.stdin.readline, ""):
    arguments, log, timeout_s = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, path in enumerate((os.devnull, log, log)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        sys.exit(int(pytest.main(arguments)))
    end, done, status = time.monotonic() + timeout_s, 0, 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0 if done else 0.01)
    try:
        os.killpg(child, signal.SIGKILL)  # out of time, or what a test left running
    except ProcessLookupError:
        pass
    if not done:
        os.waitpid(child, 0)
    print(json.dumps(os.waitstatus_to_exitcode(status) if done else None), flush=True)
"""
"""Runs pytest again and again, each time in a fork: heavy libraries are imported once, `caeav` each time anew."""


class Tree:
    """A copy of the checkout whose packages are imported as `caeav` before the installed ones, by children too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._server: subprocess.Popen[str] | None = None
        skipped = shutil.ignore_patterns(
            ".git", ".venv*", "build", "dist", "__pycache__", ".*_cache", "caeav_home"
        )
        shutil.copytree(REPOSITORY, root, ignore=skipped)
        names = root / ".names" / "caeav"
        names.mkdir(parents=True)
        for held in (*(root / package for package in PACKAGES), *(root / FACE).glob("*.py")):
            (names / held.name).symlink_to(held)
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(names.parent), os.environ.get("PYTHONPATH")])),
            "CAEAV_SHARED": os.environ.get("CAEAV_SHARED", str(REPOSITORY.parent / "shared")),
            "PYTHONSAFEPATH": "1",  # else the checkout's own folder `caeav` would be found first
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # no test needs one, and they take longer than most tests
        }
        # Compiled files are compared with their source by second and size: every version gets a second of its own.
        self._seconds = itertools.count(int(time.time()) + 2)
        self._check()

    def _check(self) -> None:
        asked = ["caeav", *(f"caeav.{package}" for package in PACKAGES)]
        code = f"import importlib; [print(importlib.import_module(n).__file__) for n in {asked}]"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        strays = [line for line in done.stdout.splitlines() if not Path(line).is_relative_to(self.root)]
        if done.returncode or strays:
            raise Wrong(f"the copy at {self.root} is not what is imported: {strays or done.stderr.strip()}")

    def run(self, tests: Iterable[str], timeout_s: float) -> tuple[int | None, str]:
        """pytest's exit status (None: out of time) and what it said."""
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER, *HEAVY],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._answer()
        log, scratch = (self.root.parent / f"{self.root.name}-{what}" for what in ("log", "tmp"))
        log.unlink(missing_ok=True)
        assert self._server.stdin is not None
        asked = [[*PYTEST, f"--basetemp={scratch}", *tests], str(log), timeout_s]
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        status = json.loads(self._answer())
        return status, log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def _answer(self) -> str:
        assert self._server is not None and self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise Wrong(f"the process that runs the tests of {self.root} ended")
        return line

    def close(self) -> None:
        """End the process that runs the tests."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait()

    def verdict(self, mutant: Mutant, timeout_s: float) -> tuple[str, str]:
        """What became of the mutant, and by what."""
        path = self.root / mutant.file
        text = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutant.apply(text))
            status, said = self.run(mutant.tests, timeout_s)
        finally:
            self._write(path, text)
        if status is None:
            return TIMED_OUT, f"after {timeout_s:.0f} s"
        if status == 0:
            return SURVIVED, ""
        if status == NOTHING_COLLECTED or (status == USAGE and "while loading conftest" not in said):
            return ERROR, _reason(said)
        return KILLED, _reason(said)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        second = next(self._seconds)
        os.utime(path, (second, second))


def _reason(said: str) -> str:
    """The test that failed, from pytest's last lines."""
    lines = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" - ")[0] if lines else (said.strip().splitlines() or ["crashed"])[-1]


def require_passing(tree: Tree, mutants: Sequence[Mutant], timeout_s: float) -> None:
    """Raise `Wrong` unless every named test passes on the unchanged copy."""
    tests = dict.fromkeys(test for mutant in mutants if not mutant.equivalent for test in mutant.tests)
    whole = [
        test for test in tests if test.partition("::")[0] == test or test.partition("::")[0] not in tests
    ]
    if not whole:
        return
    status, said = tree.run(whole, timeout_s * len(whole))
    if status != 0:
        last = "\n".join(said.splitlines()[-20:])
        raise Wrong(f"the named tests do not pass without any mutant:\n{last}")


def run_all(mutants: Sequence[Mutant], jobs: int, timeout_s: float, *, unchanged: bool) -> Counter[str]:
    """Judge every mutant, print a row each, and count the verdicts."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="caeav-mutants-") as scratch:
        made = [Tree(Path(scratch).resolve() / f"job{number}") for number in range(jobs)]
        if unchanged:
            require_passing(made[0], mutants, timeout_s)
        trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for tree in made:
            trees.put(tree)

        def judge(mutant: Mutant) -> tuple[Mutant, str, str]:
            if mutant.equivalent:
                return mutant, EQUIVALENT, mutant.equivalent
            tree = trees.get()
            try:
                return mutant, *tree.verdict(mutant, timeout_s)
            finally:
                trees.put(tree)

        print("| mutant | file | becomes | verdict | by |\n|---|---|---|---|---|", flush=True)
        with ThreadPoolExecutor(jobs) as pool, ExitStack() as closing:
            for tree in made:
                closing.callback(tree.close)
            for mutant, verdict, by in pool.map(judge, mutants):
                counts[verdict] += 1
                became = f"`{_short(mutant.find)}` -> `{_short(mutant.replace)}`"
                print(f"| {mutant.at} | {mutant.file} | {became} | {verdict} | {by} |", flush=True)
    return counts


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= width else line[: width - 1] + "…"


def main() -> int:
    """Print the table; the exit status is the verdict over all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", metavar="PACKAGE|FILE", help="these alone, or one as model.yaml:3")
    parser.add_argument("--jobs", type=int, default=1, help="mutants judged at once")
    parser.add_argument(
        "--changed-only",
        nargs="?",
        const="HEAD",
        metavar="REF",
        help="where code or tests differ from REF (HEAD)",
    )
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds a mutant's tests may take")
    parser.add_argument(
        "--skip-unchanged", action="store_true", help="trust that the tests pass without a mutant"
    )
    args = parser.parse_args()
    try:
        mutants = chosen(args.only, None if args.changed_only is None else changed_since(args.changed_only))
        faults = list(filter(None, map(fault, mutants)))
        if faults:
            raise Wrong("\n".join(faults))
        counts = run_all(mutants, max(args.jobs, 1), args.timeout, unchanged=not args.skip_unchanged)
    except Wrong as error:
        print(error, file=sys.stderr)
        return 2
    real = sum(counts.values()) - counts[EQUIVALENT]
    killed = counts[KILLED] + counts[TIMED_OUT]
    share = f"{100 * killed / real:.1f} %" if real else "none to kill"
    print(
        f"\n{real} mutants, {killed} killed ({share}; {counts[TIMED_OUT]} by the timeout), "
        f"{counts[SURVIVED]} survived, {counts[ERROR]} in error, {counts[EQUIVALENT]} equivalent"
    )
    if counts[ERROR]:
        return 2
    return int(killed < WANTED * real)


if __name__ == "__main__":
    sys.exit(main())
