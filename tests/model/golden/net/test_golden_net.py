"""Whole networks of the reference on its stand-in backbones: inject placement, captions, CASE and every head.

The stand-ins are described in each vector's `stand_in_backbone`. Every parameter of a vector is loaded under its own
name; `Net` only hangs our modules up under these names. Parameter gradients are not stored in these vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vector_names import load_vector_parameters

from caeav.model.adapters.batch import CaptionSpec, InputSpec, TokenBatch, TrunkOutput
from caeav.model.adapters.config import AdapterConfig, CaseConfig, CasteConfig, InjectConfig, MoeConfig
from caeav.model.adapters.inject import FRAMES, WINDOWS, InjectTrunk
from caeav.model.adapters.live import Live
from caeav.model.adapters.moe import AvMoe
from caeav.model.tasks.ave.config import AveHeadConfig
from caeav.model.tasks.ave.head import AveHead
from caeav.model.tasks.avqa.config import AvqaHeadConfig
from caeav.model.tasks.avqa.head import AvqaHead
from caeav.model.tasks.avs.config import AvsHeadConfig
from caeav.model.tasks.avs.head import AvsHead
from caeav.model.tasks.avvp.config import AvvpHeadConfig
from caeav.model.tasks.avvp.head import AvvpHead
from caeav.pipeline.store.record import Tap

GROUP = "net"

Vector = Any
Tensors = dict[str, Tensor]


def uni_attention(v: Vector) -> str:
    expert = "param.moe_audio_p1.0.uni_experts.0"
    if v.has(f"{expert}.latent_tokens"):
        return "latent"
    return "gated" if v.has(f"{expert}.attn_gate") else "none"


def adapter_config(v: Vector) -> AdapterConfig:
    """Settings read off the shapes of the vector."""
    first = "param.moe_audio_p1.0."

    def count(kind: str) -> int:
        return len({n.split(".")[4] for n in v.tensors if n.startswith(f"{first}{kind}.")})

    down = v.shape(f"{first}cross_experts.0.down.weight")
    up = v.shape(f"{first}cross_experts.0.up.weight")
    moe = MoeConfig(
        cross_experts=count("cross_experts"),
        uni_experts=count("uni_experts"),
        uni_attention=uni_attention(v),  # type: ignore[arg-type]
        reduction=up[0] // down[0],
        groups=up[0] // down[1],
        latents=v.shape(f"{first}cross_experts.0.latent_tokens")[0],
        batch_norm=v.has(f"{first}cross_experts.0.down_bn.weight"),
        out_gate_visual=v.has("param.moe_visual_p1.0.cross_experts.0.out_gate"),
        out_gate_audio=v.has(f"{first}cross_experts.0.out_gate"),
        num_skip=1 if avvp(v) else v.meta["hyper_parameters"]["options"]["num_skip"],
    )
    return AdapterConfig(
        placement="inject",
        caste=CasteConfig(gate_dim=v.shape("param.caste_visual.0.gate.self_proj.weight")[0]),
        avmoe=moe,
        case=CaseConfig(
            proj_dim=v.shape("param.case.proj_visual.linear.weight")[0],
            caption_bottleneck=v.shape("param.caption_adapter_visual.down.weight")[0],
        ),
        inject=InjectConfig(discard_frozen_audio=avvp(v)),
    )


def avvp(v: Vector) -> bool:
    return v.name.startswith("net_avvp")


class Net(nn.Module):
    """Trunk and head, hung up under the vectors' names."""

    def __init__(self, v: Vector, live: Live) -> None:
        super().__init__()
        self.segments = 5 if v.name.startswith("net_avs") else 10
        captions = [CaptionSpec(*v.shape(f"input.{m}_caption")[1:]) for m in ("visual", "audio")]
        taps = [(Tap(name, 1, 1),) for name in (FRAMES, WINDOWS)]
        trunk = InjectTrunk(InputSpec(self.segments, *taps, *captions), live, adapter_config(v))
        for module in trunk.modules():
            if isinstance(module, AvMoe):  # the vectors' routers are narrow
                router, first = module.router, v.shape("param.moe_audio_p1.0.router.fc1.weight")[0]
                second = v.shape("param.moe_audio_p1.0.router.fc2.weight")[0]
                router.fc1 = nn.Linear(router.fc1.in_features, first)
                router.fc2 = nn.Linear(first, second)
                router.fc3 = nn.Linear(second, router.fc3.out_features)
        build, self.answer = HEADS[v.name.split("_")[1]]
        head = build(v)
        self._held = [trunk, live, head]
        for modality in ("visual", "audio"):
            self.add_module(
                f"caste_{modality}", nn.ModuleList(getattr(s, f"caste_{modality}") for s in trunk.stages)
            )
            for place in ("p1", "p2"):
                pairs = [getattr(p, modality) for s in trunk.stages for p in getattr(s, place)]
                self.add_module(f"moe_{modality}_{place}", nn.ModuleList(pairs))
            self.add_module(f"caption_adapter_{modality}", getattr(trunk.guidance, f"{modality}_adapter"))
        self.case, self.caption_mapper = trunk.guidance.case, trunk.guidance.mapper
        self.head = head
        if isinstance(head, AveHead):  # the vectors' names of its two parts
            self.head = nn.ModuleDict({"temporal": head.temporal_attention, "localise": head.localisation})

    def run(self, x: Tensors) -> Tensors:
        clips = x["visual_caption"].shape[0]
        trunk, live, head = self._held
        batch = TokenBatch(
            keys=[""] * clips,
            visual={FRAMES: x["visual_tokens"].unflatten(0, (clips, self.segments))},
            audio={WINDOWS: x["audio_tokens"].unflatten(0, (clips, self.segments))},
            frames_ok=torch.ones(clips, self.segments, dtype=torch.bool),
            audio_ok=torch.ones(clips, self.segments, dtype=torch.bool),
            visual_caption=x["visual_caption"],
            audio_caption=x["audio_caption"],
        )
        out = trunk(batch)
        found = {f"proj_{m}": out.aux[f"proj_{m}"].flatten(0, 1) for m in ("visual", "audio")}
        for m in ("visual_caption", "audio_caption"):  # one row a clip here, one a segment there
            found[f"proj_{m}"] = out.aux[f"proj_{m}"].repeat_interleave(self.segments, 0)
        found["load_balance_loss"] = out.losses["load_balance"]
        return found | self.answer(head, out, x, (trunk, live))

    def load(self, v: Vector, dtype: torch.dtype) -> None:
        tensors = {**v.group("param", dtype), **v.group("buffer", dtype)}
        tensors = {n: x for n, x in tensors.items() if not n.startswith(("visual_b", "audio_b"))}
        trunk = self._held[0].to(dtype)
        self.to(dtype).eval()
        trunk.eval()
        for name, value in self.state_dict().items():  # the vectors leave out what has no effect
            if name not in tensors and name in v.meta["parameters_without_any_effect"]:
                tensors[name] = value
        load_vector_parameters(self, tensors)


