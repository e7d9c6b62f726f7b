"""Tiny random checkpoints of audio networks in the published file formats, and a machine without a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caeav.pipeline.backbones.htsat.checkpoint import fourier_kernel
from caeav.pipeline.backbones.htsat.frontend import FrontEnd, mel_weights
from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig
from caeav.pipeline.backbones.native import import_torchaudio, import_torchvision

FRONT = {"rate_hz": 2000, "fft": 128, "hop": 40, "bands": 16, "low_hz": 50.0, "high_hz": 900.0, "window_s": 2}
CLAP_FRONT = FRONT | {"bands": 32}
CLAP_SIZES = {"channels": 8, "heads": (2, 2, 4, 4), "depths": (2, 2, 2, 2), "window": 4}


@dataclass(frozen=True)
class TinyClap:
    """The same random weights in both formats, and front-end settings for the `.pt` (whose default is 48 kHz)."""

    folder: Path
    file: Path
    front: dict[str, Any]
    model: Any
    """The ClapModel of transformers that was saved to the folder."""


def htsat_names(network: Htsat, *, unused: bool = True) -> dict[str, Tensor]:
    """A network's weights under the names of the published checkpoint, written from its documentation."""
    state = {}
    for name, x in network.state_dict().items():
        name = name.replace("image.norm.", "bn0.").replace("image.filters", "logmel_extractor.melW")
        name = name.replace("patches.", "patch_embed.").replace(".attn.out.", ".attn.proj.")
        name = name.replace("stages.", "layers.").replace(".merge.", ".downsample.")
        name = name.replace(".bias_table", ".relative_position_bias_table")
        name = name.replace(".mlp.fc_in.", ".mlp.fc1.").replace(".mlp.fc_out.", ".mlp.fc2.")
        state["sed_model." + name] = x.clone()
    for name, x in network.named_buffers():
        name = "sed_model." + name.replace("stages.", "layers.")
        if name.endswith(".attn.index"):
            state[name.replace(".index", ".relative_position_index")] = x.clone()
        elif name.endswith(".mask"):
            state[name.replace(".mask", ".attn_mask")] = x.clone()
    for part in ("real", "imag"):
        kernel = fourier_kernel(network.config.front_end.fft, part)
        state[f"sed_model.spectrogram_extractor.stft.conv_{part}.weight"] = kernel
    if unused:
        state |= {f"sed_model.{n}.weight": torch.zeros(3) for n in ("norm", "tscam_conv", "head")}
    return state


@pytest.fixture
def published() -> Callable[..., dict[str, Tensor]]:
    """`published(network)`: its weights under the published names."""
    return htsat_names


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty hub cache in `tmp_path / "hub"`, and no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tiny_htsat(tmp_path: Path) -> Path:
    """A small HTS-AT in the published file format; its front end is `FRONT`."""
    torch.manual_seed(3)
    config = HtsatConfig(front_end=FrontEnd(**FRONT, image_size=64), channels=8, heads=(2, 2, 4, 4), window=4)
    network = Htsat(config).eval()
    network.image.norm.running_mean.normal_(-40, 3)
    network.image.norm.running_var.uniform_(50, 200)
    path = tmp_path / "HTSAT_AudioSet_Saved_1.ckpt"
    torch.save({"state_dict": htsat_names(network), "pytorch-lightning_version": "1.5.9"}, path)
    return path


@pytest.fixture
def front() -> dict[str, Any]:
    """The settings of the tiny networks' front end."""
    return dict(FRONT)


