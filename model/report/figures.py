"""Plotly figures as plain values: curves, bars, matrices, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caeav.model.report.page import Block, figure

MOST_CLASSES = 40
"""Classes of a confusion matrix; the most frequent ones, the others are grouped."""


def curves(metrics: Sequence[Mapping[str, Any]], metric: str, split: str) -> list[Block]:
    """Loss and selection score over epochs."""
    rows = [row for row in metrics if "epoch" in row and "loss" in row]
    if not rows:
        return []
    epochs = [row["epoch"] for row in rows]
    names = sorted({name for row in rows for name in row.get("losses", {})})
    losses = [_line("all", epochs, [row["loss"] for row in rows], width=3)]
    losses += [_line(name, epochs, [row.get("losses", {}).get(name) for row in rows]) for name in names]
    scored = [row for row in rows if isinstance(row.get(metric), int | float)]
    found = [
        figure(
            "losses",
            "Losses of training",
            losses,
            {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"type": "log"}},
        )
    ]
    if scored:
        line = _line(
            f"{metric} on {split}", [r["epoch"] for r in scored], [r[metric] for r in scored], width=3
        )
        layout = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": f"{metric} %"}}}
        found.insert(0, figure("curve", f"Score on {split} after each epoch", [line], layout))
    return found


def class_bars(rows: Sequence[Mapping[str, Any]], split: str) -> list[Block]:
    """A bar per class: its score, with the number of samples, seconds or frames behind it."""
    if not rows:
        return []
    names = list(rows[0])
    label, counted = names[0], next((name for name in names[1:] if isinstance(rows[0][name], int)), None)
    value = next((name for name in names[1:] if isinstance(rows[0][name], float)), None)
    if value is None:
        return []
    ordered = sorted(rows, key=lambda row: row[value])
    texts = [f"{row[value]:.1f} %" + (f" of {row[counted]} {counted}" if counted else "") for row in ordered]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [str(row[label]) for row in ordered],
        "x": [row[value] for row in ordered],
        "text": texts,
        "textposition": "auto",
        "hoverinfo": "y+text",
    }
    layout = {
        "height": 90 + 24 * len(ordered),
        "xaxis": {"range": [0, 100], "title": {"text": f"{value} %"}},
        "yaxis": {"type": "category"},
    }
    return [figure(f"classes-{split}", f"Class by class, {split}", [bars], layout)]


def confusion(pairs: Mapping[tuple[str, str], int], names: Sequence[str], what: str) -> list[Block]:
    """Truth against prediction; `pairs`: (true, said) -> how many `what`."""
    if not pairs or len(names) < 2:
        return []
    counts = {name: sum(n for (true, _), n in pairs.items() if true == name) for name in names}
    shown = sorted(names, key=lambda name: -counts[name])[:MOST_CLASSES]
    order = [name for name in names if name in shown]
    cells = [[pairs.get((true, said), 0) for said in order] for true in order]
    parts = [[n / max(1, counts[true]) for n in row] for true, row in zip(order, cells, strict=True)]
    heat = {
        "type": "heatmap",
        "x": order,
        "y": order,
        "z": parts,
        "customdata": cells,
        "hovertemplate": f"true %{{y}}<br>said %{{x}}<br>%{{customdata}} {what}, %{{z:.0%}}<extra></extra>",
        "colorscale": [[0, "rgba(76,120,168,0.05)"], [0.5, "rgba(76,120,168,0.6)"], [1, "#2f5f8f"]],
        "xgap": 1,
        "ygap": 1,
        "zmin": 0,
        "zmax": 1,
        "colorbar": {"tickformat": ".0%", "thickness": 12},
    }
    layout = {
        "height": 220 + 22 * len(order),
        "xaxis": {"title": {"text": "predicted"}, "type": "category", "tickangle": -40},
        "yaxis": {"title": {"text": "true", "standoff": 14}, "type": "category", "autorange": "reversed"},
    }
    left_out = len(names) - len(order)
    note = f"{left_out} rarer classes are left out." if left_out else ""
    return [
        figure(
            "confusion", f"What is taken for what ({what}, parts of each true class)", [heat], layout, note
        )
    ]


def reliability(name: str, title: str, rows: Sequence[Mapping[str, float]], note: str) -> list[Block]:
    """Predicted probability against observed frequency, for each tenth; rows as `agreement.reliability` gives them."""
    if not rows:
        return []
    predicted, observed = ([row[name] for row in rows] for name in ("predicted", "observed"))
    seconds = [int(row["seconds"]) for row in rows]
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "name": "perfectly calibrated",
        "line": {"dash": "dash"},
    }
    found = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": predicted,
        "y": observed,
        "name": "observed",
        "text": [f"{n} seconds" for n in seconds],
        "marker": {"size": [6 + 18 * (n / max(seconds)) ** 0.5 for n in seconds]},
    }
    layout = {
        "xaxis": {"range": [0, 1], "title": {"text": "predicted probability"}},
        "yaxis": {"range": [0, 1], "title": {"text": "observed frequency"}},
    }
    return [figure(name, title, [diagonal, found], layout, note)]


def stress(held: Mapping[str, Any]) -> list[Block]:
    """Scores against the strength of each kind of damage, from what `caeav eval --stress-curve` wrote."""
    lines = []
    for kind, points in held["curves"].items():
        most = max((point["strength"] for point in points), default=0) or 1
        strengths = [point["strength"] / most for point in points]
        lines.append(_line(kind, strengths, [point["score"] for point in points]))
    layout = {
        "xaxis": {"title": {"text": "strength, 1: the strongest that was scored"}},
        "yaxis": {"title": {"text": f"{held['metric']} %"}},
    }
    return [figure(f"stress-{held['split']}", f"Under stress, {held['split']}", lines, layout)]


def _line(name: str, x: Sequence[Any], y: Sequence[Any], width: float = 1.6) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"width": width},
    }