def dims(v: Vector, modality: str) -> list[int]:
    found: list[int] = v.meta["hyper_parameters"][f"{modality}_dims"]
    return found


def numbers(v: Vector, prefix: str) -> int:
    """How many entries a list of modules has."""
    return len({n[len(prefix) :].split(".")[0] for n in v.tensors if n.startswith(prefix)})


def build_ave(v: Vector) -> nn.Module:
    temporal = "param.head.temporal."
    config = AveHeadConfig(
        visual_in=v.shape(f"{temporal}visual_in.weight")[0],
        audio_in=v.shape(f"{temporal}audio_in.weight")[0],
        width=v.shape(f"{temporal}visual_encoder.in_proj.weight")[0],
        hidden=v.shape(f"{temporal}visual_encoder.layers.0.ffn_in.weight")[0],
        encoder_layers=numbers(v, f"{temporal}visual_encoder.layers."),
        decoder_layers=numbers(v, f"{temporal}visual_decoder.layers."),
    )
    classes = v.shape("param.head.localise.event_class.weight")[0]
    return AveHead(dims(v, "visual")[-1], dims(v, "audio")[-1], classes, config)


def run_ave(head: nn.Module, out: TrunkOutput, x: Tensors, _: Any) -> Tensors:
    found = head(out)
    return {
        "event_relevance": found.event_relevance.transpose(0, 1).unsqueeze(-1),
        "event_scores": found.event_scores,
        "av_score": found.av_score,
    }


