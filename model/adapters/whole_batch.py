"""What sees the whole batch does so when several processes hold a part of it each.

Each process runs the network on some clips of a batch (`Part`) inside `sharing(part)`. There, batch normalisation takes
the statistics of the whole batch, and random numbers are drawn for the whole batch by every process, which keeps those
of its own rows: all draw from equal generators, so their states stay equal, and the numbers are those of one process
with the whole batch. Layers and losses that read other clips call `gather` and the functions beside it; all of them
know gradients, and do nothing outside `sharing`. The gradient of a loss that every process computes from gathered
tensors is the mean of the processes' gradients.

Rows are clips, or whole multiples of them (`[B, ...]`, `[BT, ...]`), clip by clip; inside `by_sample()` they are
samples, several of which may share a clip. A process without clips (`Part.idle`) runs on a clip that counts nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from caeav.manifests.core.errors import CaeavError


class SharingError(CaeavError):
    """Something that one process cannot do for a part of a batch."""


@dataclass(frozen=True)
class Part:
    """The part of a batch that process `rank` holds. `clips`: how many clips each process holds, the batch's clips in
    order; `samples`: the places in the batch of each process's samples, in order."""

    rank: int
    clips: tuple[int, ...]
    samples: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, clip_of: Sequence[int], rank: int, processes: int) -> Part:
        """From the clip of every sample of the batch: its clips in order of appearance, in nearly equal shares."""
        number = {clip: i for i, clip in enumerate(dict.fromkeys(clip_of))}
        bounds = [process * len(number) // processes for process in range(processes + 1)]
        samples = tuple(
            tuple(at for at, clip in enumerate(clip_of) if low <= number[clip] < high)
            for low, high in pairwise(bounds)
        )
        clips = tuple(high - low for low, high in pairwise(bounds))
        return cls(rank, clips, samples)

    @property
    def idle(self) -> bool:
        """Whether there are fewer clips than processes and this one has none."""
        return not self.clips[self.rank]

    @property
    def places(self) -> tuple[int, ...]:
        """The places in the batch of the samples to run on; an idle process takes the first one."""
        return self.samples[self.rank] or (0,)

    @property
    def size(self) -> int:
        """Samples in the whole batch."""
        return sum(map(len, self.samples))

    @property
    def first_clip(self) -> int:
        """The number in the batch of this process's first clip."""
        return sum(self.clips[: self.rank])


@dataclass
class _Sharing:
    part: Part | None = None
    by_sample: bool = False


_now = _Sharing()


@contextmanager
def sharing(part: Part) -> Iterator[None]:
    """Run the network on a part of a batch: all processes at the same time, each with its own part."""
    before = _now.part
    _now.part = part
    try:
        with _WholeBatch():
            yield
    finally:
        _now.part = before


@contextmanager
def by_sample() -> Iterator[None]:
    """Rows are samples in here, not clips."""
    before, _now.by_sample = _now.by_sample, True
    try:
        yield
    finally:
        _now.by_sample = before


def _rows(x: Tensor) -> tuple[int, Tensor]:
    """How many rows the whole batch has where this process's part is `x`, and which of them `x` holds."""
    part = cast(Part, _now.part)
    if len(part.clips) == 1:
        return x.shape[0], torch.arange(x.shape[0], device=x.device)
    if _now.by_sample:
        total, own, first = part.size, len(part.places), None
    else:
        total, own, first = sum(part.clips), max(part.clips[part.rank], 1), part.first_clip
    each, left = divmod(x.shape[0], own)
    if left or not each or (first is None and each != 1):
        raise RuntimeError(f"{x.shape[0]} rows where this process holds {own}")
    if first is None:
        return total, torch.tensor(part.places, device=x.device)
    # An idle process draws like its neighbour, as the last one never is; nobody sees it.
    return total * each, torch.arange(first * each, (first + own) * each, device=x.device)


def _own(x: Tensor) -> Tensor:
    """`x`, without rows for an idle process."""
    return x[:0] if cast(Part, _now.part).idle else x


# ---- across processes, with gradients ----


class _Sum(torch.autograd.Function):
    """The sum over processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast(Tensor, _Sum.apply(grad))  # type: ignore[no-untyped-call]


def summed(x: Tensor) -> Tensor:
    """The sum over processes of `x`, of equal shape in all of them; `x` itself in a single one."""
    alone = _now.part is None or len(_now.part.clips) == 1
    return x if alone else cast(Tensor, _Sum.apply(x))  # type: ignore[no-untyped-call]


def gather(x: Tensor) -> Tensor:
    """`x` of the whole batch, `[rows of all processes, ...]` from `[rows, ...]`."""
    if _now.part is None:
        return x
    rows, places = _rows(x)
    kind = torch.uint8 if x.dtype == torch.bool else x.dtype
    whole = x.new_zeros((rows, *x.shape[1:]), dtype=kind)
    if not _now.part.idle:
        whole = whole.index_copy(0, places, x.to(kind))
    elif x.requires_grad:
        whole = whole + 0.0 * x.sum()  # a gradient of zero, so that the backward pass is the same everywhere
    return summed(whole).to(x.dtype)


def gathered(value: Any) -> Any:
    """`value` with `gather` done to its tensors, also in (named) tuples and lists; scalars are of the whole batch."""
    if isinstance(value, Tensor):
        return gather(value) if value.ndim else value
    if isinstance(value, tuple | list):
        held = [gathered(x) for x in value]
        return type(value)(*held) if hasattr(value, "_fields") else type(value)(held)
    return value


def count(x: Tensor) -> int:
    """Rows of the whole batch where this process's part is `x`."""
    return x.shape[0] if _now.part is None else _rows(x)[0]


def mean_row(x: Tensor) -> Tensor:
    """The mean over all rows of the whole batch: `[rows, ...]` -> `[...]`."""
    return x.mean(dim=0) if _now.part is None else summed(_own(x).sum(dim=0)) / count(x)


def own_rows(x: Tensor) -> Tensor:
    """`x`, which a sum over the whole batch may count: without rows where a process has no clip."""
    return x if _now.part is None else _own(x)


def previous_clip(x: Tensor) -> Tensor:
    """Every clip's predecessor in the batch, the last one's before the first: `[B, ...]` -> `[B, ...]`."""
    part = _now.part
    if part is None:
        return x.roll(1, dims=0)
    # Of the other processes' clips only the last one is needed.
    others = [process for process, clips in enumerate(part.clips) if clips]
    ends = x.new_zeros((len(others), *x.shape[1:]))
    if not part.idle:
        ends = ends.index_copy(0, torch.tensor([others.index(part.rank)], device=x.device), x[-1:])
    elif x.requires_grad:
        ends = ends + 0.0 * x.sum()
    ends = summed(ends)
    before = others.index(part.rank) - 1 if not part.idle else 0
    return torch.cat([ends[before].unsqueeze(0), x[:-1]])


def over_all_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layer(x)`, which mixes rows: `[rows, ...]` -> `[rows, ...]`. Every process computes all of them."""
    part = _now.part
    if part is None:
        return layer(x)
    _, places = _rows(x)
    whole = gather(x)
    _now.part = Part(0, (sum(part.clips),), (tuple(range(part.size)),))
    try:
        out = layer(whole)
    finally:
        _now.part = part
    return out.index_select(0, places)


# ---- random numbers and statistics of the whole batch ----


def _draw(x: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """What `fill` draws for a tensor like `x`, of the whole batch, at this process's rows."""
    rows, places = _rows(x)
    strides = x.stride()
    order = sorted(
        range(x.ndim), key=lambda axis: -strides[axis]
    )  # as they lie in memory, which draws follow
    shape = [rows if axis == 0 else x.shape[axis] for axis in order]
    whole = torch.empty(shape, dtype=x.dtype, device=x.device)
    fill(whole.permute([order.index(axis) for axis in range(x.ndim)]))
    return whole.permute([order.index(axis) for axis in range(x.ndim)]).index_select(0, places)


def draw_rows(x: Tensor, draw: Callable[[torch.Size], Tensor]) -> Tensor:
    """`draw(shape of x)`, `[rows, ...]`; in several processes it draws for the whole batch, of which this process keeps
    its own rows."""
    if _now.part is None:
        return draw(x.shape)
    rows, places = _rows(x)
    return draw(torch.Size((rows, *x.shape[1:]))).index_select(0, places)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return F.dropout(input, p, training, inplace)
    kept = _draw(input, lambda whole: whole.bernoulli_(1 - p)).div_(1 - p)
    return input.mul_(kept) if inplace else input * kept


def _native_dropout(input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if not train:
        return torch.native_dropout(input, p, train)
    kept = _draw(torch.empty_like(input, dtype=torch.bool), lambda whole: whole.bernoulli_(1 - p))
    return (input * kept).mul_(1 / (1 - p)), kept


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """`[N, heads, Q, c]`, keys and values `[N, heads, S, c]`, mask True where it may attend."""
    if dropout_p == 0:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, **options)
    if is_causal or options or (attn_mask is not None and attn_mask.dtype != torch.bool):
        raise SharingError(
            "attention with dropout has options that several processes do not know", hint=ALONE
        )
    scale = query.shape[-1] ** -0.25
    weights = (query * scale) @ (key * scale).transpose(-2, -1)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -torch.inf)
    return _dropout(weights.softmax(dim=-1), dropout_p) @ value


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`[rows, C]` or `[rows, C, ...]`, as `F.batch_norm`."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    with torch.autocast(input.device.type, enabled=False):
        exact = torch.promote_types(input.dtype, torch.float32)
        x = input.to(exact)
        others = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        numbers = count(input) * math.prod(input.shape[2:])
        mean = summed(_own(x).sum(dim=others)) / numbers
        centred = x - mean.view(shape)
        variance = summed(_own(centred).square().sum(dim=others)) / numbers
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                unbiased = variance * (numbers / max(numbers - 1, 1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        out = centred * torch.rsqrt(variance + eps).view(shape)
        out = out if weight is None else out * weight.view(shape)
        out = out if bias is None else out + bias.view(shape)
        return out.to(input.dtype)


def _in_place(name: str) -> Callable[..., Tensor]:
    def drawn(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return x.copy_(_draw(x, lambda whole: getattr(whole, name)(*arguments, **options)))

    return drawn


def _normal(*size: Any, **options: Any) -> Tensor:
    shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
    return _draw(torch.empty(*shape, **options), lambda whole: whole.normal_())


ALONE = "train with a single process"
INSTEAD: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
    F.batch_norm: _batch_norm,
    torch.native_dropout: _native_dropout,
    torch.randn: _normal,
    **{
        getattr(Tensor, name): _in_place(name)
        for name in ("bernoulli_", "exponential_", "normal_", "uniform_")
    },
}
REFUSED = {
    getattr(where, name)
    for where, names in (
        (
            F,
            (
                "alpha_dropout",
                "dropout1d",
                "dropout2d",
                "dropout3d",
                "feature_alpha_dropout",
                "gumbel_softmax",
            ),
        ),
        (F, ("multi_head_attention_forward", "rrelu")),
        (torch, ("bernoulli", "multinomial", "rand", "rand_like", "randint", "randn_like", "randperm")),
    )
    for name in names
}
"""Draws that nobody makes here yet: what is not the same for all parts must not go unseen."""


class _WholeBatch(TorchFunctionMode):
    """Puts the functions of `INSTEAD` in the place of torch's."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in REFUSED:
            raise SharingError(f"{func.__name__} draws random numbers for a part of a batch", hint=ALONE)
        return INSTEAD.get(func, func)(*args, **(kwargs or {}))
