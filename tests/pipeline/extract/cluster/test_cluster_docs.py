"""The examples in docs/CLUSTER.md: scripts run with stand-ins for their commands, command lines are parsed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from caeav.cli.app import build

STAND_IN = """#!/bin/bash
line="$(basename "$0")$(printf ' %q' "$@")"
echo "$line" >> "$LOG"  # at once: commands in the background write, too
# a script sleeps until what it began has started: here, until nothing but this is under way
children=/proc/$PPID/task/$PPID/children
while [ "$(basename "$0")" = sleep ] && [ "$(cat "$children" 2>/dev/null | wc -w)" -gt 1 ]; do /bin/sleep 0.02; done
if [ "$(basename "$0")" = scontrol ]; then printf 'node1\\nnode2\\nnode3\\n'; fi
"""
SLURM = {
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_NNODES": "3",
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_ARRAY_JOB_ID": "7",
}


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "CLUSTER.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(script: str, folder: Path) -> list[list[str]]:
    """The commands that a script runs, as lists of words; background commands come in any order."""
    for name in ("ray", "caeav", "srun", "sbatch", "scontrol", "sleep"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    log = folder / "log"
    log.write_text("")
    environment = {**os.environ, **SLURM, "PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(log)}
    (folder / "script").write_text(f"{script}\nwait\n")
    subprocess.run(["bash", "-n", str(folder / "script")], check=True)
    subprocess.run(["bash", str(folder / "script")], check=True, env=environment, timeout=60)
    return [shlex.split(line) for line in log.read_text().splitlines()]


def check_caeav(words: list[str]) -> None:
    """Parse a `caeav` command line without running it; raises for an unknown option or a wrong value."""
    command, rest = typer.main.get_command(build()), words[words.index("caeav") + 1 :]
    while rest and hasattr(command, "commands") and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context("caeav", list(rest))


def test_every_command_line_of_the_page_is_valid(page: str, tmp_path: Path) -> None:
    seen = []
    for number, script in enumerate(blocks(page, "bash")):
        (tmp_path / str(number)).mkdir()
        for words in commands(script, tmp_path / str(number)):
            if words[0] == "sbatch":
                words = shlex.split(words[-1])  # the wrapped command
            if "caeav" in words:
                check_caeav(words)
                seen.append(words[words.index("caeav") + 1])
    shown = [line.strip() for line in page.splitlines() if line.startswith("    caeav ")]
    for line in shown:
        check_caeav(shlex.split(line, comments=True))
    assert seen.count("extract") >= 5 and "store" in seen and len(shown) >= 2
    with pytest.raises(Exception, match="No such option: --actor-count"):
        check_caeav(["caeav", "extract", "--engine", "ray", "--actor-count", "2"])


def test_the_slurm_script_starts_a_head_then_the_others_then_the_command(page: str, tmp_path: Path) -> None:
    [script] = [text for text in blocks(page, "bash") if "scontrol" in text]
    ran = [words for words in commands(script, tmp_path) if words[0] == "srun"]
    joined = [" ".join(words) for words in ran]
    head = next(text for text in joined if "--head" in text)
    others = next(text for text in joined if "--address=" in text)
    assert "--nodelist=node1 ray start --head --port=6379 --num-cpus=16 --block" in head
    assert "--nodes=2 --ntasks=2 --exclude=node1 ray start --address=node1:6379" in others
    assert "caeav extract" in joined[-1] and "--overlap" in joined[-1] and "--engine ray" in joined[-1]


def test_ray_accepts_the_yaml(page: str, needs: object) -> None:
    needs("ray")  # type: ignore[operator]
    from ray.autoscaler._private.util import prepare_config, validate_config

    [text] = blocks(page, "yaml")
    config = yaml.safe_load(text)
    assert config["provider"]["type"] == "local" and "caeav[ray" in config["setup_commands"][0]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert any("--num-cpus=0" in line for line in starts)
    validate_config(prepare_config(config))  # as `ray up` does
