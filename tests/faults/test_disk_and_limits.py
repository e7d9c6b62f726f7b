"""Full and read-only disks, missing permissions, too few file handles, and decode processes that crash or hang.

Each is a clear error with a next step, nothing finished is lost, and the same command continues afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from failing_steps import STEPS, failpoint
from forked_command import run_command

from caeav.manifests.core import atomic
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import local
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import TokenOptions
from caeav.pipeline.extract.tokens import extract
from caeav.pipeline.store import StoreReader

PR_CAPBSET_DROP = 24
DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER = 1, 2, 3


def command(small: Any, home: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `caeav extract` on the whole generated data set in a separate process."""
    line = ["extract", "--dataset", "synthetic", "--root", str(small.media)]
    line += ["--home", str(home), "--workers", "1", "--shard-clips", "3"]
    if options:
        program = [sys.executable, "-m", "caeav.cli", *line]
        return subprocess.run(program, capture_output=True, text=True, timeout=240, check=False, **options)
    return run_command(line)


@pytest.fixture(scope="module")
def wanted(small: Any, contents: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of an undisturbed command."""
    home = tmp_path_factory.mktemp("calm")
    done = command(small, home)
    assert done.returncode == 0, done.stderr
    return dict(contents(home))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """The mount point of a small file system, used by this test only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64m", "caeav-test"]
    done = mount and subprocess.run(
        [mount, *options, str(folder)], capture_output=True, text=True, check=False
    )
    if not done or done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip() if done else 'no mount command'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def assert_clear_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error: ") == 1
    for text in ("next: ", *parts):
        assert text in done.stderr


def resize(disk: Path, how: str) -> None:
    option = how if how == "ro" else f"rw,size={how}"
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_a_full_disk_is_a_clear_error_and_keeps_finished_shards(
    small: Any, wanted: dict[str, str], contents: Any, assert_sound: Any, tiny_disk: Path
) -> None:
    command(small, tiny_disk / "home")
    shards = [path.stat().st_size for path in tiny_disk.rglob("*.tar")]
    shutil.rmtree(tiny_disk / "home")
    resize(tiny_disk, str(int(sum(shards) * 0.6)))
    done = command(small, tiny_disk / "home")
    assert_clear_error(
        done, "No space left on device", "make room on that disk", "run the same command again"
    )
    assert assert_sound(tiny_disk / "home") == 0
    assert not list(tiny_disk.rglob(".part-*"))
    kept = {name: digest for name, digest in contents(tiny_disk / "home").items() if ".tar" in name}
    assert kept and kept.items() < wanted.items()
    resize(tiny_disk, "64m")
    again = command(small, tiny_disk / "home")
    assert again.returncode == 0 and contents(tiny_disk / "home") == wanted


def test_a_read_only_disk_is_a_clear_error_and_can_be_read(
    small: Any, wanted: dict[str, str], contents: Any, tiny_disk: Path
) -> None:
    resize(tiny_disk, "ro")
    done = command(small, tiny_disk / "home")
    assert_clear_error(done, "Read-only file system", "choose a --home on a writable disk")
    resize(tiny_disk, "64m")
    assert command(small, tiny_disk / "home").returncode == 0
    assert contents(tiny_disk / "home") == wanted
    resize(tiny_disk, "ro")
    [store] = (tiny_disk / "home").glob("stores/*/*/")
    assert len(list(StoreReader.open(store))) == 12  # reading needs no writing


def drop_root_rights() -> None:
    """Give up root's right to ignore permissions; other users have nothing to give up."""
    for right in (DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, right, 0, 0, 0)


def test_a_missing_permission_is_a_clear_error(small: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    done = command(small, home, preexec_fn=drop_root_rights)
    if os.geteuid() == 0 and done.returncode == 0:
        pytest.skip("runs as root, whose rights cannot be dropped here")
    assert_clear_error(done, "Permission denied", "get permission for that path, or choose another --home")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize(("backend", "stride"), [("webdataset", 7), ("zarr", 29)])
def test_a_disk_error_at_any_step_loses_nothing(
    code: int,
    backend: str,
    stride: int,
    small: Any,
    inline: None,
    contents: Any,
    assert_sound: Any,
    fresh_home: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = fresh_home(None)
    small.extract(home, backend)
    wanted = contents(home)

    def fail(name: str, args: tuple[Any, ...]) -> None:
        raise OSError(code, os.strerror(code))

    failed = 0
    first = {errno.ENOSPC: 1, errno.EIO: 2, errno.EDQUOT: 3}[code]
    for step in itertools.count(first, stride):
        home = fresh_home(None)

        with monkeypatch.context() as patched:
            for name in STEPS:  # undone afterwards
                patched.setattr(atomic, name, getattr(atomic, name))
            failpoint(step, fail)
            status = 0
            try:
                small.extract(home, backend)
            except OSError as error:
                status = error.errno or 0
        assert_sound(home)
        if status == 0:
            break
        assert status == code, f"step {step}"
        failed += 1
        assert not list(home.rglob(".part-*")), f"step {step}: temp files must be removed"
        small.extract(home, backend)
        assert contents(home) == wanted, f"step {step}"
    assert failed > 8


@pytest.mark.parametrize("handles", [6, 9, 16, 24, 32])
def test_too_few_file_handles_are_a_clear_error_or_suffice(
    handles: int, small: Any, wanted: dict[str, str], contents: Any, assert_sound: Any, tmp_path: Path
) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))

    done = command(small, tmp_path, preexec_fn=few)
    if done.returncode:
        assert_clear_error(done, "ulimit -n")
        assert_sound(tmp_path)
        assert command(small, tmp_path).returncode == 0
    assert contents(tmp_path) == wanted


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("segfault", "decode process died with SIGSEGV (2 attempts)"),
        ("hang", "no answer within 3 s (2 attempts)"),
        ("memory", "out of memory (limit "),
    ],
)
def test_a_decode_process_that_crashes_hangs_or_takes_memory_costs_only_its_clip(
    name: str, reason: str, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(local, "SETUP", "hostile_setup:setup")
    folder = tmp_path / "media"
    shutil.copytree(small.media, folder)
    first, second, third, _ = small.manifest.clips
    bad = folder / first.media
    bad.rename(bad.with_name(f"{name}.mp4"))
    media = str(Path(first.media).with_name(f"{name}.mp4"))
    manifest = replace(
        small.manifest, clips=(second, replace(first, media=media), third), media_root=str(folder)
    )
    run = RunOptions(workers=1, deadline_s=3.0)
    done = extract(RunContext(manifest, Home(tmp_path), run, lambda _: None), TokenOptions())
    [entry] = done.quarantined
    assert entry.key == first.key and entry.reason.startswith(reason), entry.reason
    assert StoreReader.open(done.path).keys == (second.key, third.key)
