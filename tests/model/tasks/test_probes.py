"""Probes: pooled tokens and one layer, in the task's own output; refused where they cannot hold the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from token_batches import SMALL, token_batch
from torch import nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import Inputs, TokenBatch
from caeav.model.tasks.ave.task import LABELS
from caeav.model.tasks.base import TASKS
from caeav.model.train.config_file import ConfigError, resolve_config
from caeav.model.train.losses import weighted_losses
from caeav.model.train.network import Network, build_network

INPUTS = Inputs(
    "tiny", ("bell", "dog", "drum"), 1.0, SMALL, {"mask_size": [8, 8], "words": ["a"], "places": 1}
)


def build(task: str, recipe: str = "probe", *assignments: str) -> tuple[Network, Any]:
    torch.manual_seed(0)
    config = resolve_config(task, recipe, assignments=assignments)
    return build_network(TASKS[task], INPUTS, config.model), config


def labelled(task: str, clips: int = 3) -> TokenBatch:
    batch = token_batch(SMALL, clips)
    if task == "avvp":
        batch.targets = {"labels": torch.eye(3)[:clips], "timed": torch.ones(clips, dtype=torch.bool)}
        batch.targets |= {name: torch.eye(3)[:clips, None].expand(-1, 3, -1) for name in ("audio", "visual")}
    else:
        seconds = torch.arange(3).view(1, 3) + torch.arange(clips).view(clips, 1)
        batch.targets = {LABELS: nn.functional.one_hot(seconds % 4, 4).float()}
    return batch


@pytest.mark.parametrize("recipe", ["probe", "probe-mlp"])
@pytest.mark.parametrize("task", ["ave", "ave-weak", "avvp"])
def test_a_probe_is_one_layer_that_learns_and_is_scored(task: str, recipe: str) -> None:
    network, config = build(task, recipe)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == (1 if recipe == "probe" else 2) * (2 if task == "avvp" else 1)
    batch = labelled(task)
    optimiser, found = torch.optim.Adam(network.parameters(), 0.03), []
    for _ in range(40):
        losses = weighted_losses(TASKS[task], network(batch), batch, config)
        assert not any(name.endswith("token") for name in losses)
        total = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        found.append(total.item())
    assert found[-1] < 0.7 * found[0]
    network.eval()
    scorer = TASKS[task].build_scorer(INPUTS, config)
    scorer.add(network(batch).found, batch)
    assert 0 <= scorer.result().value <= 100
    sample: Any = None
    with torch.no_grad():
        assert TASKS[task].decode(network(batch).found, INPUTS, config, sample) is not None


def test_a_probe_sees_no_other_second_and_no_adapter() -> None:
    network, _ = build("ave-weak", "probe", "model.head.input_norm=none")
    batch = token_batch(SMALL)
    before = network(batch).found.seconds
    batch.visual["visual.b"][:, 1] += 1
    moved = (network(batch).found.seconds != before).any(dim=-1)
    assert moved.tolist() == [[False, True, False]] * 2
    assert all(name.startswith("head.") for name, _ in network.named_parameters())


def test_the_taps_of_a_probe_are_chosen() -> None:
    batch = token_batch(SMALL)
    network, _ = build("ave", "probe", "model.probe.taps=visual.a,visual.b", "model.head.input_norm=none")
    [layer] = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert layer.in_features == 8 + 16
    pooled = torch.cat([batch.visual[name].mean(2) for name in ("visual.a", "visual.b")], -1)
    found = network(batch).found
    torch.testing.assert_close(found.event_relevance, layer(pooled)[..., -1])
    torch.testing.assert_close(found.event_scores, layer(pooled)[..., :-1].mean(1))
    with pytest.raises(CaeavError, match=r"visual.c; the stores hold visual.a, visual.b, audio.a, audio.b"):
        build("ave", "probe", "model.probe.taps=visual.c")
    with pytest.raises(CaeavError, match=r"a probe for avvp: taps visual.a are of one modality"):
        build("avvp", "probe", "model.probe.taps=[visual.a]")


@pytest.mark.parametrize(
    ("task", "why"), [("avqa", "question and clip together"), ("avs-s4", "places of tokens")]
)
def test_tasks_whose_answer_is_not_in_a_mean_token_have_no_probe(task: str, why: str) -> None:
    with pytest.raises(CaeavError, match=f"a probe for {task}: .*{why}") as caught:
        build(task)
    assert "--recipe none" in caught.value.hint


@pytest.mark.parametrize(
    "other",
    ["model.adapters.lavish.enabled=true", "model.modalities=audio", "model.adapters.placement=inject"],
)
def test_a_probe_excludes_adapters_and_single_modalities(other: str) -> None:
    with pytest.raises(ConfigError, match=r"probe.kind is linear with .*--recipe probe"):
        resolve_config("ave", "probe", assignments=[other])
