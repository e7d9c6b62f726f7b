"""Packages and benchmarks call nothing that could execute the content of a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("manifests", "pipeline", "model", "cli", "caeav", "benchmarks")
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "pty", "code"}
HARMLESS = {"pickle.UnpicklingError"}  # what torch.load(weights_only=True) raises
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "os.execv",
    "os.execvp",
    "os.spawnv",
}
SUBPROCESS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}
YAML = {"yaml.safe_load", "yaml.safe_dump", "yaml.dump", "yaml.YAMLError"}


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and reason of everything that could execute data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            for name in (base + alias.name for alias in node.names):
                if name.split(".")[0] in MODULES and name not in HARMLESS:
                    yield node.lineno, f"imports {name}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("yaml."):
            if ast.unparse(node) not in YAML:
                yield node.lineno, ast.unparse(node)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipe:")
        ):
            yield node.lineno, "a pipe: URL"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _unsafe_call(node))


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
    last = called.rpartition(".")[2]
    if called in CALLS:
        yield called
    if called == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only"
    if called in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
        yield "np.load that could unpickle"
    for name in ("allow_pickle", "trust_remote_code", "shell"):
        if keywords.get(name, "False") != "False":
            yield f"{name}={keywords[name]}"
    if keywords.get("weights_only", "True") != "True":
        yield "weights_only is not True"
    texts = any(isinstance(argument, ast.Constant | ast.JoinedStr) for argument in node.args[:1])
    if called.startswith("subprocess.") and last in SUBPROCESS and texts:
        yield "a command that is one string"
    if called.startswith("subprocess.get"):
        yield called
    if called in ("torch.hub.load", "tarfile.open", "shutil.unpack_archive") or last in (
        "extractall",
        "ZipFile",
    ):
        yield called


ARCHIVES = "manifests/core/archive.py:"
"""The only module that opens archives: it first compares their claimed sizes with a cap."""


def test_no_call_can_execute_the_content_of_a_file(repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{line}: {what}"
        for folder in FOLDERS
        for path in sorted((repository / folder).rglob("*.py"))
        for line, what in unsafe(ast.parse(path.read_text(), str(path)))
    ]
    found = [text for text in found if not (text.startswith(ARCHIVES) and text.endswith(": ZipFile"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "np.load(p)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "subprocess.run('ls *')",
        "subprocess.run(c, shell=True)",
        "yaml.load(x, Loader=yaml.Loader)",
        "url = 'pipe:cat x'",
        "tarfile.open(p).extractall()",
        "zipfile.ZipFile(p)",
        "ZipFile(p)",
    ],
)
def test_the_scan_finds_every_forbidden_form(text: str) -> None:
    assert list(unsafe(ast.parse(text)))
