"""Published numbers and own runs in one table per task, for `caeav runs table` and docs/RESULTS.md.

Peers' numbers are kept in `peers.yaml` only. Own runs are read from their `result.json`; a group of runs (`--seeds`) is
one row, mean and deviation. Only comparable runs stand beside peers: on the official data set, nearly all of its test
split, by a known protocol. Others get tables without peers that say why.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import yaml

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.train.markdown import literal, markdown_table
from caeav.model.train.protocol import PUBLISHED, stamp
from caeav.model.train.provenance import RANDOM_VALUES, backbones
from caeav.model.train.runs import Run, list_runs

SPLIT = "test"
NOTHING = "-"
PLANNED, BACKBONES, METRIC, APART = "planned", "backbones", "metric settings", "apart"
"""Keys added to a result: all seeds of its group, its backbones, settings of the metric that are not official, and why
it stands apart ("" if it does not)."""
NEARLY_ALL = 0.95
"""Videos vanish from the web: a score on this share of the official test split may still stand beside others."""


@dataclass(frozen=True)
class Value:
    """One number in percent; `deviation` over seeds, or `interval` of a single run."""

    mean: float
    deviation: float | None = None
    interval: tuple[float, float] | None = None

    def shown(self) -> str:
        """The number with its uncertainty, where known."""
        if self.deviation is not None:
            return f"{self.mean:.2f} ± {self.deviation:.2f}"
        if self.interval is not None:
            return f"{self.mean:.2f} ({self.interval[0]:.1f} to {self.interval[1]:.1f})"
        text = f"{self.mean:.2f}"
        return text[:-1] if text.endswith("0") else text  # as peers print them, with one digit or two


@dataclass(frozen=True)
class Line:
    """One row: `values` in the order of the section's metrics; `source`: a peer's mark, or a run or group.

    Own runs also have `backbones`, the number of samples `tested`, and why they stand `apart`.
    """

    method: str
    values: tuple[Value | None, ...]
    protocol: str
    source: str
    own: bool = False
    backbones: str = ""
    tested: int | None = None
    apart: str = ""


@dataclass(frozen=True)
class Section:
    """One table. `metrics`: name in results -> heading. `apart`: holds own runs that are not comparable with peers.
    `rows`: what `Line.tested` counts."""

    task: str
    dataset: str
    title: str
    metrics: Mapping[str, str]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    apart: bool = False
    rows: str = "clips"


@dataclass(frozen=True)
class Table:
    """All sections; `sources`: mark -> reference; `remarks`: runs that could not be read."""

    sections: tuple[Section, ...]
    sources: Mapping[str, str]
    remarks: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def build_table(home: Home | None, task: str | None = None) -> Table:
    """The table of `task`, or of all tasks; without a home, of peers only. Raises `CaeavError` for an unknown task."""
    known = yaml.safe_load((resources.files("caeav.model.train") / "peers.yaml").read_text(encoding="utf-8"))
    tasks = known["tasks"]
    if task is not None and task not in tasks:
        raise CaeavError(f"--task {task!r}", hint=f"choose among {', '.join(tasks)}")
    results, remarks = _results(home) if home is not None else ([], [])
    sections = [
        section
        for name, facts in tasks.items()
        if task in (None, name)
        for section in _task_sections(name, facts, [result for result in results if result["task"] == name])
    ]
    named = {line.source for section in sections for line in section.lines}
    sources = {
        mark: f"{source['said']} [{source['mark']}]"
        for mark, source in known["sources"].items()
        if mark in named
    }
    return Table(tuple(sections), sources, tuple(remarks))


def _task_sections(
    task: str, facts: Mapping[str, Any], results: Sequence[dict[str, Any]]
) -> Iterator[Section]:
    """Peers and comparable own runs, then one section per data set of own runs that stand apart."""
    metrics = facts["metrics"]
    own = [{**result, APART: _why_apart(result, facts)} for result in results]
    # A group is one row, so all of it stands apart when one of its runs does.
    apart = {_group(result) for result in own if result[APART]}
    beside = [result for result in own if _group(result) not in apart]
    others = [result for result in own if _group(result) in apart]
    lines = (*(_peer(row) for row in facts["rows"]), *_own_lines(beside, metrics))
    notes = tuple(facts.get("notes", ()))
    yield Section(task, facts["dataset"], facts["title"], metrics, lines, notes, rows=_noun(beside))
    for dataset in dict.fromkeys(result["dataset"] for result in others):
        found = [result for result in others if result["dataset"] == dataset]
        title = f"{facts['title']}: on {dataset}, not to be compared with published numbers"
        lines = tuple(_own_lines(found, metrics))
        yield Section(task, dataset, title, metrics, lines, apart=True, rows=_noun(found))


def _noun(results: Sequence[Mapping[str, Any]]) -> str:
    """What the samples of the results are called."""
    return str(results[0].get("rows", "clips")) if results else "clips"


def _peer(row: Sequence[Any]) -> Line:
    method, source, chosen, values = row
    found = tuple(None if value is None else Value(value) for value in values)
    return Line(method, found, f"best epoch by {chosen}" if chosen else "not known", source)


def _results(home: Home) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of all finished runs scored on test, oldest first, and which runs could not be read."""
    results, remarks = [], []
    for run in list_runs(home):
        try:
            result, planned = run.result(), run.origin().get("seeds", [])
        except CaeavError as error:
            remarks.append(f"{run.name}: {error.problem.splitlines()[0]}")
            continue
        if result is not None and SPLIT in result["scores"]:
            results.append({**result, PLANNED: planned, **_made_of(run)})
    return results, remarks


