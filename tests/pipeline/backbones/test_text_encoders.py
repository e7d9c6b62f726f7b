"""CLIP's and CLAP's text towers: tokens and masks of tiny checkpoints in the published formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones import text_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.clip_visual import import_open_clip
from caeav.pipeline.backbones.weights import WeightsError

TEXTS = ["a dog barks", "", "rain on a roof, and a far train", "a dog barks"]


pytestmark = pytest.mark.usefixtures("offline_hub")


@pytest.fixture
def tiny_clip(tmp_path: Path) -> tuple[Any, Path]:
    """A small CLIP, registered with open_clip as `caeav-tiny`, and its weight file."""
    open_clip = import_open_clip()
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "caeav-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(2)
    model = open_clip.create_model("caeav-tiny").eval()
    path = tmp_path / "open_clip_model.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@pytest.fixture
def with_tokenizer() -> Callable[[Path], Path]:
    """`with_tokenizer(folder)`: write a byte tokenizer of 120 entries to its `tokenizer.json`."""

    def put(folder: Path) -> Path:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        marks = ("<s>", "<pad>", "</s>", "<unk>")
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:100]
        tokenizer = Tokenizer(
            models.BPE({x: i for i, x in enumerate((*marks, *letters))}, [], unk_token="<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=False
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return put


def clip(path: Path, **settings: Any) -> Any:
    return text_backbones["open_clip:caeav-tiny"](ModelChoice("open_clip:caeav-tiny", str(path), settings))


def test_clip_tokens_are_those_that_open_clip_pools(tiny_clip: tuple[Any, Path]) -> None:
    model, path = tiny_clip
    encoder = clip(path)
    tokens, mask = encoder.encode(TEXTS)
    assert (encoder.max_tokens, encoder.channels) == (77, 16)
    assert tokens.shape == (4, 77, 16) and tokens.dtype == np.float32
    ids = import_open_clip().tokenize(TEXTS)
    with torch.no_grad():
        wanted = model.encode_text(ids).numpy()
    for n in (0, 2):
        end = int(mask[n].sum()) - 1
        assert ids[n, end] == 49407 and mask[n, : end + 1].all(), "the mask ends with the end of text"
        assert np.allclose(tokens[n, end] @ model.text_projection.detach().numpy(), wanted[n], atol=1e-5)
        assert not tokens[n, end + 1 :].any()


@pytest.mark.parametrize("which", ["clip", "clap"])
def test_an_empty_text_has_no_tokens_and_texts_do_not_depend_on_their_batch(
    which: str,
    tiny_clip: tuple[Any, Path],
    tiny_clap: Callable[..., Any],
    with_tokenizer: Callable[[Path], Path],
) -> None:
    if which == "clip":
        encoder = clip(tiny_clip[1])
    else:
        folder = with_tokenizer(tiny_clap().folder)
        encoder = text_backbones["clap"](ModelChoice("clap", str(folder), {"max_tokens": 40}))
    tokens, mask = encoder.encode(TEXTS)
    assert not mask[1].any() and not tokens[1].any()
    assert mask[0].sum() >= 5 and np.array_equal(tokens[0], tokens[3])
    alone, alone_mask = encoder.encode(TEXTS[2:3])
    assert np.array_equal(alone_mask[0], mask[2]) and np.allclose(alone[0], tokens[2], atol=1e-5)
    nothing, no_mask = encoder.encode([])
    assert nothing.shape == (0, encoder.max_tokens, encoder.channels) and no_mask.shape == nothing.shape[:2]


def test_a_long_text_is_truncated_and_keeps_its_end_token(tiny_clip: tuple[Any, Path]) -> None:
    encoder = clip(tiny_clip[1], max_tokens=6)
    tokens, mask = encoder.encode(["one two three four five six seven eight"])
    assert mask.all() and tokens.shape == (1, 6, 16)
    full, _ = clip(tiny_clip[1]).encode(["one two three four"])
    assert np.allclose(tokens[0], full[0, :6], atol=1e-5), "begin, four words, end"


def test_a_clip_whose_text_tower_is_incomplete_is_refused(tiny_clip: tuple[Any, Path]) -> None:
    _, path = tiny_clip
    state = load_file(path)
    del state["transformer.resblocks.1.mlp.c_fc.weight"]
    state["token_embedding.weight"] = state["token_embedding.weight"][:100].clone()
    save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        clip(path).module()
    assert "missing: transformer.resblocks.1.mlp.c_fc.weight" in str(caught.value)
    assert "token_embedding.weight is [100, 16], needed [49408, 16]" in str(caught.value)


def test_an_image_tower_alone_is_refused(tiny_clip: tuple[Any, Path]) -> None:
    _, path = tiny_clip
    save_file({name: x for name, x in load_file(path).items() if name.startswith("visual.")}, path)
    with pytest.raises(WeightsError, match="holds no text tower"):
        clip(path).module()


def test_models_with_another_tokenizer_are_refused() -> None:
    for name in ("roberta-ViT-B-32", "no-such-model"):
        with pytest.raises(CaeavError, match="no text tower of its own tokenizer"):
            text_backbones["open_clip:x"](ModelChoice(f"open_clip:{name}", "random:0"))


def test_clap_tokens_are_those_of_transformers_from_both_formats(
    tiny_clap: Callable[..., Any], with_tokenizer: Callable[[Path], Path]
) -> None:
    tiny = tiny_clap()
    folder = with_tokenizer(tiny.folder)
    from_folder = text_backbones["clap"](ModelChoice("clap", str(folder), {"max_tokens": 40}))
    own = {"max_tokens": 40, "tokenizer": str(folder)}
    from_file = text_backbones["clap"](ModelChoice("clap", str(tiny.file), own))
    tokens, mask = from_folder.encode(TEXTS)
    others, other_mask = from_file.encode(TEXTS)
    assert np.array_equal(tokens, others) and np.array_equal(mask, other_mask)
    ids, attention = from_folder.tokenize(TEXTS[:1])
    count = int(attention.sum())
    with torch.no_grad():
        wanted = tiny.model.text_model(input_ids=ids[:, :count]).last_hidden_state[0].numpy()
    assert count == len("a dog barks") + 2 and np.allclose(tokens[0, :count], wanted, atol=1e-5)
    settings = from_file.describe()["settings"]
    assert settings["tokenizer"].startswith("sha256:") and str(folder.parent) not in str(from_file.describe())
    again = text_backbones["clap"](ModelChoice("clap", str(tiny.file), settings))
    assert again.describe() == from_file.describe()


def test_a_text_tower_alone_is_accepted_and_an_audio_tower_refused(
    tiny_clap: Callable[..., Any], with_tokenizer: Callable[[Path], Path], tmp_path: Path
) -> None:
    from transformers import ClapTextModelWithProjection

    tiny = tiny_clap()
    alone = tmp_path / "alone"
    ClapTextModelWithProjection.from_pretrained(tiny.folder).save_pretrained(alone)
    with_tokenizer(alone), with_tokenizer(tiny.folder)
    a, b = (
        text_backbones["clap"](ModelChoice("clap", str(folder), {"max_tokens": 40})).encode(TEXTS)[0]
        for folder in (alone, tiny.folder)
    )
    assert np.array_equal(a, b)
    state = load_file(tiny.folder / "model.safetensors")
    audio_only = {name: x for name, x in state.items() if name.startswith("audio_")}
    save_file(audio_only, tiny.folder / "model.safetensors")
    with pytest.raises(WeightsError, match="has no text tower"):
        text_backbones["clap"](ModelChoice("clap", str(tiny.folder)))


def test_a_missing_key_of_the_text_tower_is_named(
    tiny_clap: Callable[..., Any], with_tokenizer: Callable[[Path], Path]
) -> None:
    folder = with_tokenizer(tiny_clap().folder)
    state = load_file(folder / "model.safetensors")
    gone = "text_model.encoder.layer.1.output.dense.bias"
    save_file({name: x for name, x in state.items() if name != gone}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: encoder.layer.1.output.dense.bias"):
        text_backbones["clap"](ModelChoice("clap", str(folder), {"max_tokens": 40})).module()


def test_a_missing_empty_or_different_tokenizer_is_refused(
    tiny_clap: Callable[..., Any], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models

    tiny = tiny_clap()
    # none in the folder, none in the cache
    with pytest.raises(
        WeightsError, match=r"tokenizer of clap[^|]*next: set 'tokenizer' of clap to a folder"
    ):
        text_backbones["clap"](ModelChoice("clap", str(tiny.folder)))
    for entries in ({"<s>": 0, "<pad>": 1, "</s>": 2}, {str(i): i for i in range(500)}):
        Tokenizer(models.BPE(entries, [])).save(str(tiny.folder / "tokenizer.json"))
        with pytest.raises(WeightsError, match=f"has {len(entries)} entries, the network 120"):
            text_backbones["clap"](ModelChoice("clap", str(tiny.folder)))
    (tiny.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot be read"):
        text_backbones["clap"](ModelChoice("clap", str(tiny.folder)))


def test_a_tokenizer_in_two_files_equals_that_in_one(
    tiny_clap: Callable[..., Any], with_tokenizer: Callable[[Path], Path], tmp_path: Path
) -> None:
    tiny = tiny_clap()
    folder = with_tokenizer(tiny.folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (pair / "merges.txt").write_text("#version: 0.2\n")
    encoders = [
        text_backbones["clap"](ModelChoice("clap", str(folder), {"max_tokens": 40, "tokenizer": given}))
        for given in (str(folder), str(pair))
    ]
    (a, mask), (b, other) = (encoder.tokenize(TEXTS) for encoder in encoders)
    assert torch.equal(a, b) and torch.equal(mask, other)


def test_max_tokens_must_allow_begin_word_and_end(tiny_clip: tuple[Any, Path]) -> None:
    for length in (2, 78):
        with pytest.raises(CaeavError, match=f"max_tokens of open_clip:caeav-tiny is {length}"):
            clip(tiny_clip[1], max_tokens=length)


def test_claps_longest_text_excludes_the_padding_positions() -> None:
    assert text_backbones["clap"](ModelChoice("clap", "random:0", {"max_tokens": 512})).max_tokens == 512
    with pytest.raises(CaeavError, match="max_tokens of clap is 513\n  next: give 3 to 512"):
        text_backbones["clap"](ModelChoice("clap", "random:0", {"max_tokens": 513}))
