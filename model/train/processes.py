"""Training in several processes, one a device: who they are, how they agree, and what they tell each other.

`torchrun` or `caeav train --devices` (`launch.py`) starts them; the environment says which one this is. Process 0, the
main one, writes the run and speaks; the others compute. Only tensors and JSON travel, as safetensors, never pickles.
What the network does across processes is in `model/adapters/whole_batch.py`. A process that stops or stays silent for
`TIMEOUT_S` ends the others with `LostProcessError`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.whole_batch import Part

RANK, COUNT, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
"""Of the environment, as torchrun names them."""
TIMEOUT = "CAEAV_PROCESS_TIMEOUT_S"
TIMEOUT_S = 600.0
SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "tcpstore", "broken pipe")
"""Words in what torch says when another process is gone."""

Value = TypeVar("Value")
Tensors = Mapping[str, Tensor]


class LostProcessError(CaeavError):
    """Another process of this training has stopped or does not answer."""


class AgreedError(CaeavError):
    """An error that all processes raise, so that one need say it."""


@dataclass(frozen=True)
class Processes:
    """Process `rank` of `count`; `local`: its number on this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def part(self, clip_of: Sequence[int]) -> Part:
        """This process's part of a batch, from the clip of each of its samples."""
        return Part.of(clip_of, self.rank, self.count)

    def agree(self, decide: Callable[[], Value]) -> Value:
        """What the main process decides, a JSON value, in all of them; its `CaeavError` is raised in all of them."""
        if self.count == 1:
            return decide()
        said: dict[str, Any] = {}
        if self.main:
            said = _attempted(decide)
        [(_, told)] = self._tell({}, said, [0])
        return cast(Value, _result(told))

    def together(self, do: Callable[[], Value]) -> Value:
        """`do()` in every process; where one raises a `CaeavError`, all raise the first one."""
        if self.count == 1:
            return do()
        made: list[Value] = []
        said = _attempted(lambda: made.append(do()))
        for _, told in self._tell({}, said, range(self.count)):
            _result(told)
        return made[0]

    def from_main(
        self, read: Callable[[], tuple[Tensors, dict[str, Any]]]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, on the CPU, and JSON facts that the main process reads, in all processes; its `CaeavError` too."""
        if self.count == 1:
            tensors, facts = read()
            return dict(tensors), facts
        held: list[Tensors] = []
        said: dict[str, Any] = {}
        if self.main:
            said = _attempted(lambda: _split(read(), held))
        [(tensors, told)] = self._tell(held[0] if held else {}, said, [0])
        return dict(tensors), _result(told)

    def in_order(self, own: Iterable[dict[str, Tensor]], batches: int) -> Iterator[dict[str, Tensor]]:
        """The tensors of all batches in order, where this process made those of batches `rank`, `rank + count`, ..."""
        if self.count == 1:
            yield from own
            return
        held = {f"{at} {name}": x for at, of in enumerate(own) for name, x in of.items()}
        told = [x for x, _ in self._tell(held, {}, range(self.count))]
        for batch in range(batches):
            at, process = divmod(batch, self.count)
            yield {
                name.partition(" ")[2]: x for name, x in told[process].items() if name.startswith(f"{at} ")
            }

    def _tell(
        self, tensors: Tensors, facts: Any, speakers: Sequence[int]
    ) -> list[tuple[dict[str, Tensor], Any]]:
        """What each of the speakers says, in all processes."""
        own = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        text = save(own, metadata={"said": json.dumps(facts)}) if self.rank in speakers else b""
        heard = []
        with watching_others():
            for speaker in speakers:
                length = torch.tensor([len(text) if speaker == self.rank else 0])
                dist.broadcast(length, speaker)
                data = torch.empty(int(length), dtype=torch.uint8)
                if speaker == self.rank:
                    data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
                dist.broadcast(data, speaker)
                heard.append(_heard(data.numpy().tobytes()))
        return heard


ONE = Processes()


def as_tensor(value: Any) -> Tensor:
    """A JSON value as uint8 `[bytes]`, to travel among tensors."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_tensor(x: Tensor) -> Any:
    """The inverse of `as_tensor`."""
    return json.loads(x.numpy().tobytes())


def _attempted(do: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": do()}
    except CaeavError as error:
        return {"problem": error.problem, "hint": error.hint}


def _split(read: tuple[Tensors, dict[str, Any]], tensors: list[Tensors]) -> dict[str, Any]:
    """The facts; the tensors, which are no JSON, go into the list."""
    tensors.append(read[0])
    return read[1]


def _result(said: Mapping[str, Any]) -> Any:
    if "problem" in said:
        raise AgreedError(said["problem"], hint=said["hint"])
    return said["value"]


def _heard(text: bytes) -> tuple[dict[str, Tensor], Any]:
    length = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + length])
    return load(text), json.loads(header["__metadata__"]["said"])


def from_environment() -> Processes:
    """Which process this is; `ONE` where nothing started several. Raises `CaeavError` for an environment that is not
    complete."""
    given = {name: os.environ.get(name, "") for name in (RANK, COUNT, LOCAL_RANK)}
    if not given[COUNT] or given[COUNT] == "1":
        return ONE
    try:
        numbers = {name: int(text or given[RANK]) for name, text in given.items()}
    except ValueError:
        numbers = {}
    if not numbers or not 0 <= numbers[RANK] < numbers[COUNT]:
        raise CaeavError(
            f"the environment says {', '.join(f'{name}={text!r}' for name, text in given.items())}",
            hint="start several processes with torchrun, or with caeav train --devices",
        )
    return Processes(numbers[RANK], numbers[COUNT], numbers[LOCAL_RANK])


@contextmanager
def joined(processes: Processes) -> Iterator[Processes]:
    """Join the other processes, and part from them at the end."""
    if processes.count == 1:
        yield processes
        return
    if not dist.is_available():
        raise CaeavError(
            "this build of torch knows one process only", hint="leave out --devices and torchrun"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(processes.local % torch.cuda.device_count())
    try:
        with watching_others():
            dist.init_process_group(backend, timeout=timedelta(seconds=patience_s()))
            yield processes
    finally:
        if sys.exc_info()[0] is None:  # else the others may be gone already
            dist.destroy_process_group()


def patience_s() -> float:
    """How long a process waits for the others, in seconds."""
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text or TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise CaeavError(f"{TIMEOUT}={text!r}", hint=f"give seconds, such as {TIMEOUT_S:g}")
    return seconds


@contextmanager
def watching_others() -> Iterator[None]:
    """Turn torch's errors about processes that are gone into `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if os.environ.get(COUNT, "1") in ("", "1") or not any(word in text.lower() for word in SIGNS):
            raise
        raise LostProcessError(
            f"another process of this training has stopped, or was silent for {patience_s():g} s: "
            f"{text.splitlines()[0].rpartition('] ')[2][:120]}",
            hint="read what it says, if it could say anything, and put that right",
        ) from error
