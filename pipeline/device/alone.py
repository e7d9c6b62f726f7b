"""One clip on one device, without batches across clips: for prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from caeav.pipeline.assemble import Assembly
from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.media.clip import DecodedClip, Sampling
from caeav.pipeline.extract.device.batches import Unit
from caeav.pipeline.extract.device.devices import choose_lanes, device_name, steady
from caeav.pipeline.extract.device.network import CaptionNetwork, TokenNetwork, as_stored
from caeav.pipeline.device.plan import make_units
from caeav.pipeline.extract.jobs import Job, sampling_of
from caeav.pipeline.extract.decode_job import frames_of, windows_of


def compute_alone(
    jobs: Sequence[Job], clips: Mapping[int, DecodedClip], key: str, assembly: Assembly, device: str
) -> None:
    """Give to `assembly` what the parts of `jobs` for devices make of a clip, decoded for each job in `clips`."""
    where = choose_lanes([device])[0]
    facts = {"name": device_name(where), "torch": torch.__version__.partition("+")[0], "rows": 1}
    units = make_units(jobs)
    for number, clip in clips.items():
        for unit in units[number]:
            try:
                with steady():
                    result: object = _computed(unit, where, clip, sampling_of(jobs[number].recipe))
            except Exception as error:  # noqa: BLE001 - becomes the reason why there is no record
                result = error
            assembly.made(unit, key, result, facts)


def _computed(unit: Unit, device: torch.device, clip: DecodedClip, sampling: Sampling) -> object:
    """Taps `[T, L, C]` as stored, or a text."""
    if not isinstance(unit.part, TorchBackbone):
        return CaptionNetwork(unit.part, device, unit.compute)([clip])[0]
    network = TokenNetwork(unit.part, device, unit.compute, unit.dtype)
    seen = frames_of(clip, sampling) if unit.side == "visual" else windows_of(clip, sampling)
    with torch.inference_mode():
        taps = network(unit.part.prepare(seen).unsqueeze(0).to(device))  # [1, T, L, C] each
        return as_stored({name: x[0].cpu() for name, x in taps.items()}, unit.dtype)
