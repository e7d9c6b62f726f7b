"""Captioners of real size with random values, to measure speed and memory without a checkpoint.

Configs are those of the published checkpoints. The tokenizer knows single bytes only and pads its vocabulary with
unused names, so that the networks have their real width; what such a model writes means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from caeav.manifests.core.registry import Registry
from caeav.pipeline.captioners.generate import transformers

Parts = tuple[Any, Callable[[], Any]]
"""A config, and what makes the processor that goes with it."""

sizes: Registry[Callable[[], Parts]] = Registry("captioner of known size")


def random_model(name: str, factory: Any, seed: int, dtype: str) -> Any:
    """A model of `factory`, its values drawn from `seed`; frozen, in eval mode."""
    import torch

    config, _ = sizes[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory._from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


def byte_processor(name: str) -> Any:
    """The processor that goes with the random model of a captioner."""
    _, make = sizes[name]()
    return make()


def _bytes_and_fillers(size: int) -> list[str]:
    """A vocabulary of 256 bytes and unused names."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [*sorted(ByteLevel.alphabet()), *(f"<unused{i}>" for i in range(size - 256))]


def _byte_tokenizer(size: int, *names: str) -> Any:
    """A byte-level tokenizer of `size` entries, the last ones the special tokens `<pad>`, `</s>` and `names`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pad, end = "<pad>", "</s>"
    special = (pad, end, *names)
    entries = [*_bytes_and_fillers(size - len(special)), *special]
    backend = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token=end, padding_side="left"
    )


def _ends(size: int, names: int) -> dict[str, int]:
    """The ids that `_byte_tokenizer` gives to the special tokens every model needs, `names` others behind them."""
    return {"vocab_size": size, "pad_token_id": size - names - 2, "eos_token_id": size - names - 1}


@sizes.register("blip2")
def blip2() -> Parts:
    """`Salesforce/blip2-opt-2.7b`: the vision and Q-Former configs are the library's defaults."""
    library, size = transformers(), 50_304
    text = {
        "model_type": "opt",
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "ffn_dim": 10_240,
        "bos_token_id": size - 2,
        **_ends(size, 1),
    }
    config = library.Blip2Config(text_config=text, image_token_index=size - 1)

    def processor() -> Any:
        images = library.BlipImageProcessorPil(size={"height": 224, "width": 224})
        tokenizer = _byte_tokenizer(size, "<image>")
        return library.Blip2Processor(images, tokenizer, num_query_tokens=config.num_query_tokens)

    return config, processor


@sizes.register("whisper")
def whisper() -> Parts:
    """`MU-NLPC/whisper-tiny-audio-captioning`, of the size of `openai/whisper-tiny`."""
    library, size = transformers(), 51_865
    names = ("<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
    end = size - len(names) - 1
    config = library.WhisperConfig(
        vocab_size=size,
        num_mel_bins=80,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        decoder_start_token_id=end + 1,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )

    def processor() -> Any:
        entries = [*_bytes_and_fillers(end), "<|endoftext|>"]
        tokenizer = library.WhisperTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[])
        tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
        return library.WhisperProcessor(library.WhisperFeatureExtractor(feature_size=80), tokenizer)

    return config, processor


@sizes.register("qwen2-audio")
def qwen2_audio() -> Parts:
    """`Qwen/Qwen2-Audio-7B-Instruct`: the audio config is the library's default."""
    library, size = transformers(), 156_032
    names = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>")
    text = {
        "model_type": "qwen2",
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        **_ends(size, len(names)),
    }
    config = library.Qwen2AudioConfig(text_config=text, audio_token_index=size - len(names))

    def processor() -> Any:
        extractor = library.WhisperFeatureExtractor(feature_size=128)
        return library.Qwen2AudioProcessor(extractor, _byte_tokenizer(size, *names))

    return config, processor


@sizes.register("audio-flamingo-3")
def audio_flamingo_3() -> Parts:
    """`nvidia/audio-flamingo-3-hf`: the audio config is the library's default."""
    library, size = transformers(), 151_672
    text = {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        **_ends(size, 1),
    }
    config = library.AudioFlamingo3Config(text_config=text, audio_token_id=size - 1)

    def processor() -> Any:
        extractor = library.WhisperFeatureExtractor(feature_size=128)
        return library.AudioFlamingo3Processor(
            extractor, _byte_tokenizer(size, "<sound>"), chat_template=_PLAIN_CHAT
        )

    return config, processor


_PLAIN_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<sound>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
