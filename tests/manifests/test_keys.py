"""Keys: file-safe, unique, readable, and independent of the order of the clips."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caeav.manifests.keys import KEY_PATTERN, KeyRequest, assign_keys, slug

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), unique=True, max_size=20)


def request(text: str) -> KeyRequest:
    return KeyRequest(text, text)


@given(texts)
def test_keys_are_safe_and_all_different(names: list[str]) -> None:
    keys = assign_keys([request(name) for name in names])
    assert len(set(keys)) == len(names)
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)


@given(st.lists(st.text(alphabet="ab_ ./é", max_size=4), unique=True, max_size=30), st.randoms())
def test_keys_do_not_depend_on_the_order(names: list[str], random: object) -> None:
    shuffled = names.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    by_name = dict(zip(names, assign_keys([request(n) for n in names]), strict=True))
    again = dict(zip(shuffled, assign_keys([request(n) for n in shuffled]), strict=True))
    assert by_name == again


@pytest.mark.parametrize("name", ["-J2WJaG1Dd4", "_x", "go-mp4_sample", "a+b", "0"])
def test_a_safe_name_is_its_own_key(name: str) -> None:
    assert assign_keys([request(name)]) == [name]


def test_a_changed_name_carries_a_hash_so_it_cannot_be_taken_for_another() -> None:
    digest = hashlib.sha256("Frühling 1.mp4".encode()).hexdigest()[:8]
    assert assign_keys([request("Frühling 1.mp4")]) == [f"Fruhling_1_mp4-{digest}"]


def test_names_with_equal_slugs_all_carry_a_hash() -> None:
    keys = assign_keys([KeyRequest("a", "a.mp4"), KeyRequest("a", "a.mkv"), KeyRequest("b", "b.mp4")])
    assert keys[2] == "b"
    assert keys[0].startswith("a-") and keys[1].startswith("a-") and keys[0] != keys[1]


def test_a_name_that_looks_like_anothers_hashed_key_still_gets_its_own() -> None:
    (hashed,) = assign_keys([request("a b")])
    keys = assign_keys([request("a b"), request(hashed)])
    assert keys[1] == hashed
    assert keys[0].startswith(hashed) and len(keys[0]) == len("a_b-") + 16  # more of the hash


def test_the_same_identity_twice_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="same identity"):
        assign_keys([request("a"), request("a")])


@pytest.mark.parametrize(
    ("text", "expected"), [("Frying (food)", "Frying_food"), ("日本", "clip"), ("", "clip")]
)
def test_slugs_read_like_their_text(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_a_name_of_more_than_120_characters_is_cut_and_carries_a_hash() -> None:
    assert slug("k" * 120) == "k" * 120 and slug("k" * 121) == "k" * 120
    [short, long] = assign_keys([KeyRequest("k" * 120, "a"), KeyRequest("j" * 121, "b")])
    assert short == "k" * 120 and long.startswith("j" * 120 + "-") and len(long) == 129
    assert slug("___") == "___" and slug("...") == "clip" and slug("") == "clip"
