"""The parts between a decoded clip and a published shard, one by one: records, collecting, embedding, metering."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners.from_file import CaptionFileError
from caeav.pipeline.extract import collect, engine, preflight, progress, single_file
from caeav.pipeline.extract.collect import Collector, Filling, unfit
from caeav.pipeline.extract.components import frames_of, windows_of
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.decode_job import record_info
from caeav.pipeline.extract.embedding import Embedder
from caeav.pipeline.extract.jobs import CaptionJob, CaptionOptions, Job, TokenJob, TokenOptions, job_of
from caeav.pipeline.extract.progress import Meter, Progress
from caeav.pipeline.extract.records import ComputeFailed, RecordBuilder, decoded
from caeav.pipeline.media.clip import DecodedClip, Note, Sampling
from caeav.pipeline.media.workers.pool import Outcome
from caeav.pipeline.store import Quarantined, Recipe, Record
from caeav.pipeline.store.writer import ShardPlan

T = 2
INFO = {"frames_ok": [True, False], "audio_ok": [True, True], "notes": [], "facts": {"fps": 25}}


def part(runs_in: str, name: str = "p") -> Any:
    return SimpleNamespace(runs_in=runs_in, name=name)


def job(kind: type[Job], parts: dict[str, Any], dtype: str = "float16", rate_hz: int = 16_000) -> Job:
    sampling = {"segments": T, "segment_s": 1.0, "rate_hz": rate_hz}
    return kind(Recipe("tokens", "n", {"dtype": dtype, "sampling": sampling, "shard_clips": 4}), parts)


def outcome(
    arrays: dict[str, NDArray[Any]], texts: dict[str, Any], failed: dict[str, str] | None = None
) -> Outcome:
    clips = {"16000": INFO, "8000": {**INFO, "facts": {"fps": 8}}}
    return Outcome("k", arrays, {"clips": clips, "texts": texts, "failed": failed or {}})


def test_a_record_is_settled_when_its_last_part_arrives() -> None:
    settled: list[tuple[int, str, Record | Quarantined]] = []
    jobs = [
        job(TokenJob, {"visual": part("worker"), "audio": part("worker")}),
        job(TokenJob, {"visual": part("worker"), "audio": part("device")}, "float32", 8000),
        job(CaptionJob, {"visual": part("device"), "audio": part("device")}),
    ]
    made = RecordBuilder(jobs, lambda number, key, result: settled.append((number, key, result)))
    x = np.full((T, 1, 3), 1.5, np.float32)
    texts: dict[str, Any] = {"0": {}, "1": {}, "2": {}}
    arrived = outcome({"0/v": x, "0/a": x + 1, "1/v": x + 2, "frames": x, "wave@8000": x}, texts)
    assert made.add_reply(arrived, [0, 1, 2]) == [1, 2]
    [(number, key, record)] = settled
    assert (number, key) == (0, "k") and isinstance(record, Record)
    assert {name: (a.dtype, a.flat[0]) for name, a in record.arrays.items()} == {
        "v": (np.float16, 1.5),
        "a": (np.float16, 2.5),
    }
    assert record.info == INFO
    audio, seen, heard = (
        SimpleNamespace(store=store, modality=modality)
        for store, modality in ((1, "audio"), (2, "visual"), (2, "audio"))
    )
    made.add_result(audio, "k", {"a": x}, {"name": "cpu", "rows": 3})  # type: ignore[arg-type]
    assert settled[1][0] == 1 and isinstance(settled[1][2], Record)
    assert sorted(settled[1][2].arrays) == ["a", "v"] and settled[1][2].arrays["v"].dtype == np.float32
    assert settled[1][2].info["facts"] == {"fps": 8, "device": {"name": "cpu", "rows": 3}}
    made.add_result(heard, "k", "a bark", {"name": "cpu"})  # type: ignore[arg-type]
    assert len(settled) == 2
    made.add_result(seen, "k", "a dog", {"torch": "2"})  # type: ignore[arg-type]
    assert settled[2][2].info["texts"] == {"visual": "a dog", "audio": "a bark"}  # type: ignore[union-attr]
    assert settled[2][2].info["facts"]["device"] == {"name": "cpu", "torch": "2"}  # type: ignore[union-attr]


def test_a_failed_part_quarantines_the_clip_in_its_store_with_the_first_reason() -> None:
    settled: dict[int, Record | Quarantined] = {}
    away = {"visual": part("device"), "audio": part("device")}
    jobs = [job(TokenJob, {"visual": part("worker")}), job(TokenJob, away), job(TokenJob, away)]
    made = RecordBuilder(jobs, lambda number, key, result: settled.update({number: result}))
    assert made.add_reply(outcome({}, {"1": {}, "2": {}}, {"0": "ValueError: no\n  good"}), [0, 1, 2]) == [
        1,
        2,
    ]
    assert settled == {0: Quarantined("k", "compute", "ValueError: no good", 1)}
    units = {
        (s, modality): SimpleNamespace(store=s, modality=modality)
        for s in (1, 2)
        for modality in ("visual", "audio")
    }
    made.add_result(units[1, "visual"], "k", ComputeFailed("too\nlarge"), {})  # type: ignore[arg-type]
    assert 1 not in settled
    made.add_result(units[1, "audio"], "k", RuntimeError("second"), {})  # type: ignore[arg-type]
    assert settled[1] == Quarantined("k", "compute", "too large", 1)
    made.add_result(units[2, "visual"], "k", {}, {})  # type: ignore[arg-type]
    made.add_result(units[2, "audio"], "k", RuntimeError("a\nb"), {})  # type: ignore[arg-type]
    assert settled[2] == Quarantined("k", "compute", "RuntimeError: a b", 1)


def test_a_job_gets_a_clip_at_its_own_sample_rate() -> None:
    x = np.ones(4, np.float32)
    arrived = outcome({"frames": np.zeros((T, 2, 2, 3), np.uint8), "wave@8000": x}, {})
    clip = decoded(arrived, job(TokenJob, {}, rate_hz=8000))
    assert clip.wave is x and clip.frames is not None and clip.key == "k"
    assert (clip.frames_ok, clip.audio_ok, clip.facts) == ((True, False), (True, True), {"fps": 8})
    assert decoded(arrived, job(TokenJob, {})).wave is None


def test_components_get_zeros_for_a_missing_modality() -> None:
    sampling = Sampling(T, 0.5, 10)
    nothing = DecodedClip(None, None, (False,) * T, (True, False), [Note("c", "d")], {"a": 1})
    assert frames_of(nothing, sampling).shape == (T, 64, 64, 3) and not frames_of(nothing, sampling).any()
    assert windows_of(nothing, sampling).tolist() == [[0.0] * 5] * T
    wave = np.arange(10, dtype=np.float32)
    assert windows_of(replace(nothing, wave=wave), sampling).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(ValueError, match="the decoder gave 9 samples instead of 10"):
        windows_of(replace(nothing, wave=wave[:9]), sampling)
    assert record_info(nothing) == {
        "frames_ok": [False, False],
        "audio_ok": [True, False],
        "notes": [{"code": "c", "detail": "d"}],
        "facts": {"a": 1},
    }
    seen = SimpleNamespace(
        tokens=lambda clips: [{"x": clips[0]}], caption=lambda clips: [f"{clips[0].facts}"]
    )
    clip = replace(nothing, frames=np.ones((T, 3, 3, 3), np.uint8), wave=wave)
    fields = {"sampling": {"segments": T, "segment_s": 0.5, "rate_hz": 10}}
    taps, texts = TokenJob(Recipe("tokens", "n", fields), {"visual": seen}).compute(clip)
    assert taps["x"].shape == (T, 3, 3, 3) and texts == {}
    taps, _ = TokenJob(Recipe("tokens", "n", fields), {"audio": seen}).compute(clip)
    assert taps["x"].shape == (T, 5)
    captions = CaptionJob(Recipe("captions", "n", fields), {"audio": seen})
    assert captions.compute(clip) == ({}, {"audio": "{'a': 1}"})


class Writer:
    """Stands in for a store's writer and records the calls in order."""

    def __init__(self, plans: Sequence[ShardPlan], kept: dict[int, dict[str, Record]] | None = None) -> None:
        self.did: list[Any] = []
        self.recipe = Recipe("tokens", "n", {"shard_clips": 2})
        self._plans, self._kept = plans, kept or {}
        self._keys = [key for plan in plans for key in plan.keys]

    def plan(self) -> Sequence[ShardPlan]:
        return self._plans

    def place(self, key: str) -> int:
        return self._keys.index(key)

    def clip(self, key: str) -> str:
        return f"clip {key}"

    def kept(self, number: int) -> dict[str, Record]:
        return self._kept[number]

    def quarantine(self, entry: Quarantined) -> None:
        self.did.append(("quarantine", entry.key, entry.stage))

    def keep(self, record: Record) -> None:
        self.did.append(("keep", record.key))

    def sync(self) -> None:
        self.did.append("sync")

    def publish(self, plan: ShardPlan, records: dict[str, Record]) -> None:
        self.did.append(("publish", plan.number, list(records)))


def record(key: str, value: float = 1.0) -> Record:
    return Record(key, {"x": np.full(3, value, np.float32)}, {})


def plans() -> list[ShardPlan]:
    return [ShardPlan(0, ("a", "b"), ("a", "b")), ShardPlan(1, ("c", "d"), ("c", "d"))]


def unchanged(records: Sequence[Record], place: Callable[[str], int]) -> list[Record]:
    return list(records)


def make_collector(
    *writers: Writer, keep: bool = True
) -> tuple[Collector, list[Filling], list[Progress], list[BaseException]]:
    stores = [Filling(writer, unchanged) for writer in writers]  # type: ignore[arg-type]
    said: list[Progress] = []
    errors: list[BaseException] = []
    return (
        Collector(stores, said.append, Meter({"writer": 1}), errors.append, keep=keep),
        stores,
        said,
        errors,
    )


def test_clips_are_published_in_whole_shards_whatever_their_order() -> None:
    writer = Writer(plans())
    collector, [store], said, errors = make_collector(writer)
    collector.begin()
    for key in ("c", "a", "d"):
        assert collector.settle(store, key, record(key))
    assert collector.settle(store, "b", Quarantined("b", "decode", "no", 1))
    collector.close()
    shards = [did for did in writer.did if did[0] == "publish"]
    assert shards == [("publish", 1, ["c", "d"]), ("publish", 0, ["a"])]
    assert writer.did.index(("quarantine", "b", "decode")) < writer.did.index(shards[1])
    assert said == [Progress(0, 0, 4), *(Progress(n, 0, 4) for n in (1, 2, 3)), Progress(4, 1, 4)]
    assert not errors and writer.did[-1] == "sync"
    assert not any(did[:1] == ("keep",) and did[1] in "d" for did in writer.did)  # it completed its shard


def test_a_clip_is_done_when_every_store_that_needs_it_has_it() -> None:
    first, second = Writer(plans()), Writer([ShardPlan(1, ("c", "d"), ("d",))])
    collector, [one, other], said, _ = make_collector(first, second)
    assert collector.total == 4
    assert not collector.settle(one, "d", record("d"))
    assert said == []
    assert collector.settle(other, "d", record("d"))
    assert collector.settle(one, "c", record("c"))
    collector.close()
    assert [progress.done for progress in said] == [1, 2]
    assert ("publish", 1, ["d"]) in second.did and ("publish", 1, ["c", "d"]) in first.did


def test_records_kept_by_an_earlier_run_go_into_their_shard() -> None:
    writer = Writer([ShardPlan(0, ("a", "b"), ("a", "b"), ("a",))], {0: {"a": record("a")}})
    collector, [store], said, _ = make_collector(writer)
    assert (list(store.shard_of), store.waiting, collector.total) == (["b"], {0: 1}, 1)
    collector.begin()
    collector.settle(store, "b", record("b"))
    collector.close()
    assert ("publish", 0, ["a", "b"]) in writer.did and said[0] == Progress(0, 0, 1)
    assert (store.clip("b"), store.place("b")) == ("clip b", 1)
    done = Writer([ShardPlan(0, ("a",), ("a",), ("a",))], {0: {"a": record("a")}})
    collector, _, said, _ = make_collector(done)
    collector.begin()  # only the writing of the shard is due
    collector.close()
    assert done.did[0] == ("publish", 0, ["a"]) and said == []


def test_places_are_counted_within_a_shard() -> None:
    store = Filling(Writer(plans()), unchanged)  # type: ignore[arg-type]
    assert [store.place(key) for key in "abcd"] == [0, 1, 0, 1]


@pytest.mark.parametrize("keep", [True, False])
def test_after_hurry_settled_clips_are_kept_and_no_shard_is_begun(keep: bool) -> None:
    writer = Writer(plans())
    collector, [store], _, errors = make_collector(writer, keep=keep)
    collector.settle(store, "a", record("a"))
    collector.hurry()
    collector.settle(store, "b", record("b"))
    collector.close()
    kept = {did[1] for did in writer.did if did[0] == "keep"}
    published = [did for did in writer.did if did[0] == "publish"]
    assert (kept, len(published)) == (({"a", "b"}, 0) if keep else (set(), 1)) and not errors


def test_non_finite_values_quarantine_their_clip() -> None:
    writer = Writer(plans()[:1])
    collector, [store], said, _ = make_collector(writer)
    collector.settle(store, "a", record("a", float("nan")))
    collector.settle(store, "b", record("b"))
    collector.close()
    assert ("quarantine", "a", "values") in writer.did and ("publish", 0, ["b"]) in writer.did
    assert unfit(record("a", float("inf"))) == "x has 3 of 3 values not finite in float32"
    assert unfit(record("a")) == ""
    assert collector._failed == {"a"} and said[-1].done == 2


def test_a_write_error_is_reported_once_and_blocks_nobody() -> None:
    writer = Writer([ShardPlan(n, (str(n),), (str(n),)) for n in range(6)])
    writer.publish = lambda plan, records: (_ for _ in ()).throw(OSError("full"))  # type: ignore[method-assign]
    collector, [store], _, errors = make_collector(writer)
    for n in range(6):
        collector.settle(store, str(n), record(str(n)))
    collector.close()
    assert [str(error) for error in errors] == ["full"]


def test_kept_records_are_synced_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "SYNC_S", 0.01)
    writer = Writer(plans())
    synced = threading.Event()
    writer.sync = synced.set  # type: ignore[method-assign]
    collector, [store], _, _ = make_collector(writer)
    collector.settle(store, "a", record("a"))
    assert synced.wait(30)
    collector.close()


def test_a_busy_resource_is_named_with_its_longest_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    found = Meter({"workers": 4, "writer": 1})
    assert found.limit() == ""
    now[0] = 110.0
    found.add("workers", "decode", 20)
    found.add("workers", "backbone", 4)
    found.add("writer", "write", 4)
    found.add("writer", "write", 1)
    assert found.shares() == {"workers": pytest.approx(0.6), "writer": pytest.approx(0.5)}
    assert found.limit() == "decode 60%"
    assert found.seconds() == {"decode": 20, "prepare": 0, "backbone": 4, "write": 5}
    found.add("writer", "write", 100)
    assert found.limit() == "write 100%"


class Texts:
    """A text backbone that records its batches of texts."""

    name, max_tokens, channels = "t", 2, 3

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        self.asked.append(list(texts))
        tokens = np.array([[[len(text)] * 3] * 2 for text in texts], np.float32)
        return tokens, np.array([[bool(text)] * 2 for text in texts])


class Placed(Texts):
    module = None


