"""Every vector belongs to a kind we know; the kinds not covered yet are listed, not skipped in silence."""

from __future__ import annotations


def test_every_vector_is_of_a_known_kind(all_vectors: dict[str, str | None]) -> None:
    unknown = [name for name, kind in all_vectors.items() if kind is None]
    assert all_vectors, "the golden folder is empty"
    assert not unknown, f"vectors of an unknown kind: {unknown}; add the kind to conftest.KINDS and cover it"


def test_every_covered_kind_has_a_vector(all_vectors: dict[str, str | None], kinds: dict[str, str]) -> None:
    covered = {kind for kind, group in kinds.items() if group != "not covered yet"}
    assert covered <= set(all_vectors.values())
