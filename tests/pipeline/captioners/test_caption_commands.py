"""The commands for captions: tiny models on real media, texts from files, show, export and import, embedding again."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extraction import quiet
from numpy.typing import NDArray
from typer import Typer
from typer.testing import CliRunner

import caeav.cli.caption
import caeav.cli.extract
from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones import text_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract.captions import caption, reembed
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.single_file import process_file
from caeav.pipeline.media.workers.pool import WorkerPool
from caeav.pipeline.store import StoreReader

ONE = RunOptions(workers=1, devices=("cpu",))


class Letters:
    """A text backbone for tests: one token per letter, with its code in every channel."""

    name = "letters-of-the-tests"
    max_tokens = 5
    channels = 3

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def describe(self) -> Mapping[str, Any]:
        return {"version": 1}

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        tokens = np.zeros((len(texts), 5, 3), dtype=np.float32)
        mask = np.zeros((len(texts), 5), dtype=np.bool_)
        for n, text in enumerate(texts):
            for w, letter in enumerate(text[:5]):
                tokens[n, w], mask[n, w] = ord(letter) % 100, True
        return tokens, mask


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which `Letters` is registered for this test."""
    monkeypatch.setitem(text_backbones._entries, Letters.name, Letters)
    return Letters.name


def run(*arguments: str | Path, command: str = "caption") -> Any:
    app = Typer()
    caeav.cli.caption.register(app)
    caeav.cli.extract.register(app)
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def good(*arguments: str | Path, command: str = "caption") -> str:
    result = run(*arguments, command=command)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def media_folder(shared: Path, tmp_path: Path) -> Path:
    """A folder of two real media files, the second without audio."""
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("vas_fireworks_02997.mp4", "decord_video_90.mov"):
        shutil.copy(shared / "data" / "media" / name, folder)
    return folder


def plain_manifest(*keys: str) -> Manifest:
    """A data set whose media need not exist."""
    return Manifest("plain", 2, 1.0, (), tuple(Clip(key, f"{key}.mp4", 0.0, 2.0) for key in keys), "/nowhere")


def captions_file(folder: Path, rows: Mapping[str, tuple[str, str]]) -> Path:
    path = folder / "captions.jsonl"
    lines = [json.dumps({"key": key, "visual": v, "audio": a}) for key, (v, a) in rows.items()]
    path.write_text("\n".join(lines))
    return path


def from_file(path: Path, **more: Any) -> CaptionOptions:
    choice = ModelChoice("file", str(path))
    return CaptionOptions(visual=choice, audio=choice, **more)


def test_models_on_real_media_from_caption_to_export_and_back(
    media_folder: Path, tmp_path: Path, tiny_blip2: Path, tiny_whisper: Path
) -> None:
    home = ("--home", tmp_path / "home")
    models = ("--visual", "blip2", "--visual-weights", tiny_blip2, "--set", "visual.max_tokens=5")
    models += ("--audio", "whisper", "--audio-weights", tiny_whisper, "--set", "audio.max_tokens=5")
    said = good("--dataset", media_folder, *home, "--workers", "1", "--segments", "3", *models)
    assert "stored       2 of 2" in said
    [store] = (tmp_path / "home" / "stores" / "films").glob("captions-*")
    assert store.name.startswith("captions-blip2-whisper-hashed-")
    reader = StoreReader.open(store)
    settings = reader.recipe.fields["visual"]["settings"]
    assert settings["max_tokens"] == 5
    assert settings["prompt"] == "a photo of"
    records = list(reader)
    assert all(record.info["texts"]["visual"] for record in records)
    assert str(tmp_path) not in (store / "recipe.json").read_text()

    [film] = media_folder.glob("vas*")
    alone = process_file(film, TokenOptions().job(3, 1.0).recipe, reader.recipe, device="cpu")
    assert alone.captions is not None
    assert alone.captions.info["texts"] == reader.read(film.stem).info["texts"]

    key = records[0].key
    shown = json.loads(good("show", key, "--dataset", "films", *home, "--json"))
    assert shown[0]["visual"]["text"] == records[0].info["texts"]["visual"]
    assert shown[0]["audio"]["captioner"]["name"] == "whisper"
    assert shown[0]["audio"]["captioner"]["settings"]["prompt"] == "clotho > caption: "

    table = tmp_path / "all.csv"
    good("export", "--dataset", "films", *home, "--output", table)
    files = ("--visual", "file", "--visual-weights", table, "--audio", "file", "--audio-weights", table)
    good("--dataset", media_folder, *home, "--segments", "3", *files)
    [again] = (tmp_path / "home" / "stores" / "films").glob("captions-file-hashed-*")
    for ours, theirs in zip(StoreReader.open(again), records, strict=True):
        assert ours.info["texts"] == theirs.info["texts"]
        for name, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[name], array)


