"""The parts of a learned captioner without a checkpoint: inputs, batching, decoding, refusals."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights import WeightsError
from caeav.pipeline.captioners import audio, checkpoints, generate, visual
from caeav.pipeline.captioners.checkpoints import SILENCE, SILENT_BELOW, LearnedCaptioner
from caeav.pipeline.captioners.generate import Decoding, check_tokenizer, new_tokens, settle_decoding
from caeav.pipeline.media.clip import DecodedClip


def bare(kind: type[LearnedCaptioner], **settings: Any) -> Any:
    """A captioner without weights."""
    made = object.__new__(kind)
    made.name, made.settings = "m", {**kind.defaults, **settings}
    return made


def audio_clip(seconds: float, level: float = 0.5) -> DecodedClip:
    return DecodedClip(None, np.full(round(seconds * 16_000), level, np.float32), (), (True,))


@pytest.mark.parametrize(("seconds", "count"), [(1, 1), (30, 1), (30.1, 2), (60, 2), (61, 3)])
def test_audio_is_cut_into_equal_windows_of_at_most_thirty_seconds(seconds: float, count: int) -> None:
    captioner, clip = bare(audio.Qwen2Audio), audio_clip(seconds)
    windows = captioner.inputs(clip)
    assert len(windows) == count and len({len(x) for x in windows}) == 1
    assert clip.wave is not None and 0 <= sum(map(len, windows)) - len(clip.wave) < count
    joined = np.concatenate(windows)
    assert (joined[: len(clip.wave)] == 0.5).all() and not joined[len(clip.wave) :].any()
    assert all(not x.any() and len(x) == len(windows[0]) for x in captioner.empty(windows))
    assert captioner.inputs(DecodedClip(None, None, (), ())) == []


def test_audio_that_never_exceeds_a_level_is_silence() -> None:
    captioner = bare(audio.Qwen2Audio)
    assert captioner.finish(audio_clip(1, SILENT_BELOW / 2), ["a dog"]) == SILENCE
    assert captioner.finish(audio_clip(1, -SILENT_BELOW * 2), ["a dog", "a cat"]) == "a dog. a cat."
    loud = audio_clip(1, 0.0)
    assert loud.wave is not None
    loud.wave[7] = 2 * SILENT_BELOW
    assert captioner.finish(loud, ["a dog"]) == "a dog"


def test_frames_are_taken_evenly_from_segments_that_have_any() -> None:
    frames = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(2, 1).repeat(3, 2).repeat(3, 3)
    captioner = bare(visual.Blip2, frames=2)
    taken = captioner.inputs(DecodedClip(frames, None, (False, True, True, False), ()))
    assert [int(x[0, 0, 0]) for x in taken] == [1, 2]
    assert all(x.shape == (2, 3, 3) and not x.any() for x in captioner.empty(taken))
    assert captioner.inputs(DecodedClip(None, None, (), ())) == []


class Echo(LearnedCaptioner):
    """Captions each part with the part's name."""

    modality = "visual"

    def factory(self) -> Any:
        raise NotImplementedError

    def inputs(self, clip: DecodedClip) -> list[str]:
        return [] if clip.frames is None else [f"{clip.key}{i}" for i in range(2)]

    def empty(self, like: Sequence[str]) -> list[str]:
        return ["nothing"] * len(like)

    def write(self, parts: Sequence[str]) -> list[str]:
        assert torch.is_inference_mode_enabled()
        self.asked = list(parts)
        return [f"see {part}" for part in parts]


def test_a_batch_keeps_its_size_and_texts_of_empty_places_are_dropped() -> None:
    captioner = bare(Echo)
    there = np.zeros((1, 1, 1, 3), np.uint8)
    clips = [
        DecodedClip(x, None, (True,), (), key=key) for key, x in (("a", None), ("b", there), ("c", there))
    ]
    assert captioner.caption(clips) == ["", "see b0. see b1.", "see c0. see c1."]
    assert captioner.asked == ["nothing", "nothing", "b0", "b1", "c0", "c1"]
    assert captioner.caption(clips[:1]) == [""] and captioner.caption([]) == []


