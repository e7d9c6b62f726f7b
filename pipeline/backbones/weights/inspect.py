"""What a torch checkpoint holds besides the tensors that are wanted: its parts, and the classes that it names.

Looked at by `pickled.py`, so nothing in the file is imported or run, and no tensor is read. Needs no torch.
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
"""What torch itself reads by `weights_only`."""
HARMLESS = re.compile(
    r"(argparse\.Namespace|pathlib(\._local)?\.\w*Path|collections\.(defaultdict|deque)|typing\.\w+"
    r"|datetime\.\w+|uuid\.UUID|decimal\.Decimal|fractions\.Fraction|functools\.partial"
    r"|builtins\.(dict|list|tuple|int|float|str|bool|bytes|object|frozenset|slice|range|type)"
    r"|numpy\.[\w.]+|omegaconf\.[\w.]+|yacs\.config\.CfgNode|easydict\.EasyDict|addict(\.addict)?\.Dict"
    r"|munch\.\w+|ml_collections\.[\w.]+|mmcv\.utils\.config\.\w+|mmengine\.config\.[\w.]+"
    r"|torch\.torch_version\.TorchVersion|torch\.optim\.[\w.]+|torch\.(cuda\.)?amp\.[\w.]+"
    r"|(pytorch_lightning|lightning|lightning_fabric|lightning_utilities)\.[\w.]+)"
)
"""Settings and bookkeeping that training writes beside weights. An empty stand-in takes the place of each, see
`load.py`, so the name alone matters; others are refused, since they may be what holds the weights."""
_ACTING = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|pty|runpy|importlib|imp|ctypes|code|codeop|webbrowser)\..+"
    r"|builtins\.(eval|exec|compile|open|__import__|input|breakpoint)"
)


def classes_in_the_way(names: Iterable[str]) -> list[str]:
    """Of the names in a file, those that plain reading stops at."""
    return sorted(name for name in names if not OWN.fullmatch(name) and not HARMLESS.fullmatch(name))


def acting(names: Iterable[str]) -> list[str]:
    """Of the names in a file, those by which it would do something on being unpickled; no honest one has any."""
    return sorted(filter(_ACTING.fullmatch, names))


def refused_names(path: Path, names: Collection[str]) -> WeightsError | None:
    """Why a file with such names in it is not read, and what to do; None when plain reading gets past all of them."""
    if commands := acting(names):
        return WeightsError(
            f"{path} cannot be read as plain weights: it asks to run {', '.join(map(readable, commands))}",
            hint="only tensors are read, code in a checkpoint never is, and nothing of it was run; do not trust this "
            "file: get the weights elsewhere, best as .safetensors",
        )
    if classes := classes_in_the_way(names):
        return WeightsError(
            f"{path} cannot be read as plain weights: it holds objects of {', '.join(map(readable, classes))}",
            hint="only tensors are read, code in a checkpoint never is; this writes them to a file of their own and "
            f"runs nothing: {convert_command(path)}",
        )
    return None


def convert_command(path: Path) -> str:
    """What to type to have a file's tensors in a file of their own."""
    return f"caeav models convert {shlex.quote(str(path))} {shlex.quote(f'{path.stem}.safetensors')}"


def parts_of(path: Path, take: str = "", *, averages: bool = True) -> Parts | None:
    """Which dictionary of a torch file is the model's (`choose_part`); None where that cannot be told.

    Raises `WeightsError` when `take` names none, or classes are in the way of reading any.
    """
    refusal = None
    try:
        with open_pickled(path) as held:
            refusal = refused_names(path, held.names)
            if refusal is not None:
                raise refusal
            return choose_part(held.root, pure, entries, str(path), take, averages=averages)
    except WeightsError:
        if take or refusal is not None:
            raise
        return None


def part_in(held: Pickled, source: str, take: str = "") -> Parts:
    """The same of a file that is open; raises `WeightsError`. Mixed dictionaries count only where no pure one is."""
    try:
        return choose_part(held.root, pure, entries, source, take)
    except WeightsError:
        if not any(mixed(x) for x in [held.root, *(entries(held.root) or {}).values()]):
            raise
        return choose_part(held.root, mixed, entries, source, take)


def entries(value: Any) -> Mapping[Any, Any] | None:
    """The entries of a dictionary of any class."""
    if isinstance(value, Inert):
        return value.entries or module_tensors(value)
    return value if isinstance(value, dict) else None


def pure(value: Any) -> Mapping[str, LazyTensor] | None:
    """The named tensors of a dictionary that holds nothing else, or of a whole module that was saved."""
    held = entries(value)
    if not held or not all(isinstance(k, str) and isinstance(x, LazyTensor) for k, x in held.items()):
        return None
    return held


def mixed(value: Any) -> Mapping[str, LazyTensor] | None:
    """The named tensors of a dictionary that also holds numbers and the like, but no further dictionaries."""
    held = entries(value) or {}
    if any(not isinstance(k, str) or isinstance(x, dict | list) for k, x in held.items()):
        return None
    return {name: x for name, x in held.items() if isinstance(x, LazyTensor)} or None


def module_tensors(value: Inert, prefix: str = "", depth: int = 64) -> dict[str, LazyTensor]:
    """The state dict of a module that was saved as an object: parameters and buffers of it and those below it."""
    state = value.state
    found: dict[str, LazyTensor] = {}
    if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict) or not depth:
        return found
    passing = state.get("_non_persistent_buffers_set") or ()
    for part in ("_parameters", "_buffers"):
        for name, x in (state.get(part) or {}).items():
            if isinstance(x, LazyTensor) and name not in passing:
                found[f"{prefix}{name}"] = x
    for name, module in state["_modules"].items():
        if isinstance(module, Inert):
            found |= module_tensors(module, f"{prefix}{name}.", depth - 1)
    return found
