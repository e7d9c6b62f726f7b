"""Adapters inside live backbones: what stays frozen, what is replayed, and what must be equal."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_weights import randomise
from torch import Tensor

from caeav.model.adapters.batch import NEGATIVE, AdapterError, CaptionSpec, Inputs, InputSpec, TokenBatch
from caeav.model.adapters.config import AdapterConfig, CaseConfig, CasteConfig, InjectConfig, MoeConfig
from caeav.model.adapters.inject import FRAMES, WINDOWS, InjectTrunk
from caeav.model.adapters.live import Live, pair_blocks
from caeav.model.tasks.ave.config import AveHeadConfig
from caeav.model.tasks.base import TASKS
from caeav.model.train.config_file import model_class
from caeav.model.train.network import build_network
from caeav.pipeline.backbones.htsat.frontend import FrontEnd
from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig, LiveHtsat
from caeav.pipeline.backbones.timm_models import LiveSwinV2, import_timm
from caeav.pipeline.store.record import Tap

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

CLIPS, SEGMENTS = 2, 2
FRONT_END = FrontEnd(
    rate_hz=2000, fft=128, hop=40, bands=16, low_hz=50, high_hz=900, image_size=64, window_s=2
)
CONFIG = AdapterConfig(
    placement="inject",
    caste=CasteConfig(gate_dim=8),
    avmoe=MoeConfig(reduction=2, latents=3, batch_norm=False),
    case=CaseConfig(proj_dim=8, caption_bottleneck=4, heads=4),
)
LIVE_TAPS = {"visual": (Tap(FRAMES, 64 * 64, 3),), "audio": (Tap(WINDOWS, 2000, 1),)}
CAPTIONS = {"visual_caption": CaptionSpec(5, 16), "audio_caption": CaptionSpec(5, 16)}
FROM_FRAMES = InputSpec(SEGMENTS, **LIVE_TAPS, **CAPTIONS)


@pytest.fixture(scope="module")
def live() -> Live:
    """A tiny Swin-V2 of timm (blocks 2, 2, 6, 2) and a tiny HTS-AT (2, 2, 2, 2)."""
    torch.manual_seed(1)
    sizes = {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 8,
        "depths": (2, 2, 6, 2),
        "num_heads": (1, 2, 2, 4),
    }
    swin = LiveSwinV2(import_timm().create_model("swinv2_base_window12_192", num_classes=0, **sizes))
    htsat = Htsat(
        HtsatConfig(front_end=FRONT_END, channels=8, depths=(2, 2, 2, 2), heads=(2, 2, 4, 4), window=4)
    )
    for module in (swin.module, htsat):
        randomise(module)
    return Live(swin, LiveHtsat(htsat))


@pytest.fixture
def batch() -> TokenBatch:
    torch.manual_seed(2)
    return TokenBatch(
        keys=["a", "b"],
        visual={FRAMES: torch.randn(CLIPS, SEGMENTS, 3, 64, 64)},
        audio={WINDOWS: torch.randn(CLIPS, SEGMENTS, 2000)},
        frames_ok=torch.ones(CLIPS, SEGMENTS, dtype=torch.bool),
        audio_ok=torch.ones(CLIPS, SEGMENTS, dtype=torch.bool),
        visual_caption=torch.randn(CLIPS, 5, 16),
        audio_caption=torch.randn(CLIPS, 5, 16),
    )


def build(live: Live, spec: InputSpec = FROM_FRAMES, **changes: Any) -> InjectTrunk:
    torch.manual_seed(3)
    trunk = InjectTrunk(spec, live, CONFIG.model_copy(update=changes))
    randomise(trunk)
    return trunk.eval()


def frozen_taps(live: Live, batch: TokenBatch) -> dict[str, Tensor]:
    """What a store of both backbones would hold for the batch, in full precision."""
    found = {}
    with torch.no_grad():
        x = live.visual.embed(batch.visual[FRAMES].flatten(0, 1))
        audio = live.audio.module.eval()(batch.audio[WINDOWS].flatten(0, 1))
        for i, stage in enumerate(live.visual.stages):
            x = live.visual.stages[i - 1].merge(x) if i else x
            for block in stage.blocks:
                x = x + block.attention(x)
                x = x + block.mlp(x)
            found[f"visual.stage{i + 1}"] = x.unflatten(0, (CLIPS, SEGMENTS))
            found[f"audio.stage{i + 1}"] = audio[i].unflatten(0, (CLIPS, SEGMENTS))
    return found


def cached(live: Live, batch: TokenBatch) -> tuple[InputSpec, TokenBatch]:
    """Inputs and batch of a run that joins such a store."""
    taps = frozen_taps(live, batch)
    parts = {m: {n: x for n, x in taps.items() if n.startswith(m)} for m in ("visual", "audio")}
    specs = {m: tuple(Tap(n, *x.shape[2:]) for n, x in held.items()) for m, held in parts.items()}
    return InputSpec(SEGMENTS, **specs, **CAPTIONS), replace(batch, **parts)


def output_and_gradients(trunk: InjectTrunk, batch: TokenBatch) -> dict[str, Tensor]:
    trunk.zero_grad()
    out = trunk(batch)
    torch.manual_seed(4)
    loss = sum((x * torch.randn_like(x)).sum() for x in (out.visual, out.audio, out.agreement))
    loss.backward()
    found = {f"grad.{n}": p.grad for n, p in trunk.named_parameters() if p.grad is not None}
    return {"visual": out.visual.detach(), "audio": out.audio.detach(), **found}


def test_blocks_are_paired_as_in_the_reference() -> None:
    assert pair_blocks(2, 2) == [0, 1]
    assert [j for j, m in enumerate(pair_blocks(18, 6)) if m is not None] == [2, 5, 8, 11, 14, 17]
    with pytest.raises(AdapterError, match="4 visual and 3 audio"):
        pair_blocks(4, 3)


@pytest.mark.parametrize(("skip", "pairs"), [(1, [2, 2, 2, 2]), (2, [2, 0, 2, 0]), (3, [2, 2, 0, 2])])
def test_every_nth_stage_has_no_avmoe(live: Live, skip: int, pairs: list[int]) -> None:
    trunk = build(live, avmoe=CONFIG.avmoe.model_copy(update={"num_skip": skip}))
    assert [len(stage.p1) for stage in trunk.stages] == [len(stage.p2) for stage in trunk.stages] == pairs
    assert all(stage.caste_visual is not None for stage in trunk.stages)


@pytest.mark.parametrize("stage", ["stage2", "stage3", "stage4"])
def test_replaying_a_cached_tap_equals_the_live_run(live: Live, batch: TokenBatch, stage: str) -> None:
    spec, tokens = cached(live, batch)
    whole, replayed = build(live, inject_from=stage), build(live, spec, inject_from=stage)
    assert replayed.replayed and not whole.replayed
    replayed.load_state_dict(whole.state_dict())
    want, got = output_and_gradients(whole, batch), output_and_gradients(replayed, tokens)
    assert want.keys() == got.keys() and len(want) > 100
    for name, x in want.items():
        assert (got[name] - x).abs().max() <= 1e-5 * max(1.0, float(x.abs().max())), name
        assert x.any() or name.endswith("key.bias"), f"{name} is zero, nothing was compared"


def test_stages_before_the_first_have_no_adapters(live: Live) -> None:
    trunk = build(live, inject_from="stage3")
    assert [sum(1 for _ in stage.parameters()) > 0 for stage in trunk.stages] == [False, False, True, True]


class Forbidden:
    """Blocks that must not be run."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a block that is not needed")

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError("a block that is not needed was run")


