"""Captioners of real size with random weights: their size is that of the catalogue, and they write captions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.facts import MODELS, ModelFacts
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.checkpoints import LearnedCaptioner
from caeav.pipeline.captioners.generate import check_tokenizer
from caeav.pipeline.captioners.random_models import byte_processor, sizes
from caeav.pipeline.media.clip import DecodedClip

LEARNED = [
    row
    for row in MODELS
    if row.kind.endswith("captioner") and row.learned and not row.name.endswith(":") and row.name != "tags"
]
"""Those that generate text; `tags` are classifiers, tested in `test_tags.py`."""


def made(facts: ModelFacts) -> LearnedCaptioner:
    registry = visual_captioners if facts.kind == "visual captioner" else audio_captioners
    captioner = registry[facts.name](ModelChoice(facts.name, "random:0", {"max_tokens": 3}))
    assert isinstance(captioner, LearnedCaptioner)
    return captioner


@pytest.mark.parametrize("facts", LEARNED, ids=lambda row: row.name)
def test_the_size_is_what_the_catalogue_says(facts: ModelFacts) -> None:
    captioner = made(facts)
    assert captioner.default_weights == facts.weights
    assert captioner.describe()["weights"]["digest"] == "random:0"
    config, _ = sizes[facts.name]()
    with torch.device("meta"):
        model = captioner.factory()(config)
    assert sum(math.prod(p.shape) for p in model.parameters()) == facts.parameters


@pytest.mark.parametrize("facts", LEARNED, ids=lambda row: row.name)
def test_the_tokenizer_has_as_many_entries_as_the_network(facts: ModelFacts) -> None:
    config, _ = sizes[facts.name]()
    tokenizer = byte_processor(facts.name).tokenizer
    check_tokenizer(tokenizer, facts.name)
    assert len(tokenizer) == config.get_text_config().vocab_size


def test_whisper_of_real_size_writes_captions(clip: Callable[..., DecodedClip]) -> None:
    facts = next(row for row in LEARNED if row.name == "whisper")
    texts = made(facts).caption([clip(1), clip(0)])
    assert texts[0]
    assert texts[1] == "Silence."
