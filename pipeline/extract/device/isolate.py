"""One batch through one network, when memory runs out or a clip makes it fail.

Out of memory halves the rows computed at a time for the rest of the run, with a remark. Any other failure is traced
by bisection to the clip that causes it, the other rows being zeros meanwhile, so that a clip's result stays that of its
row in a whole batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from caeav.pipeline.backbones.weights import WeightsError
from caeav.pipeline.extract.device.batches import Batch, Unit
from caeav.pipeline.extract.device.network import CaptionNetwork, DeviceError, TokenNetwork, short_of_memory
from caeav.pipeline.media.clip import DecodedClip

R = TypeVar("R")
Results = list[tuple[list[int], R]]
"""Rows that were computed together, and what came out, for the whole batch."""


class BatchSizes:
    """How many rows of each unit fit a device at a time; shared by all device workers, so that all compute alike."""

    def __init__(self, remark: Callable[[str], None]) -> None:
        self._remark = remark
        self._rows: dict[int, int] = {}
        self._lock = threading.Lock()

    def rows(self, unit: Unit) -> int:
        """Rows at a time."""
        return self._rows.get(unit.number, unit.rows)

    def halve(self, unit: Unit, tried: int, error: BaseException) -> None:
        """`tried` rows were too many; raises `DeviceError` when a single one is."""
        if tried == 1:
            raise DeviceError(
                f"{unit.part.name} does not fit the device with a single clip: {' '.join(str(error).split())[:300]}",
                hint="choose another device, a smaller model, or --precision bf16",
            ) from error
        with self._lock:
            if self.rows(unit) < tried:  # another device worker has halved it already
                return
            self._rows[unit.number] = tried // 2
        self._remark(
            f"{unit.part.name}: out of memory with {tried} clips at a time, going on with {tried // 2}; "
            "the last bits of tokens may differ from those of a whole batch; these records say so (facts.device.rows)"
        )


def isolated(rows: list[int], run: Callable[[list[int]], R]) -> tuple[Results[R], dict[int, str]]:
    """`run(rows)`; a failure is traced by bisection to single rows, which are returned with the reason."""
    try:
        return [(rows, run(rows))], {}
    except (DeviceError, WeightsError):
        raise
    except Exception as error:  # a model's mistake costs the clip that causes it
        if _fatal(error):
            raise DeviceError(
                f"the device failed: {' '.join(str(error).split())[:500]}",
                hint="finished clips are kept; run the same command again",
            ) from error
        if len(rows) == 1:
            return [], {rows[0]: f"{type(error).__name__}: {' '.join(str(error).split())}"}
    middle = len(rows) // 2
    first, failed = isolated(rows[:middle], run)
    second, more = isolated(rows[middle:], run)
    return first + second, failed | more


def _fatal(error: Exception) -> bool:
    """A GPU that has failed once computes nothing any more."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


def token_pass(
    batch: Batch, network: TokenNetwork, sizes: BatchSizes, upload: Callable[[Tensor], Tensor]
) -> tuple[Results[dict[str, Tensor]], dict[int, str]]:
    """Taps `[rows, T, L, C]` on the device for the rows of a batch, and the rows that fail with their reasons."""
    host, every = batch.host, sorted(batch.keys)
    assert host is not None

    def run(rows: list[int]) -> dict[str, Tensor]:
        wanted = host
        if rows != every:  # strides are kept, so that the layout for convolutions is
            wanted = torch.zeros_like(host)
            wanted[rows] = host[rows]
        return _in_parts(batch.unit, sizes, lambda size: _tokens(network, upload(wanted), rows, size))

    return isolated(every, run)


def _tokens(network: TokenNetwork, x: Tensor, rows: Sequence[int], size: int) -> dict[str, Tensor]:
    """All of `x` `[N, T, ...]` through the network, `size` rows at a time; parts without a row of `rows` are zeros."""
    if size >= len(x):
        return network(x)
    whole: dict[str, Tensor] = {}
    for start in range(0, len(x), size):
        if not any(start <= row < start + size for row in rows):
            continue
        for name, part in network(x[start : start + size]).items():
            if name not in whole:
                whole[name] = part.new_zeros((len(x), *part.shape[1:]))
            whole[name][start : start + size] = part
    return whole


def caption_pass(
    batch: Batch, network: CaptionNetwork, sizes: BatchSizes
) -> tuple[Results[list[str]], dict[int, str]]:
    """One text for each row of a batch, and the rows that fail with their reasons."""
    every = sorted(batch.clips)

    def run(rows: list[int]) -> list[str]:
        empty = empty_clip(batch.clips[rows[0]])
        clips = [batch.clips[row] if row in rows else empty for row in range(batch.unit.rows)]

        def parts(size: int) -> list[str]:
            texts: list[str] = []
            for start in range(0, len(clips), size):
                some = clips[start : start + size]
                texts += network(some) if any(clip is not empty for clip in some) else [""] * len(some)
            return texts

        return _in_parts(batch.unit, sizes, parts)

    return isolated(every, run)


def _in_parts(unit: Unit, sizes: BatchSizes, compute: Callable[[int], R]) -> R:
    """`compute(size)` with the largest size that the memory of the device allows."""
    while True:
        size = sizes.rows(unit)
        try:
            return compute(size)
        except Exception as error:
            if not short_of_memory(error):
                raise
            sizes.halve(unit, size, error)
        torch.cuda.empty_cache()  # outside of the handler, which would hold what is to be freed


def empty_clip(clip: DecodedClip) -> DecodedClip:
    """A clip of the same length without frames and audio: an empty place of a batch of captions."""
    none = (False,) * len(clip.frames_ok)
    return DecodedClip(None, None, none, none)
