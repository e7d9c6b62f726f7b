"""What the command prints and how it ends: text that controls no terminal, questions, JSON, exit statuses."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from commands import Terminal
from typer.testing import CliRunner

import caeav.cli as cli
from caeav.cli import app, console, doctor, surroundings
from caeav.cli.console import confirmed, print_json, print_table, say
from caeav.cli.doctor import Check
from caeav.manifests.core.errors import CaeavError


def test_messages_keep_their_lines_and_control_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo \x1b[2J\t\x9b\u2028é日")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "one\ntwo \\x1b[2J\\x09\\x9b\\x2028é日\n"


@pytest.mark.parametrize(
    ("answer", "taken"),
    [("y\n", True), ("YES \n", True), ("n\n", False), ("\n", False), ("", False), ("maybe\n", False)],
)
def test_only_a_yes_is_a_yes(answer: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert confirmed("Remove it?", False) is taken
    assert sys.stderr.getvalue() == "Remove it? [y/N] "  # type: ignore[attr-defined]


@pytest.mark.parametrize("streams", [("stdin",), ("stderr",), ()])
def test_no_question_is_asked_without_a_terminal(
    streams: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(sys, name, Terminal("y\n") if name in streams else io.StringIO("y\n"))
    with pytest.raises(CaeavError, match="no terminal to answer on\n  next: add --yes"):
        confirmed("Remove it?", False)
    assert confirmed("Remove it?", True)


@pytest.mark.parametrize(
    ("encoding", "value", "escaped"),
    [
        ("utf-8", "é日", False),
        ("ascii", "é日", True),
        ("utf-8", "\x9b2J", True),
        ("utf-8", "\ud800", True),
        ("utf-8", "two\nlines", False),
    ],
)
def test_json_is_escaped_where_it_would_control_a_terminal_or_cannot_be_encoded(
    encoding: str, value: str, escaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding=encoding))
    print_json({"a": value})
    sys.stdout.flush()
    text = data.getvalue().decode(encoding)
    assert json.loads(text) == {"a": value}
    assert text.isascii() is (escaped or value.isascii())
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json(float("nan"))


def test_a_table_shows_its_cells_whole_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    print_table(("what", "n"), [("[red]a[/red] \x1b", 1.23456), (long, 20)])
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["[red]a[/red]", "\\x1b", "1.235"]
    assert second.split() == [long, "20"]
    assert len(head) == len(first) == len(second)  # numbers end in one column
    print_table(("what", "why"), [("a", "word " * 40)])
    assert len(capsys.readouterr().out.splitlines()) == 2  # a file has room for a sentence


def status_of_main(monkeypatch: pytest.MonkeyPatch, run: Callable[[], None]) -> object:
    """Exit status of `main` when the command is `run`."""
    monkeypatch.setattr(cli, "settle_in", lambda: None)
    monkeypatch.setattr(app, "run", run)
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [(SystemExit(1), 1), (SystemExit(3), 3), (SystemExit(None), None), (KeyboardInterrupt(), 130)],
)
def test_the_exit_status_is_that_of_the_command(
    error: BaseException, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "_ended_by", signal.SIGINT)
    assert status_of_main(monkeypatch, raising(error)) == status


def test_success_is_status_0_and_sigterm_is_143(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of_main(monkeypatch, lambda: None) == 0
    was = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(surroundings, "_ended_by", signal.SIGINT)
    try:
        status = status_of_main(monkeypatch, lambda: surroundings._stop(signal.SIGTERM, None))
        assert status == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, was)
    assert "what is finished is kept" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(status: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "finished_status", full)
    assert status_of_main(monkeypatch, lambda: None) == 1
    assert "the result cannot be written" in capsys.readouterr().err


def test_an_ignored_sigterm_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    was = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for held, then in ((signal.SIG_IGN, signal.SIG_IGN), (signal.SIG_DFL, surroundings._stop)):
            signal.signal(signal.SIGTERM, held)
            surroundings.settle_in()
            assert signal.getsignal(signal.SIGTERM) == then
    finally:
        for number, handler in was.items():
            signal.signal(number, handler)


def test_results_that_nobody_reads_are_status_141_whatever_the_command_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, write = surroundings.os.pipe()
    stream = surroundings._Stdout(io.TextIOWrapper(io.FileIO(write, "w")))  # type: ignore[arg-type]
    monkeypatch.setattr(surroundings, "_stdout", stream)
    assert surroundings.finished_status(0) == 0
    surroundings.os.close(read)
    stream.write("x")
    assert surroundings.finished_status(0) == 141
    assert surroundings.finished_status(1) == 141


def run_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    monkeypatch.setattr(app, "command", lambda: raising(error))
    with pytest.raises(SystemExit) as left:
        app.run()
    return left.value.code


def test_errors_a_user_can_act_on_are_status_1_and_others_are_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, CaeavError("no such thing", hint="do that")) == 1
    assert capsys.readouterr().err == "error: no such thing\n  next: do that\n"
    for number, hint in (
        (errno.ENOSPC, "make room on that disk"),
        (errno.EDQUOT, "within your quota"),
        (errno.EACCES, "get permission"),
        (errno.EPERM, "get permission"),
        (errno.EROFS, "writable disk"),
        (errno.ENOTDIR, "a file is in the way of a folder"),
        (errno.EEXIST, "a file is in the way of a folder"),
        (errno.EISDIR, "a folder is in the way of a file"),
        (errno.ENAMETOOLONG, "shorter path"),
        (errno.EMFILE, "ulimit -n"),
    ):
        assert run_with(monkeypatch, OSError(number, "it failed", str(Path("x")))) == 1
        shown = capsys.readouterr().err
        assert hint in shown and "run the same command again" in shown and "it failed" in shown
    monkeypatch.setattr(app, "command", lambda: raising(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        app.run()


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("absent", 0), ("problem", 1)])
def test_doctor_exits_with_1_only_for_a_problem(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check("python", "ok", "3"), Check("thing", status, "how it is")]  # type: ignore[arg-type]
    monkeypatch.setattr("caeav.cli.doctor.examine", lambda home: checks)
    commands = typer.Typer()
    doctor.register(commands)
    for extra in ([], ["--json"]):
        result = CliRunner().invoke(commands, extra)
        assert result.exit_code == code
        assert ("to fix: thing" in result.stderr) is bool(code)
    assert json.loads(result.stdout)[1] == {"about": "thing", "status": status, "detail": "how it is"}


def test_a_table_on_a_terminal_has_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(console, "Console", lambda **kw: seen.append(kw["width"]) or real(**kw))
    from rich.console import Console as real

    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table(("a",), [("b",)])
    assert seen[0] is None


def test_a_closed_stream_is_opened_on_devnull(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[object, ...]] = []

    def fstat(number: int) -> None:
        if number == 1:
            raise OSError(errno.EBADF, "closed")

    with monkeypatch.context() as patch:
        patch.setattr(surroundings.os, "fstat", fstat)
        patch.setattr(surroundings.os, "open", lambda *given: opened.append(given))
        surroundings._open_what_is_closed()
    assert opened == [(surroundings.os.devnull, surroundings.os.O_RDWR)]
