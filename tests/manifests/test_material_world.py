"""Sets made of material: their truth can be measured in the media, which use files of the clip's split."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from commands import invoke
from material_world import CLASSES, hue, make_material, pitch_hz
from matplotlib.colors import rgb_to_hsv
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

from caeav.cli import synthesise as synthesise_command
from caeav.manifests.checks import check
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.readers import SYNTHETIC
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.manifests.synthetic.audio import waveform
from caeav.manifests.synthetic.casting import cast
from caeav.manifests.synthetic.layouts.base import assign_splits, layouts
from caeav.manifests.synthetic.material import Material, load_material
from caeav.manifests.synthetic.questions import TEMPLATES
from caeav.manifests.synthetic.render import frames, stills

SIZES: dict[str, dict[str, Any]] = {
    "ave": {"clips": 15, "seconds": 6, "size_px": 64, "fps": 4},
    "llp": {"clips": 12, "seconds": 6, "size_px": 64, "fps": 4},
    "avs-s4": {"clips": 12, "size_px": 96},
    "avs-ms3": {"clips": 18, "size_px": 96},
    "music-avqa": {"clips": 20, "seconds": 6, "size_px": 96, "fps": 4},
}
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material") / "mine")


@pytest.fixture(scope="module")
def material(folder: Path) -> Material:
    return load_material([folder])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def sets(home: Home, material: Material) -> dict[str, Manifest]:
    for layout in SIZES:
        synthesise(home.data(SYNTHETIC[layout]), options(layout, material), workers=1)
    return {layout: load_dataset(SYNTHETIC[layout], None, home) for layout in SIZES}


def options(layout: str, material: Material) -> SyntheticOptions:
    return SyntheticOptions.for_layout(
        layout, material=material, misaligned=0.7, splits=(0.4, 0.3, 0.3), **SIZES[layout]
    )


def truth(home: Home, layout: str) -> list[dict[str, Any]]:
    lines = (home.data(SYNTHETIC[layout]) / "truth.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def power(wave: NDArray[Any], hz: float) -> float:
    """The power of a second of sound within 40 Hz of a pitch."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    at = np.fft.rfftfreq(len(wave), 1 / RATE_HZ)
    return float(spectrum[np.abs(at - hz) < 40].sum() / spectrum.size**2)


def of_hue(image: NDArray[np.uint8], wanted: float) -> NDArray[np.bool_]:
    """Where an image has a picture's own colour."""
    hsv = rgb_to_hsv(image / 255)
    off = np.abs((hsv[..., 0] - wanted + 0.5) % 1 - 0.5)
    return np.asarray((off < 0.02) & (hsv[..., 1] > 0.6))


@pytest.mark.parametrize("layout", SIZES)
def test_each_layout_is_read_whole_without_leaks(home: Home, sets: dict[str, Manifest], layout: str) -> None:
    manifest, report = sets[layout], check(sets[layout])
    assert len(manifest.clips) >= SIZES[layout]["clips"] and report.missing == ()
    leaks = {"id_in_two_splits", "video_in_two_splits"}
    assert not leaks & {group.code for group in report.findings}
    simple = {"bell", "cat", "dog", "drum", "rain_heavy"}
    if layout == "ave":
        assert manifest.classes == CLASSES
    elif layout == "llp":
        assert manifest.classes == ("bell", "cat", "dog", "drum", "rain_(heavy)")
    elif layout == "avs-s4":
        assert {clip.extra["category"] for clip in manifest.clips} == simple
    elif layout == "music-avqa":
        assert simple <= set(manifest.classes)