@pytest.fixture
def tiny_clap(tmp_path: Path) -> Callable[..., TinyClap]:
    """`tiny_clap(fused)`: make a tiny CLAP as a folder of transformers and as a `.pt` of laion-clap."""

    import_torchvision()
    import_torchaudio()

    def make(fused: bool = False) -> TinyClap:
        from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

        torch.manual_seed(5)
        audio = {
            "window_size": 4,
            "num_mel_bins": CLAP_FRONT["bands"],
            "spec_size": 128,
            "patch_embeds_hidden_size": 8,
            "hidden_size": 64,
            "num_attention_heads": [2, 2, 4, 4],
            "depths": [2, 2, 2, 2],
            "enable_fusion": fused,
            "fusion_type": "aff_2d" if fused else None,
        }
        text = {
            "vocab_size": 120,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "intermediate_size": 96,
            "max_position_embeddings": 80,
            "layer_norm_eps": 1e-5,
        }
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16)).eval()
        for p in model.parameters():
            p.data.normal_(0, 0.15) if p.ndim > 1 else p.data.add_(0.1 * torch.randn_like(p))
        encoder = model.audio_model.audio_encoder
        encoder.batch_norm.running_mean.normal_(-40, 3)
        encoder.batch_norm.running_var.uniform_(50, 200)
        folder = tmp_path / ("fused" if fused else "unfused")
        model.save_pretrained(folder)
        ClapFeatureExtractor(
            feature_size=CLAP_FRONT["bands"],
            sampling_rate=FRONT["rate_hz"],
            hop_length=FRONT["hop"],
            max_length_s=FRONT["window_s"],
            fft_window_size=FRONT["fft"],
            frequency_min=FRONT["low_hz"],
            frequency_max=FRONT["high_hz"],
            truncation="fusion" if fused else "rand_trunc",
        ).save_pretrained(folder)
        file = tmp_path / f"{folder.name}.pt"
        write_laion(model, file)
        return TinyClap(folder, file, dict(CLAP_FRONT), model)

    return make


def write_laion(model: Any, path: Path) -> None:
    """Write a ClapModel of transformers as a training checkpoint with the module names of laion-clap."""
    import numpy as np

    state: dict[str, Tensor] = {}
    held = model.state_dict()
    for name, x in held.items():
        name = (
            name.replace("text_model.", "text_branch.")
            .replace(".linear1.", ".0.")
            .replace(".linear2.", ".2.")
        )
        name = name.replace("audio_model.audio_encoder.", "audio_branch.").replace(".batch_norm.", ".bn0.")
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        if name.startswith("audio_branch.layers."):
            name = name.replace("attention.output.dense", "attn.proj").replace(
                "intermediate.dense", "mlp.fc1"
            )
            name = name.replace("attention.self.relative", "attn.relative").replace(
                ".output.dense", ".mlp.fc2"
            )
            if ".attention.self.query." in name:
                whole = [held[_hub_name(name).replace("query", part)] for part in ("query", "key", "value")]
                name, x = name.replace("attention.self.query", "attn.qkv"), torch.cat(whole)
            elif ".attention.self." in name:
                continue
        state[f"module.{name}"] = x.clone()
    config = FrontEnd(**CLAP_FRONT, image_size=128)
    state["module.audio_branch.logmel_extractor.melW"] = mel_weights(config)
    for part in ("real", "imag"):
        kernel = fourier_kernel(config.fft, part)
        state[f"module.audio_branch.spectrogram_extractor.stft.conv_{part}.weight"] = kernel
    blocks = Htsat(HtsatConfig(front_end=config, **CLAP_SIZES))
    for name, x in blocks.named_buffers():
        if name.endswith(".mask"):
            state[
                f"module.audio_branch.{name.replace('stages.', 'layers.').replace('.mask', '.attn_mask')}"
            ] = x
    state |= {f"module.audio_branch.{n}.weight": torch.zeros(3) for n in ("tscam_conv", "head")}
    state |= {f"module.{side}_transform.sequential.0.weight": torch.zeros(2, 2) for side in ("audio", "text")}
    optimizer = {"param_groups": [{"lr": np.float64(1e-4)}]}
    torch.save({"epoch": 3, "name": "tiny", "state_dict": state, "optimizer": optimizer}, path)


def _hub_name(name: str) -> str:
    return name.replace("audio_branch.", "audio_model.audio_encoder.")


def read_json(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path.read_bytes())
    return held
