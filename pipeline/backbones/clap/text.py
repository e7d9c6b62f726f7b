"""The `clap` text encoder: RoBERTa as CLAP trained it, from a hub folder of transformers or a `.pt` of laion-clap.

Tokens are RoBERTa's last hidden states. The network is transformers' `ClapTextModel`, but filled here: transformers
itself, asked for one tower of a whole CLAP, draws its weights at random without an error. The tokenizer is the one in
the hub folder; a `.pt` has none and takes that of `FacebookAI/roberta-base`, unless the setting `tokenizer` names
another. Shapes: `N` texts, `W` tokens (77), `C` channels (768).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.clap.checkpoint import ClapState, find_clap, read_clap
from caeav.pipeline.backbones.native import import_learned, import_torchaudio, import_torchvision
from caeav.pipeline.backbones.text_tower import TextTower
from caeav.pipeline.backbones.weights import Weights, WeightsError, find_weights
from caeav.pipeline.backbones.weights.find import HUB
from caeav.pipeline.backbones.weights.load import load_checked, seeded

ROBERTA = "hub:FacebookAI/roberta-base"
TOKENIZER = ("tokenizer.json", "vocab.json")
MERGES = "merges.txt"
BEGIN, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
LENGTH = 77
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_HEAD_CHANNELS = 64
_PROBE = "a dog barks on the street"


class ClapText(TextTower):
    """CLAP's RoBERTa; the checkpoint decides its size."""

    def __init__(self, choice: ModelChoice) -> None:
        settings = choice.resolve({"max_tokens": LENGTH, "tokenizer": ""})
        self._weights = find_clap(choice, find_facts("clap", "text encoder").weights, ())
        self._state = None if self._weights.seed is not None else read_clap(self._weights, "text")
        self._config = _configuration(self._state)
        if self._state is None and not settings["tokenizer"]:
            self._tokenizer, digest = byte_tokenizer(), "bytes"
        else:
            found = _find_tokenizer(settings["tokenizer"], self._weights)
            self._tokenizer, digest = read_tokenizer(found, self._config.vocab_size), found.digest
        longest = self._config.max_position_embeddings - 2  # positions start behind that of the padding
        super().__init__(choice.name, settings["max_tokens"], self._config.hidden_size, longest)
        self._settings = {**settings, "tokenizer": digest}
        self._tokenizer.enable_truncation(self.max_tokens)
        pad = self._config.pad_token_id
        self._tokenizer.enable_padding(length=self.max_tokens, pad_id=pad, pad_token=PAD)

    def describe(self) -> Mapping[str, Any]:
        """Length, the tokenizer's digest and the weights."""
        return {
            "settings": dict(self._settings),
            "layer_norm_eps": self._config.layer_norm_eps,
            "weights": self._weights.describe(),
        }

    def build(self) -> nn.Module:
        """The network, filled."""
        with seeded(self._weights):
            tower = _clap().ClapTextModel(self._config, add_pooling_layer=False)
        if self._state is not None:
            load_checked(
                tower, self._state.text, source=self._weights.source, unused=_is_unused, tied=_BUFFERS
            )
            self._state = None  # half a gigabyte
        return cast(nn.Module, tower)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, `[N, W]`."""
        found = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([row.ids for row in found])
        return ids, torch.tensor([row.attention_mask for row in found], dtype=torch.bool)

    def run(self, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids -> last hidden states."""
        return cast(Tensor, module(input_ids=ids, attention_mask=mask.long()).last_hidden_state)


def read_tokenizer(found: Weights, vocabulary: int) -> Any:
    """A byte-pair tokenizer from its files; raises `WeightsError` when it does not fit the network's vocabulary."""
    library = import_learned("tokenizers", "CLAP")
    path = found.files[0]
    try:
        if path.name == TOKENIZER[0]:
            tokenizer = library.Tokenizer.from_file(str(path))
        else:
            merges = str(path.with_name(MERGES))
            tokenizer = _roberta(library.models.BPE.from_file(str(path), merges, unk_token=UNKNOWN))
    except Exception as error:  # the library raises bare Exceptions
        raise WeightsError(
            f"the tokenizer of {found.source} cannot be read: {error}", hint="get it again"
        ) from error
    entries = tokenizer.get_vocab_size()
    if not vocabulary // 2 < entries <= vocabulary or len(tokenizer.encode(_PROBE).ids) < 4:
        raise WeightsError(
            f"the tokenizer of {found.source} has {entries} entries, the network {vocabulary}: it is not its own",
            hint=f"give the folder with {TOKENIZER[0]} as published, or name it by the setting 'tokenizer'",
        )
    return tokenizer


def byte_tokenizer() -> Any:
    """A tokenizer of single bytes, for random weights, which know no words."""
    library = import_learned("tokenizers", "CLAP")
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    entries = {token: i for i, token in enumerate((BEGIN, PAD, END, UNKNOWN, *alphabet))}
    return _roberta(library.models.BPE(entries, [], unk_token=UNKNOWN))


def _roberta(model: Any) -> Any:
    """RoBERTa's tokenizer around a byte-pair model."""
    library = import_learned("tokenizers", "CLAP")
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    end, begin = ((mark, tokenizer.token_to_id(mark)) for mark in (END, BEGIN))
    tokenizer.post_processor = library.processors.RobertaProcessing(end, begin, add_prefix_space=False)
    return tokenizer


def _find_tokenizer(given: str, weights: Weights) -> Weights:
    """The tokenizer's files: those named, else those beside the weights, else RoBERTa's."""
    beside = weights.folder if weights.folder is not None and _has_tokenizer(weights.folder) else None
    choice = ModelChoice("the tokenizer of clap", given or (str(beside) if beside else ""))
    try:
        return find_weights(choice, default=ROBERTA, wants=TOKENIZER, also=(MERGES,))
    except WeightsError as error:
        raise WeightsError(
            error.problem,
            hint=f"set 'tokenizer' of clap to a folder with {TOKENIZER[0]} of {ROBERTA.removeprefix(HUB)}, or to "
            f"{HUB}, which fetches it: --set audio-text.tokenizer={HUB}",
        ) from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER)


def _configuration(state: ClapState | None) -> Any:
    """transformers' configuration: the folder's own, or RoBERTa's with the sizes that the tensors have."""
    make = _clap().ClapTextConfig
    if state is None:
        return make(layer_norm_eps=1e-5)
    if state.text_config:
        return make(**state.text_config)
    try:
        vocabulary, channels = state.text["embeddings.word_embeddings.weight"].shape
        positions = state.text["embeddings.position_embeddings.weight"].shape[0]
        hidden = state.text["encoder.layer.0.intermediate.dense.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(
            f"no RoBERTa: {error} is not there", hint="give a CLAP whose texts are read by RoBERTa"
        ) from error
    layers = {name.split(".")[2] for name in state.text if name.startswith("encoder.layer.")}
    return make(
        vocab_size=vocabulary,
        hidden_size=channels,
        num_hidden_layers=len(layers),
        num_attention_heads=channels // _HEAD_CHANNELS,
        intermediate_size=hidden,
        max_position_embeddings=positions,
        layer_norm_eps=1e-5,  # RoBERTa's; transformers' copies of CLAP say 1e-12
    )


def _is_unused(name: str) -> bool:
    return name.startswith(("pooler.", "text_projection."))


def _clap() -> Any:
    """transformers' package of CLAP: its models and their configurations."""
    for prepare in (import_torchvision, import_torchaudio):
        with suppress(CaeavError):  # transformers can do without them
            prepare()
    return import_learned("transformers.models.clap", "CLAP's text encoder")
