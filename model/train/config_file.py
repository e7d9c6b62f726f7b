"""From packaged recipe, config file and `--set` values to one checked `RunConfig`, or to every error at once.

Precedence: packaged recipe < overlay < protocol < `--config` file < `--set key.path=value`. Nothing is read but YAML
(safe loader), nothing is created. What a field means is `config.py`.

Packaged files: `<task>.yaml`, which may `inherit` from another; overlays of every task `+<name>.yaml`, and of one
task `<task>+<name>.yaml`.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
    create_model,
)

from caeav.manifests.core import errors
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import ModelConfig, RunConfig
from caeav.model.train.protocol import AS_PUBLISHED, PUBLISHED, departures
from caeav.model.train.unused_settings import without_effect

if TYPE_CHECKING:
    pass


@cache
def config_class(task: str) -> type[RunConfig]:
    """`RunConfig` with the head, losses and metric settings of a task; raises `CaeavError` for an unknown one."""
    from caeav.model.tasks.base import TASKS

    model, loss, metric = model_class(task), TASKS[task].loss_config, TASKS[task].metric_config
    return create_model(
        "RunConfig",
        __base__=RunConfig,
        model=(model, model()),
        loss=(loss, loss()),
        metric=(metric, metric()),
    )


@cache
def model_class(task: str) -> type[ModelConfig]:
    """`ModelConfig` with the head settings of a task; raises `CaeavError` for an unknown one."""
    from caeav.model.tasks.base import TASKS  # which imports this module

    head = TASKS[task].head_config
    return create_model("ModelConfig", __base__=ModelConfig, head=(head, head()))


FULL = "full"
INHERIT = "inherit"
MAX_CONFIG_BYTES = 1_000_000


class ConfigError(CaeavError):
    """Everything that is wrong with a configuration, one line a fault; `faults` holds the lines."""

    def __init__(
        self, faults: Sequence[str], *, hint: str = "correct the lines above; nothing was started"
    ) -> None:
        self.faults = tuple(faults)
        super().__init__(
            f"the configuration has {counted(len(faults), 'fault')}:\n"
            + "\n".join(f"  - {line}" for line in faults),
            hint=hint,
        )

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:  # type: ignore[override]
        return type(self), (self.faults,)


def did_you_mean(seen: object, known: Sequence[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or nothing."""
    near = errors.did_you_mean(seen, known)
    return f"; {near}" if near else ""


