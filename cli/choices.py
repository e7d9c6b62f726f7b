"""Options by which commands choose models: a name, `--<part>-weights`, and `--set <part>.<key>=<value>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caeav.manifests.core.errors import CaeavError

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
        left, value = _parsed(text, f"PART.KEY=VALUE, where PART is one of: {', '.join(parts)}")
        part, dot, key = left.partition(".")
        if not (dot and key and part in settings):
            raise CaeavError(
                f"--set {text!r} sets nothing",
                hint=f"write PART.KEY=VALUE, where PART is one of: {', '.join(parts)}",
            )
        settings[part][key] = value
    return {part: ModelChoice(name, weights or "", settings[part]) for part, (name, weights) in parts.items()}


def choose_one(name: str, weights: str | None, assignments: Sequence[str] | None) -> ModelChoice:
    """A choice where a command is about one model alone: `--set KEY=VALUE`."""
    from caeav.pipeline.backbones.choice import ModelChoice

    return ModelChoice(name, weights or "", dict(_parsed(text, "KEY=VALUE") for text in assignments or ()))


def paths_of_taps(option: str, given: Sequence[str] | None) -> dict[str, Path]:
    """Tap -> path, from each `TAP=PATH` that an option was given; raises `CaeavError` for anything else."""
    found: dict[str, Path] = {}
    for text in given or ():
        tap, equals, path = text.partition("=")
        if not (equals and tap and path) or tap in found:
            again = "names a tap again" if tap in found else "is no TAP=PATH"
            raise CaeavError(f"{option} {text!r} {again}", hint=f"{option} motion.r2plus1d=PATH, once a tap")
        found[tap] = Path(path).expanduser()
    return found


def _parsed(text: str, form: str) -> tuple[str, Any]:
    import yaml

    left, equals, value = text.partition("=")
    if not (equals and left):
        raise CaeavError(f"--set {text!r} sets nothing", hint=f"write {form}")
    try:
        return left, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise CaeavError(f"--set {text!r} is not a value of YAML", hint="quote it: KEY='\"text\"'") from error