def test_extract_with_captions_decodes_each_clip_once(
    media_folder: Path,
    tmp_path: Path,
    tiny_blip2: Path,
    digests: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[str] = []
    whole = WorkerPool.map

    def counting(self: WorkerPool, requests: Any) -> Iterator[Any]:
        for outcome in whole(self, requests):
            decoded.append(outcome.id)
            yield outcome

    monkeypatch.setattr(WorkerPool, "map", counting)
    rows = captions_file(
        tmp_path, {film.stem: ("", f"sound of {film.stem}") for film in media_folder.iterdir()}
    )
    models = {"visual": "blip2", "visual-weights": tiny_blip2, "audio": "file", "audio-weights": rows}
    models |= {"visual-text": "clip-vit-b32", "visual-text-weights": "random:3"}
    common = (
        "--dataset",
        media_folder,
        "--workers",
        "1",
        "--segments",
        "3",
        "--batch",
        "2",
        "--devices",
        "cpu",
    )
    own = [text for name, value in models.items() for text in (f"--{name}", value)]
    good(*common, "--home", tmp_path / "a", *own, "--set", "visual.max_tokens=5")
    decoded.clear()
    both = [text for name, value in models.items() for text in (f"--caption-{name}", value)]
    told = ("--captions", *both, "--set", "caption-visual.max_tokens=5", "--visual", "classic,none", "--json")
    made = good(*common, "--home", tmp_path / "b", "--audio", "none,classic", *told, command="extract")
    stores = [Path(each["path"]) for each in json.loads(made)]
    assert [store.name.split("-")[0] for store in stores] == ["tokens", "tokens", "captions"]
    assert sorted(decoded) == sorted(film.stem for film in media_folder.iterdir())
    [alone] = (tmp_path / "a" / "stores" / "films").glob("captions-*")
    assert (alone.name, digests(alone)) == (stores[2].name, digests(stores[2]))


def test_too_many_tokens_for_whisper_are_refused_before_a_store_is_made(
    media_folder: Path, tmp_path: Path, tiny_whisper: Path
) -> None:
    given = ("--dataset", media_folder, "--home", tmp_path / "home", "--segments", "3", "--workers", "1")
    error = str(run(*given, "--audio", "whisper", "--audio-weights", tiny_whisper).exception)
    assert "'max_tokens' of whisper is 60" in error and "--set audio.max_tokens=43" in error
    assert not list((tmp_path / "home" / "stores").rglob("captions-*"))


def test_extract_refuses_caption_files_without_rows_and_caption_options_without_captions(
    media_folder: Path, tmp_path: Path
) -> None:
    rows = captions_file(tmp_path, {"stranger": ("x", "y")})
    common = ("--dataset", media_folder, "--home", tmp_path / "home", "--segments", "3")
    file = ("--caption-visual", "file", "--caption-visual-weights", rows)
    assert "add --captions" in str(run(*common, *file, command="extract").exception)
    assert "--caption-audio-weights without captions" in str(
        run(*common, "--caption-audio-weights", rows, command="extract").exception
    )
    refused = run(*common, "--captions", *file, command="extract")
    assert "has no row for 2" in str(refused.exception)
    assert not list((tmp_path / "home" / "stores").rglob("tokens-*"))


def test_captions_from_files_need_no_media_and_empty_means_missing(tmp_path: Path) -> None:
    path = captions_file(tmp_path, {"a": ("a dog", ""), "b": ("", "rain"), "c": ("x", "y")})
    said: list[str] = []
    summary = caption(
        RunContext(plain_manifest("a", "b"), Home(tmp_path), ONE, quiet, said.append), from_file(path)
    )
    assert (summary.stored, summary.due) == (2, 2)
    assert any("1 ('c') row names no clip of plain" in text for text in said)
    first = StoreReader.open(summary.path).read("a")
    assert first.info["texts"] == {"visual": "a dog", "audio": ""}
    assert first.arrays["visual_caption_mask"].sum() == 2
    assert not first.arrays["audio_caption_mask"].any()
    assert not first.arrays["audio_caption"].any()
    again = caption(RunContext(plain_manifest("a", "b"), Home(tmp_path), ONE, quiet), from_file(path))
    assert (again.stored, again.due) == (2, 0)


def test_clips_without_a_row_are_an_error_or_quarantined(tmp_path: Path) -> None:
    path = captions_file(tmp_path, {"a": ("a dog", "woof"), "stranger": ("", "")})
    with pytest.raises(
        CaeavError, match=r"no row for 2 \('b', 'c'\) of 3 clips of plain; 1 \('stranger'\) row names"
    ):
        caption(RunContext(plain_manifest("a", "b", "c"), Home(tmp_path), ONE, quiet), from_file(path))
    assert not (tmp_path / "stores").exists()
    lenient = replace(ONE, max_failed="2")
    summary = caption(
        RunContext(plain_manifest("a", "b", "c"), Home(tmp_path), lenient, quiet), from_file(path)
    )
    assert summary.stored == 1
    assert [(q.key, q.stage, q.reason) for q in summary.quarantined] == [
        ("b", "captions", "no row for 'b' in captions.jsonl"),
        ("c", "captions", "no row for 'c' in captions.jsonl"),
    ]


def test_one_modality_from_a_file_and_the_other_from_media(small_manifest: Manifest, tmp_path: Path) -> None:
    manifest = replace(small_manifest, clips=small_manifest.clips[:4])
    keys = [clip.key for clip in manifest.clips]
    path = captions_file(tmp_path, {key: ("", f"sound of {key}") for key in keys[:3]})
    options = CaptionOptions(audio=ModelChoice("file", str(path)), shard_clips=2)
    summary = caption(RunContext(manifest, Home(tmp_path), replace(ONE, max_failed="1"), quiet), options)
    reader = StoreReader.open(summary.path)
    assert [reader.info(key)["texts"]["audio"] for key in keys[:3]] == [f"sound of {key}" for key in keys[:3]]
    assert all(reader.info(key)["texts"]["visual"].endswith(".") for key in keys[:3])
    [lost] = summary.quarantined
    assert lost.key == keys[3]
    assert "no row for" in lost.reason


def test_embedding_again_gives_the_store_that_captioning_would_give(
    small_manifest: Manifest, tmp_path: Path, digests: Callable[[Path], dict[str, str]], letters: str
) -> None:
    manifest = replace(small_manifest, clips=small_manifest.clips[:5])
    other = ModelChoice(letters)
    first = caption(RunContext(manifest, Home(tmp_path / "a"), ONE, quiet), CaptionOptions(shard_clips=2))
    source = StoreReader.open(first.path)
    anew = reembed(RunContext(source.manifest, Home(tmp_path / "b"), ONE, quiet), source, other, None, None)
    options = CaptionOptions(visual_text=other, shard_clips=2)
    direct = caption(RunContext(manifest, Home(tmp_path / "c"), ONE, quiet), options)
    assert anew.path.name == direct.path.name
    assert digests(anew.path) == digests(direct.path)
    record = StoreReader.open(anew.path).read(manifest.clips[0].key)
    assert record.arrays["visual_caption"].shape == (5, 3)
    assert record.arrays["audio_caption"].shape == (32, 128)
    with pytest.raises(CaeavError, match="embedded that way already"):
        reembed(RunContext(source.manifest, Home(tmp_path / "b"), ONE, quiet), source, None, None, None)


def test_embedding_again_keeps_the_quarantine_and_needs_no_captioner(tmp_path: Path, letters: str) -> None:
    path = captions_file(tmp_path, {"a": ("a dog", "woof")})
    home = Home(tmp_path)
    made = caption(
        RunContext(plain_manifest("a", "b"), home, replace(ONE, max_failed="1"), quiet), from_file(path)
    )
    path.unlink()
    arguments = ("--dataset", "plain", "--home", tmp_path, "--max-failed", "1")
    said = json.loads(good("embed", *arguments, "--audio-text", letters, "--json"))
    assert said["stored"] == 1
    stores = sorted(store.name for store in made.path.parent.glob("captions-*"))
    assert len(stores) == 2
    reader = StoreReader.open(next(p for p in made.path.parent.glob("captions-*letters*")))
    assert [entry.reason for entry in reader.quarantined] == ["no row for 'b' in captions.jsonl"]
    assert reader.read("a").arrays["audio_caption"].shape == (5, 3)
    assert (
        reader.recipe.fields["audio"]["weights"]
        == StoreReader.open(made.path).recipe.fields["audio"]["weights"]
    )
    result = run("embed", "--dataset", "plain", "--home", tmp_path, "--store", made.path.name)
    assert "embedded that way already" in str(result.exception)


def test_hostile_captions_are_escaped_on_terminals_and_exported_unchanged(tmp_path: Path) -> None:
    evil = "=cmd|'/c calc'!A1 \x1b]0;owned\x07\x1b[2J\u202e[bold]x[/bold]\nnext, \"line\""
    path = captions_file(tmp_path, {"a": (evil, "")})
    caption(RunContext(plain_manifest("a"), Home(tmp_path), ONE, quiet), from_file(path))
    shown = good("show", "a", "--dataset", "plain", "--home", tmp_path)
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "[bold]x[/bold]" in shown
    assert "(none)" in shown
    exported = good("export", "--dataset", "plain", "--home", tmp_path)
    rows = list(csv.reader(io.StringIO(exported, newline="")))
    assert rows == [["key", "visual", "audio"], ["a", evil, ""]]
    lines = good("export", "--dataset", "plain", "--home", tmp_path, "--format", "jsonl")
    assert json.loads(lines) == {"key": "a", "visual": evil, "audio": ""}
    assert lines.count("\n") == 1


def test_wrong_options_and_names_are_explained(tmp_path: Path) -> None:
    path = captions_file(tmp_path, {"a": ("a dog", "woof")})
    caption(RunContext(plain_manifest("a"), Home(tmp_path), ONE, quiet), from_file(path))
    at = ("--dataset", "plain", "--home", tmp_path)
    assert "data set plain, the one last extracted" in run("export", "--home", tmp_path).stderr
    assert "--dataset belongs after the command: caeav caption show" in run(*at, "show", "a").stderr
    assert "clip 'z' is not in" in str(run("show", "z", *at).exception)
    assert "choose one of: csv, jsonl" in str(run("export", *at, "--format", "xml").exception)
    assert "no captions store of other" in str(
        run("export", "--dataset", "other", "--home", tmp_path).exception
    )
    with_weights = run("embed", *at, "--audio-text-weights", "x")
    assert "--audio-text-weights without --audio-text" in str(with_weights.exception)
    assert "show" in good("--help") and "--visual-text" in good("--help")
