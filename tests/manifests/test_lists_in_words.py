"""One thing is not several."""

from __future__ import annotations

import pytest

from caeav.manifests.core.util import counted


@pytest.mark.parametrize(
    ("number", "several", "said"),
    [(1, "", "1 clip"), (0, "", "0 clips"), (3, "", "3 clips"), (2, "ones", "2 ones")],
)
def test_the_noun_follows_the_number(number: int, several: str, said: str) -> None:
    assert counted(number, "clip", several) == said
