"""Numbers, sizes and lists as written in messages; the cores to use."""

from __future__ import annotations

import os

import pytest

from caeav.cli.stage import run_options
from caeav.manifests.core.util import counted, size_text, some_lines, some_of, usable_cores


@pytest.mark.parametrize(
    ("number", "several", "said"),
    [(1, "", "1 clip"), (0, "", "0 clips"), (3, "", "3 clips"), (2, "ones", "2 ones")],
)
def test_the_noun_follows_the_number(number: int, several: str, said: str) -> None:
    assert counted(number, "clip", several) == said


@pytest.mark.parametrize(
    ("names", "most", "said"),
    [
        ([], 3, ""),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d"], 3, "a, b, c and 1 more"),
        (iter(range(5)), 1, "0 and 4 more"),
    ],
)
def test_long_lists_are_cut(names: list[object], most: int, said: str) -> None:
    assert some_of(names, most) == said


def test_lines_that_are_left_out_are_counted() -> None:
    assert some_lines(["a", "b"], 2) == ["a", "b"]
    assert some_lines(["a", "b", "c"], 1) == ["a", "and 2 more"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_900, "99.9 kB"),
        (159_000, "159 kB"),
        (1_023_000, "1.0 MB"),
        (2.5e9, "2.5 GB"),
        (3e12, "3.0 TB"),
        (4e15, "4000 TB"),
    ],
)
def test_sizes_of_files_are_decimal(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(1023, "1023 B"), (1536, "1.5 KiB"), (16 << 20, "16.0 MiB"), (139 << 30, "139 GiB")]
)
def test_sizes_of_memory_are_binary(count: int, text: str) -> None:
    assert size_text(count, binary=True) == text


def test_usable_cores_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    assert run_options(None, 1.0, False, "0").workers == 3


def test_without_affinity_all_cores_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    assert run_options(None, 1.0, False, "0").workers == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
