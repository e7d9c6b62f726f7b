"""The `caeav` command: parse, call, print; no logic of its own."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from caeav.cli.app import run

    run()
