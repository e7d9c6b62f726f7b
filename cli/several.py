"""A training in several processes, as the command sees it: starting them, and being one of them.

All processes run the same command; the main one alone prints. An error that all of them know of is printed once, one of
a single process by that process, with its number.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from caeav.cli import console, everywhere
from caeav.cli.surroundings import LAUNCHER, end_at_once
from caeav.manifests.core.errors import CaeavError

if TYPE_CHECKING:
    from caeav.model.train.processes import Processes

OPTION = "--devices"


def start_several(devices: str, device: str | None) -> None:
    """Run this command on each of `devices`, and exit with the status of what failed first, else 0."""
    from caeav.model.train.launch import launch
    from caeav.pipeline.extract.device.options import AUTO, check_devices, gpu_number

    names = [name.strip() for name in devices.split(",")]
    check_devices(names)
    gpus = [gpu_number(name) for name in names]
    if device is not None or AUTO in names:
        raise CaeavError(
            f"{OPTION} {devices}" + (f" and --device {device}" if device else ""),
            hint=f"{OPTION} alone names them all: 0,1, or cpu,cpu; for one device take --device",
        )
    if len(set(gpus)) < len(gpus) and None not in gpus:
        raise CaeavError(f"{OPTION} {devices} names a GPU twice", hint="each process takes its own")
    command = [sys.executable, "-m", "caeav.cli", *without_devices(sys.argv[1:])]
    sys.exit(launch(command, gpus, {**os.environ, LAUNCHER: str(os.getpid())}, _say_error))


def _say_error(text: str) -> None:
    everywhere.end()
    console.say(f"error: {text}")


def without_devices(arguments: list[str]) -> list[str]:
    """The command's arguments for one of its processes."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != OPTION and not argument.startswith(f"{OPTION}="):
            kept.append(argument)
        skip = not skip and argument == OPTION
    return kept


@contextmanager
def one_of_several() -> Iterator[Processes]:
    """Join the processes that train together; a single one where nothing started several."""
    from caeav.model.train.processes import AgreedError, LostProcessError, from_environment, joined

    processes = from_environment()
    if LAUNCHER in os.environ:
        from caeav.pipeline.media.workers.child import die_with_parent

        die_with_parent(int(os.environ[LAUNCHER]))
    if processes.count == 1:
        yield processes
        return
    console.be_silent(not processes.main)
    # After an error the interpreter would wait for messages that nobody sends any more; after success, too, torch's
    # threads that still want its lock when it ends would abort the process.
    end_at_once()
    try:
        with joined(processes):
            yield processes
    except BaseException as error:
        if processes.main and isinstance(error, CaeavError):
            raise
        if isinstance(error, AgreedError | LostProcessError):
            sys.exit(1)
        if isinstance(error, CaeavError):
            raise CaeavError(f"process {processes.rank}: {error.problem}", hint=error.hint) from error
        if isinstance(error, Exception):
            traceback.print_exception(error)
            sys.exit(1)
        raise
    finally:
        console.be_silent(False)
