"""Fixtures for all tests: where the shared real data lie, a single-threaded torch, interrupts that arrive, and what
is optional: tests skip for want of it, and the reasons come in one list at the end.

`CAEAV_TEST_WITHOUT=torchcodec,ffmpeg` runs them as on a machine that lacks these (any of `ABSENT`), child processes
included; `--skipped-to FILE` writes what was skipped, a line each: reason, tabulator, test.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# One thread a process, here and in the processes that tests start: tests run in parallel, and threads that wait for
# each other on taken cores cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts a job in the background lets it ignore Ctrl-C, and what the job starts inherits that; the tests of
# interrupts need processes that do not.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
HIDING = REPOSITORY / "tests" / "absent"


def _hiding() -> Any:
    """`tests/absent/sitecustomize.py`, which hides packages when it is loaded."""
    spec = importlib.util.spec_from_file_location("caeav_tests_absent", HIDING / "sitecustomize.py")
    assert isinstance(spec, ModuleSpec) and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_absent = _hiding()
ABSENT = (*_absent.PACKAGES, *_absent.COMMANDS, "gpu", "shared")
_away: list[str] = _absent.wanted_away()
if _away:
    held = [x for x in os.environ.get("PYTHONPATH", "").split(os.pathsep) if x and x != str(HIDING)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HIDING), *held])
    os.environ["PATH"] = _absent.path_without(_away)
    if "gpu" in _away:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "shared" in _away:
        os.environ["CAEAV_SHARED"] = str(HIDING / "no-shared-data")

settings.register_profile(
    "no-wall-time", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no defect
settings.load_profile("no-wall-time")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to write what was skipped."""
    parser.addoption("--skipped-to", metavar="FILE", help="write the skipped tests, each with its reason")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to take away what is not known, instead of taking away nothing."""
    unknown = sorted(set(_away) - set(ABSENT))
    if unknown:
        raise pytest.UsageError(
            f"CAEAV_TEST_WITHOUT: {', '.join(unknown)}; known: {', '.join(sorted(ABSENT))}"
        )


def pytest_report_header() -> str | None:
    """What is taken away."""
    return f"taken away for this run: {', '.join(_away)}" if _away else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Every reason for skipping in one line, with the number of tests."""
    skipped = [(_reason(report), report.nodeid) for report in terminalreporter.stats.get("skipped", [])]
    if skipped:
        terminalreporter.section("skipped, by reason")
        for reason, count in Counter(reason for reason, _ in skipped).most_common():
            terminalreporter.write_line(f"{count:5}  {reason}")
    if config.option.skipped_to:
        lines = [f"{reason}\t{test}\n" for reason, test in skipped]
        Path(config.option.skipped_to).write_text("".join(lines), encoding="utf-8")


def _reason(report: pytest.TestReport) -> str:
    """On one line, without pytest's own prefix."""
    held = report.longrepr
    text = held[2] if isinstance(held, tuple) else str(held)
    return " ".join(text.removeprefix("Skipped: ").split())


Needs = Callable[[str], None]


@pytest.fixture(scope="session")
def needs() -> Needs:
    """`needs(name)`: skip the test where a package or command is not there, or does not load."""

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
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips are decoded in this process."""
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
    """A server that speaks S3, one for all tests."""
    from s3_server import S3

    with S3() as server:
        yield server


@pytest.fixture
def s3(s3_server: Any, needs: Needs, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server without any object or fault, its address in the environment, and clients that lose patience soon."""
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
