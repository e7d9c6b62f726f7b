"""What a training prints when it is over: the result of one run, or several seeds as mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caeav.cli.console import print_json, print_table, say
from caeav.cli.options import at_home
from caeav.manifests.core.home import Home


def finish(results: Sequence[dict[str, Any]], home: Home, as_json: bool) -> None:
    """The result of one run, or of several as the group they are, and what to do next."""
    from caeav.model.train.seeds import summarise_group, write_group

    first = results[0]
    summary = summarise_group(first["group"], results) if len(results) > 1 else None
    if summary is not None:
        write_group(home, summary)
    if as_json:
        print_json(summary or first)
        return
    if summary is not None:
        print_group(summary)
        say(f"runs: {', '.join(summary['runs'])} in {home.runs}")
    else:
        _print_run(first)
        say(f"run: {home.runs / first['run']}")
    where = f"--run {first['run']}{at_home(home)}"
    question = ' --question "..."' if first["rows"] == "questions" else ""
    say(f"next: caeav predict FILE {where}{question}\n      caeav eval {where} --split test")


def print_group(summary: dict[str, Any]) -> None:
    """The table of a group: mean, deviation and every seed's score, split by split."""
    print_table(
        ["split", f"{summary['metric']} %", "deviation", "majority %", "by seed"],
        [
            [
                _named(split, summary),
                spread["mean"],
                spread["std"],
                summary["majority"][split],
                " ".join(f"{value:.2f}" for value in spread["values"]),
            ]
            for split, spread in summary["scores"].items()
        ],
    )


def _print_run(result: dict[str, Any]) -> None:
    from caeav.model.tasks.bootstrap import shown
    from caeav.model.train.card import besides

    metric, scores = result["metric"], result["scores"]
    print_table(
        ["split", f"{metric} %", "interval", "majority %", result["rows"]],
        [
            [
                _named(split, result),
                value,
                shown(result["intervals"].get(split), metric),
                result["majority"][split],
                result["clips"][split],
            ]
            for split, value in scores.items()
        ],
    )
    names = list(next(iter(result["details"].values()), {}))
    if names:
        print()
        rows = [[name, *(result["details"][split][name] for split in scores)] for name in names]
        print_table(["also", *scores], rows)
    for line in besides(result):
        say(line)
    early = ", stopped early" if result["stopped_early"] else ""
    say(f"best epoch {result['best_epoch']} of {result['epochs']}{early}")


def _named(split: str, made: dict[str, Any]) -> str:
    """A split, that of test marked where it was not scored honestly."""
    from caeav.model.train.protocol import HONEST, stamp

    stamped = stamp(made.get("protocol", HONEST), made["select_on"])
    return f"{split} ({stamped})" if split == "test" and stamped != HONEST else split
