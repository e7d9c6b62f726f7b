"""What is finished stays finished, in the middle of a shard too: after Ctrl-C, SIGTERM, SIGKILL, a full disk."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from caeav.manifests.core import atomic
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import collect, local
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.store import Record, StoreWriter
from caeav.pipeline.store.slices import Slice

SHARD = 8
"""More than there are clips: nothing is published before all are done."""


@pytest.fixture
def asked(inline: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """The clips that were decoded, with the stores they were decoded for; clips are decoded in this process."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    inline_pool: Any = local.WorkerPool

    class Counting(inline_pool):  # type: ignore[misc]
        def _reply(self, request: Mapping[str, Any]) -> Any:
            seen.append((request["id"], tuple(request["jobs"])))
            return super()._reply(request)

    monkeypatch.setattr(local, "WorkerPool", Counting)
    return seen


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been kept, by the names of store and clip."""
    done: list[str] = []
    keep = StoreWriter.keep

    def noted(writer: StoreWriter, record: Record) -> None:
        keep(writer, record)
        done.append(f"{writer.recipe.kind} {record.key}")

    monkeypatch.setattr(StoreWriter, "keep", noted)
    return done


def extract(small: Any, home: Path, backend: str = "webdataset", shard: int = SHARD, **run: Any) -> list[int]:
    """Tokens and captions of `small` in one pass; how many clips each store had to make."""
    options = [
        TokenOptions(shard_clips=shard, backend=backend),
        CaptionOptions(shard_clips=shard, backend=backend),
    ]
    done = extract_all(RunContext(small.manifest, Home(home), RunOptions(1, **run), lambda _: None), options)
    return [summary.due for summary in done]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    assert true()


def after(clips: int, asked: list[Any], do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `do` when the next clip after so many is asked for."""
    reply = local.WorkerPool._reply

    def stopped(pool: Any, request: Mapping[str, Any]) -> Any:
        if len(asked) == clips:
            do()
        return reply(pool, request)

    monkeypatch.setattr(local.WorkerPool, "_reply", stopped)


