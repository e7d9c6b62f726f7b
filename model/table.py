"""Published numbers and one's own runs, task by task, in one table each: for `caeav runs table` and docs/RESULTS.md.

Peers stand in `peers.yaml`, the one place where their numbers are kept. Own runs are read from their `result.json`;
those begun together with `--seeds` are one row, mean and deviation. Runs on another data set than the official one get
a table of their own, without peers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import yaml

from caeav.manifests.errors import CaeavError
from caeav.manifests.home import Home
from caeav.model.markdown import literal, markdown_table
from caeav.model.protocol import stamp
from caeav.model.runs import list_runs

SPLIT = "test"
NOTHING = "-"
PLANNED = "planned"
"""What a result is given besides: all seeds of its group."""


@dataclass(frozen=True)
class Value:
    """One number in percent; `deviation` over seeds, `interval` of a single run."""

    mean: float
    deviation: float | None = None
    interval: tuple[float, float] | None = None

    def shown(self) -> str:
        """With what is known of its uncertainty."""
        if self.deviation is not None:
            return f"{self.mean:.2f} ± {self.deviation:.2f}"
        if self.interval is not None:
            return f"{self.mean:.2f} ({self.interval[0]:.1f} to {self.interval[1]:.1f})"
        text = f"{self.mean:.2f}"
        return text[:-1] if text.endswith("0") else text  # as peers print them, with one digit or two


@dataclass(frozen=True)
class Line:
    """One row: `values` in the order of the section's metrics; `source`: where it is from, a peer's mark or a run."""

    method: str
    values: tuple[Value | None, ...]
    protocol: str
    source: str
    own: bool = False


@dataclass(frozen=True)
class Section:
    """One table. `metrics`: name in results -> heading."""

    task: str
    dataset: str
    title: str
    metrics: Mapping[str, str]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """All sections; `sources`: mark -> what it is; `remarks`: runs that could not be read."""

    sections: tuple[Section, ...]
    sources: Mapping[str, str]
    remarks: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def build_table(home: Home | None, task: str | None = None) -> Table:
    """Everything known of `task`, or of all tasks; without a home the peers alone. Raises `CaeavError`."""
    known = yaml.safe_load((resources.files("caeav.model") / "peers.yaml").read_text(encoding="utf-8"))
    tasks = known["tasks"]
    if task is not None and task not in tasks:
        raise CaeavError(f"--task {task!r}", hint=f"choose among {', '.join(tasks)}")
    results, remarks = _results(home) if home is not None else ([], [])
    sections = []
    for name, facts in tasks.items():
        if task not in (None, name):
            continue
        own = [result for result in results if result["task"] == name]
        for dataset in dict.fromkeys([facts["dataset"], *(result["dataset"] for result in own)]):
            official = dataset == facts["dataset"]
            lines = [_peer(row) for row in facts["rows"]] if official else []
            lines += _own_lines([r for r in own if r["dataset"] == dataset], list(facts["metrics"]))
            title = facts["title"] if official else f"{facts['title']}, on {dataset}"
            notes = tuple(facts.get("notes", ())) if official else ()
            sections.append(Section(name, dataset, title, facts["metrics"], tuple(lines), notes))
    named = {line.source for section in sections for line in section.lines}
    sources = {
        mark: f"{source['said']} [{source['mark']}]"
        for mark, source in known["sources"].items()
        if mark in named
    }
    return Table(tuple(sections), sources, tuple(remarks))


def _peer(row: Sequence[Any]) -> Line:
    method, source, chosen, values = row
    found = tuple(None if value is None else Value(value) for value in values)
    return Line(method, found, f"best epoch by {chosen}" if chosen else "not known", source)


def _results(home: Home) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of all finished runs that were scored on test, oldest first; what could not be read."""
    results, remarks = [], []
    for run in list_runs(home):
        try:
            result, planned = run.result(), run.origin().get("seeds", [])
        except CaeavError as error:
            remarks.append(f"{run.name}: {error.problem.splitlines()[0]}")
            continue
        if result is not None and SPLIT in result["scores"]:
            results.append({**result, PLANNED: planned})
    return results, remarks


def _own_lines(results: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[Line]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["group"] or result["run"], []).append(result)
    return [_own_line(name, found, metrics) for name, found in groups.items()]


def _own_line(name: str, results: Sequence[dict[str, Any]], metrics: Sequence[str]) -> Line:
    """One run, or several of a group."""
    first = results[0]
    protocol = stamp(first["protocol"], first["select_on"]) + (", no leaks" if "leaks" in first else "")
    seeds = ", ".join(str(result["seed"]) for result in results)
    method = f"{first['recipe']}, seed{'s' if len(results) > 1 else ''} {seeds}"
    if len(first[PLANNED]) > len(results):
        method += f" of {', '.join(map(str, first[PLANNED]))}"
    if first.get("augment"):
        method += f", augmented ({', '.join(first['augment'])})"
    return Line(method, tuple(_value(results, metric) for metric in metrics), protocol, name, own=True)


def _value(results: Sequence[dict[str, Any]], metric: str) -> Value | None:
    numbers = [_number(result, metric) for result in results]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return None
    if len(known) > 1:
        return Value(statistics.fmean(known), statistics.stdev(known))
    bounds = None
    if "peaks" not in results[0]:  # a best over epochs has no interval of its own
        bounds = results[0]["intervals"].get(SPLIT, {}).get("bounds", {}).get(metric)
    return Value(known[0], None, (bounds[0], bounds[1]) if bounds else None)


def _number(result: dict[str, Any], metric: str) -> float | None:
    """By the run's protocol: of its best epoch, or the best over epochs."""
    held = {**result["details"][SPLIT], result["metric"]: result["scores"][SPLIT]}
    found = result.get("peaks", {}).get(SPLIT, {}).get(metric, held.get(metric))
    return None if found is None else float(found)


def markdown(table: Table) -> str:
    """The sections as Markdown, sources below; where there is no own run, an empty row says how to get one."""
    parts = []
    for section in table.sections:
        head = ["method", *section.metrics.values(), "protocol", "source"]
        rows = [
            [
                f"**{literal(line.method)}**" if line.own else literal(line.method),
                *(NOTHING if value is None else value.shown() for value in line.values),
                line.protocol,
                f"`{literal(line.source)}`" if line.own else literal(line.source),
            ]
            for line in section.lines
        ]
        if not any(line.own for line in section.lines):
            command = f"`caeav train --task {section.task} --seeds 0,1,2`"
            rows.append(["**yours**", *[""] * len(section.metrics), "", command])
        notes = "\n".join(f"- {note}" for note in section.notes)
        shown = (f"### {literal(section.title)}", markdown_table(head, rows), notes)
        parts.append("\n\n".join(x for x in shown if x))
    if table.sources:
        said = "\n".join(f"- {mark}: {text}" for mark, text in table.sources.items())
        parts.append(f"Sources:\n\n{said}")
    return "\n\n".join(parts) + "\n"
