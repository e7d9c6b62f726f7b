"""Fixtures for all tests: shared real data, one thread per process, working interrupts, optional packages.

A test that needs an optional package or command is skipped where it is missing; the end of the run lists the reasons.
`CAEAV_TEST_WITHOUT=torchcodec,ffmpeg` runs the tests as on a machine that lacks these (any of `ABSENT`), child
processes included. `--skipped-to FILE` writes one line per skipped test: reason, tab, test.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# One thread per process, here and in the processes that tests start: tests run in parallel, and threads that wait for
# each other on busy cores cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell makes background jobs ignore Ctrl-C, and their child processes inherit that; the tests of interrupts need
# processes that react to it.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
ABSENT_FOLDER = REPOSITORY / "tests" / "absent"


def _load_absent() -> Any:
    """Load `tests/absent/sitecustomize.py`, which hides packages when it is loaded."""
    spec = importlib.util.spec_from_file_location("caeav_tests_absent", ABSENT_FOLDER / "sitecustomize.py")
    assert isinstance(spec, ModuleSpec) and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_absent = _load_absent()
ABSENT = (*_absent.PACKAGES, *_absent.COMMANDS, "gpu", "shared")
_hidden: list[str] = _absent.hidden_names()
if _hidden:
    others = [x for x in os.environ.get("PYTHONPATH", "").split(os.pathsep) if x and x != str(ABSENT_FOLDER)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ABSENT_FOLDER), *others])
    os.environ["PATH"] = _absent.path_without(_hidden)
    if "gpu" in _hidden:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "shared" in _hidden:
        os.environ["CAEAV_SHARED"] = str(ABSENT_FOLDER / "no-shared-data")

settings.register_profile(
    "no-wall-time", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no defect
settings.load_profile("no-wall-time")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--skipped-to", metavar="FILE", help="write the skipped tests, each with its reason")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse unknown names, which would otherwise hide nothing."""
    unknown = sorted(set(_hidden) - set(ABSENT))
    if unknown:
        raise pytest.UsageError(
            f"CAEAV_TEST_WITHOUT: {', '.join(unknown)}; known: {', '.join(sorted(ABSENT))}"
        )


def pytest_report_header() -> str | None:
    return f"hidden in this run: {', '.join(_hidden)}" if _hidden else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print each reason for skipping once, with the number of tests."""
    skipped = [(_reason(report), report.nodeid) for report in terminalreporter.stats.get("skipped", [])]
    if skipped:
        terminalreporter.section("skipped, by reason")
        for reason, count in Counter(reason for reason, _ in skipped).most_common():
            terminalreporter.write_line(f"{count:5}  {reason}")
    if config.option.skipped_to:
        lines = [f"{reason}\t{test}\n" for reason, test in skipped]
        Path(config.option.skipped_to).write_text("".join(lines), encoding="utf-8")


def _reason(report: pytest.TestReport) -> str:
    """The reason on one line, without pytest's prefix."""
    shown = report.longrepr
    text = shown[2] if isinstance(shown, tuple) else str(shown)
    return " ".join(text.removeprefix("Skipped: ").split())


Needs = Callable[[str], None]


@pytest.fixture(scope="session")
def needs() -> Needs:
    """`needs(name)` skips the test where a package or command is missing or does not load."""

    def check(name: str) -> None:
        if name in _absent.COMMANDS:
            if shutil.which(name) is None:
                pytest.skip(f"no {name} command here")
        elif importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
        else:
            try:
                importlib.import_module(name)
            except (
                ImportError,
                RuntimeError,
                OSError,
            ) as error:  # torchcodec without FFmpeg, CUDA builds without CUDA
                why = "the system has no FFmpeg libraries" if "libav" in str(error) else str(error)
                pytest.skip(f"{name} does not load here: {(why.splitlines() or ['no reason given'])[0]}")

    return check


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where the machine has one: syncing, which stores do often, is free there."""
    shared_memory = Path("/dev/shm")
    parent = shared_memory if os.access(shared_memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode clips in this process."""
    from inline_pool import InlinePool

    from caeav.pipeline.extract import local

    monkeypatch.setattr(local, "WorkerPool", InlinePool)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real media, annotations and vectors: `CAEAV_SHARED`, by default `../shared`."""
    folder = Path(os.environ.get("CAEAV_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set CAEAV_SHARED")
    return folder.resolve()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """An S3 server in this process, shared by all tests."""
    from s3_server import S3

    with S3() as server:
        yield server


@pytest.fixture
def s3(s3_server: Any, needs: Needs, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emptied S3 server; its address is in the environment, and clients retry only briefly."""
    needs("obstore")
    from caeav.pipeline.store.remote import faults

    s3_server.clear()
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(faults, "PATIENCE", faults.Patience(4, 0.005, 0.02, 20.0))
    return s3_server


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY
