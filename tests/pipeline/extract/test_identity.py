"""Media that changed, disappeared or moved are noticed, reported by clip, and processed again on request."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from extraction import quiet

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import identity, local, places
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.identity import MediaChanged, MediaCheck, verify_media
from caeav.pipeline.extract.jobs import TokenOptions
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.extract.tokens import extract
from caeav.pipeline.store import (
    Quarantined,
    Record,
    Slice,
    StoreReader,
    convert,
    media_record,
    merge,
    open_for_writing,
    remove_store,
)
from caeav.pipeline.store.media_record import MediaChange, read_record, record_path

Digests = Callable[[Path], dict[str, str]]
OPTIONS = TokenOptions(shard_clips=2)
ONE = RunOptions(workers=1)
OLD_S = 1_000_000_000


@pytest.fixture
def five(small_manifest: Manifest, tmp_path: Path) -> Manifest:
    """Five clips in a separate folder, with old times."""
    manifest = replace(small_manifest, clips=small_manifest.clips[:5], media_root=str(tmp_path / "media"))
    for clip in manifest.clips:
        put(manifest, clip.media, Path(small_manifest.media_root) / clip.media)
    return manifest


def put(manifest: Manifest, media: str, source: Path, when: int = OLD_S) -> None:
    target = Path(manifest.media_root) / media
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    os.utime(target, (when, when))


def replace_media(manifest: Manifest, small: Manifest, at: int, like: int = 9) -> None:
    """Give clip `at` the file of another clip."""
    put(manifest, manifest.clips[at].media, Path(small.media_root) / small.clips[like].media, OLD_S + 7)


@dataclass
class Result:
    """The parts of a run that the tests examine."""

    path: Path
    due: int
    stored: int
    quarantined: tuple[Quarantined, ...]
    media: tuple[MediaChange, ...]
    remarks: tuple[str, ...]


def run(manifest: Manifest, home: Path, how: RunOptions = ONE, **changes: str) -> Result:
    """A run that stores the digest of each file as its tokens, so that no test waits for a decoder."""
    how = replace(how, **changes)  # type: ignore[arg-type]
    recipe = OPTIONS.job(manifest.segments, manifest.segment_s).recipe
    folder, said = Home(home).stores / manifest.dataset, list[str]()
    check = MediaCheck(
        RunContext(manifest, Home(home), how, remark=said.append),
        [folder / (recipe.folder_name + how.part.suffix)],
    )
    check.refuse()
    with open_for_writing(folder, recipe, manifest, retry_failed=how.retry_failed, part=how.part) as writer:
        check.settle(writer)
        media = {clip.key: Path(manifest.media_root) / clip.media for clip in writer.manifest.clips}
        due = 0
        for plan in writer.plan():
            records = {}
            for key in plan.missing:
                due += 1
                data = media[key].read_bytes() if media[key].is_file() else b""
                if len(data) > 100:
                    token = np.frombuffer(hashlib.sha256(data).digest(), np.uint8).astype(np.float16)
                    records[key] = Record(key, {"visual.stage1": token}, {})
                else:
                    writer.quarantine(Quarantined(key, "media", "no video", 1))
            writer.publish(plan, records)
        done = writer.finish()
        said += writer.remarks
    return Result(writer.path, due, done.stored, writer.quarantined, tuple(check.changes), tuple(said))


def run_stage(manifest: Manifest, home: Path, how: RunOptions = ONE, **changes: str) -> StageSummary:
    """A run of the real stage."""
    return extract(RunContext(manifest, Home(home), replace(how, **changes), quiet), OPTIONS)  # type: ignore[arg-type]


def test_a_changed_file_is_refused_by_name_before_anything_is_written(
    five: Manifest, small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    made = run(five, tmp_path / "h")
    before = digests(tmp_path / "h")
    replace_media(five, small_manifest, 3)
    longer = replace(small_manifest, clips=small_manifest.clips[:6], media_root=five.media_root)
    for manifest in (five, longer):
        with pytest.raises(MediaChanged) as refused:
            run(manifest, tmp_path / "h")
    [change] = refused.value.changes
    assert (change.key, change.media, change.what) == (five.clips[3].key, five.clips[3].media, "changed")
    assert f"changed {five.clips[3].key}: {five.clips[3].media}, " in str(refused.value)
    assert "--changed redo" in refused.value.hint and "--changed keep" in refused.value.hint
    assert change.store == made.path.name
    assert digests(tmp_path / "h") == before


def test_redo_makes_exactly_the_changed_clips_again(
    five: Manifest,
    small_manifest: Manifest,
    tmp_path: Path,
    digests: Digests,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = replace(five, clips=five.clips[:3])
    run_stage(few, tmp_path / "h")
    replace_media(five, small_manifest, 1)
    with pytest.raises(MediaChanged):
        run_stage(few, tmp_path / "h")
    again = run_stage(few, tmp_path / "h", changed="redo")
    assert (again.due, again.stored) == (1, 3)
    assert [change.key for change in again.media] == [five.clips[1].key]
    assert digests(again.path) == digests(run_stage(few, tmp_path / "fresh").path)
    monkeypatch.setattr(local, "WorkerPool", None)
    assert run_stage(few, tmp_path / "h").media == ()
    Path(five.media_root).rename(tmp_path / "elsewhere")
    moved = replace(few, media_root=str(tmp_path / "elsewhere"))
    [remark] = run_stage(moved, tmp_path / "h").remarks
    assert five.media_root in remark and f"now in {tmp_path / 'elsewhere'}" in remark
    assert not run_stage(moved, tmp_path / "h").remarks


def test_keep_continues_with_stored_clips_and_is_needed_each_time(
    five: Manifest, small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    before = digests(run(five, tmp_path / "h").path)
    replace_media(five, small_manifest, 0)
    kept = run(five, tmp_path / "h", changed="keep")
    assert (kept.due, [change.key for change in kept.media]) == (0, [five.clips[0].key])
    assert digests(kept.path) == before
    with pytest.raises(MediaChanged):
        run(five, tmp_path / "h")


def test_a_file_with_only_a_new_time_is_accepted_and_read_once(
    five: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(five, tmp_path / "h")
    for clip in five.clips:
        os.utime(Path(five.media_root) / clip.media, (OLD_S + 9, OLD_S + 9))
    assert run(five, tmp_path / "h").remarks == ()
    read: list[str] = []
    monkeypatch.setattr(places, "digests", lambda root, names, of: read.extend(names) or {})
    run(five, tmp_path / "h")
    assert read == []


def test_recently_written_files_are_compared_by_content(
    five: Manifest, small_manifest: Manifest, tmp_path: Path
) -> None:
    """A coarse clock may give the next version the same time and length."""
    path = Path(five.media_root) / five.clips[2].media
    os.utime(path)
    young = path.stat()
    run(five, tmp_path / "h")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"other")
    os.utime(path, ns=(young.st_atime_ns, young.st_mtime_ns))
    with pytest.raises(MediaChanged, match="other content of the same length"):
        run(five, tmp_path / "h")


def test_missing_media_are_refused_kept_or_quarantined(five: Manifest, tmp_path: Path) -> None:
    run(five, tmp_path / "h")
    gone = five.clips[1]
    (Path(five.media_root) / gone.media).unlink()
    with pytest.raises(MediaChanged, match=f"gone {gone.key}: {gone.media} is no file in"):
        run(five, tmp_path / "h")
    assert run(five, tmp_path / "h", changed="keep").stored == 5
    assert run(five, tmp_path / "h").stored == 5  # it was accepted once
    shutil.copy(Path(five.media_root) / five.clips[0].media, Path(five.media_root) / gone.media)
    with pytest.raises(
        MediaChanged, match=f"changed {gone.key}"
    ):  # another file in its place was not accepted
        run(five, tmp_path / "h")
    (Path(five.media_root) / gone.media).unlink()
    other = run(five, tmp_path / "h2")
    assert len(other.quarantined) == 1


def test_redo_quarantines_clips_of_missing_media(five: Manifest, tmp_path: Path) -> None:
    run(five, tmp_path / "h")
    (Path(five.media_root) / five.clips[1].media).unlink()
    done = run(five, tmp_path / "h", changed="redo")
    assert (done.stored, [q.key for q in done.quarantined]) == (4, [five.clips[1].key])
    assert run(five, tmp_path / "h").due == 0


def test_a_file_with_another_name_is_reported_as_moved(five: Manifest, tmp_path: Path) -> None:
    run(five, tmp_path / "h")
    old, root = five.clips[4], Path(five.media_root)
    (root / "new.mp4").write_bytes((root / old.media).read_bytes())
    (root / old.media).unlink()
    now = replace(five, clips=(*five.clips[:4], replace(old, key="new", media="new.mp4")))
    with pytest.raises(MediaChanged, match=f"moved {old.key}: {old.media} is new.mp4 now"):
        run(now, tmp_path / "h")
    redone = run(now, tmp_path / "h", changed="redo")
    assert redone.due == 1
    (said,) = (text for text in redone.remarks if "other media than before" in text)
    assert said.endswith("are kept as they are stored:")  # the old clip; it is no longer in the data set
    assert run(now, tmp_path / "h").due == 0


def test_an_accepted_missing_file_does_not_count_against_a_folder(five: Manifest, tmp_path: Path) -> None:
    run(five, tmp_path / "home")
    root = Path(five.media_root)
    (root / five.clips[1].media).unlink()
    stores = tmp_path / "home" / "stores" / five.dataset
    assert identity.same_media(stores, root) == (4, 5)
    run(five, tmp_path / "home", changed="keep")
    assert identity.same_media(stores, root) == (4, 4)


def test_another_folder_with_other_files_is_refused(
    five: Manifest, small_manifest: Manifest, tmp_path: Path
) -> None:
    run(five, tmp_path / "h")
    other = replace(five, media_root=str(tmp_path / "other"))
    for at, clip in enumerate(five.clips):
        put(other, clip.media, Path(small_manifest.media_root) / small_manifest.clips[10 + at].media)
    with pytest.raises(MediaChanged) as refused:
        run(other, tmp_path / "h")
    assert len(refused.value.changes) == 5


def test_a_quarantined_clip_with_other_media_is_reported_and_not_refused(
    five: Manifest, small_manifest: Manifest, tmp_path: Path
) -> None:
    bad = Path(five.media_root) / five.clips[2].media
    bad.write_bytes(b"no video")
    os.utime(bad, (OLD_S, OLD_S))
    run(five, tmp_path / "h")
    put(five, five.clips[2].media, Path(small_manifest.media_root) / five.clips[2].media)
    for _ in range(2):
        again = run(five, tmp_path / "h")
        assert again.due == 0
        assert any("--retry-failed tries them again" in text for text in again.remarks)
    shutil.copytree(tmp_path / "h", tmp_path / "h2")
    redone = run(five, tmp_path / "h2", changed="redo")
    assert (redone.due, redone.stored, redone.quarantined) == (1, 5, ())
    mended = run(five, tmp_path / "h", RunOptions(workers=1, retry_failed=True))
    assert (mended.due, mended.stored) == (1, 5)
    assert run(five, tmp_path / "h").media == ()


def test_an_older_store_without_a_media_record_opens_and_gets_one(
    five: Manifest, small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    made = run(five, tmp_path / "h")
    before = digests(made.path)
    for damage in (b"", b"caeav", None):
        if damage is None:
            record_path(made.path).unlink()
        else:
            record_path(made.path).write_bytes(damage)
        assert run(five, tmp_path / "h").due == 0
        assert digests(made.path) == before
    replace_media(five, small_manifest, 0)
    with pytest.raises(MediaChanged):
        run(five, tmp_path / "h")


def test_a_file_that_changes_before_its_clip_is_stored_is_no_change(
    five: Manifest, small_manifest: Manifest, tmp_path: Path
) -> None:
    """The record is written before the work; after a kill nothing of the old file is stored."""
    made = run(five, tmp_path / "h")
    record = record_path(made.path).read_bytes()
    remove_store(made.path)
    assert not record_path(made.path).exists()
    record_path(made.path).write_bytes(record)
    replace_media(five, small_manifest, 3)
    assert run(five, tmp_path / "h").media == ()
    assert run(five, tmp_path / "h").media == ()


def test_a_kept_record_is_dropped_when_its_file_has_changed(
    five: Manifest, small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    recipe = OPTIONS.job(five.segments, five.segment_s).recipe
    folder = Home(tmp_path / "h").stores / five.dataset
    check = MediaCheck(RunContext(five, Home(tmp_path / "h"), ONE), [folder / recipe.folder_name])
    with open_for_writing(folder, recipe, five) as writer:  # killed before the first shard was complete
        check.settle(writer)
        for at in (0, 2):
            writer.keep(Record(five.clips[at].key, {"visual.stage1": np.zeros(32, np.float16)}, {}))
        writer.sync()
    replace_media(five, small_manifest, 0)
    check = MediaCheck(RunContext(five, Home(tmp_path / "h"), ONE), [folder / recipe.folder_name])
    check.refuse()
    with open_for_writing(folder, recipe, five) as writer:
        check.settle(writer)
        assert [key for plan in writer.plan() for key in plan.kept] == [five.clips[2].key]
    assert check.changes == []


DROP = identity.StoreWriter.drop


def dropped_once(self: identity.StoreWriter, number: int, keys: Collection[str]) -> None:
    DROP(self, number, keys)
    raise KeyboardInterrupt


def test_an_interrupted_redo_ends_like_an_undisturbed_one(
    five: Manifest,
    small_manifest: Manifest,
    tmp_path: Path,
    digests: Digests,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = None
    for stop in ("write_record", "forget", "none"):
        home = tmp_path / stop
        for at, clip in enumerate(five.clips):
            put(five, clip.media, Path(small_manifest.media_root) / small_manifest.clips[at].media)
        run(five, home)
        for at in (0, 3):
            replace_media(five, small_manifest, at, 9 + at)
        with monkeypatch.context() as patch:

            def stopped(*_: object) -> None:
                raise KeyboardInterrupt

            if stop == "write_record":
                patch.setattr(identity, "write_record", stopped)
            elif stop == "forget":
                patch.setattr(identity.StoreWriter, "drop", dropped_once)
            if stop != "none":
                with pytest.raises(KeyboardInterrupt):
                    run(five, home, changed="redo")
        done = run(five, home, changed="redo")
        assert done.stored == 5
        found = digests(done.path)
        wanted = wanted or found
        assert found == wanted
        assert run(five, home).media == ()


def test_merged_and_converted_stores_keep_the_media_record(
    five: Manifest, small_manifest: Manifest, tmp_path: Path
) -> None:
    parts = [run(five, tmp_path / "h", RunOptions(workers=1, part=Slice(i, 2))).path for i in (1, 2)]
    of_first = {clip.media for clip in (*five.clips[:2], five.clips[4])}
    assert set(read_record(parts[0]) or {}) == of_first
    whole = merge(parts).path
    other, _ = convert(whole, "zarr")
    assert set(read_record(other) or {}) == {clip.media for clip in five.clips}
    replace_media(five, small_manifest, 3)
    with pytest.raises(MediaChanged):
        run(five, tmp_path / "h")


def test_a_change_between_slices_of_one_file_is_not_lost_in_merging(
    five: Manifest, small_manifest: Manifest, tmp_path: Path
) -> None:
    film = five.clips[0].media
    rows = tuple(replace(clip, media=film, start_s=float(i) / 4) for i, clip in enumerate(five.clips))
    windows = replace(five, clips=rows)
    parts = [run(windows, tmp_path / "h", RunOptions(workers=1, part=Slice(1, 2))).path]
    replace_media(five, small_manifest, 0)
    parts.append(run(windows, tmp_path / "h", RunOptions(workers=1, part=Slice(2, 2))).path)
    merge(parts)
    with pytest.raises(MediaChanged) as refused:
        run(windows, tmp_path / "h")
    assert len(refused.value.changes) == 5


def test_images_beside_a_wav_are_part_of_its_content(tmp_path: Path) -> None:
    wav, frames = tmp_path / "audio_wav" / "a.wav", tmp_path / "visual_frames" / "a"
    for path in (wav, frames / "a_1.png", frames / "a_2.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (OLD_S, OLD_S))
    names = ["audio_wav/a.wav"]
    first = identity.look(tmp_path, names, identity.media_files)
    taken = places.digests(tmp_path, names, identity.media_files)
    (frames / "a_2.png").write_bytes(b"y")
    os.utime(frames / "a_2.png", (OLD_S + 1, OLD_S + 1))
    assert identity.look(tmp_path, names, identity.media_files) != first
    assert places.digests(tmp_path, names, identity.media_files) != taken


def test_verify_reads_every_file_whatever_its_time(five: Manifest, tmp_path: Path) -> None:
    made = run(five, tmp_path / "h")
    root = Path(five.media_root)
    sound = verify_media(made.path, root)
    assert (sound.compared, sound.unknown, sound.changes) == (5, 0, ())
    path = root / five.clips[0].media
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(50)
        file.write(b"zz")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    (root / five.clips[1].media).unlink()
    found = {change.key: change.what for change in verify_media(made.path, root).changes}
    assert found == {five.clips[0].key: "changed", five.clips[1].key: "gone"}
    record_path(made.path).unlink()
    assert verify_media(made.path, root).unknown == 5


def test_a_changed_byte_in_the_middle_is_found_by_whole_digests(
    five: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_record, "END_BYTES", 16)
    few = replace(five, clips=five.clips[:2])
    made = run_stage(few, tmp_path / "h")
    root = Path(five.media_root)
    assert verify_media(made.path, root).whole == 2
    for clip in few.clips:
        with (root / clip.media).open("r+b") as file:
            file.seek(1000)
            file.write(b"zz")
        os.utime(root / clip.media, (OLD_S, OLD_S))
    assert [change.key for change in verify_media(made.path, root).changes] == [
        clip.key for clip in few.clips
    ]
    monkeypatch.setattr(media_record, "WHOLE_BYTES", 1000)
    ends_only = run_stage(few, tmp_path / "h2")
    found = verify_media(ends_only.path, root)
    assert (found.compared, found.whole, found.changes) == (2, 0, ())


def test_unusual_names_and_links_are_recorded(five: Manifest, tmp_path: Path) -> None:
    root = Path(five.media_root)
    odd = "späte\nnacht – \udc80.mp4"
    (root / odd.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")).symlink_to(
        root / five.clips[0].media
    )
    clip = replace(five.clips[0], key="odd", media=odd)
    seen = identity.look(root, [clip.media], identity.media_files)
    assert seen[odd] is not None
    identity.write_record(tmp_path / "x", {odd: replace(seen[odd], digest=b"1" * 16)})
    assert list(read_record(tmp_path / "x") or {}) == [odd]


def test_a_store_returns_the_redone_record(five: Manifest, small_manifest: Manifest, tmp_path: Path) -> None:
    first = run(five, tmp_path / "h")
    before = StoreReader.open(first.path).read(five.clips[3].key).arrays["visual.stage1"].copy()
    replace_media(five, small_manifest, 3)
    again = run(five, tmp_path / "h", changed="redo")
    assert (StoreReader.open(again.path).read(five.clips[3].key).arrays["visual.stage1"] != before).any()


def change(number: int, store: str = "s") -> MediaChange:
    return MediaChange(store, f"key{number:02}", f"{number}.mp4", "gone", f"{number}.mp4 is no file")


def test_the_first_twenty_changes_are_listed_and_the_same_of_several_stores_once() -> None:
    twenty = [change(n) for n in range(20)]
    assert identity.listed(twenty) == [str(c) for c in twenty]
    assert identity.listed([*twenty, change(20), change(21)]) == [
        *(str(c) for c in twenty),
        "and 2 more; --json lists all",
    ]
    twice = [change(1), change(1, "other")]
    assert len(identity.listed(twice)) == len({str(c) for c in twice})
    one, two = MediaChanged("mine", [change(1)]), MediaChanged("mine", [change(1), change(2), change(2, "o")])
    assert "1 stored clip of mine has other media now" in str(one)
    assert "2 stored clips of mine have other media now" in str(two)
    again = two.__reduce__()[0](*two.__reduce__()[1])
    assert (again.changes, str(again)) == (two.changes, str(two))


def test_changed_accepts_redo_and_keep() -> None:
    for changed in ("", "redo", "keep"):
        identity.check_changed(changed)
    with pytest.raises(CaeavError, match=r"--changed cannot be 'keeep'\n  next: .*keep"):
        identity.check_changed("keeep")


def test_the_recorded_files_in_a_folder_are_counted(
    five: Manifest, small_manifest: Manifest, tmp_path: Path
) -> None:
    run(five, tmp_path / "h")
    stores, root = tmp_path / "h" / "stores" / five.dataset, Path(five.media_root)
    assert identity.same_media(stores, root) == (5, 5)
    (root / five.clips[0].media).unlink()
    replace_media(five, small_manifest, 1)
    path = root / five.clips[2].media
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)  # of the same size
    assert identity.same_media(stores, root) == (2, 5)
    assert identity.same_media(stores, tmp_path) == (0, 5)


def test_keep_leaves_stored_clips_and_does_not_report_accepted_missing_files_again(
    five: Manifest, small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    made = run(five, tmp_path / "h")
    before = digests(made.path)
    (Path(five.media_root) / five.clips[0].media).unlink()
    replace_media(five, small_manifest, 1)
    kept = run(five, tmp_path / "h", changed="keep")
    assert (kept.due, kept.stored, len(kept.media)) == (0, 5, 2)
    assert any("are kept as they are stored" in text for text in kept.remarks)
    assert digests(made.path) == before
    record = read_record(made.path) or {}
    assert record[five.clips[0].media].stamp == media_record.LET_GO
    for _ in range(2):  # the change is refused until it is redone; the missing file was accepted
        with pytest.raises(MediaChanged) as refused:
            run(five, tmp_path / "h")
        assert [c.key for c in refused.value.changes] == [five.clips[1].key]
