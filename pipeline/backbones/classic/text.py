"""The `hashed` text encoder: every word is a fixed random vector, found by hashing; nothing is learned.

Words that share letters get similar vectors (their trigrams are mixed in), and every token holds a little of its
neighbours, so that "red square" and "square, red" differ. The same text gives the same bytes in every process.
Shapes: `N` texts, `W` tokens, `C` channels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice

VERSION = 1
WORDS = re.compile(r"\w+", re.UNICODE)


class HashedText:
    """Up to `max_tokens` words per text, the rest is cut; an empty text has no real token."""

    name = "hashed"
    max_tokens = 32
    channels = 128
    letters_share = 0.5
    neighbour_share = 0.15

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def describe(self) -> Mapping[str, Any]:
        """All settings; there are no weights."""
        return {
            "version": VERSION,
            "max_tokens": self.max_tokens,
            "channels": self.channels,
            "letters_share": self.letters_share,
            "neighbour_share": self.neighbour_share,
        }

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Texts -> tokens `[N, W, C]` (about unit variance, zeros where padded) and mask `[N, W]`."""
        tokens = np.zeros((len(texts), self.max_tokens, self.channels), dtype=np.float32)
        mask = np.zeros((len(texts), self.max_tokens), dtype=np.bool_)
        for n, text in enumerate(texts):
            words = WORDS.findall(text.casefold())[: self.max_tokens]
            if words:
                tokens[n, : len(words)] = self._mix(np.stack([self._word(word) for word in words]))
                mask[n, : len(words)] = True
        return tokens, mask

    def _word(self, word: str) -> NDArray[np.float32]:
        padded = f"<{word}>"
        pieces = [padded[i : i + 3] for i in range(len(padded) - 2)]
        letters = np.sum([random_vector(f"letters {piece}", self.channels) for piece in pieces], axis=0)
        share = np.float32(self.letters_share)
        return np.asarray(
            random_vector(f"word {word}", self.channels) + share * letters / np.float32(np.sqrt(len(pieces)))
        )

    def _mix(self, words: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[words, C]`: each with a share of the word before, and half that share of the word after."""
        share = np.float32(self.neighbour_share)
        mixed = words.copy()
        mixed[1:] += share * words[:-1]
        mixed[:-1] += share / 2 * words[1:]
        return np.asarray(mixed / np.sqrt(np.square(mixed).mean(axis=1, keepdims=True)))


@lru_cache(maxsize=16384)
def random_vector(name: str, channels: int) -> NDArray[np.float32]:
    """A fixed vector `[C]` of a name: uniformly distributed, of unit variance, read straight off a stable hash."""
    stream = hashlib.shake_256(name.encode()).digest(2 * channels)
    even = np.frombuffer(stream, dtype="<u2").astype(np.float32) / np.float32(65535) - np.float32(0.5)
    return even * np.float32(np.sqrt(12))
