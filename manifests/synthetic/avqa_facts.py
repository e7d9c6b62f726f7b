"""A scenario as questions see it: what is seen where, what is heard when and how loud, by the names of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from caeav.manifests.synthetic.scenario import Scenario
from caeav.manifests.synthetic.voices import RHYTHMIC
from caeav.manifests.synthetic.classes import CLASSES


class Facts:
    """`lanes` and `row` say which object is in which third, `count` how many of a class there are; `voices`, in the
    order in which they begin, have a `span` of seconds and a `level`; `sounding` are those whose object is seen."""

    def __init__(self, scenario: Scenario, names: Sequence[str]) -> None:
        shown = sorted(set().union(*scenario.seen))
        self.names = tuple(names)
        self.seconds = len(scenario.seen)
        self.lanes = {self.names[scenario.cls(n)]: scenario.things[n].lane or 0 for n in shown}
        self.count = Counter(self.names[scenario.cls(n)] for n in shown)
        self.row = {scenario.things[n].lane or 0: self.names[scenario.cls(n)] for n in shown}
        self.span: dict[str, tuple[int, int]] = {}
        self.level: dict[str, float] = {}
        for number in sorted(set().union(*scenario.heard)):
            times = [t for t, heard in enumerate(scenario.heard) if number in heard]
            name = self.names[scenario.cls(number)]
            self.span[name] = (times[0], times[-1] + 1)
            self.level[name] = scenario.things[number].level
        self.voices = sorted(self.span, key=lambda name: self.span[name])
        self.sounding = [name for name in self.voices if name in self.count]
        self.rhythmic = {self.names[i] for i in range(len(self.names)) if CLASSES[i].voice in RHYTHMIC}

    def begins_alone(self, which: str) -> str:
        """The voice that begins `first` (or `last`), if it does so alone; else empty."""
        begin = {name: span[0] for name, span in self.span.items()}
        edge = (min if which == "first" else max)(begin.values())
        found = [name for name, at in begin.items() if at == edge]
        return found[0] if len(found) == 1 else ""

    def beside(self, name: str, side: str) -> str:
        """The one object `left` or `right` of an object that is the only one of its class; empty where there is no
        one or several."""
        if self.count[name] != 1:
            return ""
        lane = self.lanes[name]
        found = [other for at, other in self.row.items() if (at < lane if side == "left" else at > lane)]
        return found[0] if len(found) == 1 else ""
