"""The list of mutants stays in step with the code, and the script that runs them tells a killed one from a survivor."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from module_files import load_module


@pytest.fixture(scope="module")
def mutants(repository: Path) -> ModuleType:
    module: ModuleType = load_module("mutants", repository / "benchmarks" / "mutants.py")
    return module


def test_every_listed_snippet_occurs_exactly_once(mutants: ModuleType) -> None:
    listed = mutants.chosen((), None)
    assert listed
    assert [said for said in map(mutants.fault, listed) if said] == []


def test_no_mutant_is_listed_twice(mutants: ModuleType) -> None:
    texts = [(m.file, m.apply((mutants.REPOSITORY / m.file).read_text())) for m in mutants.chosen((), None)]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{file: a, find: b}", "file, find and replace are required"),
        ("{file: a, find: b, replace: c, test: [d]}", "allowed keys"),
        ("{file: a, find: b, replace: c}", "names no test"),
        ("{file: a, find: 1, replace: c, tests: [d]}", "every value is a text"),
        ("only text", "allowed keys"),
    ],
)
def test_a_malformed_entry_is_refused(mutants: ModuleType, tmp_path: Path, entry: str, said: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(f"- {entry}\n")
    with pytest.raises(mutants.Wrong, match=rf"model.yaml:1: .*{said}"):
        mutants.read_list(path)


def test_a_snippet_or_test_that_is_gone_is_reported(mutants: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for find, times in (("x = 2", 0), ("x = 1", 2), ("", 0)):
        stale = mutants.Mutant("m.yaml:1", "a.py", find, "y", ())
        assert f"occurs {times} times in a.py" in mutants.fault(stale, tmp_path)
    (tmp_path / "test_a.py").write_text("\ndef test_x(a: int) -> None: ...\n")
    for test in ("tests/gone.py::test_x", "test_a.py::test", "test_a.py::test_y[1]"):
        gone = mutants.Mutant("m.yaml:1", "a.py", "= 1\nx", "y", ("test_a.py::test_x[1]", "test_a.py", test))
        assert mutants.fault(gone, tmp_path) == f"m.yaml:1: no test {test}"
    assert mutants.fault(mutants.Mutant("m.yaml:1", "a.py", "= 1\nx", "y", ()), tmp_path) == ""


def test_the_copy_is_what_tests_and_their_children_import(
    mutants: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip that raises at import is seen by the test process and by a process that it starts."""
    monkeypatch.setattr(mutants, "HEAVY", ())  # these tests need none of it
    tree = mutants.Tree(tmp_path / "copy")
    tests = tree.root / "tests" / "test_tried.py"
    tests.write_text(
        "import subprocess, sys\n"
        "def test_here():\n    import caeav.manifests.core.util\n"
        "def test_child():\n"
        "    subprocess.run([sys.executable, '-c', 'import caeav.manifests.core.util'], check=True, cwd='/')\n"
    )
    first = "from __future__ import annotations\n"

    def verdict(test: str, then: str, timeout_s: float = 60) -> tuple[str, str]:
        ids = (f"tests/test_tried.py::{test}",)
        return tree.verdict(
            mutants.Mutant("m.yaml:1", "manifests/core/util.py", first, first + then, ids), timeout_s
        )

    for name in ("test_here", "test_child"):
        assert verdict(name, "raise RuntimeError\n") == (
            mutants.KILLED,
            f"FAILED tests/test_tried.py::{name}",
        )
        assert verdict(name, "\n") == (mutants.SURVIVED, "")
    assert verdict("test_child", "import time; time.sleep(60)\n", 2)[0] == mutants.TIMED_OUT
    assert verdict("test_gone", "\n")[0] == mutants.ERROR
