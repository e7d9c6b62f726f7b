"""The pages people read: links have targets, and every command in them is one that the program knows."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from module_files import load_module

from caeav.cli import app
from caeav.model.tasks.base import TASKS
from caeav.model.train.settings import settings

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
GENERATED = {"settings.md", "commands.md"}
"""Pages that the site makes (docs/site.py)."""


def blocks(text: str) -> Iterator[str]:
    """The code blocks of a page, indented or fenced, without Python ones."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language not in ("python", "json", "yaml"):
            yield body
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for body in re.findall(r"(?:^(?: {4}.*)?\n)+", outside, re.MULTILINE):
        yield re.sub(r"^ {4}", "", body, flags=re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """Every `caeav ...` line of the code blocks, continued lines put together, comments taken off."""
    for body in blocks(text):
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line)):
                if part.strip().startswith("caeav "):
                    yield part.strip().removesuffix("&").strip()


@cache
def root() -> Any:
    return app.command()


def faults(line: str) -> list[str]:
    """What in a command the program does not know. `ls | show` names several commands, `A|B` one of several words."""
    words = [word for word in shlex.split(line) if word != "..."][1:]
    command, path = root(), "caeav"
    while hasattr(command, "commands") and words and re.match(r"\w", words[0]):
        below, name = command.commands, words.pop(0)
        named = [name]
        while words[:1] == ["|"]:
            named.append(words[1])
            del words[:2]
        wrong = [word for word in named if word not in below]
        if wrong:
            return [f"{path} has no command {word!r}" for word in wrong]
        path, command = f"{path} {name}", below[name]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = [word.strip("[]").split("=")[0] for word in words if word.strip("[").startswith("-")]
    return [
        f"{path} has no option {word}"
        for word in given
        if word not in options | {"-h", "--help"} and not re.fullmatch(r"-?\d.*|-", word)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_one_the_program_knows(page: Path) -> None:
    found = {line: wrong for line in commands(page.read_text()) if (wrong := faults(line))}
    assert found == {}


def test_guarantees_name_tests_that_exist(repository: Path) -> None:
    text = "\n".join(path.read_text() for path in (repository / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
    page = (repository / "docs" / "GUARANTEES.md").read_text()
    named = re.findall(r"::(test_\w+)(\.\.\.)?", page)
    assert len(named) > 100
    gone = {
        name + dots
        for name, dots in named
        if name not in defined and not (dots and any(each.startswith(name) for each in defined))
    }
    assert gone == set()


def test_the_check_reports_unknown_commands_and_options() -> None:
    assert faults("caeav extract --dataset ave --no-such-thing 3") == [
        "caeav extract has no option --no-such-thing"
    ]
    assert faults("caeav stor ls") == ["caeav has no command 'stor'"]
    assert faults("caeav store ls | shw") == ["caeav store has no command 'shw'"]
    assert faults("caeav store ls | show | verify") == faults("caeav train --set training.epochs=-1") == []
    assert len([line for page in PAGES for line in commands(page.read_text())]) > 100


def anchor(title: str) -> str:
    """As GitHub and the site make it of a heading."""
    plain = unicodedata.normalize("NFKD", re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", title)).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, place = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if other.name in GENERATED:
            continue
        if not other.exists():
            wrong.append(f"{target}: no such file")
        elif place and place not in {
            anchor(t) for t in re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
        }:
            wrong.append(f"{target}: no such heading")
    assert wrong == []


@cache
def site() -> Any:
    return load_module("caeav_docs_site", REPOSITORY / "docs" / "site.py")


def test_the_site_names_every_command_and_setting() -> None:
    text = site().commands_page()
    for path, command in site().leaves(root(), "caeav"):
        assert f"\n## {path}\n" in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.expose_value:
                assert parameter.opts[0] in text.split(f"\n## {path}\n")[1].split("\n## ")[0]
    text = site().settings_page()
    for task in TASKS:
        missing = [each.path for each in settings(task, "full") if f"`{each.path}`" not in text]
        assert missing == []
    assert "| `model.head.own_seconds` | `true` |" in text.split("\n## avvp\n")[1]


def test_the_sites_first_page_links_inside_the_site() -> None:
    text = site().first_page()
    assert "](docs/" not in text and "](GUARANTEES.md" in text
    assert "CONTRIBUTING.md" not in text and "CHANGELOG.md" not in text


def test_the_first_page_stays_a_first_page(repository: Path) -> None:
    """A visitor reads one screen or two: commands are listed in docs/OVERVIEW.md, which is to have every one."""
    text = (repository / "README.md").read_text()
    assert len(text.splitlines()) <= 80 and "](docs/report.png)" in text
    assert [line.split()[1] for line in commands(text)] == ["extract", "caption", "train"]
    overview = (repository / "docs" / "OVERVIEW.md").read_text()
    named = {line.split()[1] for line in commands(overview)}
    assert set(root().commands) - named <= {"demo", "synthesise"}


def test_the_site_lists_every_page(repository: Path) -> None:
    listed = set(re.findall(r": (\w+\.md)$", (repository / "mkdocs.yml").read_text(), re.MULTILINE))
    made = GENERATED | {"index.md", "python_reference.md"}
    assert listed - made == {page.name for page in repository.glob("docs/*.md")}