def test_replaying_computes_nothing_before_its_stage(live: Live, batch: TokenBatch) -> None:
    spec, tokens = cached(live, batch)
    wanted = build(live, spec, inject_from="stage3")(tokens).visual

    class Part:
        def __init__(self, whole: Any) -> None:
            self.module, self.norm = whole.module, getattr(whole, "norm", None)
            shallow = [replace(s, blocks=(Forbidden(),) * len(s.blocks)) for s in whole.stages[:2]]
            self.stages = (*shallow, *whole.stages[2:])

    part: Any = Live(Part(live.visual), Part(live.audio))
    tokens.visual = {"visual.stage2": tokens.visual["visual.stage2"]}
    tokens.audio = {"audio.stage2": tokens.audio["audio.stage2"]}
    assert torch.equal(build(part, spec, inject_from="stage3")(tokens).visual, wanted)


def test_with_gates_at_zero_the_frozen_output_is_unchanged(live: Live, batch: TokenBatch) -> None:
    for skip in (1, 2):
        config = CONFIG.model_copy(
            update={
                "case": CONFIG.case.model_copy(update={"enabled": False}),
                "avmoe": CONFIG.avmoe.model_copy(update={"num_skip": skip}),
            }
        )
        out = InjectTrunk(FROM_FRAMES, live, config).eval()(batch)
        with torch.no_grad():
            visual = live.visual.module.forward_features(batch.visual[FRAMES].flatten(0, 1)).flatten(1, 2)
            audio = live.audio.module(batch.audio[WINDOWS].flatten(0, 1))[-1]
        assert torch.equal(out.visual.flatten(0, 1), visual)
        assert torch.equal(out.audio.flatten(0, 1), audio)


