"""The `caeav` command: parse, call, print; no logic of its own."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main() -> None:
    """Entry point of the console script; Ctrl-C is answered from here on, while the program is being loaded too."""
    try:
        from caeav.cli.app import run

        run()
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
