"""The catalogue's facts about each model are those that the model declares."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from caeav.pipeline.backbones.catalogue import REGISTRIES, registry_of
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.describe import random_remarks
from caeav.pipeline.backbones.facts import MODELS, ModelFacts
from caeav.pipeline.backbones.record_check import (
    array_statistics,
    differences,
    sample_clip,
    sample_frames,
    sample_wave,
)

VISUAL = [row for row in MODELS if row.kind == "visual backbone" and not row.name.endswith(":")]


def test_every_registered_model_has_facts_and_vice_versa() -> None:
    listed = {kind: sorted(row.name for row in MODELS if row.kind == kind) for kind in REGISTRIES}
    assert listed == {kind: registry_of(kind).names() for kind in REGISTRIES}


@pytest.mark.parametrize("facts", VISUAL, ids=lambda row: row.name)
def test_visual_backbones_declare_what_the_catalogue_says(facts: ModelFacts) -> None:
    if facts.learned and any(importlib.util.find_spec(name) is None for name in ("timm", "open_clip")):
        pytest.skip("caeav[learned] is not installed")
    model = registry_of(facts.kind)[facts.name](ModelChoice(facts.name, "random:0" if facts.learned else ""))
    assert model.taps() == facts.taps
    if facts.learned:
        assert (model.parameters, model.default_weights) == (facts.parameters, facts.weights)
        assert facts.file == model._network.files[0]


def test_the_sample_clip_has_not_changed() -> None:
    """Records made elsewhere belong to this clip."""
    frames, wave = sample_frames(), sample_wave(32_000)
    assert frames.shape == (2, 270, 480, 3) and frames.dtype == np.uint8
    assert [int(x) for x in frames.astype(np.int64).sum(axis=(0, 1, 2))] == [24541658, 30317503, 28915718]
    assert wave.shape == (64_000,) and wave.dtype == np.float32 and 0.3 < np.abs(wave).max() <= 1
    assert sample_clip(8000).wave is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[..., ::-1],
        lambda x: x[:, ::-1],
        lambda x: np.roll(x, 1, axis=1),
        lambda x: x * 1.02,
        lambda x: x + 0.05,
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x),
        lambda x: x[:, :-1],
    ],
    ids=["channels", "tokens", "shifted", "scaled", "offset", "nan", "shape"],
)
def test_statistics_detect_changes(change: object) -> None:
    assert callable(change)
    x = np.random.default_rng(0).normal(0.3, 2, (2, 16, 24))
    before = {"tap": array_statistics(x)}
    assert differences(before, {"tap": array_statistics(x + 1e-4)}) == []
    assert differences(before, {"tap": array_statistics(change(x))})
    assert differences(before, {}) == ["tap is missing"]


def test_random_weights_are_reported_at_any_depth_of_a_recipe() -> None:
    given = {"weights": {"source": "random:0", "digest": "random:0"}}
    sound = {"weights": {"source": "w", "digest": "sha256:1"}}
    fields = {
        "dtype": "float16",
        "visual": {"name": "a", **sound, "text": {"name": "b", **given}},
        "audio": {"name": "c", **given},
    }
    assert [text.split()[0] for text in random_remarks(fields)] == ["b", "c"]
