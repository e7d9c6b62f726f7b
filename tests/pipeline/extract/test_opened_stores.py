"""What stores must fulfil before they are used: one backbone to open, captions to embed in another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract import captions as caption_stage
from caeav.pipeline.extract import tokens as token_stage
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenJob, TokenOptions, open_live
from caeav.pipeline.store import Quarantined, Recipe, Record

OPEN = SimpleNamespace(name="swin", live=lambda: "opened")


def tokens(visual: dict[str, Any] | None, **audio: Any) -> Recipe:
    fields = {modality: part for modality, part in (("visual", visual), ("audio", audio)) if part}
    return Recipe("tokens", "n", fields)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, str]]:
    asked: list[tuple[Recipe, str]] = []

    def load_part(recipe: Recipe, modality: str) -> Any:
        asked.append((recipe, modality))
        return OPEN if recipe.fields[modality]["name"] == "swin" else SimpleNamespace(name="shut")

    monkeypatch.setattr(TokenJob, "load_part", load_part)
    return asked


def test_stores_of_one_network_open_it_whatever_their_taps(parts: list[tuple[Recipe, str]]) -> None:
    one = tokens({"name": "swin", "weights": "w", "taps": ["a"], "settings": {"taps": "a", "size": 2}})
    other = tokens({"name": "swin", "weights": "w", "taps": ["b"], "settings": {"taps": "b", "size": 2}})
    sound = tokens(None, name="hts-at")
    assert open_live([sound, one, other], "visual") == "opened"
    assert parts == [(one, "visual")]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"name": "swin", "weights": "other"}, "have swin, swin as visual backbones"),
        ({"name": "swin", "weights": "w", "settings": {"size": 3}}, "have swin, swin as visual backbones"),
        ({"name": "shut", "weights": "w"}, "have swin, shut as visual backbones"),
    ],
)
def test_stores_of_several_networks_are_refused(
    parts: list[tuple[Recipe, str]], other: dict[str, Any], said: str
) -> None:
    with pytest.raises(CaeavError, match=said):
        open_live([tokens({"name": "swin", "weights": "w"}), tokens(other)], "visual")
    assert parts == []


def test_a_network_without_open_blocks_and_a_missing_one_are_refused(parts: list[tuple[Recipe, str]]) -> None:
    with pytest.raises(CaeavError, match="have none as audio backbones"):
        open_live([tokens({"name": "swin"})], "audio")
    with pytest.raises(CaeavError, match=r"inside shut: its blocks are not open.*\n.*ladder"):
        open_live([tokens({"name": "shut"})], "visual")


RUN = RunOptions(1, devices=("cpu",))


def captions(tmp_path: Path, recipe: Recipe, lost: list[Quarantined] | None = None) -> Any:
    texts = {"texts": {"visual": "v", "audio": "a"}}
    return SimpleNamespace(
        recipe=recipe,
        path=tmp_path / "captions-x",
        manifest=Manifest("mine", 10, 1.0, (), ()),
        quarantined=lost or [],
        info=lambda key: {**texts, "key": key},
    )


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    made: list[Any] = []

    def run_lookup(context: Any, recipe: Any, find: Callable[..., Any], complete: Any) -> Any:
        made.append((context.manifest, recipe, find))
        return SimpleNamespace(path=tmp_path / "made")

    monkeypatch.setattr(caption_stage, "run_lookup", run_lookup)
    monkeypatch.setattr(caption_stage, "carry_record", lambda sources, path: made.append((sources, path)))
    monkeypatch.setattr(caption_stage, "remember_at", lambda home, remark: None)
    return made


def test_only_captions_can_be_embedded_and_only_in_another_way(tmp_path: Path, lookups: list[Any]) -> None:
    home = Home(tmp_path)

    def embed(source: Any, **other: Any) -> Any:
        given = {"visual_text": None, "audio_text": None, "dtype": None, **other}
        return caption_stage.reembed(RunContext(source.manifest, home, RUN), source, **given)

    with pytest.raises(CaeavError, match="captions-x is a store of tokens, not of captions"):
        embed(captions(tmp_path, tokens({"name": "swin"})))
    recipe = CaptionOptions().job(10, 1.0).recipe
    with pytest.raises(CaeavError, match="captions-x is embedded that way already"):
        embed(captions(tmp_path, recipe))
    same = ModelChoice(recipe.fields["visual"]["text"]["name"])
    with pytest.raises(CaeavError, match="embedded that way already"):
        embed(captions(tmp_path, recipe), visual_text=same)
    assert lookups == []


def test_embedding_again_keeps_texts_and_quarantined_clips(tmp_path: Path, lookups: list[Any]) -> None:
    recipe = CaptionOptions().job(10, 1.0).recipe
    gone = Quarantined("lost", "decode", "damaged", 2)
    source = captions(tmp_path, recipe, [gone])
    dtype = "float32" if recipe.fields["dtype"] != "float32" else "float16"
    made = caption_stage.reembed(RunContext(source.manifest, Home(tmp_path), RUN), source, None, None, dtype)
    (manifest, wanted, find), carried = lookups
    assert manifest is source.manifest and wanted.fields["dtype"] == dtype
    assert find("lost") is gone
    assert find("k") == Record("k", {}, source.info("k"))
    assert carried == ([source.path], made.path)


def test_stores_are_required_and_random_weights_reported_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, said, runs = Manifest("mine", 4, 0.5, (), ()), list[str](), list[Any]()
    monkeypatch.setattr(token_stage, "remember_at", lambda home, remark: None)
    monkeypatch.setattr(token_stage, "random_remarks", lambda fields: [f"random {fields['dtype']}"])
    monkeypatch.setattr(token_stage, "run_stage", lambda context, jobs: [runs.append(jobs), ["done"]][1])
    monkeypatch.setattr(token_stage, "record_rate", lambda *_: None)
    context = RunContext(manifest, Home(tmp_path), RUN)
    with pytest.raises(CaeavError, match="no store is asked for"):
        token_stage.extract_all(context, [])
    asked = [TokenOptions(dtype="int8"), CaptionOptions()]
    assert token_stage.extract_all(replace(context, remark=said.append), asked) == ["done"]
    assert token_stage.extract(context, asked[0]) == "done"  # type: ignore[arg-type]
    [words, texts], _ = runs
    assert (words.recipe.kind, texts.recipe.kind) == ("tokens", "captions")
    assert words.recipe.fields["sampling"]["segments"] == 4
    assert said == ["random int8", f"random {texts.recipe.fields['dtype']}"]
    records = (Record("k", {}, {}),)
    assert words.complete(["cpu"])(records, len) == [*records]
    assert texts.complete(["cpu"]).__name__ == "embed"