@pytest.mark.parametrize("layout", SIZES)
def test_a_clip_uses_files_of_its_split_only(
    home: Home, sets: dict[str, Manifest], material: Material, layout: str
) -> None:
    split_of = {(f.kind, f.name): f.split for f in material.files}
    used = {split: set[str]() for split in ("train", "val", "test")}
    for row in truth(home, layout):
        files = row["material"]
        for kind, names in (("picture", files["pictures"]), ("sound", files["sounds"])):
            assert {split_of[kind, name] for name in names.values()} <= {row["split"]}
            used[row["split"]].update(names.values())
        if "things" not in row:
            assert set(files["pictures"]) == {name for second in row["seen"] for name in second}
            assert set(files["sounds"]) == {name for second in row["heard"] for name in second}
            assert all(name.startswith(f"{cls}/") for cls, name in files["sounds"].items())
    assert all(used.values()) and not used["train"] & used["test"] and not used["val"] & used["test"]


def test_the_decoded_audio_holds_each_sound_in_its_seconds_only(
    home: Home, sets: dict[str, Manifest]
) -> None:
    for row in truth(home, "ave"):
        with av.open(str(home.data("synthetic") / "AVE" / f"{row['id']}.mp4")) as container:
            wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        seconds = wave[: 6 * RATE_HZ].reshape(6, RATE_HZ)
        for name, file in row["material"]["sounds"].items():
            hz = pitch_hz(CLASSES.index(name), int(Path(file).stem))
            found = [power(second, hz) for second in seconds]
            heard = [name in present for present in row["heard"]]
            loud = [p for p, there in zip(found, heard, strict=True) if there]
            assert min(loud) > 1e-4
            assert all(p < 0.05 * min(loud) for p, there in zip(found, heard, strict=True) if not there)


@pytest.mark.parametrize("layout", ["llp", "avs-ms3", "music-avqa"])
def test_objects_are_seen_in_their_seconds_in_the_colour_of_their_file(
    material: Material, layout: str
) -> None:
    made = options(layout, material)
    scenarios = [layouts[layout].plan(made, i) for i in range(10)]
    for scenario, split in zip(scenarios, assign_splits(made, scenarios), strict=True):
        players = cast(made, scenario, split)
        assert players is not None
        for second, (image, objects) in enumerate(stills(made, scenario, players)):
            for number, file in players.pictures.items():
                colour = hue(CLASSES.index(file.cls), int(Path(file.name).stem))
                spots = of_hue(image, colour)
                if number in scenario.seen[second]:
                    shown = objects == number
                    assert shown.sum() > 15
                    assert spots[shown].mean() > 0.6  # its rim is mixed with what is behind
                elif all(players.pictures[n].name != file.name for n in scenario.seen[second]):
                    assert spots.sum() <= 3


def test_levels_of_voices_are_those_that_questions_ask_about(material: Material) -> None:
    made = options("music-avqa", material)
    for i in range(12):
        scenario = layouts["music-avqa"].plan(made, i)
        players = cast(made, scenario, "val")
        assert players is not None
        wave = waveform(made, scenario, players)
        for number, file in players.sounds.items():
            hz = pitch_hz(CLASSES.index(file.cls), int(Path(file.name).stem))
            seconds = [t for t, present in enumerate(scenario.heard) if number in present]
            strength = np.mean([power(wave[t * RATE_HZ : (t + 1) * RATE_HZ], hz) for t in seconds])
            others = [players.sounds[n].name for n in players.sounds if n != number]
            if file.name not in others:
                # a sine of root mean square r has power 3/4 r^2 after a Hann window, in these units
                assert np.sqrt(strength / 0.75) == pytest.approx(scenario.things[number].level, rel=0.25)


def test_which_sound_is_more_rhythmic_is_not_asked(home: Home, sets: dict[str, Manifest]) -> None:
    root = home.data("synthetic-music-avqa") / "json"
    texts = {item["question_content"] for p in root.glob("avqa-*.json") for item in json.loads(p.read_text())}
    assert texts <= {template.text for template in TEMPLATES} and len(texts) > 15
    assert not any("rhythmic" in text for text in texts)


