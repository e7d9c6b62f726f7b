"""Learned captioners through their real loading code: deterministic captions that depend on the clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.base import one_caption
from caeav.pipeline.captioners.checkpoints import SILENCE
from caeav.pipeline.captioners.generate import transformers
from caeav.pipeline.media.clip import DecodedClip

MakeClip = Callable[..., DecodedClip]
VISUAL = {
    "blip2": "tiny_blip2",
    "vlm:llava": "tiny_llava",
    "vlm:qwen2-vl": "tiny_qwen2_vl",
    "vlm:blip": "tiny_blip",
}
AUDIO = {"whisper": "tiny_whisper", "qwen2-audio": "tiny_qwen2_audio", "audio-flamingo-3": "tiny_flamingo"}
SMALL = {"max_tokens": 6, "dtype": "float32"}


def captioner(request: pytest.FixtureRequest, name: str, **settings: Any) -> Any:
    """The captioner `name` on its tiny checkpoint."""
    registry = visual_captioners if name in VISUAL else audio_captioners
    folder: Path = request.getfixturevalue({**VISUAL, **AUDIO}[name])
    return registry[name](ModelChoice(name, str(folder), {**SMALL, **settings}))


@pytest.mark.parametrize("name", [*VISUAL, *AUDIO])
def test_a_batch_gives_what_each_clip_gives_alone(
    name: str, request: pytest.FixtureRequest, clip: MakeClip
) -> None:
    model = captioner(request, name)
    clips = [clip(1), clip(2, video=False, audio=False), clip(3), clip(4)]
    together = model.caption(clips)
    assert together == [model.caption([one])[0] for one in clips]
    assert together[1] == ""
    assert together[0] and together[2]
    assert len({together[0], together[2], together[3]}) > 1  # captions depend on the clip
    assert not any("in one sentence" in text.casefold() or "photo of" in text for text in together)
    assert model.caption([clips[1]]) == [""]


@pytest.mark.parametrize("name", [*VISUAL, *AUDIO])
def test_the_description_names_settings_and_weights(name: str, request: pytest.FixtureRequest) -> None:
    model = captioner(request, name)
    described = json.loads(json.dumps(model.describe()))
    assert described["settings"]["max_tokens"] == 6
    assert {"prompt", "beams", "repetition_penalty", "dtype"} <= set(described["settings"])
    assert described["weights"]["digest"].startswith("sha256:")
    assert "/" not in described["weights"]["source"]
    module = model.module()
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", [*VISUAL, *AUDIO])
def test_sampling_settings_of_a_checkpoint_are_ignored(
    name: str, request: pytest.FixtureRequest, clip: MakeClip, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue({**VISUAL, **AUDIO}[name])
    wild = tmp_path / "wild"
    wild.mkdir()
    for file in folder.iterdir():
        (wild / file.name).write_bytes(file.read_bytes())
    config = json.loads((wild / "generation_config.json").read_text())
    config |= {"do_sample": True, "temperature": 9.0, "top_k": 200, "max_new_tokens": 40, "num_beams": 1}
    (wild / "generation_config.json").write_text(json.dumps(config))
    registry = visual_captioners if name in VISUAL else audio_captioners
    sampling = registry[name](ModelChoice(name, str(wild), SMALL))
    clips = [clip(1), clip(5)]
    assert sampling.caption(clips) == captioner(request, name).caption(clips)


def test_blip2_writes_what_the_library_writes_without_prompt_and_image(
    tiny_blip2: Path, request: pytest.FixtureRequest, clip: MakeClip
) -> None:
    import torch

    prompt = "a photo of a dog"
    ours = captioner(request, "blip2", prompt=prompt, frames=1, beams=3)
    one = clip(7)
    library = transformers()
    model = library.Blip2ForConditionalGeneration.from_pretrained(tiny_blip2).eval()
    processor = library.AutoProcessor.from_pretrained(tiny_blip2, backend="pil")
    assert one.frames is not None
    inputs = processor(images=one.frames[2], text=prompt, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, num_beams=3, max_new_tokens=6, do_sample=False)
    places = 4 + len(processor.tokenizer(prompt)["input_ids"])
    assert output[0, :4].tolist() == [2, 2, 2, 2]
    expected = processor.tokenizer.decode(output[0, places:], skip_special_tokens=True)
    assert ours.caption([one]) == [one_caption([expected])]
    assert captioner(request, "blip2", prompt="music", frames=1, beams=3).caption([one]) != [expected]


def test_blip2_with_an_encoder_decoder_has_no_prompt_to_strip(
    tmp_path: Path, tiny_blip2: Path, clip: MakeClip
) -> None:
    library = transformers()
    processor = library.AutoProcessor.from_pretrained(tiny_blip2, backend="pil")
    config = library.Blip2Config.from_pretrained(tiny_blip2)
    config.text_config = library.T5Config(
        vocab_size=len(processor.tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        initializer_factor=3.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    config.use_decoder_only_language_model = False
    library.set_seed(5)
    model = library.Blip2ForConditionalGeneration(config)
    model.query_tokens.data.normal_()
    model.save_pretrained(tmp_path / "t5")
    processor.save_pretrained(tmp_path / "t5")
    ours = visual_captioners["blip2"](ModelChoice("blip2", str(tmp_path / "t5"), {**SMALL, "frames": 1}))
    texts = ours.caption([clip(1), clip(2)])
    assert all(texts)
    assert not any("photo" in text for text in texts)


def test_whisper_continues_a_prefix_of_language_task_and_prompt(
    request: pytest.FixtureRequest, clip: MakeClip
) -> None:
    model = captioner(request, "whisper", prompt="clotho > caption: ")
    tokenizer = model.processor.tokenizer
    begin = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokenizer.convert_ids_to_tokens(model.prefix)[:4] == begin
    assert tokenizer.decode(model.prefix[4:]) == "clotho > caption: "
    assert "clotho" not in model.caption([clip(3)])[0]
    other = captioner(request, "whisper", prompt="audioset > keywords: ")
    assert other.caption([clip(3)]) != model.caption([clip(3)])
    with pytest.raises(CaeavError, match="room for"):
        captioner(request, "whisper", max_tokens=60).caption([clip(3)])


@pytest.mark.parametrize("name", AUDIO)
def test_silence_is_called_silence_and_long_audio_is_captioned_to_its_end(
    name: str, request: pytest.FixtureRequest, clip: MakeClip
) -> None:
    model = captioner(request, name)
    assert model.caption([clip(0)]) == [SILENCE]
    rng = np.random.default_rng(0)
    long = rng.standard_normal(50 * 16_000).astype(np.float32) * 0.2
    begin, end = np.split(long, 2)
    whole, first, last = (
        model.caption([DecodedClip(None, wave, (), (True,))])[0] for wave in (long, begin, end)
    )
    assert whole == one_caption([first, last])


def test_several_frames_give_one_caption_of_distinct_sentences(
    request: pytest.FixtureRequest, clip: MakeClip
) -> None:
    one = clip(9)
    assert one.frames is not None
    three = captioner(request, "blip2", frames=2).caption([one])
    singles = []
    for t in (1, 3):
        frozen = DecodedClip(one.frames[t : t + 1], None, (True,), ())
        singles += captioner(request, "blip2", frames=1).caption([frozen])
    assert three == [one_caption(singles)]
    still = DecodedClip(np.repeat(one.frames[1:2], 4, axis=0), None, (True,) * 4, ())
    assert captioner(request, "blip2", frames=3).caption([still]) == singles[:1]


def test_frames_of_different_sizes_share_a_batch(request: pytest.FixtureRequest, clip: MakeClip) -> None:
    wide = DecodedClip(np.full((4, 40, 90, 3), 80, dtype=np.uint8), None, (True,) * 4, ())
    for name in VISUAL:
        model = captioner(request, name)
        clips = [clip(1), wide, clip(2)]
        assert model.caption(clips) == [model.caption([x])[0] for x in clips]


def test_half_precision_is_a_setting(request: pytest.FixtureRequest, clip: MakeClip) -> None:
    import torch

    model = captioner(request, "vlm:llava", dtype="bfloat16")
    assert next(model.module().parameters()).dtype == torch.bfloat16
    assert model.caption([clip(1)])[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frames": 0}, "'frames'.* is 0"),
        ({"beams": 0}, "'beams'.* is 0"),
        ({"dtype": "int4"}, "float32, bfloat16"),
        ({"temperature": 1.0}, "no setting 'temperature'"),
        ({"prompt": 3}, "'prompt'"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(
    settings: dict[str, Any], said: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(CaeavError, match=said):
        captioner(request, "blip2", **settings)
