"""A text-writing model of transformers: loaded whole or refused, and made to write without sampling.

The library stays silent where a checkpoint lacks keys (it draws them at random) and where a tokenizer came back
empty, lets a checkpoint's own file switch sampling on, and returns the prompt with the output for some models and
without it for others. Here each of these is settled or an error. No code of a checkpoint is ever run.
Shapes: `N` prompts, `W` tokens.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import some_of
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.native import import_torchaudio, import_torchvision
from caeav.pipeline.backbones.weights.find import Weights, WeightsError, find_weights

TENSORS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
BESIDE = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "normalizer.json", "tokenizer.model", "spiece.model"),
    *("chat_template.json", "chat_template.jinja"),
)
DTYPES = ("float32", "bfloat16", "float16")
MIN_VOCABULARY = 64
"""A tokenizer that came back without its vocabulary has 2 to 5 entries."""
PROBE = "a dog barks on the street"
_FAILURES = (
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError, EOFError),
    *(SafetensorError, UnpicklingError),
)
_SHOWN = 6


@dataclass(frozen=True)
class Decoding:
    """How text is generated, all of it: `beams` (1: greedy), at most `max_tokens` new tokens, no sampling."""

    beams: int
    max_tokens: int
    repetition_penalty: float


def transformers() -> Any:
    """The library, importable beside any torch and quiet; raises `CaeavError` when it is not installed."""
    for prepare in (import_torchvision, import_torchaudio):
        with suppress(CaeavError):  # it works without them where they are not installed
            prepare()
    try:
        library = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise CaeavError(
            "this captioner needs transformers, which is not installed", hint="pip install 'caeav[learned]'"
        ) from error
    library.logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        library.logging.set_verbosity_error()
    return library


def checkpoint(choice: ModelChoice, default: str, model_types: Sequence[str] = ()) -> Weights:
    """The checkpoint folder of a captioner, of one of `model_types` (none named: of any); raises `WeightsError`.

    Random weights have no folder, see `random_models.py`.
    """
    found = find_weights(choice, default=default, wants=TENSORS, needs=("config.json",), also=BESIDE)
    if found.seed is not None:
        return found
    if not all(path.name.startswith(("model", "pytorch_model")) for path in found.files):
        raise WeightsError(
            f"{found.files[0].name} is not what transformers calls the weights in a folder ({', '.join(TENSORS)})",
            hint="give the whole folder, as published",
        )
    kind = _model_type(found)
    if model_types and kind not in model_types:
        raise WeightsError(
            f"{found.source} holds a model of type {kind!r}; {choice.name} takes {', '.join(model_types)}",
            hint="choose the captioner for this model, or another checkpoint",
        )
    return found


def _model_type(found: Weights) -> str:
    assert found.folder is not None
    try:
        return str(json.loads((found.folder / "config.json").read_bytes())["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the config.json of {found.source} does not say what model it is", hint="get the folder again"
        ) from error


def load_model(factory: Any, found: Weights, dtype: str) -> Any:
    """A model in eval mode, frozen, its weights all from the checkpoint and in `dtype`.

    Raises `WeightsError` for keys that are missing (they would be random), unexpected, of another shape, or not finite.
    """
    try:
        model, info = factory.from_pretrained(
            found.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=found.files[0].suffix == ".safetensors",
            output_loading_info=True,
            **_LOCAL,
        )
    except _FAILURES as error:
        raise _unusable(found, "the model", error) from error
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "wrong shape": sorted(str(key) for key in info["mismatched_keys"]),
        "errors": [str(text).strip() for text in info["error_msgs"]],
        "not finite": [name for name, x in model.named_parameters() if not bool(torch.isfinite(x).all())],
    }
    if any(wrong.values()):
        found_wrong = "; ".join(f"{what}: {some_of(names, _SHOWN)}" for what, names in wrong.items() if names)
        raise WeightsError(
            f"{found.source} does not fit {type(model).__name__}: {found_wrong}",
            hint="give the checkpoint of this very model; nothing is left at random values",
        )
    return model.eval().requires_grad_(False)


def load_processor(found: Weights, image_backend: str | None = None) -> Any:
    """The checkpoint's processor (tokenizer and what prepares images or audio), its tokenizer checked.

    `image_backend`: which of the library's forms prepares images, where a model has several: `pil`, `torchvision`.
    """
    library = transformers()
    try:
        processor = library.AutoProcessor.from_pretrained(found.folder, **_LOCAL)
        if image_backend is not None:  # not asked of the whole processor: those of videos have one form only
            processor.image_processor = library.AutoImageProcessor.from_pretrained(
                found.folder, backend=image_backend, **_LOCAL
            )
    except _FAILURES as error:
        raise _unusable(found, "the processor", error) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise WeightsError(f"{found.source} has no tokenizer", hint="give the whole folder, as published")
    check_tokenizer(tokenizer, found.source)
    tokenizer.padding_side = "left"
    return processor


_LOCAL: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_tokenizer(tokenizer: Any, source: str) -> None:
    """Raises `WeightsError` for a tokenizer without its vocabulary, or one that loses an ordinary sentence."""
    if len(tokenizer) < MIN_VOCABULARY:
        raise WeightsError(
            f"the tokenizer of {source} has only {len(tokenizer)} entries: its vocabulary was not found",
            hint="give the whole folder, tokenizer files included",
        )
    back = tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    if back.casefold().split() != PROBE.split():
        raise WeightsError(
            f"the tokenizer of {source} makes {back!r} of {PROBE!r}",
            hint="give the whole folder, tokenizer files included",
        )


def settle_decoding(module: nn.Module, decoding: Decoding, tokens: Sequence[str]) -> None:
    """Replace every generation config in `module`: of the checkpoint's own only the token ids named are kept."""
    config = transformers().GenerationConfig
    for part in module.modules():
        own = getattr(part, "generation_config", None)
        if own is not None:
            kept = {name: getattr(own, name, None) for name in tokens}
            vars(part)["generation_config"] = config(
                do_sample=False,
                num_beams=decoding.beams,
                max_new_tokens=decoding.max_tokens,
                repetition_penalty=decoding.repetition_penalty,
                **{name: value for name, value in kept.items() if value is not None},
            )


def new_tokens(output: Tensor, prompt: Tensor, max_tokens: int) -> Tensor:
    """The tokens written, `[N, <= max_tokens]`: `output` `[N, W]`, without the prompt if it begins with it."""
    width = prompt.shape[1]
    if output.shape[1] >= width and torch.equal(output[:, :width].to(prompt), prompt):
        return output[:, width:]
    if output.shape[1] > max_tokens + 1:  # a decoder's own start token may come on top
        raise CaeavError(
            f"the model gave {output.shape[1]} tokens, more than the {max_tokens} asked for, and not its prompt first",
            hint="this model's output cannot be told from its prompt; choose another",
        )
    return output


def _unusable(found: Weights, what: str, error: Exception) -> WeightsError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return WeightsError(
        f"{what} of {found.source} cannot be loaded: {lines[0]}",
        hint="give the whole folder, as published, of a model that needs no code of its own",
    )
