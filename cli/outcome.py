"""What a training prints when it is over: one run, several seeds, or the last run that a group waited for."""

from __future__ import annotations

from typing import Any

from caeav.cli.console import print_json, print_table, say
from caeav.cli.options import at_home
from caeav.manifests.home import Home


def finish(results: list[dict[str, Any]], home: Home, as_json: bool) -> None:
    """The result of one run, or of several as mean and deviation, and what to do next."""
    from caeav.model.bootstrap import shown
    from caeav.model.groups import summarise_group, write_group
    from caeav.model.protocol import HONEST, stamp

    first = results[0]
    summary = None
    if len(results) > 1:
        summary = summarise_group(first["group"], results)
        write_group(home, summary)
    if as_json:
        print_json(summary or first)
        return
    stamped = stamp(first["protocol"], first["select_on"])
    metric, marked = first["metric"], "" if stamped == HONEST else f" ({stamped})"
    if summary is None:
        rows = [
            [
                f"{split}{marked if split == 'test' else ''}",
                value,
                shown(first["intervals"].get(split), metric),
                first["majority"][split],
                first["clips"][split],
            ]
            for split, value in first["scores"].items()
        ]
        print_table(["split", f"{metric} %", "interval", "majority %", first["rows"]], rows)
        names = list(next(iter(first["details"].values()), {}))
        if names:
            print()
            print_table(
                ["also", *first["scores"]],
                [[name, *(first["details"][split][name] for split in first["scores"])] for name in names],
            )
        for split, peaks in first.get("peaks", {}).items():
            best = ", ".join(f"{name} {value:.2f}" for name, value in peaks.items())
            say(f"best over epochs on {split}, each number for itself: {best}")
        if "leaks" in first:
            whole = ", ".join(
                f"{split} {value:.2f}" for split, value in first["leaks"]["scores_with"].items()
            )
            gone = ", ".join(f"{n} of {split}" for split, n in first["leaks"]["left_out"].items())
            say(f"left out as leaked: {gone}; {metric} scored with them: {whole}")
        early = ", stopped early" if first["stopped_early"] else ""
        say(f"best epoch {first['best_epoch']} of {first['epochs']}{early}")
    else:
        rows = [
            [
                f"{split}{marked if split == 'test' else ''}",
                spread["mean"],
                spread["std"],
                first["majority"][split],
                " ".join(f"{value:.2f}" for value in spread["values"]),
            ]
            for split, spread in summary["scores"].items()
        ]
        print_table(["split", f"{metric} %", "deviation", "majority %", "by seed"], rows)
    folder = home.runs / first["run"]
    say(f"run: {folder}" if summary is None else f"runs: {', '.join(summary['runs'])} in {home.runs}")
    where = f"--run {first['run']}{at_home(home)}"
    say(f"next: caeav predict FILE {where}\n      caeav eval {where} --split test")


def finish_group(home: Home, name: str) -> None:
    """A resumed run may have been the last that its group waited for."""
    from caeav.model.groups import finished_group, write_group

    summary = finished_group(home, name) if name else None
    if summary is not None:
        write_group(home, summary)
        said = ", ".join(
            f"{split} {x['mean']:.2f} ± {x['std']:.2f}" for split, x in summary["scores"].items()
        )
        say(f"group {name} is complete: {said}")