@pytest.mark.parametrize("kind", [Texts, Placed])
def test_texts_are_embedded_in_the_rows_of_their_clips(
    kind: type[Texts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "caeav.pipeline.extract.device.network.text_encoder",
        lambda backbone, devices, compute: backbone.encode,
    )
    one, other = kind(), kind()
    fields = {
        "dtype": "float16",
        "shard_clips": 8,
        "compute": {"batch": 2, "precision": "fp32", "compile": False},
    }
    embedder = Embedder(Recipe("captions", "n", fields), {"visual": one, "audio": other}, ("cpu",))  # type: ignore[dict-item]
    places = {"a": 5, "b": 0, "c": 1}
    texts = {"a": ("xxxxx", ""), "b": ("x", "yy"), "c": ("", "yyy")}
    given = [
        Record(key, {}, {"texts": dict(zip(("visual", "audio"), texts[key], strict=True))}) for key in places
    ]
    made = embedder.embed(given, places.__getitem__)
    assert [record.key for record in made] == ["a", "b", "c"]
    for found in made:
        for modality, text in zip(("visual", "audio"), texts[found.key], strict=True):
            tokens, mask = found.arrays[f"{modality}_caption"], found.arrays[f"{modality}_caption_mask"]
            assert tokens.dtype == np.float16 and set(tokens.flat) == {len(text)}
            assert mask.tolist() == [bool(text)] * 2
        assert found.info["texts"]["visual"] == texts[found.key][0]
    if kind is Placed:
        assert one.asked == [["x", ""], ["", "xxxxx"]]
        assert other.asked == [["yy", "yyy"], ["", ""]]


def test_rows_without_a_clip_and_clips_without_a_row_are_reported() -> None:
    class File:
        modality, weights = "visual", SimpleNamespace(source="c.csv")

        def __init__(self, *keys: str) -> None:
            from caeav.pipeline.captioners.from_file import Captions

            self.captions = Captions("c.csv", {"visual": dict.fromkeys(keys, "x")})

    from caeav.pipeline.captioners import from_file

    manifest = Manifest("mine", T, 1.0, (), tuple(Clip(k, f"{k}.mp4", 0.0, 2.0) for k in "abcd"))
    said: list[str] = []

    def look(*keys: str, allowed: str) -> None:
        file = object.__new__(from_file.FileCaptioner)
        file.__dict__.update(File(*keys).__dict__, modality="visual", weights=File.weights)
        context = RunContext(manifest, Home("home"), RunOptions(1, max_failed=allowed), remark=said.append)
        CaptionJob(Recipe("captions", "n", {}), {"visual": file}).check(context)

    look("a", "b", "c", "d", allowed="0")
    assert said == []
    look("a", "b", "c", "e", allowed="1")
    look("a", "b", "c", "d", "e", "f", allowed="0")
    assert said[0].startswith(
        "c.csv (visual) has no row for 1 ('d') of 4 clips, to be quarantined; 1 ('e') row names"
    )
    assert said[1] == "c.csv (visual): 2 ('e', 'f') rows name no clip of mine and will not be used"
    with pytest.raises(CaeavError, match=r"has no row for 2 \('c', 'd'\) of 4 clips of mine"):
        look("a", "b", allowed="1")
    assert issubclass(CaptionFileError, CaeavError)


def test_stores_made_together_must_share_decoder_and_segments_and_differ() -> None:
    def tokens(**other: Any) -> Recipe:
        segments, segment_s = other.pop("segments", 4), other.pop("segment_s", 1.0)
        return TokenOptions(**other).job(segments, segment_s).recipe

    preflight.check_compatible([tokens(), tokens(dtype="float32"), CaptionOptions().job(4, 1.0).recipe])
    with pytest.raises(CaeavError, match="the same store is asked for twice"):
        preflight.check_compatible([tokens(), tokens()])
    for other in ({"segments": 5}, {"segment_s": 0.5}):
        with pytest.raises(CaeavError, match="must share decoder and segments"):
            preflight.check_compatible([tokens(), tokens(**other)])
    changed = tokens(dtype="int8")
    decoder = {"name": "other", "version": "1"}
    with pytest.raises(CaeavError, match="must share decoder"):
        preflight.check_compatible(
            [tokens(), replace(changed, fields={**changed.fields, "decoder": decoder})]
        )


def test_moved_media_are_reported_once(tmp_path: Path) -> None:
    note = tmp_path / "media_root"
    assert preflight.moved_media(note, "/a", same=True) == []
    assert preflight.moved_media(note, "/a", same=True) == []
    [said] = preflight.moved_media(note, "/b", same=True)
    assert "was in /a before, it is now in /b" in said and note.read_bytes() == b"/b"
    assert preflight.moved_media(note, "/b", same=True) == []
    assert preflight.moved_media(note, "/c", same=False) == ["the media was in /b before, it is now in /c"]


def test_the_reason_for_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert preflight.why_no_file(tmp_path / "f") == ""
    assert (
        preflight.why_no_file(tmp_path / "g")
        == preflight.why_no_file(tmp_path / "f" / "g")
        == "file not found"
    )
    assert preflight.why_no_file(tmp_path) == "not a regular file"
    assert preflight.why_no_file(tmp_path / ("x" * 300)).startswith("file cannot be looked at (")


def test_components_are_loaded_once_after_a_remark() -> None:
    said: list[str] = []
    loaded: Counter[str] = Counter()
    heavy = SimpleNamespace(name="heavy", runs_in="device", module=lambda: loaded.update(["heavy"]))
    text = SimpleNamespace(name="text", module=lambda: loaded.update(["text"]))
    light = part("worker")
    load = preflight.Loader(said.append)
    for _ in range(2):
        load(CaptionJob(Recipe("captions", "n", {}), {"visual": light, "audio": heavy}, {"visual": text}))
    load(CaptionJob(Recipe("captions", "n", {}), {"visual": heavy}, {"visual": heavy}))
    assert said == ["loading heavy", "loading text"] and loaded == {"heavy": 1, "text": 1}


def test_a_recipe_holds_what_decides_bytes_and_recreates_its_job() -> None:
    options = TokenOptions(audio="none", dtype="bfloat16", shard_clips=7, backend="zarr")
    recipe = options.job(3, 0.5).recipe
    assert recipe.fields["sampling"] == {"segments": 3, "segment_s": 0.5, "rate_hz": 16_000}
    assert (recipe.fields["dtype"], recipe.fields["shard_clips"]) == ("bfloat16", 7)
    assert "audio" not in recipe.fields and "compute" not in recipe.fields
    assert job_of(recipe).recipe.fields == recipe.fields and list(job_of(recipe).parts) == ["visual"]
    assert replace(options, backend="webdataset").job(3, 0.5).recipe.fingerprint != recipe.fingerprint
    captions = CaptionOptions().job(3, 0.5).recipe
    assert list(job_of(captions).texts) == ["visual", "audio"] and captions.kind == "captions"
    for other in (
        {"dtype": "int9"},
        {"visual": "none", "audio": "none"},
        {"visual": ModelChoice("none", "w")},
    ):
        with pytest.raises(CaeavError):
            TokenOptions(**other).job(3, 0.5)  # type: ignore[arg-type]
    tampered = replace(recipe, fields={**recipe.fields, "visual": {**recipe.fields["visual"], "version": 99}})
    with pytest.raises(CaeavError, match=r"no longer makes .*version"):
        job_of(tampered)
    older = replace(recipe, fields={**recipe.fields, "decoder": {"name": "pyav", "version": "PyAV 0"}})
    assert job_of(older).recipe is older  # only the decoder's version may differ
    with pytest.raises(CaeavError, match="the recipe lacks 'dtype'"):
        job_of(replace(recipe, fields={k: v for k, v in recipe.fields.items() if k != "dtype"}))


def test_tokens_of_several_stores_are_real_where_all_are() -> None:
    def store(name: str, frames_ok: list[bool], audio_ok: list[bool]) -> Record:
        return Record("k", {name: np.zeros(1)}, {**INFO, "frames_ok": frames_ok, "audio_ok": audio_ok})

    found = single_file._together(
        [store("x", [True, True], [True, False]), store("y", [False, True], [True, True])], [True, False]
    )
    assert sorted(found.arrays) == ["x", "y"] and found.info["silent"] == [True, False]
    assert (found.info["frames_ok"], found.info["audio_ok"]) == ([False, True], [True, False])
    assert "silent" not in single_file._together([store("x", [True], [True])], []).info


def test_a_lookup_run_stops_at_the_first_error() -> None:
    asked: list[str] = []
    writer = Writer([ShardPlan(n, (str(n),), (str(n),)) for n in range(50)])
    writer.publish = lambda plan, records: (_ for _ in ()).throw(OSError("full"))  # type: ignore[method-assign]

    def find(key: str) -> Record:
        asked.append(key)
        return record(key)

    with pytest.raises(OSError, match="full"):
        engine._find_all(Filling(writer, unchanged), find, lambda progress: None, Meter({"writer": 1}))  # type: ignore[arg-type]
    assert len(asked) < 50
    fine = Writer(plans())
    engine._find_all(Filling(fine, unchanged), record, lambda progress: None, Meter({"writer": 1}))  # type: ignore[arg-type]
    assert [did for did in fine.did if did != "sync"] == [
        ("publish", 0, ["a", "b"]),
        ("publish", 1, ["c", "d"]),
    ]
