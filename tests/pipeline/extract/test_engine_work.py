"""The engine's requests to child processes and its use of their replies, with a pool in this process."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from extraction import quiet

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import local
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.identity import MediaChanged
from caeav.pipeline.extract.jobs import TokenOptions
from caeav.pipeline.extract.progress import Progress
from caeav.pipeline.extract.tokens import extract, extract_all
from caeav.pipeline.media.workers.pool import Failure, Outcome, Request
from caeav.pipeline.store import StoreReader, open_for_writing
from caeav.pipeline.store.media_record import read_record

OPTIONS = TokenOptions(shard_clips=2)
OTHER = TokenOptions(shard_clips=3)
ONE = RunOptions(workers=1)


class Pool:
    """Stands in for `WorkerPool`: computes requests here, unless `answer` returns another outcome."""

    made: list[Pool]

    def __init__(self, setup: str, settings: Mapping[str, Any], **options: Any) -> None:
        module, _, name = setup.partition(":")
        self.job = getattr(importlib.import_module(module), name)(settings)
        self.options = options
        self.asked: list[Request] = []
        self.made.append(self)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def map(self, requests: Iterable[Request | None]) -> Iterator[Outcome]:
        for request in requests:
            assert request is not None, (
                "each outcome is taken before the next request, so a request must be ready"
            )
            self.asked.append(request)
            yield self.answer(request) or Outcome(str(request["id"]), *self.job(request))

    def answer(self, request: Request) -> Outcome | None:
        return None

    def nudge(self) -> None:
        """Nothing waits."""

    def interrupt(self, error: BaseException) -> None:
        """The stage raises it at the end."""


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    """The pools that were made."""
    monkeypatch.setattr(Pool, "made", [], raising=False)
    monkeypatch.setattr(Pool, "answer", lambda self, request: None)
    monkeypatch.setattr(local, "WorkerPool", Pool)
    return Pool.made


@pytest.fixture
def five(small_manifest: Manifest) -> Manifest:
    return replace(small_manifest, clips=small_manifest.clips[:5])


def test_each_clip_is_requested_once_in_order_for_all_stores(
    five: Manifest, pools: list[Pool], tmp_path: Path
) -> None:
    told: list[Progress] = []
    some = replace(five, clips=(*five.clips[:4], replace(five.clips[4], start_s=0.25)))
    summaries = extract_all(
        RunContext(some, Home(tmp_path), replace(ONE, workers=3, deadline_s=7.0), told.append),
        [OPTIONS, OTHER],
    )
    (pool,) = pools
    assert pool.asked == [
        {
            "id": clip.key,
            "path": str(Path(five.media_root) / clip.media),
            "start_s": clip.start_s,
            "jobs": [0, 1],
        }
        for clip in some.clips
    ]
    assert pool.options == {"workers": 3, "deadline_s": 7.0}
    assert [(s.stored, s.expected, s.due, s.quarantined) for s in summaries] == [(5, 5, 5, ())] * 2
    assert told[0] == Progress(0, 0, 5) and [p.done for p in told] == [0, 1, 2, 3, 4, 5]
    for summary in summaries:
        assert summary.bytes == StoreReader.open(summary.path).shard_bytes
    assert summaries[0].path != summaries[1].path


def test_there_are_no_more_processes_than_due_clips(
    five: Manifest, pools: list[Pool], tmp_path: Path
) -> None:
    two = replace(five, clips=five.clips[:2])
    made = extract(RunContext(two, Home(tmp_path), replace(ONE, workers=8, max_failed="50%"), quiet), OPTIONS)
    assert made.max_failed == 1
    assert pools[0].options["workers"] == 2
    again = extract(RunContext(two, Home(tmp_path), replace(ONE, workers=8), quiet), OPTIONS)
    assert len(pools) == 1 and (again.due, again.stored) == (0, 2)
    with pytest.raises(CaeavError, match="has no clips"):
        extract(RunContext(replace(five, clips=()), Home(tmp_path), ONE, quiet), OPTIONS)


def test_a_stored_clip_is_not_made_again(five: Manifest, pools: list[Pool], tmp_path: Path) -> None:
    extract(RunContext(replace(five, clips=five.clips[:3]), Home(tmp_path), ONE, quiet), OPTIONS)
    first, second = extract_all(RunContext(five, Home(tmp_path), ONE, quiet), [OPTIONS, OTHER])
    assert {str(r["id"]): r["jobs"] for r in pools[-1].asked} == {
        **{clip.key: [1] for clip in five.clips[:3]},
        **{clip.key: [0, 1] for clip in five.clips[3:]},
    }
    assert (first.due, second.due) == (2, 5)
    assert sum(first.notes.values()) <= sum(second.notes.values())
    for summary in (first, second):
        assert list(StoreReader.open(summary.path).keys) == [clip.key for clip in five.clips]
    assert any("new clips: 2" in text for text in first.remarks)
    assert not any("new clips" in text for text in second.remarks)


def test_a_failure_is_quarantined_in_each_store_with_its_reason_in_one_line(
    five: Manifest, pools: list[Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [clip.key for clip in five.clips]
    answers = {
        keys[1]: Outcome(keys[1], failure=Failure("decode", "it\n  broke ", 2)),
        keys[2]: Outcome(keys[2], failure=Failure("backbone", "odd", 1)),
        keys[3]: Outcome(keys[3], {}, {"nothing": 1}),
    }
    monkeypatch.setattr(Pool, "answer", lambda self, request: answers.get(str(request["id"])))
    told: list[Progress] = []
    summaries = extract_all(
        RunContext(five, Home(tmp_path), replace(ONE, max_failed="60%"), told.append), [OPTIONS, OTHER]
    )
    for summary in summaries:
        entries = {q.key: (q.stage, q.reason, q.attempts) for q in summary.quarantined}
        assert entries[keys[1]] == ("decode", "it broke", 2) and entries[keys[2]] == ("backbone", "odd", 1)
        assert entries[keys[3]][::2] == ("decode", 1) and {*entries} == {*keys[1:4]}
        assert (summary.stored, summary.max_failed) == (2, 3)
    assert told[-1].done == 5 and told[-1].failed == 3


def test_missing_media_are_not_requested(five: Manifest, pools: list[Pool], tmp_path: Path) -> None:
    gone = replace(five.clips[1], media="media/nowhere.mp4")
    summary = extract(
        RunContext(replace(five, clips=(five.clips[0], gone, *five.clips[2:])), Home(tmp_path), ONE, quiet),
        OPTIONS,
    )
    (entry,) = summary.quarantined
    assert (entry.stage, entry.reason) == ("media", "file not found: media/nowhere.mp4")
    assert gone.key not in {request["id"] for request in pools[0].asked} and summary.stored == 4


def test_notes_are_counted_by_clip_and_store(
    five: Manifest, pools: list[Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(self: Pool, request: Request) -> Outcome:
        arrays, info = self.job(request)
        for clip in info["clips"].values():
            clip["notes"] = [
                {"code": "b", "detail": "1"},
                {"code": "b", "detail": "2"},
                {"code": "a", "detail": ""},
            ]
        return Outcome(str(request["id"]), arrays, info)

    monkeypatch.setattr(Pool, "answer", noted)
    summary = extract(RunContext(five, Home(tmp_path), ONE, quiet), OPTIONS)
    assert list(summary.notes.items()) == [("a", 5), ("b", 5)], "clips, not notes"
    assert summary.seconds > 0
    three = replace(five, clips=five.clips[:3])
    extract(RunContext(three, Home(tmp_path / "other"), ONE, quiet), OPTIONS)
    first, second = extract_all(RunContext(five, Home(tmp_path / "other"), ONE, quiet), [OPTIONS, OTHER])
    assert (first.notes["a"], second.notes["a"]) == (2, 5)


def test_kept_and_missing_media_are_reported_for_the_store_that_has_them(
    five: Manifest, pools: list[Pool], tmp_path: Path
) -> None:
    root = tmp_path / "media"
    shutil.copytree(five.media_root, root)
    own = replace(five, media_root=str(root))
    changed, gone = own.clips[0], own.clips[1]
    made = extract(RunContext(own, Home(tmp_path / "h"), ONE, quiet), OPTIONS)
    before = read_record(made.path)
    assert before is not None and before[changed.media].whole
    shutil.copy(root / own.clips[4].media, root / changed.media)
    (root / gone.media).unlink()
    first, second = extract_all(
        RunContext(own, Home(tmp_path / "h"), replace(ONE, changed="keep"), quiet), [OPTIONS, OTHER]
    )
    assert {x.key for x in first.media} == {changed.key, gone.key} and second.media == ()
    assert (first.stored, second.stored) == (5, 4)
    assert [q.key for q in second.quarantined] == [gone.key] and not first.quarantined
    after = read_record(made.path)
    assert after is not None and after[changed.media] == before[changed.media]


def test_after_ctrl_c_settled_clips_are_kept(
    five: Manifest, pools: list[Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Pool, request: Request) -> Outcome | None:
        if request["id"] == five.clips[3].key:
            raise KeyboardInterrupt
        return None

    hurried: list[bool] = []
    hurry = local.Collector.hurry
    monkeypatch.setattr(local.Collector, "hurry", lambda self: (hurried.append(True), hurry(self))[1])
    monkeypatch.setattr(Pool, "answer", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(RunContext(five, Home(tmp_path), ONE, quiet), OPTIONS)
    assert hurried == [True]
    monkeypatch.setattr(Pool, "answer", lambda self, request: None)
    summary = extract(RunContext(five, Home(tmp_path), ONE, quiet), OPTIONS)
    assert [request["id"] for request in pools[-1].asked] == [clip.key for clip in five.clips[3:]]
    assert summary.stored == 5


def test_an_error_of_the_writing_thread_is_raised(
    five: Manifest, pools: list[Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("caeav.pipeline.store.writer.StoreWriter.publish", full)
    with pytest.raises(OSError, match="No space left"):
        extract(RunContext(five, Home(tmp_path), ONE, quiet), OPTIONS)


def test_remarks_on_opening_are_reported_and_in_the_summary(
    five: Manifest, pools: list[Pool], tmp_path: Path
) -> None:
    told: list[str] = []
    made = extract(RunContext(five, Home(tmp_path), ONE, quiet, told.append), OPTIONS)
    assert not [text for text in told if "new store" in text or "the record of its media" in text]
    told.clear()
    again = extract_all(RunContext(five, Home(tmp_path), ONE, quiet, told.append), [OPTIONS, OTHER])
    new = f"a new store is made; {made.path.name} was made by another recipe: fields.shard_clips: 2 -> 3"
    assert new in told and new in again[1].remarks and new not in again[0].remarks
    with open_for_writing(made.path.parent, made.recipe, five) as writer:
        assert writer.plan() == []


def test_changed_media_are_refused_before_a_store_is_changed(
    five: Manifest, pools: list[Pool], tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    root = tmp_path / "media"
    shutil.copytree(five.media_root, root)
    own = replace(five, media_root=str(root))
    extract(RunContext(replace(own, clips=own.clips[:2]), Home(tmp_path / "h"), ONE, quiet), OPTIONS)
    before = digests(tmp_path / "h")
    shutil.copy(root / own.clips[4].media, root / own.clips[0].media)
    with pytest.raises(MediaChanged, match=own.clips[0].key):
        extract(RunContext(own, Home(tmp_path / "h"), ONE, quiet), OPTIONS)
    assert digests(tmp_path / "h") == before and len(pools) == 1
