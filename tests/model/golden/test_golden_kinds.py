"""Every vector belongs to a kind we know, and every kind has a vector."""

from __future__ import annotations


def test_every_vector_is_of_a_known_kind(all_vectors: dict[str, str | None]) -> None:
    unknown = [name for name, kind in all_vectors.items() if kind is None]
    assert all_vectors, "the golden folder is empty"
    assert not unknown, f"vectors of an unknown kind: {unknown}; add the kind to conftest.KINDS and cover it"


def test_every_kind_has_a_vector(all_vectors: dict[str, str | None], kinds: dict[str, str]) -> None:
    assert kinds.keys() <= set(all_vectors.values())
