"""Options by which commands choose models: a name, `--<part>-weights`, and `--set <part>.<key>=<value>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caeav.manifests.errors import CaeavError

if TYPE_CHECKING:
    from caeav.pipeline.backbones.choice import ModelChoice

WEIGHTS_HELP = "Weights: hub:<owner>/<repo>, a folder, a file, or random:<seed> for measurements."

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PART.KEY=VALUE",
        help="One setting of a model, e.g. visual.preset=reference; repeatable. `caeav models show` lists them.",
    ),
]


def choose(
    parts: Mapping[str, tuple[str, str | None]], assignments: Sequence[str] | None
) -> dict[str, ModelChoice]:
    """Part -> its choice, from part -> (name, weights) and the values of `--set`.

    Values are read as in YAML (`256`, `true`, `[a, b]`). Raises `CaeavError` for an assignment to no part.
    """
    from caeav.pipeline.backbones.choice import ModelChoice

    settings: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for text in assignments or ():
        left, equals, value = text.partition("=")
        part, dot, key = left.partition(".")
        if not (equals and dot and key and part in settings):
            raise CaeavError(
                f"--set {text!r} sets nothing",
                hint=f"write PART.KEY=VALUE, where PART is one of: {', '.join(parts)}",
            )
        settings[part][key] = _value(text, value)
    return {part: ModelChoice(name, weights or "", settings[part]) for part, (name, weights) in parts.items()}


def _value(text: str, value: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise CaeavError(f"--set {text!r} is not a value of YAML", hint="quote it: KEY='\"text\"'") from error
