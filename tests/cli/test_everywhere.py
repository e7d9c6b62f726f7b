"""What every command takes (-h, -q, -v, --log-file), options that are settings, and `caeav config`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from forked_command import run_command

from caeav.cli import app, everywhere, several
from caeav.cli.everywhere import Remarks, add_common
from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.config import CasteConfig
from caeav.model.tasks.base import TASKS
from caeav.model.train.settings import meanings, settings


def caeav(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command([*arguments], cwd)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAEAV_HOME", str(tmp_path / "home"))


def runnable(command: object, path: str = "caeav") -> list[tuple[str, object]]:
    """Every command that does something: also one with commands below it, as `caeav caption`."""
    below = getattr(command, "commands", {})
    own = [(path, command)] if not below or command.invoke_without_command else []  # type: ignore[attr-defined]
    return own + [found for name, inner in below.items() for found in runnable(inner, f"{path} {name}")]


def test_lists_of_commands_say_whole_sentences(tmp_path: Path) -> None:
    for group in ((), ("store",), ("runs",), ("models",)):
        said = " ".join(caeav(*group, "-h", cwd=tmp_path).stdout.split("Commands:")[1].split())
        assert "..." not in said
        below = app.command()
        for name in group:
            below = below.commands[name]
        for name, inner in below.commands.items():
            assert f"{name} {everywhere.first_sentence(inner.help)}" in said
    assert everywhere.first_sentence("Do\n  this. Then that.\n\nMore.") == "Do this"


def test_every_command_has_the_common_options_and_none_twice() -> None:
    found = runnable(add_common(typer.main.get_command(app.build())))
    assert len(found) > 25 and {"caeav caption", "caeav caption show", "caeav train"} <= {p for p, _ in found}
    for path, command in found:
        names = [name for parameter in command.params for name in parameter.opts]  # type: ignore[attr-defined]
        assert {"-q", "-v", "--quiet", "--verbose", "--log-file"} <= set(names), path
        assert len(names) == len(set(names)), path
    assert everywhere.HELP == ("-h", "--help")


def test_caption_by_itself_takes_the_common_options(tmp_path: Path) -> None:
    quiet = caeav("caption", "-q", "--log-file", "all.txt", cwd=tmp_path)
    assert quiet.returncode == 1 and "caption -q --log-file all.txt" in (tmp_path / "all.txt").read_text()


def test_quiet_shows_results_and_counts_the_hidden_remarks(tmp_path: Path) -> None:
    loud = caeav("store", "ls", cwd=tmp_path)
    quiet = caeav("store", "ls", "-q", "--log-file", "logs/all.txt", cwd=tmp_path)
    assert "no store in" in loud.stderr and "no store in" not in quiet.stderr
    assert quiet.stderr == "1 remark not shown (--quiet); all of it is in logs/all.txt\n"
    log = (tmp_path / "logs/all.txt").read_text()
    assert "store ls -q --log-file logs/all.txt" in log and "no store in" in log


def test_errors_are_never_hidden_and_verbose_says_where_they_arose(tmp_path: Path) -> None:
    quiet = caeav("runs", "show", "last", "-q", cwd=tmp_path)
    assert quiet.returncode == 1 and "error: no run 'last'" in quiet.stderr
    assert "Traceback" not in quiet.stderr and "not shown" not in quiet.stderr
    verbose = caeav("runs", "show", "last", "-v", cwd=tmp_path)
    assert "find_run" in verbose.stderr and all(line.startswith("[") for line in verbose.stderr.splitlines())


def test_an_option_that_is_a_setting_is_refused_with_its_path(tmp_path: Path) -> None:
    for option, path in (("--epochs", "training.epochs"), ("--batch-size", "training.batch_size")):
        refused = caeav("train", option, "3", cwd=tmp_path)
        assert refused.returncode == 2 and f"--set {path}=VALUE" in refused.stderr
    assert "--set" not in caeav("train", "--zzz", cwd=tmp_path).stderr
    assert "--set" not in caeav("store", "ls", "--epochs", cwd=tmp_path).stderr


def test_a_progress_bar_is_shown_but_not_logged(tmp_path: Path) -> None:
    shown = io.StringIO()
    remarks = Remarks(shown)
    remarks.log_to(tmp_path / "log")
    remarks.write("\r 10%|#\r 20%|##\x1b[A")
    remarks.write("one\ntw")
    remarks.write("o\n")
    assert shown.getvalue() == "\r 10%|#\r 20%|##\x1b[Aone\ntwo\n"
    kept = (tmp_path / "log").read_text().splitlines()[2:]
    assert [line.partition("] ")[2] for line in kept] == ["one", "two"]


def test_after_quiet_everything_is_shown_again() -> None:
    shown = io.StringIO()
    remarks = Remarks(shown)
    remarks.quiet = True
    remarks.write("one\n\ntwo\n")
    assert not remarks.isatty() and shown.getvalue() == ""
    remarks.end()
    remarks.write("three\n")
    assert shown.getvalue() == "2 remarks not shown (--quiet)\nthree\n"


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaeavError, match="name a file in a folder"):
        Remarks(io.StringIO()).log_to(tmp_path / "file" / "log")


def test_config_lists_settings_with_defaults_and_meaning(tmp_path: Path) -> None:
    listed = json.loads(caeav("config", "--json", "--task", "avvp", cwd=tmp_path).stdout)
    by_path = {each["path"]: each for each in listed}
    assert by_path["training.epochs"]["allowed"] == "whole number >= 1"
    assert by_path["schedule.name"]["allowed"] == "none | step | cosine"
    assert by_path["model.head.own_seconds"]["default"] is True  # as the preset has it
    assert "clip labels teach seconds" in by_path["model.head.own_seconds"]["meaning"]
    assert by_path["augment.shift"]["page"] == "ROBUSTNESS.md"
    found = caeav("config", "warmup", cwd=tmp_path)
    assert "schedule.warmup_epochs" in found.stdout and "training.epochs" not in found.stdout
    assert "caeav config lists all" in caeav("config", "nothing-like-it", cwd=tmp_path).stderr


@pytest.mark.parametrize("task", list(TASKS))
def test_settings_of_every_task_have_pages_that_exist(task: str, repository: Path) -> None:
    found = settings(task, "full")
    assert len(found) > 80 and len({each.path for each in found}) == len(found)
    assert all((repository / "docs" / each.page).is_file() for each in found)
    assert [each.path for each in found if not each.meaning] == []
    assert not any(each.path in ("task", "recipe", "dataset") for each in found)


def test_meanings_end_where_the_next_begins() -> None:
    found = meanings(CasteConfig)
    assert found["topk_ratio"] == "share of the tokens that are enriched."
    assert found["map_rank"].startswith("rank of the four")


@pytest.mark.parametrize("key", ["-2-EXqdJ79f", "-E2XqdJ79f", "--0EX"])
def test_a_key_that_begins_with_a_dash_goes_behind_two(tmp_path: Path, key: str) -> None:
    refused = caeav("caption", "show", key, "--json", cwd=tmp_path)
    assert refused.returncode == 2
    call = f"caption show --json -- {key}"
    assert f"a name that begins with - goes last, behind --: caeav {call}" in " ".join(refused.stderr.split())
    assert "No such option" not in caeav(*call.split(), cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("runs show -q", "Missing argument"),
        ("extract -q --limit 0", "--limit"),
        ("extract --limit many -q", "--limit"),
        ("caption -q show key", "--quiet belongs after the command: caeav caption show --quiet ..."),
    ],
)
def test_wrong_usage_is_told_when_quiet(tmp_path: Path, words: str, told: str) -> None:
    refused = caeav(*words.split(), cwd=tmp_path)
    assert refused.returncode == 2 and told in refused.stderr and "not shown" not in refused.stderr


def test_a_process_that_was_ended_is_told_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", Remarks(shown))
    everywhere.remarks().quiet = True

    def launch(_command: object, _gpus: object, _outer: object, say: Callable[[str], None]) -> int:
        say("process 1 was ended by SIGKILL")
        return 137

    monkeypatch.setattr("caeav.model.train.launch.launch", launch)
    with pytest.raises(SystemExit, match="137"):
        several.start_several("cpu,cpu", None)
    assert shown.getvalue() == "error: process 1 was ended by SIGKILL\n"


@pytest.mark.parametrize("words", ["train --seeds", "store show -q --home"])
def test_an_option_without_its_value_is_not_taken_for_an_unknown_one(tmp_path: Path, words: str) -> None:
    told = caeav(*words.split(), cwd=tmp_path).stderr.splitlines()[-1]
    assert told == f"Error: Option '{words.split()[-1]}' requires an argument."


@pytest.mark.parametrize(("option", "told"), [("-j", "No such option: -j"), ("--jsn", "--json")])
def test_a_mistyped_option_is_not_taken_for_a_key(tmp_path: Path, option: str, told: str) -> None:
    refused = caeav("caption", "show", "a", option, cwd=tmp_path)
    assert refused.returncode == 2 and told in refused.stderr and "behind --" not in refused.stderr
