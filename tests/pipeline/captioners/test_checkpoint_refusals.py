"""Refusals of checkpoints that a library would accept silently: lost tensors, empty tokenizers, code, other models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights import WeightsError
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.generate import check_tokenizer, new_tokens
from caeav.pipeline.media.clip import DecodedClip

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def copy(tiny_blip2: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BLIP-2 to be damaged."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in tiny_blip2.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def blip2(folder: Path) -> Any:
    return visual_captioners["blip2"](ModelChoice("blip2", str(folder), {"max_tokens": 4}))


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _lose(state: dict[str, torch.Tensor]) -> None:
    del state["language_projection.weight"]


def _add(state: dict[str, torch.Tensor]) -> None:
    state["somebody.else"] = torch.zeros(2)


def _reshape(state: dict[str, torch.Tensor]) -> None:
    state["language_projection.weight"] = torch.zeros(7, 3)


def _spoil(state: dict[str, torch.Tensor]) -> None:
    state["language_projection.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_lose, r"missing: language_projection\.weight"),
        (_add, r"unexpected: somebody\.else"),
        (_reshape, "language_projection|mismatch|size"),
        (_spoil, r"not finite: language_projection\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(copy: Path, change: Change, said: str) -> None:
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=said):
        blip2(copy).module()


def test_a_truncated_file_is_refused(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        blip2(copy).module()


def test_weights_as_a_torch_file_are_read_as_tensors_only(copy: Path, tiny_blip2: Path) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    ours = dict(blip2(copy).module().named_parameters())
    for name, tensor in blip2(tiny_blip2).module().named_parameters():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)
    marker = copy / "marker"
    torch.save({"x": _Bomb(marker)}, copy / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        blip2(copy).module()
    assert not marker.exists()


class _Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_another_model_is_refused_before_it_is_loaded(tiny_llava: Path, tiny_whisper: Path) -> None:
    with pytest.raises(WeightsError, match="type 'llava'; blip2 takes blip-2"):
        blip2(tiny_llava)
    with pytest.raises(WeightsError, match="type 'whisper'; qwen2-audio takes qwen2_audio"):
        audio_captioners["qwen2-audio"](ModelChoice("qwen2-audio", str(tiny_whisper)))


def test_a_folder_without_its_tokenizer_is_refused(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(WeightsError, match=r"tokenizer|processor"):
        _ = blip2(copy).processor


def test_an_empty_tokenizer_and_one_that_loses_words_are_refused() -> None:
    class Empty:
        def __len__(self) -> int:
            return 3

    class Forgetful:
        def __len__(self) -> int:
            return 50_000

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0] * len(text.split())}

        def decode(self, ids: list[int], **_: Any) -> str:
            return " ".join("<unk>" for _ in ids)

    with pytest.raises(WeightsError, match="only 3 entries"):
        check_tokenizer(Empty(), "x")
    with pytest.raises(WeightsError, match="<unk>"):
        check_tokenizer(Forgetful(), "x")


def test_a_processor_that_leaves_no_place_for_the_image_is_refused(
    copy: Path, clip: Callable[..., DecodedClip]
) -> None:
    change_json(copy / "processor_config.json", num_query_tokens=None)
    with pytest.raises(WeightsError, match="leaves 0 places for an image, the model needs 4"):
        blip2(copy).caption([clip(1)])


def test_code_in_a_checkpoint_is_never_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (copy / "modeling_own.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    own = {"AutoConfig": "modeling_own.C", "AutoModelForImageTextToText": "modeling_own.M"}
    change_json(copy / "config.json", model_type="own", auto_map=own)
    model = visual_captioners["vlm:own"](ModelChoice("vlm:own", str(copy)))
    with pytest.raises(WeightsError, match="needs no code of its own"):
        model.module()
    assert len(model.processor.tokenizer) > 64  # the processor's files are of a known type
    assert not marker.exists()


def test_every_file_beside_the_weights_is_part_of_the_digest(copy: Path, tiny_blip2: Path) -> None:
    before = blip2(copy).describe()["weights"]["digest"]
    assert before == blip2(tiny_blip2).describe()["weights"]["digest"]
    change_json(copy / "processor_config.json", num_query_tokens=5)
    assert blip2(copy).describe()["weights"]["digest"] != before


def test_missing_weights_are_an_error_that_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CaeavError, match=r"caeav models pull blip2 .*Salesforce/blip2-opt-2\.7b"):
        visual_captioners["blip2"](ModelChoice("blip2"))
    with pytest.raises(CaeavError, match=r"llava-hf/llava-1\.5-7b-hf"):
        visual_captioners["vlm:x"](ModelChoice("vlm:llava-hf/llava-1.5-7b-hf"))
    with pytest.raises(CaeavError, match="no default weights"):
        visual_captioners["vlm:x"](ModelChoice("vlm:mine"))
    with pytest.raises(CaeavError, match="of no known size"):
        visual_captioners["vlm:x"](ModelChoice("vlm:mine", "random:0"))


def test_a_prompt_is_stripped_exactly_or_not_at_all() -> None:
    prompt = torch.tensor([[5, 6, 7], [5, 6, 7]])
    written = torch.tensor([[8, 9], [5, 6]])
    assert torch.equal(new_tokens(torch.cat([prompt, written], 1), prompt, 2), written)
    assert torch.equal(new_tokens(written, prompt, 2), written)
    other = torch.tensor([[5, 6, 1, 8, 9], [5, 6, 1, 5, 6]])
    with pytest.raises(CaeavError, match="not its prompt first"):
        new_tokens(other, prompt, 2)
