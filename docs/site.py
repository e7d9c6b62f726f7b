"""Makes the pages of the site that nobody should type: the commands, the settings of training, the first page.

mkdocs calls `on_files` (see mkdocs.yml); `make docs` builds the site. Text comes from the program itself: help texts,
configuration classes and README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caeav.cli import app
from caeav.model.tasks.base import TASKS
from caeav.model.train.settings import Setting, settings

README = Path(__file__).resolve().parents[1] / "README.md"
PRESET = "full"
PUBLIC = ("", ".stores.Store", ".stores.StoredClip", ".datasets.TokenDataset", ".runs.LoadedRun")
PYTHON_PAGE = (
    "# Python reference\n\n[Examples](PYTHON.md) first.\n\n"
    + "\n".join(f"::: caeav{name}" for name in PUBLIC)
    + "\n"
)
"""mkdocstrings puts the docstrings in."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that mkdocs has found."""
    from mkdocs.structure.files import File

    pages = {
        "index.md": first_page(),
        "commands.md": commands_page(),
        "settings.md": settings_page(),
        "python_reference.md": PYTHON_PAGE,
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def first_page() -> str:
    """README with its links as seen from docs/, without those to files that the site does not have."""
    text = re.sub(r"\]\(docs/", "](", README.read_text(encoding="utf-8"))
    return re.sub(r" ·\s\[\w+\]\((CHANGELOG|CONTRIBUTING)\.md\)", "", text)


def commands_page() -> str:
    """Every command with what it does and its options."""
    parts = ["# Commands\n\nAs `caeav COMMAND -h` tells.\n"]
    for path, command in leaves(app.command(), "caeav"):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.expose_value]
        usage = " ".join([path, *(p.metavar or str(p.name).upper() for p in arguments)])
        parts.append(f"\n## {path}\n\n{escaped(command.help or '')}\n\n    {usage} [OPTIONS]\n")
        rows = [
            f"| `{', '.join(p.opts)}` | {escaped(getattr(p, 'help', None) or '')} | {default_of(p)} |"
            for p in (*arguments, *options)
        ]
        if rows:
            parts.append("\n| | | default |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    parts.append(
        "\n## Of every command\n\n`-q` shows results and errors only, `-v` the time before each remark and where an "
        "error arose, `--log-file FILE` also keeps what is said, `-h` shows the help.\n"
    )
    return "".join(parts)


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and command of everything that can be run."""
    below = getattr(command, "commands", None)
    if below is None or command.invoke_without_command:
        yield path, command
    for name, inner in (below or {}).items():
        yield from leaves(inner, f"{path} {name}")


def default_of(parameter: Any) -> str:
    """What holds where it is not given; empty for nothing."""
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return escaped(shown)
    value = parameter.default
    return "" if shown is False or value in (None, False, "", (), []) or callable(value) else f"`{value}`"


def settings_page() -> str:
    """The settings of all tasks: the common ones once, each task's own below."""
    found = {task: {each.path: each for each in settings(task, PRESET)} for task in TASKS}
    first = next(iter(found.values()))
    common = [path for path in first if all(path in own for own in found.values())]
    parts = [
        "# Settings of training\n\nWhat `caeav train --set PATH=VALUE` may set, with the defaults of "
        f"`--recipe {PRESET}`; a run's `config.yaml` names every one. `caeav config` lists the same.\n\n",
        "## Of every task\n\n",
        table([first[path] for path in common], found),
    ]
    for task, own in found.items():
        parts += [f"\n## {task}\n\n", table([each for path, each in own.items() if path not in common], {})]
    return "".join(parts)


def table(rows: list[Setting], of_tasks: dict[str, dict[str, Setting]]) -> str:
    """A table of settings; where tasks have other defaults, they are named."""
    lines = ["| setting | default | allowed | meaning | more |", "|---|---|---|---|---|"]
    for each in rows:
        defaults: dict[str, list[str]] = {}
        for task, own in of_tasks.items():
            defaults.setdefault(shown(own[each.path].default), []).append(task)
        said = f"`{shown(each.default)}`"
        if len(defaults) > 1:
            said = "; ".join(f"`{value}` ({', '.join(tasks)})" for value, tasks in defaults.items())
        lines.append(
            f"| `{each.path}` | {escaped(said)} | {escaped(each.allowed)} | {escaped(each.meaning)} | "
            f"[{each.page.removesuffix('.md')}]({each.page}) |"
        )
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A value as YAML would have it."""
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def escaped(text: str) -> str:
    """Text that stays text in a Markdown table."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"<(?=[\w/])", "&lt;", flat)
