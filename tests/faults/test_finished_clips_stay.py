"""Finished clips are kept even within an unfinished shard: after Ctrl-C, SIGKILL, a full disk."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from caeav.manifests.core import atomic
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import collect, local
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.store import Record, StoreWriter
from caeav.pipeline.store.slices import Slice

SHARD = 8
"""More clips per shard than there are clips: nothing is published before all are finished."""


@pytest.fixture
def decoded(inline: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """The decoded clips, each with the stores it was decoded for; decoding runs in this process."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    inline_pool: Any = local.WorkerPool

    class Counting(inline_pool):  # type: ignore[misc]
        def _reply(self, request: Mapping[str, Any]) -> Any:
            seen.append((request["id"], tuple(request["jobs"])))
            return super()._reply(request)

    monkeypatch.setattr(local, "WorkerPool", Counting)
    return seen


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of store and the key of each record that was kept."""
    done: list[str] = []
    keep = StoreWriter.keep

    def noted(writer: StoreWriter, record: Record) -> None:
        keep(writer, record)
        done.append(f"{writer.recipe.kind} {record.key}")

    monkeypatch.setattr(StoreWriter, "keep", noted)
    return done


def extract(small: Any, home: Path, backend: str = "webdataset", shard: int = SHARD, **run: Any) -> list[int]:
    """Extract tokens and captions of `small` in one pass; returns how many clips were due in each store."""
    options = [
        TokenOptions(shard_clips=shard, backend=backend),
        CaptionOptions(shard_clips=shard, backend=backend),
    ]
    done = extract_all(RunContext(small.manifest, Home(home), RunOptions(1, **run), lambda _: None), options)
    return [summary.due for summary in done]


def call_after(
    clips: int, decoded: list[Any], do: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Call `do` when the next clip is requested after `clips` clips were decoded."""
    reply = local.WorkerPool._reply

    def stopped(pool: Any, request: Mapping[str, Any]) -> Any:
        if len(decoded) == clips:
            do()
        return reply(pool, request)

    monkeypatch.setattr(local.WorkerPool, "_reply", stopped)


@pytest.mark.parametrize("backend", ["webdataset", "zarr"])
@pytest.mark.parametrize("how", ["killed", "interrupted", "full"])
def test_finished_clips_of_an_open_shard_are_not_made_again(
    how: str,
    backend: str,
    small: Any,
    decoded: list[Any],
    kept: list[str],
    forked: Callable[[Callable[[], object]], int],
    contents: Callable[[Path], dict[str, str]],
    assert_sound: Callable[[Path], int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    assert extract(small, calm, backend) == [4, 4]
    decoded.clear()

    def work() -> None:
        kept.clear()

        def stop() -> None:
            if how == "killed":
                wait_until(lambda: len(kept) == 4)
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "interrupted":
                raise KeyboardInterrupt
            wait_until(lambda: len(kept) == 4)
            monkeypatch.setattr(atomic, "write_bytes", full)

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        call_after(2, decoded, stop, monkeypatch)
        try:
            extract(small, home, backend)
        except KeyboardInterrupt:
            os._exit(130)
        except OSError as error:
            os._exit(error.errno or 0)

    assert forked(work) == {"killed": -signal.SIGKILL, "interrupted": 130, "full": errno.ENOSPC}[how]
    assert assert_sound(home) == 0
    assert extract(small, home, backend) == [1, 1], "the missing file was quarantined, the third clip is left"
    assert [key for key, _ in decoded] == [small.manifest.clips[2].key]
    assert contents(home) == contents(calm)
    assert not list(home.rglob("journal"))


def test_an_interrupted_run_keeps_finished_clips_without_writing_further_shards(
    small: Any, decoded: list[Any], monkeypatch: pytest.MonkeyPatch, contents: Any, tmp_path: Path
) -> None:
    """A complete shard that waits to be written is kept in a journal: a stopping process may have no time to write."""
    calm, home = tmp_path / "calm", tmp_path / "home"
    extract(small, calm, shard=1)
    decoded.clear()
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

        call_after(1, decoded, stop, patched)
        with pytest.raises(KeyboardInterrupt):
            extract(small, home, shard=1)
    assert len(held) == 1, "the shard under way is written, the next one is not begun"
    assert extract(small, home, shard=1) == [2, 2]
    assert contents(home) == contents(calm)


def test_an_interrupt_before_a_complete_shard_is_published_loses_none_of_its_clips(
    small: Any, decoded: list[Any], monkeypatch: pytest.MonkeyPatch, contents: Any, tmp_path: Path
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    extract(small, calm)
    decoded.clear()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(collect.Collector, "_publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(small, home)
    assert len(decoded) == 3
    assert extract(small, home) == [0, 1], "the tokens of all three are kept, the captions of two"
    assert contents(home) == contents(calm)


def test_a_clip_finished_in_one_store_is_made_only_for_the_others(
    small: Any,
    decoded: list[Any],
    kept: list[str],
    monkeypatch: pytest.MonkeyPatch,
    contents: Any,
    tmp_path: Path,
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    extract(small, calm)
    decoded.clear()
    kept.clear()
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
    assert {*kept} == {f"tokens {first}"}
    decoded.clear()
    assert extract(small, home) == [2, 3]
    assert decoded == [(first, (1,)), (second, (0, 1)), (third, (0, 1))]
    assert contents(home) == contents(calm)


def test_a_slice_keeps_its_finished_clips(
    small: Any, decoded: list[Any], monkeypatch: pytest.MonkeyPatch, contents: Any, tmp_path: Path
) -> None:
    calm, home = tmp_path / "calm", tmp_path / "home"
    part = Slice(1, 2)
    assert extract(small, calm, shard=2, part=part) == [2, 2]
    decoded.clear()

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        call_after(1, decoded, stop, patched)
        with pytest.raises(KeyboardInterrupt):
            extract(small, home, shard=2, part=part)
    assert extract(small, home, shard=2, part=part) == [1, 1]
    assert contents(home) == contents(calm)


def test_kept_records_are_synced_in_time(
    small: Any, decoded: list[Any], kept: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even while no further clip finishes: one clip can take minutes with a large captioner."""
    synced: list[str] = []
    sync = StoreWriter.sync

    def noted(writer: StoreWriter) -> None:
        if writer.unsynced:
            synced.append(writer.recipe.kind)
        sync(writer)

    monkeypatch.setattr(StoreWriter, "sync", noted)
    monkeypatch.setattr(collect, "SYNC_S", 0.05)
    call_after(2, decoded, lambda: wait_until(lambda: {*synced} == {"tokens", "captions"}), monkeypatch)
    extract(small, tmp_path)
    assert len(kept) == 4, "the last clip of the shard completes it and is not kept"


def test_an_interrupted_run_syncs_kept_records(
    small: Any, decoded: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unsynced_at_close: list[bool] = []
    close = StoreWriter.close

    def closing(writer: StoreWriter) -> None:
        unsynced_at_close.append(writer.unsynced)
        close(writer)

    monkeypatch.setattr(StoreWriter, "close", closing)

    def stop() -> None:
        raise KeyboardInterrupt

    call_after(2, decoded, stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        extract(small, tmp_path)
    assert unsynced_at_close == [False, False] and list(tmp_path.rglob("journal/000000.log"))
