"""The process of one cell of `caeav compare`: trains a run to its end and measures it. Started by that command only.

It ends at once when its standard input is closed: then the command is gone, however that came.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from caeav.cli.console import say
from caeav.cli.options import live_opener
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home

if TYPE_CHECKING:
    from caeav.model.train.loop import Watcher
    from caeav.model.train.runs import Run


def main(arguments: Sequence[str]) -> int:
    """`HOME RUN DEVICE SPLIT STRESS`; 0 when the run is trained and measured, 1 after an error that was said."""
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    from caeav.model.tasks.config import StressConfig
    from caeav.model.train.comparison import Measures, complete
    from caeav.model.train.runs import find_run
    from caeav.model.train.stress import parse_stress

    root, name, device, split, stress = arguments
    home = Home.find(root)
    strengths = StressConfig() if stress == "none" else parse_stress(stress)
    try:
        complete(
            home,
            find_run(home, name),
            Measures(split, strengths),
            device=device,
            live=live_opener(home),
            watchers=_watchers,
        )
    except CaeavError as error:
        say(f"error: {error}")
        return 1
    return 0


def _watchers(run: Run) -> Sequence[Watcher]:
    from caeav.model.train.log import MetricsLog, TensorBoardLog
    from caeav.model.train.runs import METRICS, TENSORBOARD

    return [MetricsLog(run.folder / METRICS), TensorBoardLog(run.folder / TENSORBOARD)]


def _end_with_the_command() -> None:
    os.read(0, 1)  # nothing is ever written there; a buffered reader would block the end of the interpreter
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
