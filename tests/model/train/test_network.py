"""The network: what a baseline must not use is zero wherever a head could read it, and its adapters are off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from caeav.model.adapters.batch import (
    NEGATIVE,
    AdapterError,
    CaptionSpec,
    Inputs,
    InputSpec,
    TokenBatch,
    TrunkOutput,
)
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.trunk import required_inputs
from caeav.model.tasks.base import TASKS
from caeav.model.train.config_file import resolve_config
from caeav.model.train.network import Network, blind, build_network
from caeav.pipeline.store.record import Tap

SPEC = InputSpec(
    4,
    (Tap("visual.stage1", 16, 8), Tap("visual.stage2", 4, 16)),
    (Tap("audio.stage1", 16, 8), Tap("audio.stage2", 4, 16)),
    CaptionSpec(5, 16),
    CaptionSpec(5, 16),
)
FACTS = {"mask_size": [16, 16], "words": list("abc"), "places": 4}


def outputs() -> tuple[TrunkOutput, TokenBatch]:
    def x() -> torch.Tensor:
        return torch.ones(2, 4, 3, 5)

    aux = {"stage1.visual": x(), "unguided.visual": x(), "routing.stage1.p1.audio": x(), "proj_audio": x()}
    ok = torch.ones(2, 4, dtype=torch.bool)
    extra = {"question": x(), NEGATIVE: x(), "motion.r3d": x(), "visual.other": x()}
    return TrunkOutput(x(), x(), aux=aux), TokenBatch(["a", "b"], {}, {}, ok, ok, extra=extra)


@pytest.mark.parametrize(("modalities", "gone"), [
    ("audio", {"visual"}), ("visual", {"audio"}), ("neither", {"visual", "audio"})
])  # fmt: skip
def test_the_other_modality_is_zero_wherever_a_head_can_read(modalities: Any, gone: set[str]) -> None:
    trunk, batch = blind(*outputs(), modalities)
    assert bool(trunk.visual.any()) is ("visual" not in gone)
    assert bool(trunk.audio.any()) is ("audio" not in gone)
    for held in (trunk.aux, batch.extra):
        for name, x in held.items():
            shows = name.endswith(".visual") or name.startswith(("motion.", "visual."))
            assert bool(x.any()) is not (shows and "visual" in gone), name


@pytest.mark.parametrize("modalities", ["both", "audio", "visual", "neither"])
def test_a_network_blinds_its_head_as_configured(modalities: Any) -> None:
    class Given(nn.Module):
        def forward(self, batch: TokenBatch) -> TrunkOutput:
            return outputs()[0]

        def frozen_visual(self, given: torch.Tensor) -> torch.Tensor:
            return 2 * given

    def ask(head: nn.Module, trunk: TrunkOutput, batch: TokenBatch) -> Any:
        return trunk, batch

    network = Network(Given(), nn.Identity(), ask, modalities)
    trunk, batch = network(outputs()[1]).found
    assert bool(trunk.visual.any()) is (modalities in ("both", "visual"))
    assert bool(trunk.audio.any()) is (modalities in ("both", "audio"))
    # Frames of other clips come as the frozen backbone sees them.
    assert batch.extra[NEGATIVE].unique().tolist() == ([2.0] if modalities in ("both", "visual") else [0.0])


@pytest.mark.parametrize("task", ["ave", "avs-s4"])
@pytest.mark.parametrize("modalities", ["both", "audio", "visual"])
def test_baselines_have_no_adapters_and_stages_are_kept_for_heads_that_read_them(
    task: str, modalities: str
) -> None:
    inputs = Inputs("d", ("bell", "dog"), 1.0, SPEC, FACTS)
    small = ["model.head.mask_size=16"] if task == "avs-s4" else ["model.head.width=16"]
    config = resolve_config(task, assignments=[f"model.modalities={modalities}", *small])
    network = build_network(TASKS[task], inputs, config.model)
    adapted = {name for name, _ in network.named_parameters() if name.startswith("trunk.")}
    assert bool(adapted) is (modalities == "both")
    assert network.trunk.keep_stages is (task == "avs-s4")
    plain = replace(SPEC, visual_caption=None, audio_caption=None)
    if modalities != "both":  # nor do they need captions
        build_network(TASKS[task], replace(inputs, spec=plain), config.model)


def test_taps_that_a_placement_reads() -> None:
    """The ladder reads all cached stages; live adapters read the taps below the first of them, and earlier visual taps
    for heads that need them; from raw frames and audio, nothing else."""
    stages = [
        tuple(Tap(f"{modality}.stage{k}", 4, 8) for k in range(1, 5)) for modality in ("visual", "audio")
    ]
    raw = Tap("visual.frames", 1, 3), Tap("audio.windows", 1, 3)
    whole = InputSpec(4, (*stages[0], raw[0]), (*stages[1], raw[1]))

    def read(spec: InputSpec, start: str, *, keeps_stages: bool = False) -> list[str]:
        given = {"placement": "inject", "inject_from": start} if start else {}
        found = required_inputs(spec, AdapterConfig.model_validate(given), keeps_stages=keeps_stages)
        return [tap.name for tap in (*found.visual, *found.audio)]

    assert read(whole, "") == [tap.name for modality in stages for tap in modality]
    assert read(whole, "stage3") == ["visual.stage2", "audio.stage2"]
    assert read(whole, "stage3", keeps_stages=True) == ["visual.stage1", "visual.stage2", "audio.stage2"]
    assert read(whole, "stage1", keeps_stages=True) == ["visual.frames", "audio.windows"]
    few = InputSpec(4, (stages[0][0], raw[0]), (raw[1],))
    assert read(few, "stage4", keeps_stages=True) == ["visual.frames", "audio.windows"]
    with pytest.raises(
        AdapterError, match=r"starts from visual\.frames and audio\.windows; the stores hold"
    ) as caught:
        read(InputSpec(4, stages[0], stages[1]), "stage1")
    assert "set inject_from to stage2 or stage3 or stage4" in str(caught.value)
