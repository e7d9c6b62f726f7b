"""Archives from strangers: the sizes they claim are compared with a cap before anything is read."""

from __future__ import annotations

import io
import zipfile

import pytest

from caeav.manifests.core.archive import open_archive


def archive(*members: tuple[str, int]) -> io.BytesIO:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, size in members:
            file.writestr(name, bytes(size))
    return held


def test_the_claimed_sizes_of_all_members_together_are_capped() -> None:
    held = archive(("a", 600), ("b", 400))
    with open_archive(held, 1000) as file:
        assert file.read("b") == bytes(400)
    with (
        pytest.raises(ValueError, match="claims to hold 1000 bytes, more than 999"),
        open_archive(held, 999),
    ):
        pass


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_one_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="a name twice"), open_archive(archive(("a", 1), ("a", 2)), 10):
        pass