def test_opening_a_gate_changes_the_output(live: Live, batch: TokenBatch) -> None:
    trunk = InjectTrunk(FROM_FRAMES, live, CONFIG).eval()
    before = trunk(batch).visual
    with torch.no_grad():
        trunk.stages[0].p1[0].visual.cross_experts[0].out_gate.fill_(0.5)
    assert not torch.allclose(trunk(batch).visual, before, atol=1e-3)


def test_frozen_weights_are_no_part_of_the_model(live: Live, batch: TokenBatch) -> None:
    trunk = build(live).train()
    frozen = [p for module in live.modules for p in module.parameters()]
    assert {id(p) for p in frozen}.isdisjoint(id(p) for p in trunk.parameters())
    assert not any("backbone" in name or "module" in name for name in trunk.state_dict())
    before = [x.clone() for module in live.modules for x in module.state_dict().values()]
    found = output_and_gradients(trunk, batch)
    assert all(not p.requires_grad and p.grad is None for p in frozen)
    after = [x for module in live.modules for x in module.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "running statistics moved"
    deep_below = found["grad.stages.0.p1.0.visual.cross_experts.0.down.weight"]
    assert deep_below.any(), "no gradient through the frozen blocks"


def test_frozen_parts_stay_in_eval_mode(live: Live, batch: TokenBatch) -> None:
    trunk = build(live).train()
    assert not any(m.training for module in live.modules for m in module.modules())
    reference = build(live, inject=InjectConfig(frozen_train_mode=True)).train()
    assert all(m.training for module in live.modules for m in module.modules())
    assert trunk.training and reference.training
    reference.eval()
    assert not any(m.training for module in live.modules for m in module.modules())


def test_no_gradient_is_recorded_before_the_first_adapter(live: Live, batch: TokenBatch) -> None:
    out = build(live, inject_from="stage3")(batch)
    assert [out.aux[f"stage{i}.visual"].requires_grad for i in (1, 2, 3, 4)] == [False, False, True, True]


def test_device_and_dtype_reach_the_frozen_parts(live: Live) -> None:
    trunk = build(live).double()
    assert {p.dtype for module in live.modules for p in module.parameters()} == {torch.float64}
    trunk.float()
    assert {p.dtype for module in live.modules for p in module.parameters()} == {torch.float32}


def test_frozen_visual_is_the_backbone_without_adapters(live: Live, batch: TokenBatch) -> None:
    want = live.visual.module.eval().forward_features(batch.visual[FRAMES].flatten(0, 1)).flatten(1, 2)
    found = build(live).frozen_visual(batch.visual[FRAMES])
    assert torch.equal(found.flatten(0, 1), want) and not found.requires_grad


def test_frozen_visual_continues_from_a_cached_tap(live: Live, batch: TokenBatch) -> None:
    spec, taps = cached(live, batch)
    replayed = build(live, spec, inject_from="stage3")
    whole = build(live).frozen_visual(batch.visual[FRAMES])
    assert torch.allclose(replayed.frozen_visual(taps.visual["visual.stage2"]), whole, atol=1e-5)


def test_frames_and_windows_may_have_the_layout_of_a_store(live: Live, batch: TokenBatch) -> None:
    flat = batch.visual[FRAMES].flatten(3).transpose(2, 3)  # [B, T, H * W, 3]
    stored = replace(batch, visual={FRAMES: flat}, audio={WINDOWS: batch.audio[WINDOWS].unsqueeze(-1)})
    trunk = build(live)
    assert torch.equal(trunk(stored).visual, trunk(batch).visual)
    assert torch.equal(trunk(stored).audio, trunk(batch).audio)


def test_a_head_that_reads_all_stages_gets_the_same_when_replaying(live: Live, batch: TokenBatch) -> None:
    spec, taps = cached(live, batch)
    replayed, whole = build(live, spec, inject_from="stage3"), build(live, inject_from="stage3")
    assert [tap.name for tap in replayed.visual_stages] == [tap.name for tap in whole.visual_stages]
    replayed.keep_stages = whole.keep_stages = True
    a, b = replayed(taps).aux, whole(batch).aux
    names = [name for name in b if name.startswith("stage") and name.endswith(".visual")]
    assert names == [name for name in a if name.startswith("stage") and name.endswith(".visual")]
    assert len(names) == 4
    for name in names:
        assert torch.allclose(a[name], b[name], atol=1e-5), name


def test_discarded_frozen_audio_has_no_influence(live: Live, batch: TokenBatch) -> None:
    class Mute:
        def __init__(self) -> None:
            self.module, self.embed = live.audio.module, live.audio.embed
            self.stages = [replace(s, blocks=(Forbidden(),) * len(s.blocks)) for s in live.audio.stages]

    without_blocks: Any = Live(live.visual, Mute())
    changes = {"inject": InjectConfig(discard_frozen_audio=True)}
    assert torch.equal(build(without_blocks, **changes)(batch).audio, build(live, **changes)(batch).audio)


def test_inputs_that_do_not_fit_are_refused_by_name(live: Live, batch: TokenBatch) -> None:
    spec, _ = cached(live, batch)
    with pytest.raises(AdapterError, match=r"starts from visual\.frames and audio\.windows"):
        build(live, spec)
    shallow = replace(spec, visual=spec.visual[2:])
    with pytest.raises(AdapterError, match=r"starts from visual\.stage2 and audio\.stage2"):
        build(live, shallow, inject_from="stage3")
    wide = replace(spec, visual=tuple(replace(t, channels=t.channels + 1) for t in spec.visual))
    with pytest.raises(AdapterError, match=r"visual\.stage2 has 64 tokens of 17 channels.* 64 of 16"):
        build(live, wide, inject_from="stage3")
    with pytest.raises(AdapterError, match="frozen_train_mode"):
        build(live, spec, inject_from="stage2", inject=InjectConfig(frozen_train_mode=True))


def test_backbones_of_unequal_depth_are_refused(live: Live) -> None:
    class Short:
        module, stages = live.audio.module, live.audio.stages[:3]

    with pytest.raises(AdapterError, match="4 visual and 3 audio stages"):
        Live(live.visual, Short())  # type: ignore[arg-type]


def test_a_network_is_built_on_live_backbones(live: Live, batch: TokenBatch) -> None:
    spec, tokens = cached(live, batch)
    config = model_class("ave")(
        adapters=CONFIG.model_copy(update={"inject_from": "stage3"}),
        head=AveHeadConfig(visual_in=8, audio_in=8, width=8, hidden=8, heads=2),
    )
    shallow = replace(spec, visual=spec.visual[:2], audio=spec.audio[:2])  # the taps it needs, no deeper ones
    inputs = Inputs("toy", ("bell", "dog"), 1.0, shallow)
    model = build_network(TASKS["ave"], inputs, config, live)
    assert model(tokens).found.event_scores.shape == (CLIPS, 2)
    with pytest.raises(AdapterError, match="no live backbones"):
        build_network(TASKS["ave"], inputs, config)


def test_frames_of_other_clips_pass_through_the_frozen_backbone_alone(live: Live, batch: TokenBatch) -> None:
    spec, tokens = cached(live, batch)
    shallow = replace(spec, visual=spec.visual[2:3], audio=spec.audio[2:3])
    config = model_class("avqa")(adapters=CONFIG.model_copy(update={"inject_from": "stage4"}))
    facts = {"words": ["<pad>", "dog", "<unknown>"], "answers": ["yes", "no"], "places": 3}
    model = build_network(
        TASKS["avqa"], Inputs("toy", ("yes", "no"), 1.0, shallow, facts), config, live
    ).eval()
    seen: list[Tensor] = []
    model.head.forward = lambda trunk, question, negative, clip_of: seen.append(negative)  # type: ignore[method-assign,assignment]
    other = tokens.visual["visual.stage3"].flip(0)
    model(replace(tokens, extra={"question": torch.ones(CLIPS, 3, dtype=torch.long), NEGATIVE: other}))
    with torch.no_grad():
        alone = live.visual.module.eval().forward_features(batch.visual[FRAMES].flatten(0, 1)).flatten(1, 2)
    assert torch.allclose(seen[0].flip(0).flatten(0, 1), alone, atol=1e-5)


@pytest.mark.parametrize("peer", ["lavish", "dg_sct"])
def test_the_peers_sit_in_every_pair_of_blocks(live: Live, batch: TokenBatch, peer: str) -> None:
    off = {name: {"enabled": False} for name in ("caste", "avmoe", "case")}
    asked = AdapterConfig.model_validate(
        {**off, "placement": "inject", peer: {"enabled": True, "latents": 2}}
    )
    trunk = InjectTrunk(FROM_FRAMES, live, asked)
    plain = InjectTrunk(FROM_FRAMES, live, asked.off()).eval()(batch)
    assert [len(stage.p1) for stage in trunk.stages] == [2, 2, 2, 2]
    assert torch.equal(trunk.eval()(batch).visual, plain.visual)  # gates at zero
    randomise(trunk)
    out = trunk(batch)
    assert not torch.allclose(out.visual, plain.visual)
    assert (out.visual_weights is None) == (peer == "lavish")
    (out.pooled_visual().sum() + out.pooled_audio().sum()).backward()
    assert all(p.grad is not None for p in trunk.parameters())
    assert all(p.grad is None for module in live.modules for p in module.parameters())
