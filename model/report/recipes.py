"""What a page says of the recipes that `caeav compare` put in one table: scores, gains, costs, scores under stress.

Every recipe is a trace of its own in every figure, in the order of the table, so that it has one colour in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from caeav.manifests.core.home import Home
from caeav.model.report.compare import beyond_chance
from caeav.model.report.page import Block, Section, facts, figure, figure_row, table
from caeav.model.tasks.bootstrap import LEVEL
from caeav.model.train.comparison_table import Comparison, Row, caption, cells_of, columns, number_text
from caeav.model.train.cost import Curve, curve_of
from caeav.model.train.runs import Run, list_runs

Trace = dict[str, Any]

UNDAMAGED = "as it is"
GREY = "#8a8f98"
"""Lines that are seen on light and dark paper."""
CHANCE_AUC = 0.5
WIDE = 20
"""Costs that differ by more than this factor are drawn on a logarithmic axis."""
LOG: dict[str, Any] = {"type": "log", "dtick": 1, "tickformat": "~s"}
LEGEND: dict[str, Any] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
"""Above the figure, in as many lines as it takes."""
FILLED: dict[str, Any] = {"size": 11, "symbol": "circle"}
OPEN: dict[str, Any] = {"size": 11, "symbol": "circle-open", "line": {"width": 2}}


def recipes_section(held: Comparison, home: Home, mark: str = "") -> Section:
    """The comparison `held`; the curves of its runs are drawn where they are still in `home`."""
    blocks = [
        _facts(held),
        _table(held),
        *_gains(held),
        _scores(held),
        *_costs(held),
        *_at_equal_time(held, home),
        *_stress(held),
        *_agreement(held),
        _runs(held),
    ]
    title = f"Recipes: {held.task} on {held.dataset}"
    return Section(f"recipes{mark}", title, [_marked(block, mark) for block in blocks])


def _marked(block: Block, mark: str) -> Block:
    """The block with the mark in the ids of its figures."""
    if block["kind"] == "row":
        return {**block, "figures": [_marked(inner, mark) for inner in block["figures"]]}
    return {**block, "id": f"{block['id']}{mark}"} if "id" in block else block


def _facts(held: Comparison) -> Block:
    return facts(
        (
            ("task", held.task),
            ("data set", held.dataset),
            ("scored", f"{held.clips:,} in {held.split}, {held.metric}"),
            ("majority", f"{held.majority:.2f} %"),
            ("seeds", ", ".join(map(str, held.seeds))),
            ("baseline", held.baseline),
            ("best epoch by", held.select_on),
            ("device", ", ".join(held.devices) or "not known"),
            ("command", held.command),
        )
    )


def _table(held: Comparison) -> Block:
    """The table of the command without the scores under stress, which stand with their figure."""
    kept = [i for i, name in enumerate(columns(held)) if name not in held.stresses]
    rows = [[row[i] for i in kept] for row in cells_of(held)]
    return table("All recipes", [columns(held)[i] for i in kept], rows, caption(held), measured=True)


# ---- figures ----


def _dots(rows: Sequence[Row], value: Callable[[Row], float | None], **more: Any) -> list[Trace]:
    """A dot per recipe at its value, on a line of its own; recipes without a value keep their line and colour."""
    found = []
    for row in rows:
        x = value(row)
        found.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": row.recipe,
                "x": [x],
                "y": [row.recipe],
                "marker": {"size": 11},
                "showlegend": False,
                **more,
            }
        )
    return found


def _whisker(value: float | None, bounds: tuple[float, float] | None) -> Mapping[str, Any]:
    """The interval around a value, as Plotly wants it."""
    if value is None or bounds is None:
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, bounds[1] - value)],
        "arrayminus": [max(0.0, value - bounds[0])],
        "thickness": 1.8,
        "width": 5,
    }


def _lines(names: Sequence[str], x: str, values: Iterable[float | None]) -> dict[str, Any]:
    """A layout with a line per name, the first at the top, wide enough for the values."""
    return {
        "height": 100 + 34 * len(names),
        "xaxis": {"title": {"text": x}, "zeroline": False, "range": _around(values)},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names,
            "range": [len(names) - 0.5, -0.5],
        },
    }


def _around(values: Iterable[float | None]) -> list[float]:
    """The range of an axis that shows all values that are known."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    edge = 0.04 * (high - low) or 1.0
    return [low - edge, high + edge]


def _upright(at: float) -> dict[str, Any]:
    """A dashed line from bottom to top at a value of the x axis."""
    line = {"color": GREY, "dash": "dash", "width": 1.5}
    return {
        "type": "line",
        "x0": at,
        "x1": at,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
    }


