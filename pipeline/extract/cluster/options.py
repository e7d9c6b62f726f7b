"""Which engine makes the clips, and what is asked of a cluster. None of it changes a byte of a store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.extract.device.options import AUTO, CPU

LOCAL, RAY = "local", "ray"
_CLIENT = re.compile(r"ray://[^/\s]+:\d{1,5}")
GPU = "cuda"
DEVICES = (AUTO, CPU, GPU)


@dataclass(frozen=True)
class ClusterOptions:
    """What is asked of a Ray cluster.

    `address`: empty for `RAY_ADDRESS`, else the cluster that runs on this machine, else one that is started here.
    `actors`: how many, by default as many as fit; `workers`: decoding processes of each, one CPU each; `accelerator`:
    the type of GPU that actors need, as Ray names it. `mixed_devices`: whether computers that may not give the same
    bytes may make one store. Raises `CaeavError` for devices that Ray does not hand out.
    """

    address: str = ""
    actors: int | None = None
    workers: int | None = None
    devices: str = AUTO
    accelerator: str = ""
    mixed_devices: bool = False

    def __post_init__(self) -> None:
        if self.devices not in DEVICES:
            raise CaeavError(
                f"--devices {self.devices} with --engine ray, which hands out devices itself",
                hint=f"one actor has one device: {choices(self.devices, DEVICES)}",
            )
        if self.accelerator and self.devices == CPU:
            raise CaeavError(
                f"--accelerator-type {self.accelerator} with --devices cpu", hint="leave out one of them"
            )


def address_of(engine: str) -> str | None:
    """`local` -> None; `ray` -> an empty address; `ray://host:port` -> itself. Raises `CaeavError` for any other."""
    if engine == LOCAL:
        return None
    if engine == RAY:
        return ""
    if _CLIENT.fullmatch(engine):
        return engine
    known = (LOCAL, RAY, "ray://host:port")
    raise CaeavError(f"unknown engine {engine!r}", hint=choices(engine, known))
