"""The whole AVE model on a toy: an event is where the same object is both seen and heard, so it takes both streams."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from caeav.model.adapters.batch import CaptionSpec, Inputs, InputSpec, TokenBatch
from caeav.model.tasks.ave.loss import ave_loss
from caeav.model.tasks.ave.metric import AveMetric
from caeav.model.tasks.base import TASKS
from caeav.model.train.config_file import model_class
from caeav.model.train.network import Network, build_network
from caeav.pipeline.store.record import Tap

T, CLASSES = 6, ("bell", "dog", "drum")
SPEC = InputSpec(
    T,
    (Tap("visual.s1", 16, 8), Tap("visual.s2", 4, 16)),
    (Tap("audio.s1", 4, 8), Tap("audio.s2", 4, 8)),
    CaptionSpec(4, 8),
    CaptionSpec(4, 8),
)
HEAD = {"visual_in": 24, "audio_in": 16, "width": 24, "hidden": 32, "encoder_layers": 1}
PARTS: dict[str, dict[str, Any]] = {
    "full": {"case": {"proj_dim": 8}, "avmoe": {"latents": 4}, "caste": {"gate_dim": 16}},
    "none": {"caste": {"enabled": False}, "avmoe": {"enabled": False}, "case": {"enabled": False}},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads and lose much when other processes run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def directions() -> dict[str, Tensor]:
    """A fixed direction for every class in every tap."""
    generator = torch.Generator().manual_seed(3)
    return {
        tap.name: torch.randn(3, tap.channels, generator=generator) for tap in (*SPEC.visual, *SPEC.audio)
    }


def toy(clips: int, seed: int) -> TokenBatch:
    """Each object is seen in some seconds and heard in some; labels where both."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (clips,), generator=g)
    seen, heard = torch.rand(clips, T, generator=g) < 0.65, torch.rand(clips, T, generator=g) < 0.65
    labels = torch.zeros(clips, T, 4)
    labels[torch.arange(clips), :, kind] = (seen & heard).float()
    labels[..., 3] = 1 - labels[..., :3].sum(-1)

    def tokens(tap: Tap, present: Tensor) -> Tensor:
        noise = 0.3 * torch.randn(clips, T, tap.tokens, tap.channels, generator=g)
        return noise + (directions()[tap.name][kind][:, None] * present[..., None])[:, :, None]

    def caption() -> Tensor:
        return torch.randn(clips, 4, 8, generator=g)

    mask = torch.ones(clips, 4, dtype=torch.bool)
    ok = torch.ones(clips, T, dtype=torch.bool)
    visual = {tap.name: tokens(tap, seen) for tap in SPEC.visual}
    audio = {tap.name: tokens(tap, heard) for tap in SPEC.audio}
    keys = [str(i) for i in range(clips)]
    return TokenBatch(keys, visual, audio, ok, ok, caption(), mask, caption(), mask, {"labels": labels})


def make(parts: str, modalities: str = "both") -> Network:
    torch.manual_seed(0)
    config = model_class("ave").model_validate(
        {"adapters": PARTS[parts], "head": HEAD, "modalities": modalities}
    )
    return build_network(TASKS["ave"], Inputs("toy", CLASSES, 1.0, SPEC), config)


def loss_of(model: Network, batch: TokenBatch) -> Tensor:
    out = model(batch).found
    losses = ave_loss(out.event_relevance, out.event_scores, out.av_score, batch.targets["labels"])
    return torch.stack(list(losses)).sum()


def train(model: Network, steps: int) -> list[float]:
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        optimiser.zero_grad()
        loss = loss_of(model, toy(16, seed=step))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def accuracy(model: Network, batch: TokenBatch) -> float:
    metric = AveMetric(len(CLASSES))
    with torch.no_grad():
        out = model.eval()(batch).found
    metric.update(out.event_relevance, out.event_scores, batch.targets["labels"])
    return metric.compute().accuracy


@pytest.mark.parametrize("parts", ["full", "none"])
def test_it_learns_what_only_both_streams_together_tell(parts: str) -> None:
    model = make(parts)
    losses = train(model, 80)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    batch = toy(64, seed=10_000)
    whole = accuracy(model, batch)
    assert whole > 0.85
    for stream in (batch.visual, batch.audio):
        held = dict(stream)
        stream.update({name: x.roll(1, dims=0) for name, x in held.items()})  # another clip's
        assert accuracy(model, batch) < whole - 0.1
        stream.update(held)


@pytest.mark.parametrize(("modalities", "ignored"), [("audio", "visual"), ("visual", "audio")])
def test_a_baseline_of_one_modality_never_sees_the_other(modalities: str, ignored: str) -> None:
    model = make("full", modalities).eval()
    assert list(model.trunk.parameters()) == []
    batch = toy(4, seed=1)
    before = model(batch)
    for x in getattr(batch, ignored).values():
        x.normal_()
    assert torch.equal(before.found.event_relevance, model(batch).found.event_relevance)
    for x in getattr(batch, modalities).values():
        x.normal_()
    assert not torch.equal(before.found.event_relevance, model(batch).found.event_relevance)


# Parameters the AVE loss alone does not reach, and why.
UNREACHED = re.compile(
    r"contrastive_temperature|proj_(visual|audio)"  # only the caption objectives use them
    r"|ffn_(visual|audio)_caption"  # leads to projections and to the caption gate, which has no gradient
    r"|score\.bias|attn\.key\.bias"  # a softmax does not change with them
)


def test_every_parameter_but_the_listed_ones_learns() -> None:
    model = make("full")
    train(model, 3)  # opens the gates that start at zero
    model.zero_grad()
    loss_of(model, toy(16, seed=99)).backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {n for n in silent if not UNREACHED.search(n)} == set()
    reached = {n for n, p in model.named_parameters() if n not in silent and p.grad.norm() > 1e-9}
    assert {n for n in reached if UNREACHED.search(n)} == set()


def test_load_balance_is_offered_to_the_objective() -> None:
    out = make("full")(toy(4, seed=1))
    out.trunk.losses["load_balance"].backward()
    layers = 2 * 2 * 2  # stages, places, modalities
    assert out.trunk.losses["load_balance"] >= layers * 2 * torch.log(torch.tensor(2.0)) - 1e-4