def _gains(held: Comparison) -> list[Block]:
    """Dots and whiskers of the differences to the baseline, beside a dashed line at none."""
    if all(row.gain is None for row in held.rows):
        return []
    traces = _dots(held.rows, lambda row: row.gain)
    for row, trace in zip(held.rows, traces, strict=True):
        sure = row.gain_interval is not None and beyond_chance(*row.gain_interval) == "yes"
        trace["marker"] = FILLED if sure else OPEN
        trace["error_x"] = _whisker(row.gain, row.gain_interval)
        trace["hovertemplate"] = "%{y}: %{x:+.2f} points<extra></extra>"
    reached = (x for row in held.rows for x in (0.0, row.gain, *(row.gain_interval or ())))
    layout = _lines(_names(held), f"points of {held.metric} above {held.baseline}", reached)
    layout["shapes"] = [_upright(0)]
    note = (
        f"Whiskers: {LEVEL:g} % intervals of the difference, the same clips and seeds drawn on both sides. Filled: the "
        f"interval leaves out zero. {held.baseline} is the dashed line."
    )
    return [figure("gains", f"Difference to {held.baseline}, {held.split}", traces, layout, note)]


def _scores(held: Comparison) -> Block:
    """Mean scores with their intervals, and the score of every seed."""
    traces = _dots(held.rows, lambda row: row.score, hovertemplate="%{y}: %{x:.2f} %<extra></extra>")
    for row, trace in zip(held.rows, traces, strict=True):
        trace["error_x"] = _whisker(row.score, row.interval)
    seeds = {
        "type": "scatter",
        "mode": "markers",
        "name": "each seed",
        "x": [score for row in held.rows for score in row.by_seed],
        "y": [row.recipe for row in held.rows for _ in row.by_seed],
        "text": [
            f"seed {seed}" for row in held.rows for seed, _ in zip(held.seeds, row.by_seed, strict=True)
        ],
        "hovertemplate": "%{y}, %{text}: %{x:.2f} %<extra></extra>",
        "marker": {"size": 6, "symbol": "line-ns-open", "color": GREY, "line": {"width": 1.5}},
        "showlegend": False,
    }
    reached = (x for row in held.rows for x in (held.majority, *row.by_seed, *(row.interval or ())))
    layout = _lines(_names(held), f"{held.metric} %", reached)
    layout["shapes"] = [_upright(held.majority)]
    note = (
        f"Dots: means over seeds, with {LEVEL:g} % intervals over test clips and seeds; small strokes: each seed; "
        "dashed: always the most frequent answer of train."
    )
    return figure("recipe-scores", f"Score, {held.split}", [*traces, seeds], layout, note)


def _costs(held: Comparison) -> list[Block]:
    """The score against each cost."""
    costs: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
        ("parameters", "trained parameters", lambda row: row.parameters),
        ("seconds", "seconds of an epoch", lambda row: row.epoch_s),
        ("memory", "peak memory, MB", lambda row: row.peak_mb),
    )
    drawn = []
    for name, said, cost in costs:
        known = [value for row in held.rows if (value := cost(row))]
        if not known:
            continue
        wide = max(known) > WIDE * min(known)
        traces = [
            {
                "type": "scatter",
                "mode": "markers",
                "name": row.recipe,
                "x": [cost(row) or None],  # a logarithm has no zero
                "y": [row.score],
                "error_y": _whisker(row.score, row.interval),
                "marker": {"size": 11},
                "hovertemplate": f"{row.recipe}: %{{y:.2f}} %, %{{x:,.4~g}} {said}<extra></extra>",
            }
            for row in held.rows
        ]
        layout = {
            "height": 380,
            "xaxis": {"title": {"text": said}, **(LOG if wide else {"rangemode": "tozero"})},
            "yaxis": {"title": {"text": f"{held.metric} %"}},
            "legend": LEGEND,
        }
        drawn.append(figure(f"cost-{name}", f"Score against {said}", traces, layout))
    return [figure_row(drawn)] if drawn else []


