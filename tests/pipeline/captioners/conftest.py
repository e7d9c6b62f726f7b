"""Tiny checkpoints with random weights, written by the real model classes in the real file formats."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.captioners import generate
from caeav.pipeline.media.clip import DecodedClip

WORDS = "a photo of a dog that barks on the street while rain falls and music plays in one sentence describe"
RATE_HZ = 16_000


def transformers() -> Any:
    """The library; the test is skipped without it."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("caeav[learned] is not installed")
    return generate.transformers()


def byte_tokenizer(*special: str) -> Any:
    """A byte-level BPE tokenizer: `<pad>` 0, `</s>` 1, then `special`, then bytes and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([WORDS], trainer)
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="</s>", eos_token="</s>", model_max_length=512
    )


def save(folder: Path, model: Any, processor: Any) -> Path:
    """Write a checkpoint folder in the published form."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def seeded() -> None:
    import torch

    torch.manual_seed(3)


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No test here may use the network or the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("CAEAV_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def opt(vocabulary: int) -> dict[str, Any]:
    """A tiny OPT language model."""
    return {
        "model_type": "opt",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
        "init_std": 0.4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


@pytest.fixture(scope="session")
def tiny_blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP-2 with OPT: 28 px images, 4 query tokens."""
    library = transformers()
    tokenizer = byte_tokenizer("<image>")
    seeded()
    config = library.Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "initializer_range": 0.4,
        },
        qformer_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "encoder_hidden_size": 32,
            "initializer_range": 0.4,
        },
        text_config=opt(len(tokenizer)),
        num_query_tokens=4,
        image_token_index=2,
        initializer_range=0.4,
    )
    model = library.Blip2ForConditionalGeneration(config)
    model.query_tokens.data.normal_()
    images = library.BlipImageProcessor(size={"height": 28, "width": 28})
    processor = library.Blip2Processor(images, tokenizer, num_query_tokens=4)
    return save(tmp_path_factory.mktemp("models") / "blip2", model, processor)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA: CLIP vision and Llama, with a chat template."""
    library = transformers()
    tokenizer = byte_tokenizer("<image>")
    seeded()
    config = library.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 32,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "initializer_range": 0.4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        image_token_index=2,
    )
    images = library.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = library.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:",
    )
    return save(
        tmp_path_factory.mktemp("models") / "llava", library.LlavaForConditionalGeneration(config), processor
    )


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-VL, whose images take more tokens the larger they are."""
    library = transformers()
    pad, begin, end, video = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
    tokenizer = byte_tokenizer(pad, begin, end, video)
    seeded()
    mrope = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    config = library.Qwen2VLConfig(
        text_config={**qwen2(len(tokenizer)), **mrope, "model_type": "qwen2_vl_text"},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
        video_token_id=5,
    )
    processor = library.Qwen2VLProcessor(
        library.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer,
        library.Qwen2VLVideoProcessor(),
        chat_template="{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        f"{begin}{pad}{end}" + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}",
    )
    model = library.Qwen2VLForConditionalGeneration(config)
    return save(tmp_path_factory.mktemp("models") / "qwen2-vl", model, processor)


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP, which has no chat template and replaces the ends of its prompt."""
    library = transformers()
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = [*special, *letters, ".", *(f"##{x}" for x in letters), *sorted(set(WORDS.split()) - {"a"})]
    seeded()
    config = library.BlipConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "initializer_range": 0.4,
            "pad_token_id": 0,
            "bos_token_id": 5,
            "sep_token_id": 3,
            "eos_token_id": 3,
            "max_position_embeddings": 64,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "initializer_range": 0.4,
        },
    )
    processor = library.BlipProcessor(
        library.BlipImageProcessor(size={"height": 28, "width": 28}),
        library.BertTokenizer(vocab={word: i for i, word in enumerate(words)}),
    )
    model = library.BlipForConditionalGeneration(config)
    return save(tmp_path_factory.mktemp("models") / "blip", model, processor)


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual Whisper with 8 mel bands and the usual special tokens."""
    library = transformers()
    vocabulary, merges = bpe_of(byte_tokenizer())
    tokenizer = library.WhisperTokenizer(vocab=vocabulary, merges=merges)
    names = ["<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    seeded()
    config = library.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=64,
        init_std=0.4,
        decoder_start_token_id=start,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    processor = library.WhisperProcessor(library.WhisperFeatureExtractor(feature_size=8), tokenizer)
    return save(
        tmp_path_factory.mktemp("models") / "whisper",
        library.WhisperForConditionalGeneration(config),
        processor,
    )


def bpe_of(tokenizer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a fast tokenizer, with Whisper's end token."""
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = {**model["vocab"]}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    return vocabulary, [tuple(pair) for pair in model["merges"]]


def qwen2(vocabulary: int) -> dict[str, Any]:
    """A tiny Qwen2 language model."""
    return {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


@pytest.fixture(scope="session")
def tiny_qwen2_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-Audio with its default chat template."""
    library = transformers()
    tokenizer = byte_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>")
    seeded()
    config = library.Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 8,
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
        },
        text_config=qwen2(len(tokenizer)),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    processor = library.Qwen2AudioProcessor(library.WhisperFeatureExtractor(feature_size=8), tokenizer)
    return save(
        tmp_path_factory.mktemp("models") / "qwen2-audio",
        library.Qwen2AudioForConditionalGeneration(config),
        processor,
    )


@pytest.fixture(scope="session")
def tiny_flamingo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio Flamingo 3."""
    library = transformers()
    tokenizer = byte_tokenizer("<sound>")
    seeded()
    config = library.AudioFlamingo3Config(
        audio_config={
            "model_type": "audioflamingo3_encoder",
            "num_mel_bins": 8,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        text_config=qwen2(len(tokenizer)),
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    processor = library.AudioFlamingo3Processor(
        library.WhisperFeatureExtractor(feature_size=8),
        tokenizer,
        chat_template="{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'audio' %}<sound>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} Answer:",
    )
    return save(
        tmp_path_factory.mktemp("models") / "flamingo",
        library.AudioFlamingo3ForConditionalGeneration(config),
        processor,
    )


@pytest.fixture
def clip() -> Callable[..., DecodedClip]:
    """`clip(seed, video=True, audio=True)`: four segments of noise and a tone that depend on the seed; 0 is silent."""

    def make(seed: int, *, video: bool = True, audio: bool = True) -> DecodedClip:
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 255, (4, 36, 48, 3), dtype=np.uint8)
        time_s = np.arange(4 * RATE_HZ) / RATE_HZ
        wave = np.sin(2 * np.pi * 150 * seed**2 * time_s * (1 + time_s * (seed % 3))).astype(np.float32) / 2
        return DecodedClip(frames if video else None, wave if audio else None, (video,) * 4, (audio,) * 4)

    return make
