"""The `caeav` command: it parses, calls and prints, and has no logic of its own."""

from __future__ import annotations

import sys

from caeav.cli.surroundings import INTERRUPTED, end, finished_status, leave, settle_in, speaks, stopped_status


def main() -> None:
    """Entry point of the console script. Handles Ctrl-C and SIGTERM from the start, also while modules are loading."""
    status: int | str | None = INTERRUPTED
    try:
        settle_in()
        from caeav.cli.app import run

        run()
        status = 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as leaving:
        status = leaving.code
    leave()
    if status == INTERRUPTED:
        if speaks():
            print("interrupted; what is finished is kept", file=sys.stderr)
        end(stopped_status())
    try:
        status = finished_status(status)
    except OSError as error:
        print(
            f"error: the result cannot be written: {error}\n  next: make room for it and run this again",
            file=sys.stderr,
        )
        status = 1
    end(status)
