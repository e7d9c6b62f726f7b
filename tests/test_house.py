"""The house rules that a reviewer would otherwise check by eye: direction of imports, size, and forbidden calls."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FACE = "caeav"
"""The folder of the Python interface: its modules are `caeav.<name>` themselves and may import everything."""
PACKAGES = ("manifests", "pipeline", "model", "cli", FACE)
FLOORS = (
    ("manifests.core",),
    ("manifests",),
    ("pipeline.media", "pipeline.store"),
    ("pipeline.backbones",),
    ("pipeline.captioners",),
    ("pipeline.extract",),
    ("model.adapters",),
    ("model.tasks",),
    ("model.train",),
    ("model.report",),
    ("cli",),
)
"""From the ground up: a module imports from its own floor and from those below, of its neighbours on one floor none."""
OF_PIPELINE = "pipeline.store"
"""All that `model` may import of `pipeline`: training loads no backbone and no decoder."""
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "pdb", "ipdb"}
REFUSAL = "pickle.UnpicklingError"  # what torch.load(weights_only=True) raises: needed to catch it, harmless
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "numpy.load",
    "np.load",
}


@functools.cache
def modules(repository: Path) -> list[tuple[str, Path, ast.Module]]:
    return [
        (package, path, ast.parse(path.read_text(), str(path)))
        for package in PACKAGES
        for path in sorted((repository / package).rglob("*.py"))
    ]


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The entry of `FLOORS` that a module belongs to: the longest that fits."""
    fitting = [name for floor in FLOORS for name in floor if f"{module}.".startswith(f"caeav.{name}.")]
    return max(fitting, key=len, default="")


def dotted(path: Path, repository: Path) -> str:
    """How a module or a package's folder is imported."""
    parts = path.relative_to(repository).with_suffix("").parts
    return ".".join(parts if parts[0] == FACE else ("caeav", *parts))


@functools.cache
def graph(repository: Path) -> dict[str, set[str]]:
    """What each module imports of ours, wherever in it the import stands: at the top, in a function, for types."""
    trees = {
        dotted(path, repository).removesuffix(".__init__"): tree for _, path, tree in modules(repository)
    }
    return {
        name: {
            ours if (ours := imported_name) in trees else ours.rpartition(".")[0]
            for imported_name in imported(tree)
            if imported_name.startswith("caeav.")
        }
        - {name, "caeav"}
        for name, tree in trees.items()
    }


def test_imports_run_one_way_from_floor_to_floor(repository: Path) -> None:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for name, imports in graph(repository).items():
        if "." not in name.removeprefix("caeav."):
            continue  # a package's own door, empty; the Python interface, which nothing below imports
        for other in imports:
            mine, theirs = room(name), room(other)
            assert mine and theirs, f"{name} or {other} stands on no floor"
            down = mine == theirs or height[theirs] < height[mine]
            seen = not (mine.startswith("model.") and theirs.startswith("pipeline.")) or theirs == OF_PIPELINE
            if not (down and seen):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_there_is_no_circle_of_imports(repository: Path) -> None:
    """No circle, imports for types counted too: what is read can be read from the ground up."""
    left = dict(graph(repository))
    while ready := [name for name, imports in left.items() if not imports & left.keys()]:
        for name in ready:
            del left[name]
    assert sorted(left) == [], "each of these waits for another of them"


def test_docs_name_files_that_exist(repository: Path) -> None:
    """A page that leads nowhere is worse than none: every path of ours in backquotes is there."""
    pages = [*repository.glob("*.md"), *repository.glob("docs/*.md")]
    inside = "|".join((*PACKAGES, "tests", "benchmarks", "docs"))
    named = {
        (page.name, path)
        for page in pages
        for path in re.findall(rf"`((?:{inside})/[\w/+.-]+)`", page.read_text())
    }
    assert len({path for name, path in named if name == "ARCHITECTURE.md"}) > 40
    assert sorted(f"{name}: {path}" for name, path in named if not (repository / path).exists()) == []


def test_modules_stay_small(repository: Path) -> None:
    long = {
        str(path.relative_to(repository)): lines
        for _, path, _ in modules(repository)
        if (lines := path.read_text().count("\n")) > 500
    }
    assert long == {}


def test_no_pickle_no_shell_no_code_from_data(repository: Path) -> None:
    wrong = []
    for _, path, tree in modules(repository):
        where = path.relative_to(repository)
        wrong += [
            f"{where} imports {name}"
            for name in imported(tree)
            if name.split(".")[0] in FORBIDDEN_MODULES and name != REFUSAL
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in FORBIDDEN_CALLS or keywords.get("shell") == "True":
                wrong.append(f"{where}:{node.lineno} calls {called}")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"{where}:{node.lineno} loads without weights_only")
    assert wrong == []


def test_every_package_folder_is_shipped(repository: Path) -> None:
    """A sub-package missing from pyproject.toml works in the checkout and fails for whoever installs the wheel."""
    import tomllib

    shipped = set(
        tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    present = {
        dotted(path.parent, repository)
        for package in PACKAGES
        for path in (repository / package).rglob("__init__.py")
    }
    assert present == shipped


@pytest.mark.parametrize(
    "module", ["caeav", "caeav.stores", "caeav.cli.app", "caeav.pipeline.store", "caeav.manifests.clip"]
)
def test_start_up_is_light(module: str) -> None:
    """The command answers quickly: nothing heavy is imported before a command asks for it."""
    heavy = ("torch", "torchvision", "torchaudio", "av", "decord", "matplotlib", "tensorboard", "ray")
    build = "m.build()" if module.endswith("app") else "pass"
    code = f"import sys, importlib; m = importlib.import_module({module!r}); {build}; "
    code += f"print([h for h in {heavy!r} if h in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.strip() == "[]"
