"""The house rules that a reviewer would otherwise check by eye: direction of imports, size, and forbidden calls."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("manifests", "pipeline", "model", "cli")
MAY_IMPORT = {
    "manifests": {"caeav.manifests"},
    "pipeline": {"caeav.manifests", "caeav.pipeline"},
    "model": {"caeav.manifests", "caeav.pipeline.store", "caeav.model"},
    "cli": {"caeav.manifests", "caeav.pipeline", "caeav.model", "caeav.cli"},
}
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


def modules(repository: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((repository / package).rglob("*.py")):
            yield package, path, ast.parse(path.read_text(), str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def test_imports_run_one_way(repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)} imports {name}"
        for package, path, tree in modules(repository)
        for name in imported(tree)
        if name.startswith("caeav.") and not within(name, MAY_IMPORT[package])
    ]
    assert wrong == []


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
        "caeav." + ".".join(path.parent.relative_to(repository).parts)
        for package in PACKAGES
        for path in (repository / package).rglob("__init__.py")
    }
    assert present == shipped


@pytest.mark.parametrize("module", ["caeav.cli.app", "caeav.pipeline.store", "caeav.manifests.clip"])
def test_start_up_is_light(module: str) -> None:
    """The command answers quickly: nothing heavy is imported before a command asks for it."""
    heavy = ("torch", "torchvision", "torchaudio", "av", "decord", "matplotlib", "tensorboard")
    build = "m.build()" if module.endswith("app") else "pass"
    code = f"import sys, importlib; m = importlib.import_module({module!r}); {build}; "
    code += f"print([h for h in {heavy!r} if h in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.strip() == "[]"
