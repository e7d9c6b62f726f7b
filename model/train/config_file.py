"""From preset, configuration file and `--set` values to one checked `RunConfig`, or to all faults at once.

Precedence: preset < protocol < `--config` file < `--set key.path=value` < the command's own options. Only YAML is read
(safe loader). What the settings mean is said in `model/tasks/config.py`.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, create_model

from caeav.manifests.core import errors
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted, parse_setting
from caeav.model.adapters.config import deep_merge
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import ModelConfig, RunConfig
from caeav.model.train.presets import FULL, load_preset, preset_names
from caeav.model.train.protocol import AS_PUBLISHED, PUBLISHED, departures
from caeav.model.train.unused_settings import Useless, without_effect

MAX_CONFIG_BYTES = 1_000_000
OTHER_VERSION = "this run was written by another version of caeav; use that version"
SECTIONS = {"task", "recipe", "dataset", "stores", "model", "loss", "optimiser", "schedule", "training"}
"""A file with all of these is a run's own `config.yaml`, which names every setting there was."""
YOUNGER: Mapping[str, Any] = {
    "loss": {"correspondence": 0.0},
    "model": {
        "adapters": {"case": {"zero_start": True}, "caste": {"agreement_lr_factor": 1.0}},
        "head": {"reads_agreement": False, "either_modality": False, "scaled_init": False},
    },
}
"""What runs were trained with that are older than these settings. Heads without one of them do not get it."""


class ConfigError(CaeavError):
    """Everything that is wrong with a configuration; `faults` holds one line per fault."""

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


@cache
def config_class(task: str) -> type[RunConfig]:
    """`RunConfig` with the head, loss and metric settings of a task; raises `CaeavError` for an unknown task."""
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
    """`ModelConfig` with the head settings of a task; raises `CaeavError` for an unknown task."""
    head = TASKS[task].head_config
    return create_model("ModelConfig", __base__=ModelConfig, head=(head, head()))


def resolve_config(
    task: str = "ave",
    preset: str = FULL,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The checked configuration. `assignments`: `key.path=value`; `options`: key path -> value, applied last.

    Raises `ConfigError` with all faults together, each with path, value seen and values allowed. A setting that another
    one makes useless is a fault too.
    """
    config, useless = _resolved(task, preset, file, assignments, options or {})
    if useless:
        raise ConfigError([one.fault for one in useless])
    return config


def resolve_recipes(
    task: str,
    recipes: Sequence[str],
    file: Path | None,
    assignments: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
) -> dict[str, RunConfig]:
    """The configurations of several recipes that are given the same settings; `options` of each by its name.

    A setting that is useless in some of them is left out there; one that is useless in all is a fault, as in
    `resolve_config`.
    """
    found = {name: _resolved(task, name, file, assignments, options[name]) for name in recipes}
    nowhere = set.intersection(*({one.path for one in useless} for _, useless in found.values()))
    if faults := {
        one.path: one.fault for _, useless in found.values() for one in useless if one.path in nowhere
    }:
        raise ConfigError(list(faults.values()))
    return {name: _without(config, useless) for name, (config, useless) in found.items()}


def _resolved(
    task: str, preset: str, file: Path | None, assignments: Sequence[str], options: Mapping[str, Any]
) -> tuple[RunConfig, list[Useless]]:
    """The configuration, and what was given but has no effect in it; raises `ConfigError` for other faults."""
    faults: list[str] = []
    values = _layered(task, preset, {}, file, assignments, options, faults)
    if values.get("protocol") == PUBLISHED and task in AS_PUBLISHED:
        fixed = AS_PUBLISHED[task].settings
        values = _layered(task, preset, fixed, file, assignments, options, [])
    form = config_class(task) if task in TASKS else RunConfig
    try:
        config = form.model_validate(values)
    except ValidationError as error:
        faults += [_explain(dict(fault), form) for fault in error.errors() if task in TASKS]
        raise ConfigError(faults) from None
    faults += departures(config)
    useless = list(without_effect(config, values, _layered(task, preset, {}, None, (), {}, [])))
    if faults:
        raise ConfigError([*faults, *(one.fault for one in useless)])
    return config, useless


def _without(config: RunConfig, useless: Sequence[Useless]) -> RunConfig:
    """With these settings as preset and defaults have them."""
    values, faults = config.model_dump(), list[str]()
    for one in useless:
        _put(values, one.path, one.otherwise, one.path, faults)
    assert not faults, faults
    return type(config).model_validate(values)


def load_config(path: Path) -> RunConfig:
    """Read back a run's `config.yaml`; raises `ConfigError`."""
    faults: list[str] = []
    values = _read_file(path, faults)
    if faults:
        raise ConfigError(faults)
    if values.get("task") not in TASKS:
        raise ConfigError(
            [f"{path}: task: {values.get('task')!r}; allowed: {', '.join(TASKS)}"], hint=OTHER_VERSION
        )
    form = config_class(values["task"])
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            [f"{path}: {_explain(dict(fault), form)}" for fault in error.errors()], hint=OTHER_VERSION
        ) from None