def build_avvp(v: Vector) -> nn.Module:
    classes, width = v.shape("param.head.audio_class_tokens")
    depths = {f"{g}_depth": numbers(v, f"param.head.{g}_group.blocks.") for g in ("audio", "visual", "cross")}
    return AvvpHead(
        dims(v, "visual")[-1],
        dims(v, "audio")[-1],
        classes,
        v.shape("input.motion")[1],
        AvvpHeadConfig(width=width, **depths),
        motion_channels=v.shape("input.motion")[2],
    )


def run_avvp(head: nn.Module, out: TrunkOutput, x: Tensors, _: Any) -> Tensors:
    found = head(out, x["motion"])._asdict()
    theirs = {f"{m}_token_logits": f"{m}_token_class_logits" for m in ("audio", "visual")}
    return {theirs.get(name, name): value for name, value in found.items()}


def build_avs(v: Vector) -> nn.Module:
    encoder = "param.head.temporal.visual_encoder.0."
    config = AvsHeadConfig(
        channels=v.shape("param.head.stage_proj1.weight")[0],
        audio_in=v.shape("param.head.audio_in.weight")[0],
        width=v.shape(f"{encoder}in_proj.weight")[0],
        hidden=v.shape(f"{encoder}layers.0.ffn_in.weight")[0],
        encoder_layers=numbers(v, f"{encoder}layers."),
        mask_size=v.shape("output.mask_logits")[-1],
        out_channels=(v.shape("param.head.out.conv1.weight")[0], v.shape("param.head.out.conv2.weight")[0]),
    )
    return AvsHead(dims(v, "visual"), dims(v, "audio")[-1], config)


def run_avs(head: nn.Module, out: TrunkOutput, x: Tensors, parts: Any) -> Tensors:
    _, live = parts
    maps = [out.aux[f"stage{i}.visual"] for i in range(1, 5)]
    found = head([*maps[:-1], live.visual.norm(maps[-1])], out.audio)
    aligned = {f"aligned_audio{i}": a for i, a in enumerate(found.audio, start=1)}
    return aligned | {"mask_logits": found.mask_logits.flatten(0, 1).unsqueeze(1)}


def build_avqa(v: Vector) -> nn.Module:
    return AvqaHead(
        dims(v, "visual")[-1],
        dims(v, "audio")[-1],
        v.shape("param.head.answer.weight")[0],
        v.shape("param.head.question.embedding.weight")[0],
        AvqaHeadConfig(match_widths=tuple(v.shape(f"param.head.match_fc{i}.weight")[0] for i in (1, 2, 3))),
    )


def run_avqa(head: nn.Module, out: TrunkOutput, x: Tensors, parts: Any) -> Tensors:
    trunk, _ = parts
    negative = trunk.frozen_visual(x["visual_tokens_negative"].unflatten(0, out.visual.shape[:2]))
    found = head(out, x["question"], negative)
    return {
        "answer_logits": found.answer_logits,
        "match_positive": found.match_positive.flatten(0, 1),
        "match_negative": found.match_negative.flatten(0, 1),
    }


HEADS = {
    "ave": (build_ave, run_ave),
    "avvp": (build_avvp, run_avvp),
    "avs": (build_avs, run_avs),
    "avqa": (build_avqa, run_avqa),
}


def largest(x: Tensor) -> float:
    return x.abs().max().item()


def test_equals_the_reference(vector: Vector, stand_ins: Callable[[Vector], Live]) -> None:
    net = Net(vector, stand_ins(vector))
    net.load(vector, torch.float64)
    x = vector.group("input", torch.float64)
    for name, value in x.items():
        value.requires_grad_(vector.has(f"grad64.input.{name}"))
    outputs = net.run(x)
    wanted = {**vector.group("output"), **vector.group("output64")}
    assert wanted and wanted.keys() <= outputs.keys()
    for name, want in wanted.items():
        assert outputs[name].shape == want.shape, name
        difference = largest(outputs[name] - want.double())
        assert difference <= 1e-9 * largest(want.double()), f"output.{name}: {difference}"

    cotangents = vector.group("cotangent", torch.float64)
    torch.stack([(outputs[name] * c).sum() for name, c in cotangents.items()]).sum().backward()
    gradients = vector.group("grad64.input")
    assert gradients.keys() <= x.keys()
    for name, want in gradients.items():
        difference = largest(x[name].grad - want)
        assert difference <= 1e-9 * largest(want), f"grad.input.{name}: {difference} of {largest(want)}"
