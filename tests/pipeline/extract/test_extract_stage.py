"""Extraction: every clip ends stored or quarantined, a second run does nothing, only the recipe decides the bytes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from extraction import first, quiet
from typer import Typer
from typer.testing import CliRunner

import caeav.cli.extract
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract import local
from caeav.pipeline.extract.collect import unfit
from caeav.pipeline.extract.context import RunContext, RunOptions, failure_limit
from caeav.pipeline.extract.jobs import TokenOptions
from caeav.pipeline.extract.progress import Progress
from caeav.pipeline.extract.tokens import extract
from caeav.pipeline.store import Record, Slice, StoreReader
from caeav.pipeline.store.dtypes import stored

Digests = Callable[[Path], dict[str, str]]
OPTIONS = TokenOptions(shard_clips=4)
ONE = RunOptions(workers=1)


def test_tokens_are_stored_as_the_recipe_declares(small_manifest: Manifest, tmp_path: Path) -> None:
    seen: list[Progress] = []
    summary = extract(RunContext(first(small_manifest, 6), Home(tmp_path), ONE, seen.append), OPTIONS)
    assert (summary.stored, summary.expected, summary.due) == (6, 6, 6)
    assert seen[-1] == Progress(6, 0, 6)
    reader = StoreReader.open(summary.path)
    record = reader.read(small_manifest.clips[5].key)
    for side in ("visual", "audio"):
        for tap in summary.recipe.fields[side]["taps"]:
            array = record.arrays[tap["name"]]
            assert array.shape == (4, tap["tokens"], tap["channels"])
            assert array.dtype == np.float16
    assert record.info["frames_ok"] == record.info["audio_ok"] == [True] * 4
    assert {"notes", "facts"} <= set(record.info)


def test_a_second_run_does_nothing_and_starts_no_process(
    small_manifest: Manifest, tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = first(small_manifest, 3)
    before = digests(extract(RunContext(manifest, Home(tmp_path), ONE, quiet), OPTIONS).path)
    monkeypatch.setattr(local, "WorkerPool", None)
    again = extract(RunContext(manifest, Home(tmp_path), ONE, quiet), OPTIONS)
    assert again.due == 0
    assert again.stored == 3
    assert digests(again.path) == before


def test_the_number_of_workers_does_not_change_a_byte(
    small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    manifest = first(small_manifest, 10)
    one = extract(RunContext(manifest, Home(tmp_path / "one"), ONE, quiet), OPTIONS)
    two = extract(RunContext(manifest, Home(tmp_path / "two"), RunOptions(workers=2), quiet), OPTIONS)
    assert digests(one.path) == digests(two.path)
    assert one.path.name == two.path.name


def test_missing_and_broken_media_are_quarantined_with_the_reason_and_can_be_retried(
    small_manifest: Manifest, small_set: Path, tmp_path: Path, digests: Digests
) -> None:
    media = tmp_path / "media"
    shutil.copytree(small_manifest.media_root, media)
    manifest = replace(first(small_manifest, 6), media_root=str(media))
    gone, broken = manifest.clips[1], manifest.clips[4]
    (media / gone.media).unlink()
    (media / broken.media).write_bytes(b"no video at all")
    summary = extract(RunContext(manifest, Home(tmp_path / "home"), ONE, quiet), OPTIONS)
    found = {q.key: q for q in summary.quarantined}
    assert set(found) == {gone.key, broken.key}
    assert summary.stored == 4
    assert (found[gone.key].stage, found[gone.key].reason) == ("media", f"file not found: {gone.media}")
    assert found[broken.key].stage == "decode"
    assert found[broken.key].reason
    assert "\n" not in found[broken.key].reason
    assert summary.reasons()["media: file not found"] == 1

    for clip in (gone, broken):
        shutil.copy(Path(small_manifest.media_root) / clip.media, media / clip.media)
    assert extract(RunContext(manifest, Home(tmp_path / "home"), ONE, quiet), OPTIONS).due == 0
    retried = extract(
        RunContext(manifest, Home(tmp_path / "home"), replace(ONE, retry_failed=True), quiet), OPTIONS
    )
    assert (retried.due, retried.stored, retried.quarantined) == (2, 6, ())
    whole = extract(RunContext(first(small_manifest, 6), Home(tmp_path / "other"), ONE, quiet), OPTIONS)
    assert digests(retried.path) == digests(whole.path)


def test_another_recipes_store_is_reported_when_a_store_or_its_first_slice_is_begun(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    few = replace(small_manifest, clips=small_manifest.clips[:2])
    other = extract(
        RunContext(few, Home(tmp_path), ONE, quiet), replace(OPTIONS, shard_clips=1, dtype="float32")
    )
    told = []
    for part in (Slice(1, 2), Slice(2, 2), Slice(1, 2)):
        how = replace(ONE, part=part)
        said = extract(RunContext(few, Home(tmp_path), how, quiet), replace(OPTIONS, shard_clips=1)).remarks
        told.append([text for text in said if "another recipe" in text])
    assert len(told[0]) == 1 and other.path.name in told[0][0]
    assert told[1:] == [[], []]


def test_an_impossible_file_name_quarantines_only_its_clip(small_manifest: Manifest, tmp_path: Path) -> None:
    """A label file may name anything; readers keep it as missing media."""
    sound, long, folder = small_manifest.clips[:3]
    media = tmp_path / "media"
    (media / folder.media).mkdir(parents=True)
    shutil.copy(Path(small_manifest.media_root) / sound.media, media / sound.media)
    rows = (sound, replace(long, media=f"{'x' * 300}.mp4"), folder)
    summary = extract(
        RunContext(replace(small_manifest, clips=rows, media_root=str(media)), Home(tmp_path), ONE, quiet),
        OPTIONS,
    )
    assert summary.stored == 1
    assert {q.key: q.reason.partition(":")[0] for q in summary.quarantined} == {
        long.key: "file cannot be looked at (File name too long)",
        folder.key: "not a regular file",
    }


def test_a_store_whose_clips_all_fail_is_finished_with_too_many_failures(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    manifest = replace(first(small_manifest, 3), media_root=str(tmp_path / "nowhere"))
    summary = extract(RunContext(manifest, Home(tmp_path), ONE, quiet), OPTIONS)
    assert (summary.stored, len(summary.quarantined), summary.too_many_failed) == (0, 3, True)
    assert extract(RunContext(manifest, Home(tmp_path), ONE, quiet), OPTIONS).due == 0


def test_a_clip_past_its_deadline_is_quarantined_alone(small_manifest: Manifest, tmp_path: Path) -> None:
    summary = extract(
        RunContext(first(small_manifest, 1), Home(tmp_path), RunOptions(1, deadline_s=0.001), quiet), OPTIONS
    )
    [entry] = summary.quarantined
    assert (entry.stage, entry.attempts) == ("decode", 2)
    assert "no answer within 0.001 s" in entry.reason


def test_new_clips_are_added_to_the_same_store(
    small_manifest: Manifest, tmp_path: Path, digests: Digests
) -> None:
    extract(RunContext(first(small_manifest, 5), Home(tmp_path / "grown"), ONE, quiet), OPTIONS)
    grown = extract(RunContext(first(small_manifest, 7), Home(tmp_path / "grown"), ONE, quiet), OPTIONS)
    assert (grown.due, grown.stored) == (2, 7)
    at_once = extract(RunContext(first(small_manifest, 7), Home(tmp_path / "once"), ONE, quiet), OPTIONS)
    assert digests(grown.path) == digests(at_once.path)


def test_another_recipe_makes_another_store_and_names_what_differs(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    manifest = first(small_manifest, 2)
    old = extract(RunContext(manifest, Home(tmp_path), ONE, quiet), OPTIONS)
    new = extract(RunContext(manifest, Home(tmp_path), ONE, quiet), replace(OPTIONS, dtype="float32"))
    assert old.path != new.path
    [remark] = [text for text in new.remarks if old.path.name in text]
    assert "fields.dtype: 'float16' -> 'float32'" in remark
    assert StoreReader.open(new.path).read(manifest.clips[0].key).arrays["visual.stage1"].dtype == np.float32
    assert not extract(
        RunContext(manifest, Home(tmp_path), ONE, quiet), replace(OPTIONS, dtype="float32")
    ).remarks


def test_a_tampered_recipe_is_refused(small_manifest: Manifest, tmp_path: Path) -> None:
    path = (
        extract(RunContext(first(small_manifest, 2), Home(tmp_path), ONE, quiet), OPTIONS).path
        / "recipe.json"
    )
    recipe = json.loads(path.read_text())
    recipe["fields"]["visual"]["side"] = 256
    path.write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
    with pytest.raises(CaeavError, match=r"visual\.side"):
        extract(RunContext(first(small_manifest, 2), Home(tmp_path), ONE, quiet), OPTIONS)


def test_unknown_components_and_values_are_named_before_any_work(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    for options, words in (
        (TokenOptions(visual="clasic"), "unknown visual backbone 'clasic'\n  next: did you mean 'classic'?"),
        (TokenOptions(dtype="int4"), "unknown dtype 'int4'"),
        (TokenOptions(decoder="vlc"), "unknown decoder 'vlc'"),
    ):
        with pytest.raises(CaeavError) as caught:
            extract(RunContext(small_manifest, Home(tmp_path), ONE, quiet), options)
        assert words in str(caught.value)
    assert not (tmp_path / "stores").exists()


def test_values_that_are_not_finite_are_found_and_named() -> None:
    bad = np.zeros((2, 3), dtype=np.float16)
    assert unfit(Record("a", {"visual.stage1": bad, "mask": np.ones(3, dtype=np.bool_)})) == ""
    bad[1, 1] = np.nan
    assert (
        unfit(Record("a", {"visual.stage1": bad})) == "visual.stage1 has 1 of 6 values not finite in float16"
    )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_values_too_large_for_a_dtype_name_the_dtypes_that_hold_them(dtype: str) -> None:
    large = {"visual.stage1": np.array([[1.0, 7e4], [2.0, -3.0]], np.float32)}
    reason = unfit(Record("a", stored(large, dtype)))
    assert reason.startswith("visual.stage1") and f"beyond 65504 in {dtype}" in reason
    assert reason.endswith("--dtype bfloat16 or float32 holds such values")
    assert unfit(Record("a", stored(large, "bfloat16"))) == ""
    large["visual.stage1"][0, 0] = np.nan
    assert "--dtype" not in unfit(Record("a", stored(large, dtype)))


def test_failure_limits_are_numbers_or_percentages() -> None:
    assert [failure_limit(text, 45) for text in ("0", "7", "10%", "0%", "100%")] == [0, 7, 5, 0, 45]
    for text in ("ten", "-1", "101%", "", "%", "1.5"):
        with pytest.raises(CaeavError, match="no number of clips"):
            failure_limit(text, 45)


def run_command(*arguments: str) -> tuple[int, str, str]:
    app = Typer()
    caeav.cli.extract.register(app)
    result = CliRunner().invoke(app, list(arguments))
    error = str(result.exception) if isinstance(result.exception, CaeavError) else ""
    return result.exit_code, result.stdout, error


def test_the_command_reports_stored_and_quarantined_clips_and_the_next_step(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    media = tmp_path / "my clips"
    media.mkdir()
    for clip in small_manifest.clips[:2]:
        shutil.copy(Path(small_manifest.media_root) / clip.media, media)
    (media / "broken.mp4").write_bytes(b"nothing")
    home = ("--home", str(tmp_path / "home"), "--segments", "4", "--workers", "1")
    code, out, error = run_command("--dataset", str(media), *home)
    assert code == 0
    assert "stored       2 of 3" in out
    assert "1 x decode:" in out
    assert f"caeav caption --dataset '{media}' --home {tmp_path / 'home'} --segments 4" in out
    code, out, error = run_command("--dataset", str(media), *home, "--max-failed", "0")
    assert code == 1
    assert "nothing to do" in out
    assert "1 of 3 clips are quarantined; --max-failed allows 0" in error
    code, out, _ = run_command("--dataset", str(media), *home, "--json")
    assert json.loads(out)["stored"] == 2


def test_embedded_components_import_no_torch(small_manifest: Manifest) -> None:
    path = Path(small_manifest.media_root) / small_manifest.clips[0].media
    code = (
        "import sys; from caeav.pipeline.extract.jobs import *; from caeav.pipeline.extract.decode_job import *\n"
        "import caeav.pipeline.extract.tokens, caeav.pipeline.extract.captions\n"
        "jobs = [TokenOptions().job(4, 1.0), CaptionOptions().job(4, 1.0)]\n"
        f"setup(worker_settings(jobs))({{'path': {str(path)!r}, 'start_s': 0.0, 'jobs': [0, 1]}})\n"
        "print(sorted({'torch', 'torchvision', 'torchaudio', 'matplotlib', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['av']"


def test_a_missing_data_set_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    code, _, error = run_command("--dataset", "synthetic", "--home", str(tmp_path))
    assert code == 1
    assert "caeav synthesise" in error


def test_every_real_file_ends_stored_or_quarantined(shared: Path, tmp_path: Path, digests: Digests) -> None:
    """20 real files: with several streams, variable frame rate, rotated, silent, damaged, truncated, ..."""
    media = shared / "data" / "media"
    if not media.is_dir():
        pytest.skip(f"no real media at {media}")
    options = ("--home", str(tmp_path), "--workers", "2", "--max-failed", "100%", "--json")
    code, out, _ = run_command("--dataset", str(media), *options)
    found = json.loads(out)
    assert code == 0
    with (media / "MEDIA.csv").open(newline="") as listed:
        assert found["expected"] == sum(1 for _ in csv.DictReader(listed))
    assert found["stored"] + len(found["quarantined"]) == found["expected"]
    assert found["stored"] > 0
    assert all(len(entry["reason"]) > 10 for entry in found["quarantined"])
    before = digests(tmp_path)
    code, out, _ = run_command("--dataset", str(media), *options)
    assert (code, json.loads(out)["due"]) == (0, 0)
    assert digests(tmp_path) == before