@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
@pytest.mark.parametrize("how", ["killed", "interrupted", "full"])
def test_finished_clips_of_an_open_shard_are_not_made_again(
    how: str,
    backend: str,
    small: Any,
    asked: list[Any],
    keeping: list[str],
    forked: Callable[[Callable[[], object]], int],
    contents: Callable[[Path], dict[str, str]],
    sound_so_far: Callable[[Path], int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    assert extract(small, calm, backend) == [4, 4]
    asked.clear()

    def work() -> None:
        keeping.clear()

        def stop() -> None:
            if how == "killed":
                until(lambda: len(keeping) == 4)
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "interrupted":
                raise KeyboardInterrupt
            until(lambda: len(keeping) == 4)
            monkeypatch.setattr(atomic, "write_bytes", full)

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        after(2, asked, stop, monkeypatch)
        try:
            extract(small, home, backend)
        except KeyboardInterrupt:
            os._exit(130)
        except OSError as error:
            os._exit(error.errno or 0)

    assert forked(work) == {"killed": -signal.SIGKILL, "interrupted": 130, "full": errno.ENOSPC}[how]
    assert sound_so_far(home) == 0
    assert extract(small, home, backend) == [1, 1], "the missing file was quarantined, the third clip is left"
    assert [key for key, _ in asked] == [small.manifest.clips[2].key]
    assert contents(home) == contents(calm)
    assert not list(home.rglob("journal"))


def test_interrupted_everything_settled_is_kept_and_nothing_waits_for_whole_shards(
    small: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch, contents: Any, tmp_path: Path
) -> None:
    """A shard that is whole but waits to be written is kept in a journal: on the way out there may be no time."""
    calm, home = tmp_path / "calm", tmp_path / "home"
    extract(small, calm, shard=1)
    asked.clear()
    held, begun = [], threading.Event()
    write_shard = collect.Collector._write_shard

    def slowly(collector: Any, store: Any, plan: Any, made: Any) -> None:
        if made:
            held.append(plan)
            begun.set()
            collector._hurry.wait(60)
        write_shard(collector, store, plan, made)

    with monkeypatch.context() as patched:
        patched.setattr(collect.Collector, "_write_shard", slowly)

        def stop() -> None:
            begun.wait(60)
            raise KeyboardInterrupt

        after(1, asked, stop, patched)
        with pytest.raises(KeyboardInterrupt):
            extract(small, home, shard=1)
    assert len(held) == 1, "the one that was being written is, the other is not begun"
    assert extract(small, home, shard=1) == [2, 2]
    assert contents(home) == contents(calm)


def test_interrupted_while_a_whole_shard_waits_to_be_taken_nothing_of_it_is_lost(
    small: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch, contents: Any, tmp_path: Path
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    extract(small, calm)
    asked.clear()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(collect.Collector, "_publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(small, home)
    assert len(asked) == 3
    assert extract(small, home) == [0, 1], "the tokens of all three are kept, the captions of two"
    assert contents(home) == contents(calm)


def test_a_clip_finished_in_one_store_is_made_for_the_others_alone(
    small: Any,
    asked: list[Any],
    keeping: list[str],
    monkeypatch: pytest.MonkeyPatch,
    contents: Any,
    tmp_path: Path,
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    extract(small, calm)
    asked.clear()
    keeping.clear()
    settle = collect.Collector.settle

    def first_store_only(collector: Any, store: Any, key: str, result: Any) -> bool:
        if store.writer.recipe.kind == "captions" and isinstance(result, Record):
            raise KeyboardInterrupt
        return settle(collector, store, key, result)

    with monkeypatch.context() as patched:
        patched.setattr(collect.Collector, "settle", first_store_only)
        with pytest.raises(KeyboardInterrupt):
            extract(small, home)
    first, second, third, _ = (clip.key for clip in small.manifest.clips)
    assert {*keeping} == {f"tokens {first}"}
    asked.clear()
    assert extract(small, home) == [2, 3]
    assert asked == [(first, (1,)), (second, (0, 1)), (third, (0, 1))]
    assert contents(home) == contents(calm)


def test_a_slice_keeps_its_own(
    small: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch, contents: Any, tmp_path: Path
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    part = Slice(1, 2)
    assert extract(small, calm, shard=2, part=part) == [2, 2]
    asked.clear()

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        after(1, asked, stop, patched)
        with pytest.raises(KeyboardInterrupt):
            extract(small, home, shard=2, part=part)
    assert extract(small, home, shard=2, part=part) == [1, 1]
    assert contents(home) == contents(calm)


def test_what_is_kept_is_synced_in_time(
    small: Any, asked: list[Any], keeping: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also while nothing more comes: a clip of a large captioner takes minutes."""
    synced: list[str] = []
    sync = StoreWriter.sync

    def noted(writer: StoreWriter) -> None:
        if writer.unsynced:
            synced.append(writer.recipe.kind)
        sync(writer)

    monkeypatch.setattr(StoreWriter, "sync", noted)
    monkeypatch.setattr(collect, "SYNC_S", 0.05)
    after(2, asked, lambda: until(lambda: {*synced} == {"tokens", "captions"}), monkeypatch)
    extract(small, tmp_path)
    assert len(keeping) == 4, "the last clip of a shard follows at once"


def test_on_the_way_out_what_is_kept_is_synced(
    small: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left: list[bool] = []
    close = StoreWriter.close

    def closing(writer: StoreWriter) -> None:
        left.append(writer.unsynced)
        close(writer)

    monkeypatch.setattr(StoreWriter, "close", closing)

    def stop() -> None:
        raise KeyboardInterrupt

    after(2, asked, stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        extract(small, tmp_path)
    assert left == [False, False] and list(tmp_path.rglob("journal/000000.log"))
