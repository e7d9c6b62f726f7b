"""Streams that nobody reads or that were closed from the beginning, signals, and the exit status then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CAEAV = [sys.executable, "-m", "caeav.cli"]


def shell(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`script` in sh with `"$@"` as the command."""
    line = ["sh", "-c", script, "sh", *CAEAV, *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=240, cwd=cwd, check=False)


def closed_pipe() -> int:
    """The writing end of a pipe whose reading end is closed."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_the_command_ends_silently_when_nobody_reads_its_results(tmp_path: Path) -> None:
    out = closed_pipe()
    done = subprocess.run(
        [*CAEAV, "models", "ls"], stdout=out, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(out)
    assert (done.returncode, done.stderr) == (141, "")


def test_results_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    for arguments in (["models", "ls"], ["--version"]):  # noticed when it is written, or only at the end
        done = shell('exec "$@" > /dev/full', *arguments, cwd=tmp_path)
        assert done.returncode == 1, arguments
        assert "error: " in done.stderr and "No space left" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home in which a command without any stream has made twelve clips."""
    folder = tmp_path_factory.mktemp("made")
    done = shell('exec "$@" 2>&- >&- <&-', "synthesise", "--clips", "12", "--home", "home", cwd=folder)
    assert done.returncode == 0
    assert len(list(folder.glob("home/data/synthetic/AVE/*.mp4"))) == 12
    return folder


def test_messages_for_a_closed_stderr_do_not_reach_stdout(made: Path) -> None:
    shown = shell('exec "$@" 2>&-', "synthesise", "--clips", "12", "--home", "home", cwd=made)
    assert shown.returncode == 0 and "split train" in shown.stdout and "wrote" not in shown.stdout
    refused = shell('exec "$@" 2>&-', "store", "verify", "nothing", "--home", "home", cwd=made)
    assert (refused.returncode, refused.stdout) == (1, "")


def test_an_unread_stderr_neither_ends_an_extraction_nor_costs_a_clip(made: Path) -> None:
    """The bar is drawn by threads that also settle clips."""
    line = [*CAEAV, "extract", "--dataset", "synthetic", "--home", "home", "--workers", "1", "--json"]
    err = closed_pipe()
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=err, text=True, cwd=made, check=False)
    os.close(err)
    assert done.returncode == 0 and '"stored": 12' in done.stdout and '"quarantined": []' in done.stdout


def test_the_number_of_a_closed_stream_is_given_to_no_file(tmp_path: Path) -> None:
    """What a library prints to it would be written into a shard."""
    script = (
        "from caeav.cli.surroundings import settle_in; settle_in(); import os, sys\n"
        "number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "os.write(2, b'printed by a library'); sys.stderr.write('said'); sys.exit(0 if number > 2 else 1)"
    )
    line = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", script, str(tmp_path / "shard")]
    assert subprocess.run(line, check=False).returncode == 0
    assert (tmp_path / "shard").read_bytes() == b""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_an_import_is_handled_after_it(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    """An imported module may swallow the exception; torch, half initialised in C++, aborts the process."""
    (tmp_path / "swallows.py").write_text(
        f"import os, time\ntry:\n    os.kill(os.getpid(), {int(sent)})\n    time.sleep(0.2)\n"
        "except BaseException:\n    print('swallowed')\nprint('imported')\n"
    )
    script = (
        "import time\nfrom caeav.cli.surroundings import settle_in, stopped_status\nsettle_in()\n"
        "try:\n    import swallows\n    time.sleep(20)\n    print('went on')\n"
        "except KeyboardInterrupt:\n    raise SystemExit(stopped_status())\n"
    )
    (tmp_path / "main.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "main.py"], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "imported\n", "")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_command_ends_the_process_silently(tmp_path: Path, sent: signal.Signals) -> None:
    """Also when another one came during an import just before."""
    script = (
        "import atexit, os, signal, sys, time\nimport caeav.cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"atexit.register(lambda: (time.sleep(0.1), os.kill(os.getpid(), {int(sent)}), time.sleep(20)))\n"
        "sys.argv = ['caeav', '--version']\n"
        "from caeav.cli import surroundings\n"
        "leaving = surroundings.leave\n"
        "caeav.cli.leave = lambda: (signal.signal(signal.SIGALRM, surroundings._stop), "
        "signal.setitimer(signal.ITIMER_REAL, 0.05), leaving())\n"
        "caeav.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (-sent, "")
    assert done.stdout.startswith("caeav ")
