"""Time and kept memory of the hand-written operations of the adapters against the plain formulas beside them.

    python benchmarks/kernels.py [--repeats 9] [--threads 1]

Forward and backward in training mode, float32, at the sizes of Swin-V2-L and HTS-AT (one clip of ten segments) and of
the embedded `classic` backbones (a batch of 16 clips). Both ways run in turn in one process; times are medians of CPU
time, MiB is what autograd keeps for the backward pass beside inputs and parameters, then the most that is alive at
once. An operation stays when over the eight stages of one of the two sets of sizes it is at least 1.3 times as fast as
its formula, or as fast with less alive.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from gauges import live_peak
from torch import Tensor, nn

from caeav.model.adapters.kernels.latents import (
    attend_latents,
    plain_attend_latents,
    plain_read_through_maps,
    read_through_maps,
)
from caeav.model.adapters.kernels.mixture import UpProjection, mix_experts, plain_mix_experts
from caeav.model.adapters.kernels.normed import normed_product, plain_normed_product
from caeav.model.adapters.kernels.pooling import plain_pool_and_select, pool_and_select
from caeav.model.adapters.kernels.products import grouped_product, plain_grouped_product
from caeav.model.adapters.layers import TokenBatchNorm, top_tokens

SEGMENTS = 10
SIZES = {  # name -> clips, (tokens, channels) of every stage of both modalities
    "Swin-V2-L, HTS-AT": (
        1,
        ((2304, 192), (576, 384), (144, 768), (36, 1536), (4096, 96), (1024, 192), (256, 384), (64, 768)),
    ),
    "classic": (
        16,
        ((64, 64), (16, 128), (4, 192), (4, 256), (64, 32), (16, 64), (4, 128), (4, 256)),
    ),
}

Run = Callable[[], Sequence[Tensor]]


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def pooling(rows: int, tokens: int, channels: int) -> tuple[Run, Run, list[Tensor]]:
    """The hand-written operation, its formula, and their sources, as CASTE uses them."""
    sources = [tensor(rows, tokens, channels), tensor(channels), tensor(channels, 3), tensor(channels)]
    index = top_tokens(sources[0], 0.3)
    return (
        lambda: pool_and_select(*sources, index, SEGMENTS),
        lambda: plain_pool_and_select(*sources, index, SEGMENTS),
        sources,
    )


def mixture(rows: int, tokens: int, channels: int) -> tuple[Run, Run, list[Tensor]]:
    """The same for AVMoE with one expert of each kind, 2 groups, bottlenecks of `channels / 8` and all norms."""
    weights = tensor(rows, 2)
    experts = [
        UpProjection(
            tensor(rows, tokens, channels // 8),
            tensor(2, channels // 2, channels // 16),
            TokenBatchNorm(channels),
            nn.LayerNorm(channels),
        )
        for _ in range(2)
    ]
    norms = [p for e in experts for norm in (e.batch_norm, e.norm) if norm for p in norm.parameters()]
    sources = [weights, *(x for e in experts for x in (e.hidden, e.blocks)), *norms]
    return lambda: [mix_experts(weights, experts)], lambda: [plain_mix_experts(weights, experts)], sources


def product(rows: int, tokens: int, channels: int) -> tuple[Run, Run, list[Tensor]]:
    """The grouped map of a bottleneck of `channels / 8` to the tokens' width, in 2 groups."""
    sources = [tensor(rows, tokens, channels // 8), tensor(2, channels // 16, channels // 2)]
    return lambda: [grouped_product(*sources)], lambda: [plain_grouped_product(*sources)], sources


def normed(rows: int, tokens: int, channels: int) -> tuple[Run, Run, list[Tensor]]:
    """The way into such a bottleneck, behind a norm."""
    norm = nn.LayerNorm(channels)
    x, blocks = tensor(rows, tokens, channels), tensor(2, channels // 16, channels // 2)
    sources = [x, blocks, *norm.parameters()]
    return (
        lambda: [normed_product(x, norm, blocks)],
        lambda: [plain_normed_product(x, norm, blocks)],
        sources,
    )


def reads(rows: int, tokens: int, channels: int) -> tuple[Run, Run, list[Tensor]]:
    """32 latents (8 at few tokens) read as many tokens of the other modality, of the same width."""
    other, queries = tensor(rows, tokens, channels), tensor(32 if tokens > 64 else 8, channels)
    maps = nn.Linear(tokens, tokens), nn.Linear(channels, channels)
    sources = [other, queries, *maps[0].parameters(), *maps[1].parameters()]
    return (
        lambda: read_through_maps(other, queries, *maps),
        lambda: plain_read_through_maps(other, queries, *maps),
        sources,
    )


def attend(rows: int, tokens: int, channels: int) -> tuple[Run, Run, list[Tensor]]:
    """Tokens attend as many latents."""
    sources = [tensor(rows, tokens, channels), tensor(rows, 32 if tokens > 64 else 8, channels), tensor(1)]
    return (
        lambda: [attend_latents(*sources, 0.1)],
        lambda: [plain_attend_latents(*sources, 0.1)],
        sources,
    )


def cpu_ms(run: Run, sources: Sequence[Tensor]) -> float:
    """One pass forward and backward."""
    start = time.process_time()
    step(run, sources)
    return 1000 * (time.process_time() - start)


def step(run: Run, sources: Sequence[Tensor]) -> None:
    """Forward and backward."""
    outputs = run()
    torch.autograd.grad(outputs, sources, [torch.ones_like(x) for x in outputs])


def live_mib(run: Run, sources: Sequence[Tensor]) -> float:
    """The most bytes alive at once in one pass."""
    return live_peak(lambda: step(run, sources), torch.device("cpu")) / 2**20


def kept_mib(run: Run, sources: Sequence[Tensor]) -> float:
    """What autograd keeps for the backward pass beside the sources."""
    known = {x.untyped_storage().data_ptr() for x in sources}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        outputs = run()
    assert outputs
    return sum(sizes.values()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    columns = "fast ms", "plain ms", "faster", "kept", "plain kept", "alive", "plain alive"
    print(f"{'operation':10}{'sizes':20}{'stage':>14}" + "".join(f"{name:>12}" for name in columns))
    for operation in (pooling, mixture, product, normed, reads, attend):
        for name, (clips, shapes) in SIZES.items():
            sums = [0.0] * 6
            for tokens, channels in shapes:
                torch.manual_seed(0)
                fast, plain, sources = operation(clips * SEGMENTS, tokens, channels)
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(options.repeats + 1):
                    for run, found in zip((fast, plain), times, strict=True):
                        found.append(cpu_ms(run, sources))
                figures = [statistics.median(found[1:]) for found in times]  # the first round warms up
                figures += [gauge(run, sources) for gauge in (kept_mib, live_mib) for run in (fast, plain)]
                sums = [total + figure for total, figure in zip(sums, figures, strict=True)]
                report(operation.__name__, name, f"{tokens} x {channels}", figures)
            report(operation.__name__, name, "all eight", sums)


def report(operation: str, sizes: str, stage: str, figures: Sequence[float]) -> None:
    fast, plain, *mib = figures
    cells = f"{fast:.2f}", f"{plain:.2f}", f"{plain / fast:.2f}x", *(f"{size:.1f}" for size in mib)
    print(f"{operation:10}{sizes:20}{stage:>14}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