def _made_of(run: Run) -> dict[str, Any]:
    """The backbones of a run, and its settings of the metric that are not official."""
    try:
        config = run.config()
        metric = {} if config.protocol == PUBLISHED else config.metric.model_dump()
        usual = type(config.metric)().model_dump()
        changed = [f"metric.{name} {x}" for name, x in metric.items() if x != usual[name]]
        return {BACKBONES: backbones(config, run.token_recipes()), METRIC: changed}
    except (CaeavError, KeyError, TypeError):  # an older or damaged run folder; its scores still count
        return {BACKBONES: "not known", METRIC: []}


def _why_apart(result: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Why a result is not comparable with published numbers; empty when it is."""
    why = []
    if result["dataset"] != facts["dataset"]:
        why.append(f"not the data set {facts['dataset']}")
    else:
        tested, official = _tested(result), facts["tested"]
        if tested is None:
            why.append("how many test clips were scored is not known")
        elif not NEARLY_ALL * min(official) <= tested <= max(official):
            why.append(
                f"{tested} test {result.get('rows', 'clips')}, officially {' or '.join(map(str, official))}"
            )
    if "leaks" in result:
        why.append("clips are left out")
    if result["select_on"] == SPLIT and result["protocol"] != PUBLISHED:
        why.append("selected on test, not by the published protocol")
    if RANDOM_VALUES in result[BACKBONES]:
        why.append("random backbone")
    return "; ".join([*why, *result[METRIC]])


def _tested(result: Mapping[str, Any]) -> int | None:
    found = result.get("clips", {}).get(SPLIT)
    return None if found is None else int(found)


def _group(result: Mapping[str, Any]) -> str:
    """The name of a result's row: its group, or the run itself."""
    return str(result["group"] or result["run"])


def _own_lines(results: Sequence[dict[str, Any]], metrics: Iterable[str]) -> list[Line]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(_group(result), []).append(result)
    return [_own_line(name, found, metrics) for name, found in groups.items()]


def _own_line(name: str, results: Sequence[dict[str, Any]], metrics: Iterable[str]) -> Line:
    """The row of one run, or of all runs of a group."""
    first = results[0]
    protocol = stamp(first["protocol"], first["select_on"]) + (", no leaks" if "leaks" in first else "")
    seeds = ", ".join(str(result["seed"]) for result in results)
    method = f"{first['recipe']}, seed{'s' if len(results) > 1 else ''} {seeds}"
    if len(first[PLANNED]) > len(results):
        method += f" of {', '.join(map(str, first[PLANNED]))}"
    if first.get("augment"):
        method += f", augmented ({', '.join(first['augment'])})"
    return Line(
        method,
        tuple(_value(results, metric) for metric in metrics),
        protocol,
        name,
        own=True,
        backbones=first[BACKBONES],
        tested=_tested(first),
        apart="; ".join(dict.fromkeys(r[APART] for r in results if r[APART])),
    )


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
    """The number by the run's protocol: at its best epoch, or the best over all epochs."""
    held = {**result["details"][SPLIT], result["metric"]: result["scores"][SPLIT]}
    found = result.get("peaks", {}).get(SPLIT, {}).get(metric, held.get(metric))
    return None if found is None else float(found)


def _cells(line: Line, section: Section) -> list[str]:
    """Cells of a row; beside peers, whose names include their backbones, ours go into the method's cell."""
    scores = [NOTHING if value is None else value.shown() for value in line.values]
    if not line.own:
        return [literal(line.method), *scores, line.protocol, literal(line.source)]
    source, tested = f"`{literal(line.source)}`", NOTHING if line.tested is None else str(line.tested)
    if section.apart:
        made = [f"**{literal(line.method)}**", literal(line.backbones), tested]
        return [*made, *scores, line.protocol, source, literal(line.apart)]
    method = f"**{literal(line.method)}**, {literal(line.backbones)}, {tested} test {section.rows}"
    return [method, *scores, line.protocol, source]


def markdown(table: Table) -> str:
    """The sections as Markdown with sources below; without an own run, an empty row says how to get one."""
    parts = []
    for section in table.sections:
        head = ["method", *section.metrics.values(), "protocol", "source"]
        if section.apart:
            head[1:1] = ["backbones", f"test {section.rows}"]
            head.append("why apart")
        rows = [_cells(line, section) for line in section.lines]
        if not section.apart and not any(line.own for line in section.lines):
            command = f"`caeav train --task {section.task} --seeds 0,1,2`"
            rows.append(["**yours**", *[""] * len(section.metrics), "", command])
        notes = "\n".join(f"- {note}" for note in section.notes)
        shown = (f"### {literal(section.title)}", markdown_table(head, rows), notes)
        parts.append("\n\n".join(x for x in shown if x))
    if table.sources:
        said = "\n".join(f"- {mark}: {text}" for mark, text in table.sources.items())
        parts.append(f"Sources:\n\n{said}")
    return "\n\n".join(parts) + "\n"