def test_a_masks_pixels_are_those_of_the_sounding_pictures(home: Home, sets: dict[str, Manifest]) -> None:
    root = home.data("synthetic-avs-s4") / "Single-source" / "s4_data"
    for row in truth(home, "avs-s4"):
        if row["split"] == "train":
            continue
        folder = root / "visual_frames" / row["split"] / row["category"].replace(" (", "_").strip(")")
        mask_folder = root / "gt_masks" / folder.relative_to(root / "visual_frames")
        colour = hue(
            CLASSES.index(row["category"]), int(Path(row["material"]["pictures"][row["category"]]).stem)
        )
        image = np.asarray(Image.open(folder / row["id"] / f"{row['id']}_1.png"))
        mask = np.asarray(Image.open(mask_folder / row["id"] / f"{row['id']}_1.png")) > 0
        spots = of_hue(image, colour)
        assert spots[mask].mean() > 0.7 and spots[~mask].sum() < 0.05 * mask.sum()


def test_the_files_used_are_listed_and_a_second_run_writes_nothing(
    home: Home, sets: dict[str, Manifest], material: Material
) -> None:
    root = home.data("synthetic")
    rows = list(csv.DictReader((root / "material.csv").open()))
    assert [tuple(row.values()) for row in rows] == [
        (f.kind, f.cls, f.name, f.split, f.sha256) for f in material.files
    ]
    assert json.loads((root / "dataset.json").read_text())["made_with"].keys() == {"av", "numpy", "pillow"}
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert synthesise(root, options("ave", material), workers=1).written == 0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_other_material_is_refused_in_the_same_folder(
    home: Home, sets: dict[str, Manifest], folder: Path, tmp_path: Path
) -> None:
    other = load_material([make_material(tmp_path / "other")], shares=(0.0, 0.5, 0.5))
    with pytest.raises(CaeavError, match="was made with other options:\n  - material: "):
        synthesise(home.data("synthetic"), options("ave", other), workers=1)
    with pytest.raises(CaeavError, match=r"material: .* in the folder, None asked for"):
        synthesise(home.data("synthetic"), SyntheticOptions(clips=5), workers=1)


