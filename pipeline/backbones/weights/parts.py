"""Which of a checkpoint's dictionaries is the model's: decided by one rule, whatever reads the file, and said.

Training files hold the weights beside optimizers and settings, often twice: as trained, and their moving average
(EMA). The average is preferred, as timm does; then come the usual names in the order below; then the only dictionary
of named tensors there is. Where several are left, none is guessed. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caeav.pipeline.backbones.weights.pickled import WeightsError, readable

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
USUAL = ("state_dict", "model", "module", "model_state_dict", "net", "network", "weights")
ORDER = (*AVERAGES, *USUAL)
WHOLE = ""
"""The name of the part where the file itself is the dictionary."""
_SHOWN = 12

Tensors = Callable[[Any], Mapping[str, Any] | None]
"""A value of the file -> its named tensors where it is a dictionary of them and of nothing else, else None."""
Entries = Callable[[Any], Mapping[Any, Any] | None]
"""A value of the file -> its entries where it is a dictionary of any kind, else None."""


@dataclass(frozen=True)
class Parts:
    """`taken`: the dotted name of the dictionary that is the model's; `others`: those that could be, too."""

    taken: str
    others: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether an average was preferred to what it is one of, or is all there is."""
        return any(name in AVERAGES for name in self.taken.split("."))

    def said(self) -> str:
        """In words, for a table or a remark."""
        name = self.taken or "the file itself"
        kind = " (a moving average, preferred as in timm)" if self.averaged and self.others else ""
        return f"{name}{kind}" + (f"; not taken: {', '.join(self.others)}" if self.others else "")


def choose_part(
    root: Any, tensors: Tensors, entries: Entries, source: str, take: str = "", *, averages: bool = True
) -> Parts:
    """The model's dictionary in what a file holds; `take` names one instead. Raises `WeightsError`.

    Without `averages` the weights as trained are preferred to their average, as before there was a choice.
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
        raise WeightsError(
            f"{source} holds several dictionaries of tensors: {_listed(found)}",
            hint="say which: {0}#{1} as weights, --take {1} to convert".format(
                source, readable(next(iter(found)))
            ),
        )
    if not found:
        raise WeightsError(
            f"{source} holds no named tensors{_there(root, entries)}", hint="give a checkpoint of the model"
        )
    taken = ranked[0] if ranked else next(iter(found))
    return Parts(taken, tuple(name for name in found if name != taken))


def part_of(root: Any, name: str, entries: Entries) -> Any:
    """What lies under the dotted name of a part."""
    for step in name.split(".") if name else ():
        held = entries(root)
        root = held[step] if held is not None else None
    return root


def _candidates(
    value: Any, tensors: Tensors, entries: Entries, name: str = WHOLE, depth: int = 3
) -> dict[str, None]:
    """Dotted names of all dictionaries of named tensors, in the order of the file; usual names are looked into."""
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
    """The place of a name in the order of preference; None for one that is not in it."""
    steps = name.split(".")
    if steps[0] not in ORDER:
        return None
    average = next((step for step in steps if step in AVERAGES), None)
    return (average is None) is averages, ORDER.index(average or steps[0]), len(steps)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(readable, names))


def _there(root: Any, entries: Entries) -> str:
    held = entries(root)
    if not held:
        return ""
    names = [readable(name) for name in held if isinstance(name, str)]
    return f", but {', '.join(names[:_SHOWN])}" + (", ..." if len(names) > _SHOWN else "") if names else ""
