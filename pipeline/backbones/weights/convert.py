"""`caeav models convert`: write the tensors of any torch checkpoint to a `.safetensors` file; nothing in it is run.

Names stay as they are in the file. What is left out (optimizers, settings, other copies of the weights) is listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.util import some_lines
from caeav.pipeline.backbones.weights.inspect import (
    OWN,
    dangerous_names,
    entries,
    mixed_tensors,
    parts_of_open,
)
from caeav.pipeline.backbones.weights.parts import Parts, part_of
from caeav.pipeline.backbones.weights.pickled import (
    MAX_GROWTH,
    Inert,
    LazyTensor,
    Pickled,
    Storage,
    WeightsError,
    open_pickled,
    readable,
)

SUFFIX = ".safetensors"
_SHOWN = 20


@dataclass(frozen=True)
class Conversion:
    """What was written to `path`, and what was not.

    parts: which dictionary was taken, and which could have been. dropped: what else the file holds, each in a few
    words. classes: those that the file names besides torch's own; no object of them was made.
    """

    path: Path
    parts: Parts
    tensors: int
    bytes: int
    dropped: tuple[str, ...]
    classes: tuple[str, ...]


def convert(source: Path, out: Path, take: str = "") -> Conversion:
    """Write the model's tensors in `source` to `out`; `take` names another dictionary than the usual one.

    Raises `WeightsError` for a file that is not a checkpoint, would run commands, or holds no named tensors.
    """
    if out.suffix != SUFFIX:
        raise WeightsError(f"{out} does not end in {SUFFIX}", hint=f"write {out.with_suffix(SUFFIX)}")
    if out.exists():
        raise WeightsError(f"{out} is there already", hint="name another file, or remove it")
    if not source.is_file():
        raise WeightsError(f"no file {source}", hint="give a checkpoint that torch.save wrote")
    if source.suffix == SUFFIX:
        raise WeightsError(f"{source} is plain already", hint="give it as weights as it is")
    with open_pickled(source) as held:
        commands = dangerous_names(held.names)
        if commands:
            raise WeightsError(
                f"{source} asks to run {', '.join(map(readable, commands))} on being opened; nothing of it was run",
                hint="do not trust this file: get the weights elsewhere, best as .safetensors",
            )
        parts = parts_of_open(held, str(source), take)
        chosen = part_of(held.root, parts.taken, entries)
        lazy = mixed_tensors(chosen)
        if not lazy:
            raise WeightsError(f"{source} holds no named tensors", hint="give a checkpoint of the model")
        size = sum(x.bytes for x in lazy.values())
        if size > MAX_GROWTH * source.stat().st_size + (1 << 16):
            raise WeightsError(
                f"{source} claims {size} bytes of tensors in a file of {source.stat().st_size}",
                hint="its tensors repeat their values: save them with .clone() in the program that made them",
            )
        tensors = _materialise(held, lazy)
        dropped = tuple(readable(text) for text in _dropped(held.root, chosen, parts, lazy))
        classes = tuple(readable(name) for name in sorted(held.names) if not OWN.fullmatch(name))
    publish_bytes(out, save(tensors, metadata={"format": "pt"}))
    return Conversion(out, parts, len(tensors), size, dropped, classes)


def _materialise(held: Pickled, lazy: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
    """The tensors themselves, each with memory of its own, as safetensors requires."""
    rows: dict[tuple[Storage, str], Tensor] = {}
    found = {}
    for name, x in lazy.items():
        place = (x.storage, x.dtype)
        if place not in rows:
            data = bytearray(held.read(x.storage))
            dtype = getattr(torch, x.dtype)
            rows[place] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        row = rows[place]
        reach = x.offset + sum((n - 1) * s for n, s in zip(x.shape, x.stride, strict=True)) + 1
        if all(x.shape) and reach > row.numel():
            raise WeightsError(f"{readable(name)} reaches past its storage", hint="get the file again")
        found[name] = row.as_strided(x.shape, x.stride, x.offset).clone(memory_format=torch.contiguous_format)
    return found


def _dropped(root: Any, chosen: Any, parts: Parts, lazy: Mapping[str, LazyTensor]) -> list[str]:
    """What the file holds and the result does not, from the chosen dictionary outwards."""
    kept = entries(chosen) or {}
    dropped = [
        f"{parts.taken}.{name}".lstrip(".") + f": {_in_words(x)}"
        for name, x in kept.items()
        if name not in lazy
    ]
    steps = parts.taken.split(".") if parts.taken else []
    for depth, taken in enumerate(steps):
        at = part_of(root, ".".join(steps[:depth]), entries)
        prefix = "".join(f"{name}." for name in steps[:depth])
        dropped += [
            f"{prefix}{getattr(name, 'name', name)}: {_in_words(x)}"
            for name, x in (entries(at) or {}).items()
            if name != taken
        ]
    return some_lines(dropped, _SHOWN)


def _in_words(value: Any) -> str:
    if isinstance(value, LazyTensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Inert):
        return f"an object of {value.name}"
    if isinstance(value, dict):
        count = len(mixed_tensors(value) or {})
        return f"{count} tensors" if count else f"a dictionary of {len(value)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = str(getattr(value, "name", value))
    return text if len(text) <= 60 else f"{text[:60]}..."
