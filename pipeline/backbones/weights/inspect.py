"""Inspect a torch checkpoint without loading it: the dictionaries of tensors it holds, and the classes it names.

The file is read by `pickled.py`, so nothing in it is imported or run, and no tensor is read. Needs no torch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from caeav.pipeline.backbones.weights.parts import Parts, choose_part
from caeav.pipeline.backbones.weights.pickled import (
    Inert,
    LazyTensor,
    Pickled,
    WeightsError,
    open_pickled,
    readable,
)

OWN = re.compile(
    r"torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2|(\w+\.)*\w*(Storage|Tensor)|Size|device|per_\w+|bits\w+"
    r"|(b?float|u?int|q?u?int|complex|bool|double|half|long|short)\w*|nn\.parameter\.Parameter"
    r"|serialization\._get_layout)|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|builtins\.(set|bytearray|complex)"
)
"""Names that torch itself reads with `weights_only`."""
HARMLESS = re.compile(
    r"(argparse\.Namespace|pathlib(\._local)?\.\w*Path|collections\.(defaultdict|deque)|typing\.\w+"
    r"|datetime\.\w+|uuid\.UUID|decimal\.Decimal|fractions\.Fraction|functools\.partial"
    r"|builtins\.(dict|list|tuple|int|float|str|bool|bytes|object|frozenset|slice|range|type)"
    r"|numpy\.[\w.]+|omegaconf\.[\w.]+|yacs\.config\.CfgNode|easydict\.EasyDict|addict(\.addict)?\.Dict"
    r"|munch\.\w+|ml_collections\.[\w.]+|mmcv\.utils\.config\.\w+|mmengine\.config\.[\w.]+"
    r"|torch\.torch_version\.TorchVersion|torch\.optim\.[\w.]+|torch\.(cuda\.)?amp\.[\w.]+"
    r"|(pytorch_lightning|lightning|lightning_fabric|lightning_utilities)\.[\w.]+)"
)
"""Settings and bookkeeping that training programs write beside weights. An empty stand-in replaces each (`load.py`),
so only the name matters. Other classes are refused, since they may hold the weights."""
_DANGEROUS = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|pty|runpy|importlib|imp|ctypes|code|codeop|webbrowser)\..+"
    r"|builtins\.(eval|exec|compile|open|__import__|input|breakpoint)"
)


def unreadable_names(names: Iterable[str]) -> list[str]:
    """Of the names in a file, those that stop it from being read as plain tensors."""
    return sorted(name for name in names if not OWN.fullmatch(name) and not HARMLESS.fullmatch(name))


def dangerous_names(names: Iterable[str]) -> list[str]:
    """Of the names in a file, those with which it would act on the machine when unpickled; an honest file has none."""
    return sorted(filter(_DANGEROUS.fullmatch, names))


def refusal_of(path: Path, names: Collection[str]) -> WeightsError | None:
    """Why a file with these names in it is not read, and what to do; None where it can be read."""
    if commands := dangerous_names(names):
        return WeightsError(
            f"{path} cannot be read as plain weights: it asks to run {', '.join(map(readable, commands))}",
            hint="only tensors are read, code in a checkpoint never is, and nothing of it was run; do not trust this "
            "file: get the weights elsewhere, best as .safetensors",
        )
    if classes := unreadable_names(names):
        return WeightsError(
            f"{path} cannot be read as plain weights: it holds objects of {', '.join(map(readable, classes))}",
            hint="only tensors are read, code in a checkpoint never is; this writes them to a file of their own and "
            f"runs nothing: {convert_command(path)}",
        )
    return None


def convert_command(path: Path) -> str:
    """The command that writes a file's tensors to a file of their own."""
    return f"caeav models convert {shlex.quote(str(path))} {shlex.quote(f'{path.stem}.safetensors')}"


def find_parts(path: Path, take: str = "", *, averages: bool = True) -> Parts | None:
    """Which dictionary of a torch file is the model's (`choose_part`); None where that cannot be decided.

    Raises `WeightsError` when `take` names none, or classes stop the file from being read.
    """
    refusal = None
    try:
        with open_pickled(path) as held:
            refusal = refusal_of(path, held.names)
            if refusal is not None:
                raise refusal
            return choose_part(held.root, pure_tensors, entries, str(path), take, averages=averages)
    except WeightsError:
        if take or refusal is not None:
            raise
        return None


def parts_of_open(held: Pickled, source: str, take: str = "") -> Parts:
    """The same for an open file, where mixed dictionaries count if there is no pure one. Raises `WeightsError`."""
    try:
        return choose_part(held.root, pure_tensors, entries, source, take)
    except WeightsError:
        if not any(mixed_tensors(x) for x in [held.root, *(entries(held.root) or {}).values()]):
            raise
        return choose_part(held.root, mixed_tensors, entries, source, take)


def entries(value: Any) -> Mapping[Any, Any] | None:
    """The entries of a dictionary of any class."""
    if isinstance(value, Inert):
        return value.entries or module_tensors(value)
    return value if isinstance(value, dict) else None


def pure_tensors(value: Any) -> Mapping[str, LazyTensor] | None:
    """The named tensors of a dictionary that holds nothing else, or of a module that was saved whole."""
    held = entries(value)
    if not held or not all(isinstance(k, str) and isinstance(x, LazyTensor) for k, x in held.items()):
        return None
    return held


def mixed_tensors(value: Any) -> Mapping[str, LazyTensor] | None:
    """The named tensors of a dictionary that also holds numbers and the like, but no further dictionaries."""
    held = entries(value) or {}
    if any(not isinstance(k, str) or isinstance(x, dict | list) for k, x in held.items()):
        return None
    return {name: x for name, x in held.items() if isinstance(x, LazyTensor)} or None


def module_tensors(value: Inert, prefix: str = "", depth: int = 64) -> dict[str, LazyTensor]:
    """The state dict of a module that was saved whole: its parameters and buffers, and those of the modules in it."""
    state = value.state
    found: dict[str, LazyTensor] = {}
    if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict) or not depth:
        return found
    transient = state.get("_non_persistent_buffers_set") or ()
    for part in ("_parameters", "_buffers"):
        for name, x in (state.get(part) or {}).items():
            if isinstance(x, LazyTensor) and name not in transient:
                found[f"{prefix}{name}"] = x
    for name, module in state["_modules"].items():
        if isinstance(module, Inert):
            found |= module_tensors(module, f"{prefix}{name}.", depth - 1)
    return found