def _at_equal_time(held: Comparison, home: Home) -> list[Block]:
    """What each recipe had reached in the time of the baseline's training, and on the way there."""
    blocks: list[Block] = []
    known = {run.name: run for run in list_runs(home)}
    curves = {row.recipe: _curves(row, held.metric, known) for row in held.rows}
    if any(curves.values()):
        traces = []
        for row in held.rows:
            points = best_so_far(curves[row.recipe])
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "line": {"shape": "hv", "width": 2},
                    "name": row.recipe,
                    "x": [seconds for seconds, _ in points],
                    "y": [score for _, score in points],
                    "hovertemplate": f"{row.recipe}: %{{y:.2f}} % after %{{x:.4~g}} s<extra></extra>",
                }
            )
        layout: dict[str, Any] = {
            "height": 380,
            "xaxis": {"title": {"text": "seconds of training"}, **LOG},
            "yaxis": {"title": {"text": f"best {held.select_on} {held.metric} %"}},
            "legend": LEGEND,
        }
        note = "The best epoch so far, mean over seeds."
        if held.budget_s is not None:
            layout["shapes"] = [_upright(held.budget_s)]
            note += f" Dashed: the time that training {held.baseline} takes, {held.budget_s:.0f} s."
        blocks.append(figure("time-curves", f"Score on {held.select_on} against time", traces, layout, note))
    if held.budget_s is not None:
        traces = _dots(held.rows, lambda row: row.selected)
        for row, trace in zip(held.rows, traces, strict=True):
            trace |= {
                "x": [row.selected, row.timed],
                "y": [row.recipe] * 2,
                "text": ["in the end", "in equal time"],
            }
            trace["marker"] = {"size": 11, "symbol": ["circle-open", "circle"], "line": {"width": [2, 0]}}
            trace["hovertemplate"] = "%{y}, %{text}: %{x:.2f} %<extra></extra>"
        slow = [row.recipe for row in held.rows if row.timed is None and row.selected is not None]
        note = (
            f"Filled: the best of the epochs that end within {held.budget_s:.0f} s, the time that training "
            f"{held.baseline} takes; open: of the whole training."
        )
        if slow:
            note += f" Not one epoch of {', '.join(slow)} ends within it with every seed."
        reached = (x for row in held.rows for x in (row.selected, row.timed))
        layout = _lines(_names(held), f"best {held.select_on} {held.metric} %", reached)
        blocks.append(figure("equal-time", "Score at equal training time", traces, layout, note))
    return blocks


def _curves(row: Row, metric: str, known_runs: Mapping[str, Run]) -> list[Curve]:
    """Those of all seeds of a recipe, nothing where a run is gone."""
    found = [curve_of(known_runs[name], metric) for name in row.runs if name in known_runs]
    known = [curve for curve in found if curve is not None]
    return known if len(known) == len(row.runs) else []


def best_so_far(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """`(seconds, mean over the curves of the best score so far)` whenever one changes, from where all have one."""
    ends = sorted({sum(curve.seconds[: n + 1]) for curve in curves for n in range(len(curve.seconds))})
    found: list[tuple[float, float]] = []
    for end in ends:
        best = [score for curve in curves if (score := curve.best_within(end)) is not None]
        if len(best) == len(curves):
            found.append((end, sum(best) / len(best)))
    return found


def _stress(held: Comparison) -> list[Block]:
    """A line per damage, a dot per recipe."""
    kinds = held.stresses
    if not kinds:
        return []
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": row.recipe,
            "x": [row.score, *(row.stress.get(kind) for kind in kinds)],
            "y": [UNDAMAGED, *kinds],
            "marker": {"size": 10, "opacity": 0.85},
            "hovertemplate": f"{row.recipe}, %{{y}}: %{{x:.2f}} %<extra></extra>",
        }
        for row in held.rows
    ]
    lines = [UNDAMAGED, *kinds]
    reached = (x for row in held.rows for x in (held.majority, row.score, *row.stress.values()))
    layout = _lines(lines, f"{held.metric} %", reached)
    layout |= {"height": layout["height"] + 60, "legend": LEGEND}
    layout["shapes"] = [_upright(held.majority)]
    note = "Every damage alone, labels as they were; dashed: always the most frequent answer of train."
    shown = [
        (row.recipe, *(number_text(x) for x in (row.score, *map(row.stress.get, kinds)))) for row in held.rows
    ]
    return [
        figure("recipe-stress", f"Under stress, {held.split}", traces, layout, note),
        table(f"Under stress, {held.split} {held.metric} %", ("recipe", *lines), shown, measured=True),
    ]


def _agreement(held: Comparison) -> list[Block]:
    """How true the agreement of audio and frames is, for recipes that have one."""
    rows = [row for row in held.rows if row.agreement_auc is not None]
    if not rows:
        return []
    traces = _dots(held.rows, lambda row: row.agreement_auc, hovertemplate="%{y}: %{x:.3f}<extra></extra>")
    reached = (CHANCE_AUC, 1.0, *(row.agreement_auc for row in rows))
    layout = _lines([row.recipe for row in rows], "area under the ROC curve", reached)
    layout["shapes"] = [_upright(CHANCE_AUC)]
    note = (
        "1: audio and frames that belong together always get the higher agreement; dashed: by chance. "
        "The other recipes have none."
    )
    return [figure("recipe-agreement", "How true the agreement is", traces, layout, note)]


def _runs(held: Comparison) -> Block:
    rows = [
        (name, row.recipe, seed, f"{score:.2f}")
        for row in held.rows
        for seed, score, name in zip(held.seeds, row.by_seed, row.runs, strict=True)
    ]
    return table("The runs", ("run", "recipe", "seed", f"{held.split} {held.metric} %"), rows)


def _names(held: Comparison) -> list[str]:
    return [row.recipe for row in held.rows]
