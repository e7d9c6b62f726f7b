"""Hashed text: the same in every process, similar for similar words, sensitive to order, empty for an empty text."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np

from caeav.pipeline.backbones import text_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.classic.text import HashedText

TEXTS = ["A small red disc moves left.", "", "naïve café 3 to 5"]
DIGEST = (
    "import hashlib; from caeav.pipeline.backbones.classic.text import HashedText, ModelChoice;"
    f"print(hashlib.sha256(HashedText(ModelChoice('hashed')).encode({TEXTS!r})[0].tobytes()).hexdigest())"
)


def test_shapes_mask_and_padding() -> None:
    text = text_backbones["hashed"](ModelChoice("hashed"))
    tokens, mask = text.encode(TEXTS)
    assert tokens.shape == (3, text.max_tokens, text.channels)
    assert mask.sum(axis=1).tolist() == [6, 0, 5]
    assert not tokens[~mask].any()
    assert 0.9 < tokens[mask].std() < 1.1


def test_other_processes_give_the_same_bytes() -> None:
    here = hashlib.sha256(HashedText(ModelChoice("hashed")).encode(TEXTS)[0].tobytes()).hexdigest()
    for seed in ("0", "1"):
        there = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        assert there.stdout.decode().strip() == here


def test_a_text_does_not_depend_on_its_batch() -> None:
    alone = HashedText(ModelChoice("hashed")).encode(TEXTS[2:])[0][0]
    assert alone.tobytes() == HashedText(ModelChoice("hashed")).encode(TEXTS)[0][2].tobytes()


def cosine(a: str, b: str) -> float:
    x, y = (HashedText(ModelChoice("hashed")).encode([text])[0][0, 0] for text in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_words_that_share_letters_have_similar_vectors() -> None:
    assert cosine("moving", "moving") > 0.999
    assert cosine("moving", "moves") > cosine("moving", "red") + 0.05


def test_word_order_matters_and_case_does_not() -> None:
    encode = HashedText(ModelChoice("hashed")).encode
    assert encode(["Red Square"])[0].tobytes() == encode(["red square"])[0].tobytes()
    there, back = encode(["red square", "square red"])[0]
    assert np.abs(there.sum(0) - back.sum(0)).max() > 1e-3


def test_long_texts_are_truncated() -> None:
    tokens, mask = HashedText(ModelChoice("hashed")).encode(["word " * 100])
    assert mask.all()
    assert tokens.shape[1] == 32
