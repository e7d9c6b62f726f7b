"""The page: sections of blocks, clip cards and figures, as one HTML file that needs no network.

Every text goes through the template's escaping, or is JSON that the page's own script puts in place as text. Sections
are plain values, so that what a page says can be tested without a browser.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from caeav.manifests.core.errors import CaeavError

NEEDED = ("jinja2", "plotly")
FIRST_CARDS = 24
"""Cards of a list that are shown before one asks for more."""

Block = Mapping[str, Any]
Card = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; `id` is unique in a page."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass
class Page:
    """`cards`: by their id; lists of cards name them. `notes`: what was left out or sampled, at the top."""

    title: str
    subtitle: str
    sections: list[Section] = field(default_factory=list)
    cards: dict[str, Card] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# ---- blocks ----


def text(said: str) -> Block:
    """A paragraph."""
    return {"kind": "text", "text": said}


def facts(rows: Iterable[tuple[str, object]]) -> Block:
    """Names with values; those without a value are left out."""
    shown = [(name, _cell(value)) for name, value in rows if value not in (None, "", [], {})]
    return {"kind": "facts", "rows": shown}


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    note: str = "",
    *,
    measured: bool = False,
) -> Block:
    """A table; numbers stand right and are not broken, and so is all but the first column of a `measured` one."""
    body = list(rows)
    numeric = [
        (measured and i > 0) or all(isinstance(row[i], int | float) for row in body)
        for i in range(len(columns))
    ]
    return {
        "kind": "table",
        "title": title,
        "columns": list(columns),
        "rows": [[_cell(value) for value in row] for row in body],
        "numeric": numeric,
        "note": note,
    }


def figure(
    name: str, title: str, data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], note: str = ""
) -> Block:
    """A Plotly figure; colours of text and paper are the page's."""
    return {
        "kind": "figure",
        "id": name,
        "title": title,
        "data": list(data),
        "layout": dict(layout),
        "note": note,
    }


def figure_row(figures: Sequence[Block]) -> Block:
    """Figures side by side where there is room."""
    return {"kind": "row", "figures": list(figures)}


def card_lists(name: str, lists: Sequence[Mapping[str, Any]]) -> Block:
    """Lists of cards to choose among: each has `name`, `label`, `note` and `entries`, with `cards` (ids) and `why`."""
    return {"kind": "cards", "id": name, "lists": list(lists)}


def card_list(
    name: str, label: str, note: str, entries: Iterable[tuple[Sequence[str], str]]
) -> dict[str, Any]:
    """One list: `entries` are ids of cards that belong together, and why they are here."""
    return {
        "name": name,
        "label": label,
        "note": note,
        "entries": [{"cards": list(ids), "why": why} for ids, why in entries],
    }


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


# ---- the file ----


def require() -> None:
    """Raise `CaeavError` where what the page is made with is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CaeavError(
            f"a report needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint='pip install "caeav[report]"',
        )


def render(page: Page) -> bytes:
    """The HTML file."""
    require()
    import jinja2
    from plotly.offline import get_plotlyjs

    held = resources.files("caeav.model.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((held / "page.html.j2").read_text("utf-8"))
    blocks = [
        inner
        for section in page.sections
        for block in section.blocks
        for inner in (block["figures"] if block["kind"] == "row" else [block])
    ]
    data = {
        "cards": page.cards,
        "lists": {block["id"]: block["lists"] for block in blocks if block["kind"] == "cards"},
        "figures": {
            b["id"]: {"data": b["data"], "layout": b["layout"]} for b in blocks if b["kind"] == "figure"
        },
        "first": FIRST_CARDS,
    }
    draws = any(block["kind"] == "figure" for block in blocks)
    html = template.render(
        page=page,
        style=_trusted((held / "page.css").read_text("utf-8")),
        script=_trusted((held / "page.js").read_text("utf-8")),
        plotly=_trusted(get_plotlyjs()) if draws else "",
        data=_trusted(script_json(data)),
    )
    return html.encode("utf-8", "backslashreplace")


def script_json(value: object) -> str:
    """JSON that may stand inside a script element, whatever its texts say."""
    said = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return said.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_uri(kind: str, data: bytes) -> str:
    """An image inside the page; empty for no bytes."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}" if data else ""


def _trusted(said: str) -> Any:
    """A text of ours that is not escaped."""
    from markupsafe import Markup

    return Markup(said)  # noqa: S704 - our own files, Plotly's, and JSON made safe by `script_json`
