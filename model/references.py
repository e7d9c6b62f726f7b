"""Which stores the runs of a home refer to: those must stay as long as the runs are to be scored or repeated."""

from __future__ import annotations

from pathlib import PurePosixPath

from caeav.manifests.core.home import Home
from caeav.model.train.runs import CONFIG, STORES, Run, RunError
from caeav.pipeline.store import Reference


def referenced_stores(home: Home) -> set[Reference]:
    """The stores of every run, finished or not.

    Raises `RunError` when a run does not say which: nothing may be called unused then.
    """
    found: set[Reference] = set()
    folders = sorted(home.runs.iterdir()) if home.runs.is_dir() else []
    for run in (
        Run(folder) for folder in folders if (folder / CONFIG).exists() or (folder / STORES).exists()
    ):
        try:
            for fact in run.stores()["stores"]:
                place = PurePosixPath(fact["folder"])
                found.add(Reference(place.parent.name, fact["fingerprint"]))
        except (RunError, KeyError, TypeError) as error:
            raise RunError(
                f"run {run.name} does not say which stores it uses: {getattr(error, 'problem', repr(error))}",
                hint=f"it has just begun, or it is damaged; remove {run.folder} if it is of no use",
            ) from error
    return found
