"""Which of a checkpoint's dictionaries is the model's: one rule, whatever reads the file.

Training programs write the weights beside optimizers and settings, often twice: as trained, and as a moving average
(EMA). The average is preferred, as in timm; then come the usual names in the order below; then the only dictionary of
named tensors, if there is just one. Otherwise none is guessed. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caeav.manifests.core.util import some_of
from caeav.pipeline.backbones.weights.pickled import WeightsError, readable

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
USUAL = ("state_dict", "model", "module", "model_state_dict", "net", "network", "weights")
ORDER = (*AVERAGES, *USUAL)
WHOLE = ""
"""The name of the part when the file itself is the dictionary."""
_SHOWN = 12

Tensors = Callable[[Any], Mapping[str, Any] | None]
"""A value of the file -> its named tensors, if it is a dictionary of nothing else, or None."""
Entries = Callable[[Any], Mapping[Any, Any] | None]
"""A value of the file -> its entries, if it is a dictionary of any kind, or None."""


@dataclass(frozen=True)
class Parts:
    """`taken`: the dotted name of the model's dictionary; `others`: those that could be it, too."""

    taken: str
    others: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether it is a moving average."""
        return any(name in AVERAGES for name in self.taken.split("."))

    def in_words(self) -> str:
        """For a table or a remark: what was taken, and what was not."""
        name = self.taken or "the file itself"
        kind = " (a moving average, preferred as in timm)" if self.averaged and self.others else ""
        return f"{name}{kind}" + (f"; not taken: {', '.join(self.others)}" if self.others else "")


def choose_part(
    root: Any, tensors: Tensors, entries: Entries, source: str, take: str = "", *, averages: bool = True
) -> Parts:
    """The model's dictionary among those of a file, or the one that `take` names. Raises `WeightsError`.

    Without `averages` the weights as trained are preferred to their average, as older stores did.
    """
    found = _candidates(root, tensors, entries)
    if take:
        if take not in found:
            raise WeightsError(
                f"{source} holds no tensors called {take!r}",
                hint=f"it has {_listed(found)}" if found else "it has none",
            )
        return Parts(take, tuple(name for name in found if name != take))
    if WHOLE in found:
        return Parts(WHOLE)
    ranks = {name: rank for name in found if (rank := _rank(name, averages)) is not None}
    ranked = sorted(ranks, key=ranks.__getitem__)
    if not ranked and len(found) > 1:
        example = readable(next(iter(found)))
        raise WeightsError(
            f"{source} holds several dictionaries of tensors: {_listed(found)}",
            hint=f"say which: {source}#{example} as weights, --take {example} to convert",
        )
    if not found:
        raise WeightsError(
            f"{source} holds no named tensors{_names_in(root, entries)}",
            hint="give a checkpoint of the model",
        )
    taken = ranked[0] if ranked else next(iter(found))
    return Parts(taken, tuple(name for name in found if name != taken))


def part_of(root: Any, name: str, entries: Entries) -> Any:
    """The value that a part's dotted name leads to."""
    for step in name.split(".") if name else ():
        held = entries(root)
        root = held[step] if held is not None else None
    return root


def _candidates(
    value: Any, tensors: Tensors, entries: Entries, name: str = WHOLE, depth: int = 3
) -> dict[str, None]:
    """Dotted names of all dictionaries of named tensors, in the order of the file; usual names are searched deeper."""
    if tensors(value) is not None:
        return {name: None}
    found: dict[str, None] = {}
    for key, inner in (entries(value) or {}).items() if depth else ():
        if not isinstance(key, str) or "." in key:
            continue
        below = f"{name}.{key}" if name else key
        if key in ORDER:
            found |= _candidates(inner, tensors, entries, below, depth - 1)
        elif not name and tensors(inner) is not None:
            found[below] = None
    return found


def _rank(name: str, averages: bool) -> tuple[bool, int, int] | None:
    """The place of a name in the order of preference; None for a name that is not in it."""
    steps = name.split(".")
    if steps[0] not in ORDER:
        return None
    average = next((step for step in steps if step in AVERAGES), None)
    return (average is None) is averages, ORDER.index(average or steps[0]), len(steps)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(readable, names))


def _names_in(root: Any, entries: Entries) -> str:
    held = entries(root)
    if not held:
        return ""
    names = [readable(name) for name in held if isinstance(name, str)]
    return f", but {some_of(names, _SHOWN)}" if names else ""