def test_backgrounds_are_behind_the_pictures_and_change_at_a_cut(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "walls").mkdir()
    for value in (40, 120, 200):
        Image.fromarray(np.full((80, 50, 3), value, np.uint8)).save(tmp_path / "walls" / f"{value}.png")
    walled = load_material([folder], tmp_path / "walls", (1.0, 0.0, 0.0))
    made = SyntheticOptions(
        clips=30, seconds=4, size_px=64, fps=4, material=walled, classes=5, splits=(1.0, 0.0, 0.0)
    )
    cuts = 0
    for i in range(30):
        scenario = layouts["ave"].plan(made, i)
        players = cast(made, scenario, "train")
        assert players is not None and len(players.backgrounds) == (1 if scenario.cut_s is None else 2)
        if i < 6 or scenario.cut_s is not None:
            for t, image in enumerate(frames(made, scenario, players)):
                shot = int(scenario.cut_s is not None and t // 4 >= scenario.cut_s)
                assert abs(np.median(image) - int(players.backgrounds[shot].name.split(".")[0])) <= 2
        cuts += len({f.name for f in players.backgrounds}) == 2
    assert cuts


GENERATED = {
    "ave": ("dc4e07dadb5d7153", 0.057979, 0.04718, 110.905, 30.154),
    "llp": ("91eecba350e015e0", 0.057979, 0.04718, 110.905, 30.154),
    "avs-s4": ("5c2ae6fb4f283dd8", 0.072916, 0.00663, 110.279, 39.077),
    "avs-ms3": ("917d9048c67f5ea7", 0.032394, 0.00663, 116.602, 43.339),
    "music-avqa": ("448feb6a4ce0c857", 0.024643, -0.00505, 119.650, 18.105),
}
"""Of sets made before there was material: a digest of their lists; mean and one sample of a clip's waveform, mean and
standard deviation of its frames."""


@pytest.mark.parametrize("layout", GENERATED)
def test_sets_without_material_are_what_they_were(layout: str, tmp_path: Path) -> None:
    made = SyntheticOptions(layout=layout, clips=12, seconds=5, size_px=64, fps=4, seed=7)
    scenarios = [layouts[layout].plan(made, i) for i in range(12)]
    layouts[layout].write_lists(tmp_path, made, scenarios, assign_splits(made, scenarios))
    digest = hashlib.sha256()
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        digest.update(path.relative_to(tmp_path).as_posix().encode() + path.read_bytes())
    lists, loudness, sample, mean, spread = GENERATED[layout]
    assert digest.hexdigest()[:16] == lists
    wave = waveform(made, scenarios[3]).astype(float)
    images = np.stack(list(frames(made, scenarios[3]))).astype(float)
    assert (np.abs(wave).mean(), wave[12345]) == pytest.approx((loudness, sample), abs=1e-4)
    assert (images.mean(), images.std()) == pytest.approx((mean, spread), abs=0.01)


def run(*arguments: str) -> Result:
    return invoke([synthesise_command], "synthesise", *arguments)


def test_the_command_makes_a_set_of_material_and_says_what_it_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "backgrounds").mkdir(parents=True)
    (tmp_path / "more" / "backgrounds" / "notes.txt").write_text("x")
    small = ("--clips", "5", "--seconds", "4", "--size", "64", "--fps", "4", "--workers", "1")
    both = ("--material", str(folder), "--material", str(tmp_path / "more"), "--home", str(tmp_path / "h"))
    result = run(*small, *both)
    assert result.exit_code == 0, result.output
    assert "made of 30 files of 5 classes" in result.stderr
    assert "notes.txt: its name does not end like a background's" in result.stderr
    facts = json.loads(run(*small, *both, "--json").stdout)
    assert facts["written"] == 0 and list(facts["classes"]) == list(CLASSES)
    assert facts["left_out"] == ["notes.txt: its name does not end like a background's"]
    alone = run(*small, "--backgrounds", str(folder), "--home", str(tmp_path / "h2"))
    assert isinstance(alone.exception, CaeavError) and "without --material" in str(alone.exception)
    wrong = run(*small, *both, "--splits", "0.5,0.5")
    assert isinstance(wrong.exception, CaeavError) and "splits is (0.5, 0.5)" in str(wrong.exception)


def test_real_recordings_are_heard_in_every_second_of_their_truth(shared: Path, tmp_path: Path) -> None:
    drawn, recorded = shared / "data" / "material", shared / "data" / "esc_subset" / "ESC.csv"
    if not (drawn.is_dir() and recorded.is_file()):
        pytest.skip("the shared data have no material")
    material = load_material([drawn, recorded])
    assert len(material.classes) == 10 and material.left_out == ()
    splits = {(f.kind, f.split) for f in material.files}
    assert len(material.files) == 92 + 120 and len(splits) == 6
    makers: dict[str, set[str]] = {}
    for f in material.files:
        if f.kind == "picture":
            makers.setdefault(f.split, set()).add(f.name.split("/")[1].split("-")[0])
    assert makers == {"train": {"twemoji", "fluent"}, "val": {"openmoji"}, "test": {"noto"}}
    folds = {(f.name.split("/")[1][0], f.split) for f in material.files if f.kind == "sound"}
    assert folds == {("1", "train"), ("2", "train"), ("3", "train"), ("4", "val"), ("5", "test")}
    made = SyntheticOptions.for_layout("ave", material=material, clips=20)
    for i in range(20):
        scenario = layouts["ave"].plan(made, i)
        wave = waveform(made, scenario, cast(made, scenario, "test")).astype(np.float64)
        level = np.sqrt((wave.reshape(10, -1) ** 2).mean(axis=1))
        heard = np.array([bool(present) for present in scenario.heard])
        assert level[heard].min() > 0.04
        if not heard.all():
            assert level[~heard].max() < 0.05 and level[heard].min() > 1.5 * level[~heard].max()