def test_generation_settings_replace_those_of_a_checkpoint_in_every_part() -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("caeav[learned] is not installed")
    config = generate.transformers().GenerationConfig
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    for part, number in ((model, 3), (model[1], 4)):
        vars(part)["generation_config"] = config(
            do_sample=True, temperature=9.0, eos_token_id=number, suppress_tokens=[5], num_beams=7, top_k=3
        )
    settle_decoding(model, Decoding(2, 17, 1.5), ("eos_token_id", "pad_token_id"))
    assert not hasattr(model[0], "generation_config")
    for part, number in ((model, 3), (model[1], 4)):
        own: Any = part.generation_config
        assert (own.do_sample, own.num_beams, own.max_new_tokens) == (False, 2, 17)
        assert (own.repetition_penalty, own.eos_token_id, own.pad_token_id) == (1.5, number, None)
        assert own.suppress_tokens is None and own.top_k != 3 and own.temperature != 9.0


def test_every_setting_reaches_the_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[Any] = []
    monkeypatch.setattr(checkpoints, "settle_decoding", lambda *given: settled.append(given))
    monkeypatch.setattr(checkpoints, "load_model", lambda *given: given)
    captioner = bare(visual.Blip2, beams=4, max_tokens=9, repetition_penalty=1.25, dtype="float16")
    captioner.weights, captioner.factory = SimpleNamespace(seed=None), lambda: "factory"
    assert captioner.model == ("factory", captioner.weights, "float16")
    assert settled == [(captioner.model, Decoding(4, 9, 1.25), captioner.kept)]


def test_inputs_are_converted_to_the_models_dtype() -> None:
    captioner = bare(Echo)
    captioner.module = lambda: nn.Linear(1, 1).to(torch.bfloat16)
    placed = captioner.placed({"pixels": torch.ones(2), "ids": torch.tensor([1, 2]), "sizes": [3]})
    assert {name: x.dtype for name, x in placed.items()} == {"pixels": torch.bfloat16, "ids": torch.int64}


def test_only_new_tokens_are_decoded() -> None:
    captioner = bare(Echo, max_tokens=2)
    said = lambda rows, **_: [str(row) for row in rows.tolist()]  # noqa: E731
    captioner.processor = SimpleNamespace(tokenizer=SimpleNamespace(batch_decode=said))
    prompt = torch.tensor([[5, 6]])
    assert captioner.decode(torch.tensor([[5, 6, 7]]), prompt) == ["[7]"]
    assert captioner.decode(torch.tensor([[5, 6]]), prompt) == ["[]"]
    assert captioner.decode(torch.tensor([[1, 7, 8]]), prompt) == [
        "[1, 7, 8]"
    ]  # with an additional start token
    with pytest.raises(CaeavError, match="gave 4 tokens, more than the 2 asked for"):
        captioner.decode(torch.tensor([[1, 7, 8, 9]]), prompt)
    assert new_tokens(torch.tensor([[5]]), prompt, 2).tolist() == [[5]]


class Words:
    """A tokenizer of whole words with `entries` entries."""

    def __init__(self, entries: int, change: str = "") -> None:
        self.entries, self.change = entries, change

    def __len__(self) -> int:
        return self.entries

    def __call__(self, text: str, **how: Any) -> dict[str, Any]:
        assert how == {"add_special_tokens": False}
        return {"input_ids": text.split()}

    def decode(self, ids: list[str], **how: Any) -> str:
        return "  ".join(ids).upper() + self.change


def test_a_tokenizer_may_change_case_and_blanks_and_no_words() -> None:
    check_tokenizer(Words(64), "x")
    with pytest.raises(WeightsError, match="has only 63 entries"):
        check_tokenizer(Words(63), "x")
    with pytest.raises(WeightsError, match="again' of 'a dog barks"):
        check_tokenizer(Words(64, " again"), "x")