def flat_settings(config: RunConfig) -> dict[str, Any]:
    """Every setting by its path, as `--set` names it, as a JSON value."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", config.model_dump(mode="json"))]
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting[:0] = [(f"{path}.{name}".lstrip("."), inner) for name, inner in value.items()]
        else:
            found[path] = value
    return found


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` and `--config` read back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _layered(
    task: str,
    preset: str,
    protocol: Mapping[str, Any],
    file: Path | None,
    assignments: Sequence[str],
    options: Mapping[str, Any],
    faults: list[str],
) -> dict[str, Any]:
    """All sources laid over each other in the order of the parameters; faults are appended to `faults`."""
    values = _preset(task, preset, faults)
    for path, value in protocol.items():
        _put(values, path, value, path, faults)
    if file is not None:
        values = deep_merge(values, _read_file(file, faults))
    for text in assignments:
        _assign(values, text, faults)
    for path, value in options.items():
        _put(values, path, value, path, faults)
    for name, chosen in (("task", task), ("recipe", preset)):
        if (other := values.get(name, chosen)) != chosen:
            faults.append(
                f"{name}: {other!r}, but --{name} is {chosen!r}; leave the key out, or give --{name} {other}"
            )
    return values | {"task": task, "recipe": preset}


def _preset(task: str, preset: str, faults: list[str]) -> dict[str, Any]:
    if task not in TASKS:
        known = TASKS.names()
        faults.append(f"task: {task!r} is not known; allowed: {', '.join(known)}{_did_you_mean(task, known)}")
        return {}
    names = preset_names(task)
    if preset not in names:
        faults.append(
            f"recipe: {preset!r} is not known; allowed: {', '.join(names)}{_did_you_mean(preset, names)}"
        )
    return load_preset(task, preset)


def _read_file(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror or error}")
        return {}
    except (ValueError, yaml.YAMLError) as error:
        faults.append(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}")
        return {}
    if values is None:
        return {}
    if not isinstance(values, dict):
        faults.append(f"{path}: holds a {type(values).__name__}; allowed: a mapping of configuration keys")
        return {}
    return values if not values.keys() >= SECTIONS else deep_merge(_younger(values["task"]), values)


def _younger(task: object) -> dict[str, Any]:
    """`YOUNGER`, as far as the task has these settings."""
    head = TASKS[task].head_config.model_fields if isinstance(task, str) and task in TASKS else {}
    own = {name: value for name, value in YOUNGER["model"]["head"].items() if name in head}
    return {"loss": YOUNGER["loss"], "model": {**YOUNGER["model"], "head": own}}


def _assign(values: dict[str, Any], text: str, faults: list[str]) -> None:
    """Apply one `key.path=value`."""
    try:
        path, value = parse_setting(text, "key.path=value, for example optimiser.lr=0.0005")
    except CaeavError as error:
        faults.append(f"{error.problem}; {error.hint}")
    else:
        _put(values, path, value, f"--set {text}", faults)


def _put(values: dict[str, Any], path: str, value: Any, source: str, faults: list[str]) -> None:
    *parents, last = path.split(".")
    for i, part in enumerate(parents):
        child = values.setdefault(part, {})
        if not isinstance(child, dict):
            faults.append(
                f"{source}: {'.'.join(parents[: i + 1])} is a single value ({child!r}) and has no fields"
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
        suggestion = _suggest_key(place[-1], known, form)
        return f"{path}: no such key (value {seen!r}); allowed here: {', '.join(known)}{suggestion}"
    if kind == "missing":
        return f"{path}: no value; this key is required"
    if kind in ("literal_error", "enum"):
        allowed = str(context["expected"])  # 'a', 'b' or 'c'
        words = [word.strip("'") for word in allowed.replace(" or ", ", ").split(", ")]
        return f"{path}: {seen!r}; allowed: {allowed}{_did_you_mean(seen, words)}"
    if kind == "value_error":  # from our own validators, which name the value themselves
        return f"{path}: {context['error']}" if place else str(context["error"])
    return f"{path}: {seen!r}; {str(fault['msg'])[:1].lower()}{str(fault['msg'])[1:]}"


def _did_you_mean(seen: object, known: Sequence[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or nothing."""
    near = errors.did_you_mean(seen, known)
    return f"; {near}" if near else ""


def _suggest_key(name: object, known: Sequence[str], form: type[BaseModel]) -> str:
    """Suggests a key of that name in another section, else the nearest one here, else the nearest elsewhere."""
    paths = {path: path.rpartition(".")[2] for path in _paths(form)}
    here = _did_you_mean(name, known)
    near = difflib.get_close_matches(str(name), sorted(set(paths.values())), n=1, cutoff=0.75)
    found = [path for path, last in paths.items() if last == name]
    found = found or [path for path, last in paths.items() if not here and last in near]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else here


def _fields_at(place: Sequence[int | str], form: type[BaseModel]) -> list[str]:
    """Field names of the configuration section at `place`."""
    model: type[BaseModel] | None = form
    for part in place:
        field = model.model_fields.get(str(part)) if model is not None else None
        model = _section(field.annotation) if field is not None else None
    return list(model.model_fields) if model is not None else []


def _paths(form: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a configuration, sections included, as `training.epochs`."""
    found = []
    for name, field in form.model_fields.items():
        section = _section(field.annotation)
        found += [prefix + name, *(_paths(section, f"{prefix}{name}.") if section else [])]
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in a field's type, also inside `X | None`."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
