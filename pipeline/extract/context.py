"""One run of stage one: the data set, the home of its stores, how to run, and whom to tell."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import ignore
from caeav.pipeline.extract.cluster.options import ClusterOptions
from caeav.pipeline.extract.device.options import check_devices
from caeav.pipeline.extract.progress import OnClip, Remark
from caeav.pipeline.store import Slice

DEFAULT_DEADLINE_S = 60.0
DEFAULT_MAX_FAILED = "10%"
WHOLE = Slice()


@dataclass(frozen=True)
class RunOptions:
    """How to run; none of it changes a byte of the store.

    `workers`: number of child processes. `deadline_s`: after this time a clip's process is killed. `retry_failed`: try
    the quarantined clips again. `max_failed`: how many quarantined clips still count as success, a number or `N%` of
    all. `devices`: where torch components compute, see `device/devices.py`. `part`: the slice of a store to make.
    `changed`: what to do with stored clips whose media has changed, `redo` or `keep`; empty: refuse them. `relabel`:
    whether a data set may lose all of its labels. `cluster`: what is asked of a cluster, None: clips are made on this
    machine. `publish`: the address below which finished shards are put at once, empty for none. Raises `CaeavError`
    for impossible names of devices.
    """

    workers: int
    deadline_s: float = DEFAULT_DEADLINE_S
    retry_failed: bool = False
    max_failed: str = DEFAULT_MAX_FAILED
    devices: tuple[str, ...] = ("auto",)
    part: Slice = WHOLE
    changed: str = ""
    relabel: bool = False
    cluster: ClusterOptions | None = None
    publish: str = ""

    def __post_init__(self) -> None:
        check_devices(self.devices)


@dataclass(frozen=True)
class RunContext:
    """What every step of a run needs; `on_clip` is called after every clip, `remark` with what the user should know."""

    manifest: Manifest
    home: Home
    options: RunOptions
    on_clip: OnClip = ignore
    remark: Remark = ignore

    @property
    def folder(self) -> Path:
        """Where the stores of the data set lie."""
        return self.home.stores / self.manifest.dataset

    def failure_limit(self) -> int:
        """How many clips may be quarantined; raises `CaeavError` for a `max_failed` that is not a number of clips."""
        return failure_limit(self.options.max_failed, len(self.manifest.clips))

    def check_clips(self) -> None:
        """Raises `CaeavError` for a data set without clips."""
        if not self.manifest.clips:
            raise CaeavError(f"data set {self.manifest.dataset!r} has no clips", hint="caeav manifest check")


def failure_limit(text: str, total: int) -> int:
    """`"25"` -> 25; `"10%"` -> 10 % of `total`, rounded up. Raises `CaeavError` for anything else."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    if not number.isdecimal() or (percent and int(number) > 100):
        raise CaeavError(
            f"{text!r} is no number of clips", hint="give a whole number such as 25, or a share such as 10%"
        )
    return ceil(total * int(number) / 100) if percent else int(number)