class Loaded(nn.Module):
    """A model as a library returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(1, 1)


def found(tmp_path: Path, name: str = "model.safetensors") -> Any:
    return SimpleNamespace(folder=tmp_path, files=(tmp_path / name,), source="w")


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"missing_keys": {"b", "a"}}, "w does not fit Loaded: missing: a, b\n"),
        ({"unexpected_keys": {"z"}}, "unexpected: z\n"),
        ({"mismatched_keys": [("m", (1,), (2,))]}, r"wrong shape: \('m', \(1,\), \(2,\)\)"),
        ({"error_msgs": [" cut \n"]}, "errors: cut\n"),
        ({"missing_keys": {f"k{i}" for i in range(8)}}, "k0, k1, k2, k3, k4, k5 and 2 more\n"),
        ({"missing_keys": {f"k{i}" for i in range(6)}}, "k4, k5\n"),
    ],
)
def test_every_loading_problem_of_the_library_is_refused(tmp_path: Path, info: Any, said: str) -> None:
    quiet = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": (), "error_msgs": ()}
    factory = SimpleNamespace(from_pretrained=lambda *_, **__: (Loaded(), {**quiet, **info}))
    with pytest.raises(WeightsError, match=said):
        generate.load_model(factory, found(tmp_path), "float32")


def test_a_model_is_loaded_frozen_and_only_from_its_folder(tmp_path: Path) -> None:
    asked: list[Any] = []
    quiet = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": (), "error_msgs": ()}
    model = Loaded()

    def load(*given: Any, **how: Any) -> Any:
        asked.append((given, how))
        return model, quiet

    factory = SimpleNamespace(from_pretrained=load)
    for name in ("model.safetensors", "pytorch_model.bin"):
        done = generate.load_model(factory, found(tmp_path, name), "bfloat16")
        assert done is model and not done.training and not any(p.requires_grad for p in done.parameters())
    assert [(given, how["use_safetensors"]) for given, how in asked] == [
        ((tmp_path,), True),
        ((tmp_path,), False),
    ]
    for _, how in asked:
        assert (how["dtype"], how["local_files_only"], how["trust_remote_code"]) == (
            torch.bfloat16,
            True,
            False,
        )
    model.a.bias.data.fill_(torch.inf)
    with pytest.raises(WeightsError, match=r"not finite: a\.bias\n"):
        generate.load_model(factory, found(tmp_path), "float32")


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        ('{"model_type": "blip-2"}', ("model.safetensors",), ""),
        ('{"model_type": "llava"}', ("model.safetensors",), "type 'llava'; m takes blip-2, git"),
        ("{}", ("model.safetensors",), "does not say what model it is"),
        ("[", ("model.safetensors",), "does not say what model it is"),
        ('{"model_type": "blip-2"}', ("other.safetensors",), "holds none of model.safetensors"),
    ],
)
def test_a_folder_must_hold_a_model_of_the_captioners_type(
    tmp_path: Path, config: str, files: Sequence[str], said: str
) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    (folder / "config.json").write_text(config)
    choice = ModelChoice("m", str(folder))
    if not said:
        assert generate.checkpoint(choice, "", ("blip-2", "git")).folder == folder
        return
    with pytest.raises(WeightsError, match=said):
        generate.checkpoint(choice, "", ("blip-2", "git"))


def test_a_file_that_the_library_would_not_find_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "git"}))
    (tmp_path / "mine.safetensors").touch()
    with pytest.raises(WeightsError, match=r"mine\.safetensors is not what transformers calls the weights"):
        generate.checkpoint(ModelChoice("m", str(tmp_path / "mine.safetensors")), "")
    (tmp_path / "model.safetensors").touch()
    assert generate.checkpoint(ModelChoice("m", str(tmp_path)), "").source == tmp_path.name  # of any type


def test_an_audio_captioner_needs_its_sample_rate_and_a_chat_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ears = SimpleNamespace(sampling_rate=16_000, n_samples=480_000)
    held = SimpleNamespace(feature_extractor=ears, chat_template="x")
    monkeypatch.setattr(checkpoints, "load_processor", lambda *_: held)

    def captioner() -> Any:
        made = bare(audio.Qwen2Audio)
        made.weights = SimpleNamespace(seed=None, source="w")
        return made

    assert captioner().processor is held
    held.chat_template = None
    with pytest.raises(WeightsError, match="w has no chat template"):
        _ = captioner().processor
    for rate_hz, samples in ((8_000, 480_000), (16_000, 160_000)):
        ears.sampling_rate, ears.n_samples = rate_hz, samples
        with pytest.raises(WeightsError, match=f"takes {samples} samples at {rate_hz} Hz"):
            _ = captioner().processor


@pytest.mark.parametrize("several", [True, False])
def test_a_multilingual_whisper_is_prompted_in_english_without_timestamps(several: bool) -> None:
    asked: dict[str, Any] = {}

    class Tokenizer:
        unk_token_id = 9
        prefix_tokens = (1, 2)

        def convert_tokens_to_ids(self, text: str) -> int:
            return 5 if several else 9

        def set_prefix_tokens(self, **how: Any) -> None:
            asked.update(how)

        def __call__(self, text: str, **how: Any) -> Any:
            assert (text, how) == ("style: ", {"add_special_tokens": False})
            return {"input_ids": [7]}

    captioner = bare(audio.WhisperCaptioner, prompt="style: ", max_tokens=7)
    captioner.processor = SimpleNamespace(tokenizer=Tokenizer())
    captioner.model = SimpleNamespace(config=SimpleNamespace(max_target_positions=10))
    assert captioner.prefix == [1, 2, 7]
    assert asked.pop("predict_timestamps") is False
    wanted = ("english", "transcribe") if several else (None, None)
    assert (asked["language"], asked["task"]) == wanted
    del captioner.prefix
    captioner.settings["max_tokens"] = 8
    with pytest.raises(CaeavError, match="is 8, the model has room for 7\n  next: give at most 7"):
        _ = captioner.prefix


def test_blip_gets_its_start_token_and_others_the_plain_prompt() -> None:
    captioner = bare(visual.ImageTextModel)
    config = SimpleNamespace(model_type="llava", text_config=SimpleNamespace(bos_token_id=4))
    captioner.model = SimpleNamespace(config=config)
    given = torch.tensor([[1, 2, 3]])
    assert captioner._prompt(given).tolist() == [[1, 2, 3]]
    config.model_type = "blip"
    assert captioner._prompt(given).tolist() == [[4, 2]]


def test_blip2_gets_its_prompt_once_per_frame() -> None:
    asked: list[Any] = []
    captioner = bare(visual.Blip2, prompt="music")

    def processor(**given: Any) -> Any:
        asked.append(given)
        return {"input_ids": torch.tensor([[2, 2, 7]] * len(given["images"]))}

    captioner.processor = processor
    captioner.model = SimpleNamespace(config=SimpleNamespace(image_token_id=2, num_query_tokens=2))
    captioner.weights = SimpleNamespace(source="w")
    captioner.generate = lambda inputs, prompt: [inputs is not prompt, prompt.tolist()]
    shown = [np.zeros((2, 2, 3), np.uint8)] * 2
    assert captioner.write(shown)[1] == [[2, 2, 7]] * 2
    assert asked[0]["text"] == ["music", "music"] and len(asked[0]["images"]) == 2
    captioner.model.config.num_query_tokens = 3
    with pytest.raises(WeightsError, match="leaves 2 places for an image, the model needs 3"):
        captioner.write(shown)