def preset_names(task: str) -> list[str]:
    """Recipes of `task`: `full`, and one name an overlay file."""
    stems = [f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml")]
    names = {
        name for stem in stems for own, plus, name in [stem.partition("+")] if plus and own in ("", task)
    }
    return [FULL, *sorted(names)]


def resolve_config(
    task: str = "ave",
    recipe: str = FULL,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The checked configuration. `assignments` are `key.path=value`; `given` holds dedicated options, applied last.

    Raises `ConfigError` with all faults together, each with the path, the value seen and the values allowed; a setting
    that another one makes idle is a fault, too.
    """
    faults: list[str] = []
    values = _laid(task, recipe, file, assignments, given or {}, {}, faults)
    if values.get("protocol") == PUBLISHED and task in AS_PUBLISHED:
        values = _laid(task, recipe, file, assignments, given or {}, AS_PUBLISHED[task].settings, [])
    form = config_class(task) if task in TASKS else RunConfig
    try:
        config = form.model_validate(values)
    except ValidationError as error:
        faults += [_explain(dict(fault), form) for fault in error.errors() if task in TASKS]
        raise ConfigError(faults) from None
    faults += departures(config)
    faults += without_effect(config, values, _laid(task, recipe, None, (), {}, {}, []))
    if faults:
        raise ConfigError(faults)
    return config


def _laid(
    task: str,
    recipe: str,
    file: Path | None,
    assignments: Sequence[str],
    given: Mapping[str, Any],
    protocol: Mapping[str, Any],
    faults: list[str],
) -> dict[str, Any]:
    """Everything laid over the packaged recipe in its order; `protocol` comes first."""
    values = _packaged(task, recipe, faults)
    for path, value in protocol.items():
        _put(values, path, value, path, faults)
    if file is not None:
        _merge(values, _read_file(file, faults))
    for text in assignments:
        _assign(values, text, faults)
    for path, value in given.items():
        _put(values, path, value, path, faults)
    for name, chosen in (("task", task), ("recipe", recipe)):
        if (other := values.get(name, chosen)) != chosen:
            faults.append(
                f"{name}: {other!r}, but --{name} is {chosen!r}; leave the key away, or give --{name} {other}"
            )
    return values | {"task": task, "recipe": recipe}


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` and `--config` read back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path) -> RunConfig:
    """Read back a run's `config.yaml`; raises `ConfigError`."""
    faults: list[str] = []
    values = _read_file(path, faults)
    if faults:
        raise ConfigError(faults)
    if values.get("task") not in TASKS:
        raise ConfigError(
            [f"{path}: task: {values.get('task')!r}; allowed: {', '.join(TASKS)}"],
            hint="this run was written by another version of caeav; use that version",
        )
    form = config_class(values["task"])
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            [f"{path}: {_explain(dict(fault), form)}" for fault in error.errors()],
            hint="this run was written by another version of caeav; use that version",
        ) from None


def _folder() -> Traversable:
    return resources.files("caeav.model.train.presets")


def _packaged(task: str, recipe: str, faults: list[str]) -> dict[str, Any]:
    """The task's recipe file with the named overlays on top: that of every task, then the task's own."""
    if task not in TASKS:
        known = TASKS.names()
        faults.append(f"task: {task!r} is not known; allowed: {', '.join(known)}{did_you_mean(task, known)}")
        return {}
    values = _inherited(task)
    names = preset_names(task)
    if recipe not in names:
        faults.append(
            f"recipe: {recipe!r} is not known; allowed: {', '.join(names)}{did_you_mean(recipe, names)}"
        )
    for stem in (f"+{recipe}", f"{task}+{recipe}"):
        if recipe in names and (_folder() / f"{stem}.yaml").is_file():
            _merge(values, _packaged_file(stem))
    return values


def _inherited(stem: str) -> dict[str, Any]:
    """A packaged file laid over the one it inherits from."""
    own = _packaged_file(stem)
    parent = own.pop(INHERIT, None)
    if parent is None:
        return own
    values = _inherited(parent)
    _merge(values, own)
    return values


def _packaged_file(stem: str) -> dict[str, Any]:
    return deepcopy(_parsed(stem))


@cache
def _parsed(stem: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((_folder() / f"{stem}.yaml").read_text(encoding="utf-8"))
    return values


def _read_file(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        faults.append(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}")
        return {}
    if values is None:
        return {}
    if not isinstance(values, dict):
        faults.append(f"{path}: holds a {type(values).__name__}; allowed: a mapping of configuration keys")
        return {}
    return values


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay `over` on `base`: mappings are merged, everything else is replaced."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _assign(values: dict[str, Any], text: str, faults: list[str]) -> None:
    """Apply one `key.path=value`; the value is typed as YAML does."""
    path, equals, raw = text.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        faults.append(f"--set {text!r}: allowed: key.path=value, for example optimiser.lr=0.0005")
        return
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        faults.append(f"--set {text!r}: the value {raw!r} is not YAML; quote it")
        return
    _put(values, path.strip(), value, f"--set {text}", faults)


def _put(values: dict[str, Any], path: str, value: Any, where: str, faults: list[str]) -> None:
    *parents, last = path.split(".")
    for i, part in enumerate(parents):
        child = values.setdefault(part, {})
        if not isinstance(child, dict):
            faults.append(
                f"{where}: {'.'.join(parents[: i + 1])} is a single value ({child!r}) and has no fields"
            )
            return
        values = child
    values[last] = value


def _explain(fault: dict[str, Any], form: type[BaseModel]) -> str:
    """One pydantic fault in our words: path, value seen, values allowed, nearest name."""
    place = tuple(fault["loc"])
    path = ".".join(str(part) for part in place) or "(the whole configuration)"
    seen, kind, context = fault.get("input"), fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(place[:-1], form)
        meant = _meant(place[-1], known, form)
        return f"{path}: no such key (value {seen!r}); allowed here: {', '.join(known)}{meant}"
    if kind == "missing":
        return f"{path}: no value; this key is required"
    if kind in ("literal_error", "enum"):
        allowed = str(context["expected"])
        return f"{path}: {seen!r}; allowed: {allowed}{did_you_mean(seen, _alternatives(allowed))}"
    if kind == "value_error":  # of our own validators, which say themselves what they saw
        return f"{path}: {context['error']}" if place else str(context["error"])
    return f"{path}: {seen!r}; {str(fault['msg'])[:1].lower()}{str(fault['msg'])[1:]}"


def _alternatives(expected: str) -> list[str]:
    """`'a', 'b' or 'c'` -> the three words."""
    return [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]


def _fields_at(place: Sequence[int | str], form: type[BaseModel]) -> list[str]:
    """Field names of the configuration section at `place`."""
    model: type[BaseModel] | None = form
    for part in place:
        field = model.model_fields.get(str(part)) if model is not None else None
        model = _section(field.annotation) if field is not None else None
    return list(model.model_fields) if model is not None else []


def _paths(form: type[BaseModel], before: str = "") -> list[str]:
    """All keys of a configuration, sections too, as `training.epochs`."""
    found = []
    for name, field in form.model_fields.items():
        section = _section(field.annotation)
        found += [before + name, *(_paths(section, f"{before}{name}.") if section else [])]
    return found


def _meant(name: object, known: Sequence[str], form: type[BaseModel]) -> str:
    """A key of that name in another section, else the nearest one here, else the nearest in another."""
    paths = {path: path.rpartition(".")[2] for path in _paths(form)}
    here = did_you_mean(name, known)
    near = difflib.get_close_matches(str(name), sorted(set(paths.values())), n=1, cutoff=0.75)
    found = [path for path, last in paths.items() if last == name]
    found = found or [path for path, last in paths.items() if not here and last in near]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else here


def _section(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in a field's type, also inside `X | None`."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
