"""The `tags` captioners: what they claim and when, in which words, from which weights and names, also by command."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from typer import Typer
from typer.testing import CliRunner

import caeav.cli.caption
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones import audio_backbones
from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights import WeightsError
from caeav.pipeline.backbones.yamnet.network import Heard, Yamnet
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.tags.audio import TagAudio, exact_first
from caeav.pipeline.captioners.tags.names import KINDS, audioset_classes, imagenet_names, spoken
from caeav.pipeline.captioners.tags.visual import Classifier, TagFrames, with_kinds
from caeav.pipeline.captioners.tags.words import Claim, claims, sentence, sound, thing
from caeav.pipeline.extract.components import described, described_choice
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store import StoreReader

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
DOG, MUSIC, ANIMAL, SILENCE = 69, 132, 67, 494
AUDIOSET = [f"Sound {k}" for k in range(521)]
for place, word in ((DOG, "Dog"), (MUSIC, "Music"), (ANIMAL, "Animal"), (SILENCE, "Silence")):
    AUDIOSET[place] = word


def write_table(path: Path, names: Sequence[str]) -> Path:
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("index", "mid", "display_name"))
        rows.writerows((k, f"/m/{k}", name) for k, name in enumerate(names))
    return path


@pytest.fixture
def yamnet(tmp_path: Path) -> Path:
    """Random weights with high scores for dog, animal and silence; the table of class names beside them."""
    return write_yamnet(tmp_path, {DOG: 3.0, ANIMAL: 4.0, SILENCE: 5.0})


def write_yamnet(folder: Path, heard: dict[int, float]) -> Path:
    torch.manual_seed(5)
    state = Yamnet().state_dict()
    state["classifier.weight"] *= 0.01
    state["classifier.bias"] = torch.full((521,), -5.0)
    for k, score in heard.items():
        state["classifier.bias"][k] = score
    write_table(folder / "yamnet_class_map.csv", AUDIOSET)
    path = folder / "yamnet.safetensors"
    save_file(state, path)
    return path


def write_lite0(folder: Path, seen: int) -> Path:
    """Random weights that always recognise the ImageNet class `seen`."""
    torch.manual_seed(6)
    state = Classifier().build({}).state_dict()
    state["classifier.weight"] *= 0.0
    state["classifier.bias"] = torch.zeros(1000)
    state["classifier.bias"][seen] = 12.0
    path = folder / "lite0.safetensors"
    save_file(state, path)
    return path


def audio(weights: Path | str, **settings: Any) -> TagAudio:
    made = audio_captioners["tags"](ModelChoice("tags", str(weights), settings))
    assert isinstance(made, TagAudio)
    return made


def visual(weights: Path | str, **settings: Any) -> TagFrames:
    made = visual_captioners["tags"](ModelChoice("tags", str(weights), settings))
    assert isinstance(made, TagFrames)
    return made


def make_clip(
    t: int = 3, seed: int = 0, *, loud: float = 0.3, real: Sequence[bool] | None = None
) -> DecodedClip:
    rng = np.random.default_rng(seed)
    whole = tuple(real or [True] * t)
    wave = (loud * rng.standard_normal(16_000 * t)).astype(np.float32)
    return DecodedClip(rng.integers(0, 255, (t, 40, 60, 3), dtype=np.uint8), wave, whole, whole)


def table(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def claim(name: str, *active: int) -> Claim:
    return Claim(name, np.array(active, dtype=np.bool_))


def test_nothing_is_claimed_below_the_threshold_or_without_media() -> None:
    scores = table([0.9, 0.49], [0.5, 0.1], [0.9, 0.9])
    [only] = claims(scores, ["dog", "cat"], [True, True, False], threshold=0.5, most=3)
    assert (only.name, only.active.tolist()) == ("dog", [True, True, False])
    assert claims(scores, ["dog", "cat"], [False] * 3, threshold=0.5, most=3) == []


def test_the_highest_scores_are_named_in_order_of_time() -> None:
    scores = table([0.6, 0.0, 0.0], [0.0, 0.0, 0.8], [0.0, 0.7, 0.0])
    names = ["dog", "cat", "owl"]
    assert [c.name for c in claims(scores, names, [True] * 3, threshold=0.5, most=3)] == ["dog", "owl", "cat"]
    assert [c.name for c in claims(scores, names, [True] * 3, threshold=0.5, most=2)] == ["owl", "cat"]


def test_similar_classes_at_the_same_time_are_merged_under_the_strongest() -> None:
    names = ["dog", "bark", "owl", "dog"]
    together = table([0.9, 0.8, 0.0, 0.0], [0.0, 0.8, 0.0, 0.0])
    [only] = claims(together, names, [True] * 2, threshold=0.5, most=3, near=1)
    assert (only.name, only.active.tolist()) == ("dog", [True, True])
    apart = table([0.9, 0.0, 0.0, 0.0], [0.0, 0.8, 0.0, 0.6])
    assert [c.name for c in claims(apart, names, [True] * 2, threshold=0.5, most=3, near=1)] == [
        "dog",
        "bark",
    ]
    assert len(claims(together, names, [True] * 2, threshold=0.5, most=3)) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "A sound."),
        ([claim("dog", 1, 1, 1)], "The sound of a dog."),
        (
            [claim("dog", 1, 1, 0), claim("music", 0, 0, 1)],
            "The sound of a dog in segments 1 to 2, then music in segment 3.",
        ),
        (
            [claim("dog", 1, 1, 0), claim("music", 0, 1, 1)],
            "The sound of a dog in segments 1 to 2 and music in segments 2 to 3.",
        ),
        ([claim("dog", 1, 1, 1), claim("music", 1, 1, 1)], "The sound of a dog and music."),
        (
            [claim("dog", 1, 1, 1), claim("music", 0, 1, 0)],
            "The sound of a dog throughout and music in segment 2.",
        ),
        (
            [claim("owl", 1, 0, 0), claim("dog", 1, 0, 0), claim("music", 0, 0, 1)],
            "The sound of an owl and a dog in segment 1, then music in segment 3.",
        ),
        (
            [claim("owl", 1, 1, 1), claim("dog", 1, 0, 0), claim("music", 0, 0, 1)],
            "The sound of an owl throughout, a dog in segment 1 and music in segment 3.",
        ),
    ],
)
def test_claims_become_these_sentences(given: list[Claim], expected: str) -> None:
    assert sentence("The sound of", given, [True] * 3, "A sound.", sound) == expected


def test_a_claim_in_all_real_segments_has_no_times() -> None:
    assert (
        sentence("A picture of", [claim("dog", 1, 1, 0)], [True, True, False], "", thing)
        == "A picture of a dog."
    )


@pytest.mark.parametrize(
    "said",
    [
        "a dog",
        "an accordion",
        "a ukulele",
        "music",
        "music of Asia",
        "crying",
        "a ping",
        "bagpipes",
        "a bus",
        "rain",
    ],
)
def test_articles_of_sounds(said: str) -> None:
    assert sound(said.removeprefix("an ").removeprefix("a ")) == said


@pytest.mark.parametrize(
    "said",
    ["a beagle", "an otter", "a wing", "binoculars", "a beer glass", "hay", "an hourglass", "a unicycle"],
)
def test_articles_of_things(said: str) -> None:
    assert thing(said.removeprefix("an ").removeprefix("a ")) == said


def test_a_kind_is_scored_by_its_sum_unless_one_class_is_certain() -> None:
    scores = np.zeros((2, 1000), dtype=np.float32)
    scores[0, [160, 200]] = 0.3, 0.35
    scores[1, [160, 200]] = 0.3, 0.6
    kinds = with_kinds(scores, 0.5)[:, 1000:]
    dog = list(KINDS).index("dog")
    np.testing.assert_allclose(kinds[:, dog], [0.65, 0], atol=1e-6)
    assert np.delete(kinds, dog, axis=1).max() == 0


@needs_timm
def test_kinds_hold_the_classes_they_name() -> None:
    names = imagenet_names()
    assert (len(names), names[162], names[7], names[409]) == (1000, "beagle", "rooster", "analog clock")
    held = {kind: [names[k] for part in ranges for k in part] for kind, ranges in KINDS.items()}
    ends = {kind: (within[0], within[-1]) for kind, within in held.items()}
    assert ends["dog"] == ("Chihuahua", "Mexican hairless") and ends["cat"] == ("tabby", "Egyptian cat")
    assert ends["bird"] == ("rooster", "albatross") and ends["snake"] == ("thunder snake", "sidewinder")
    numbers = [k for ranges in KINDS.values() for part in ranges for k in part]
    assert len(numbers) == len(set(numbers))


def test_general_classes_count_only_where_no_exact_one_is_claimed() -> None:
    names = ["Animal", "Dog", "Silence"]
    scores = table([0.9, 0.2, 0.9], [0.9, 0.8, 0.9])
    assert exact_first(scores, names, 0.5).tolist() == table([0, 0.2, 0], [0, 0.8, 0]).tolist()
    assert exact_first(scores, names, 0.85)[:, 0].min() > 0.85


def test_audioset_names_are_worded_for_sentences() -> None:
    pairs = {"Crying, sobbing": "crying", "Zipper (clothing)": "zipper", "Music of Asia": "music of Asia"}
    assert {name: spoken(name) for name in pairs} == pairs
    assert spoken("Livestock, farm animals, working animals") == "farm animals"


def test_audio_names_the_dog_and_neither_animal_nor_silence(yamnet: Path) -> None:
    captioner = audio(yamnet)
    assert captioner.parameters == find_facts("tags", "audio captioner").parameters
    assert captioner.caption([make_clip(), make_clip(loud=1e-6)]) == ["The sound of a dog.", "Silence."]
    lost = make_clip()
    lost.wave = None
    assert captioner.caption([lost]) == [""]


@needs_timm
def test_random_weights_need_no_file_and_no_table() -> None:
    heard, seen = audio("random:0", threshold=0.01), visual("random:0")
    assert heard.caption([make_clip()])[0].startswith("The sound of a class ")
    assert seen.caption([make_clip()]) == ["A picture."]
    assert heard.describe()["weights"]["digest"] == seen.describe()["weights"]["digest"] == "random:0"


def test_audio_without_a_recognised_class_is_a_sound(tmp_path: Path) -> None:
    assert audio(write_yamnet(tmp_path, {})).caption([make_clip()]) == ["A sound."]


def test_segments_without_real_audio_claim_nothing(yamnet: Path) -> None:
    clip = make_clip(real=[True, False, True])
    assert audio(yamnet).caption([clip]) == ["The sound of a dog."]
    captioner = audio(yamnet)
    held = np.zeros((3, 521), dtype=np.float32)
    held[1, DOG], held[2, ANIMAL] = 0.9, 0.9
    captioner.scores = lambda windows: held  # type: ignore[method-assign]
    assert captioner.caption([clip]) == ["The sound of an animal in segment 3."]


def test_scores_are_those_of_the_yamnet_backbone(yamnet: Path) -> None:
    captioner, backbone = audio(yamnet), audio_backbones["yamnet"](ModelChoice("yamnet", str(yamnet)))
    windows = make_clip().wave.reshape(3, -1)  # type: ignore[union-attr]
    network = captioner.module()
    assert isinstance(network, Yamnet)
    with torch.inference_mode():
        alone = network.scores(network(backbone.prepare(windows)).embedding)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(captioner.scores(windows), alone.numpy())


def test_a_longer_segment_gets_the_highest_score_of_its_patches(yamnet: Path) -> None:
    captioner = audio(yamnet)
    network = captioner.module()
    assert isinstance(network, Yamnet)
    network.forward = lambda patches: Heard({}, patches.abs().amax(dim=1, keepdim=True))  # type: ignore[method-assign]
    network.scores = lambda embedding: embedding.expand(-1, 521)  # type: ignore[method-assign]
    wave = np.zeros((2, 48_000), dtype=np.float32)
    wave[0, 40_000], wave[1, 24_000], wave[1, 100] = 0.5, 0.25, 0.75
    assert captioner.scores(wave)[:, 0].tolist() == [0.5, 0.25]  # the ends of a third lie outside its patch


def test_captions_do_not_depend_on_the_batch(yamnet: Path) -> None:
    captioner = audio(yamnet, threshold=0.5)
    clips = [make_clip(seed=s) for s in range(3)]
    assert captioner.caption(clips) == [captioner.caption([clip])[0] for clip in clips]


def test_the_table_of_names_is_part_of_the_recipe_and_no_path_is(yamnet: Path) -> None:
    before = described(audio(yamnet))
    assert str(yamnet.parent) not in json.dumps(before)
    again = audio_captioners["tags"](described_choice(before))
    assert described(again) == before
    write_table(yamnet.parent / "yamnet_class_map.csv", [*AUDIOSET[:-1], "Another"])
    after = described(audio(yamnet))
    assert after["names"] != before["names"] and after["weights"]["digest"] != before["weights"]["digest"]


def test_weights_without_a_table_are_an_error_naming_the_file_to_get(yamnet: Path) -> None:
    (yamnet.parent / "yamnet_class_map.csv").unlink()
    with pytest.raises(WeightsError, match="no table of AudioSet's classes") as error:
        audio(yamnet)
    assert "yamnet_class_map.csv beside the weights" in str(error.value)


@pytest.mark.parametrize(
    "names", [AUDIOSET[:-1], [*AUDIOSET, "one"], [*AUDIOSET[:-1], ""]], ids=["few", "many", "blank"]
)
def test_a_table_of_other_classes_is_refused(tmp_path: Path, names: list[str]) -> None:
    write_table(tmp_path / "yamnet_classes.csv", names)
    with pytest.raises(WeightsError, match="no table of 521 classes"):
        audioset_classes(tmp_path, 521)


def test_a_class_named_twice_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "yamnet_classes.csv", AUDIOSET)
    path.write_text(path.read_text() + "520,/m/x,Again\n")
    with pytest.raises(WeightsError, match="no table of 521 classes"):
        audioset_classes(tmp_path, 521)


@pytest.mark.parametrize(
    "text", ["index,name\n0,x\n", "index,display_name\nx,y\n", "", "\x00", "a" * (2 << 20)]
)
def test_other_files_are_refused_as_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "yamnet_class_map.csv").write_text(text)
    with pytest.raises(WeightsError, match="no table of 1 classes"):
        audioset_classes(tmp_path, 1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("threshold", 0.0), ("threshold", 1.5), ("names", 0), ("mel", "int4"), ("beams", 2)],
)
def test_invalid_settings_are_refused(yamnet: Path, setting: str, value: Any) -> None:
    with pytest.raises(CaeavError, match=setting):
        audio(yamnet, **{setting: value})


@needs_timm
def test_frames_are_named_by_their_class(tmp_path: Path) -> None:
    captioner = visual(write_lite0(tmp_path, 852))
    facts = find_facts("tags", "visual captioner")
    assert (captioner.parameters, captioner.default_weights) == (facts.parameters, facts.weights)
    lost = make_clip()
    lost.frames = None
    assert captioner.caption([make_clip(), lost]) == ["A picture of a tennis ball.", ""]
    assert captioner.caption([make_clip(real=[False] * 3)]) == ["A picture."]
    assert described(visual_captioners["tags"](described_choice(described(captioner)))) == described(
        captioner
    )


@needs_timm
def test_a_checkpoint_without_classifier_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no_head.safetensors"
    save_file({k: x for k, x in Classifier().build({}).state_dict().items() if "classifier" not in k}, path)
    with pytest.raises(WeightsError, match=r"classifier\.weight"):
        visual(path).module()


@needs_timm
def test_the_command_stores_tags_as_captions(tmp_path: Path, shared: Path, yamnet: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for name in ("bento.mp4", "flower_silent.webm"):
        (films / name).write_bytes((shared / "data" / "media" / name).read_bytes())
    app = Typer()
    caeav.cli.caption.register(app)
    given = ["caption", "--dataset", films, "--home", tmp_path / "home", "--workers", "1", "--segments", "2"]
    given += ["--visual", "tags", "--visual-weights", write_lite0(tmp_path, 162)]
    given += ["--audio", "tags", "--audio-weights", yamnet, "--devices", "cpu"]
    result = CliRunner().invoke(app, list(map(str, given)))
    assert result.exit_code == 0, (result.output, result.exception)
    [store] = (tmp_path / "home" / "stores" / "films").glob("captions-tags-*")
    texts = {record.key: record.info["texts"] for record in StoreReader.open(store)}
    assert texts["bento"]["visual"].startswith("A picture of a beagle")
    assert texts["bento"]["audio"].startswith("The sound of a dog")
    assert texts["flower_silent"]["audio"] == "Silence."


@pytest.fixture(scope="module")
def real(shared: Path) -> Path:
    if not (shared / "weights" / "yamnet.safetensors").is_file():
        pytest.skip(f"no weights in {shared / 'weights'}")
    return shared / "weights"


@pytest.mark.weights
def test_real_weights_on_a_real_clip(real: Path, shared: Path) -> None:
    """Corgis romp and bark for nine seconds; somebody speaks in the last."""
    pytest.importorskip("timm")
    from caeav.pipeline.media.clip import Sampling
    from caeav.pipeline.media.registry import decoders

    path = str(shared / "data" / "media" / "vas_dog_02754.mp4")
    clip = decoders["pyav"]().decode(path, 0.0, Sampling(10, 1.0, 16_000))
    heard = audio(real / "yamnet.safetensors").caption([clip])
    assert heard == ["The sound of a dog in segments 1 to 9, then speech in segment 10."]
    [seen] = visual(real / "tf_efficientnet_lite0.safetensors").caption([clip])
    assert "a dog in segments 2 to 10" in seen


@pytest.mark.weights
def test_real_table_has_a_word_for_every_class(real: Path) -> None:
    names = audioset_classes(real, 521)
    assert (names[DOG], names[MUSIC], names[ANIMAL], names[SILENCE]) == ("Dog", "Music", "Animal", "Silence")
    said = [sound(spoken(name)) for name in names]
    assert all(text == text.strip() and "(" not in text and "," not in text for text in said)
