"""Cores that may be used: the allowed ones, or all of them where the system has no such notion."""

from __future__ import annotations

import os

import pytest

from caeav.cli.stage import run_options
from caeav.manifests.core.util import usable_cores


def test_it_is_what_the_process_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    assert run_options(None, 1.0, False, "0").workers == 3


def test_a_system_that_cannot_tell_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    assert run_options(None, 1.0, False, "0").workers == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
