"""The generated world in the other official layouts: every reader accepts it, its labels are what was rendered."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from numpy.typing import NDArray
from PIL import Image
from synthetic_names import simple_names

from caeav.manifests.checks import check
from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.findings import leaked_keys
from caeav.manifests.manifest import read_manifest, write_manifest
from caeav.manifests.masks import unpack_mask
from caeav.manifests.readers import SYNTHETIC
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.manifests.synthetic.audio import waveform
from caeav.manifests.synthetic.classes import CLASSES
from caeav.manifests.synthetic.layouts.base import layouts
from caeav.manifests.synthetic.render import frames

SMALL: dict[str, dict[str, Any]] = {
    "llp": {"clips": 12, "size_px": 64, "fps": 4, "seconds": 6},
    "avs-s4": {"clips": 12, "size_px": 96},
    "avs-ms3": {"clips": 18, "size_px": 96},
    "music-avqa": {"clips": 11, "size_px": 64, "fps": 4},
}
MANY = 300


def options(layout: str, **other: Any) -> SyntheticOptions:
    return SyntheticOptions.for_layout(layout, **{**SMALL[layout], "misaligned": 0.7, **other})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def sets(home: Home) -> dict[str, Manifest]:
    for layout in SMALL:
        synthesise(home.data(SYNTHETIC[layout]), options(layout), workers=1)
    return {layout: load_dataset(SYNTHETIC[layout], None, home) for layout in SMALL}


def truth(home: Home, layout: str) -> dict[str, dict[str, Any]]:
    lines = (home.data(SYNTHETIC[layout]) / "truth.jsonl").read_text().splitlines()
    return {row.get("name", row["id"]): row for row in map(json.loads, lines)}


@pytest.mark.parametrize("layout", SMALL)
def test_each_set_is_read_whole_and_comes_back_from_its_manifest(
    sets: dict[str, Manifest], layout: str, tmp_path: Path
) -> None:
    manifest = sets[layout]
    report = check(manifest)
    assert (manifest.dataset, len(manifest.clips)) == (SYNTHETIC[layout], SMALL[layout]["clips"])
    assert manifest.segments * manifest.segment_s == options(layout).seconds
    assert report.missing == ()
    harmless = {
        "dash_id",
        "empty_mask",
        "id_in_two_splits",
        "video_in_two_splits",
        "full_width_mark",
        "blank_at_end",
    }
    assert {group.code for group in report.findings} <= harmless | {"unseen_words", "no_youtube_id"}
    write_manifest(manifest, tmp_path / "manifest.jsonl")
    assert read_manifest(tmp_path / "manifest.jsonl").clips == manifest.clips


@pytest.mark.parametrize("layout", SMALL)
def test_a_second_run_has_nothing_to_do_and_another_layout_is_refused(
    home: Home, sets: dict[str, Manifest], layout: str
) -> None:
    root = home.data(SYNTHETIC[layout])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert synthesise(root, options(layout), workers=1).written == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    with pytest.raises(CaeavError, match=r"layout: '.*' in the folder, None asked for"):
        synthesise(root, SyntheticOptions(**{**SMALL[layout], "misaligned": 0.7}), workers=1)


@pytest.mark.parametrize("layout", SMALL)
def test_neither_modality_alone_solves_a_layout_and_both_do(layout: str) -> None:
    o = options(layout, clips=MANY)
    scores = {
        s.knows: s.accuracy
        for s in layouts[layout].scores(o, [layouts[layout].plan(o, i) for i in range(MANY)])
    }
    assert scores.pop("audio and visual") == pytest.approx(1.0)
    assert scores["nothing"] < max(scores.values()) < 0.85


def test_llp_events_are_what_is_seen_and_heard_and_train_has_clip_labels_only(
    home: Home, sets: dict[str, Manifest]
) -> None:
    rows = truth(home, "llp")
    for clip in sets["llp"].clips:
        row = rows[clip.extra["name"]]
        names = {name: name.replace(", ", "_").replace(" ", "_") for name in (c.name for c in CLASSES)}
        for track, modality in (("seen", "visual"), ("heard", "audio")):
            expected = {(names[n], t) for t, present in enumerate(row[track]) for n in present}
            found = {
                (e.label, t)
                for e in clip.events
                if e.modality == modality
                for t in range(int(e.start_s), int(e.end_s))
            }
            assert found == (set() if clip.split == "train" else expected)
        present = {names[n] for track in ("seen", "heard") for second in row[track] for n in second}
        assert set(clip.labels()) == present


def test_llp_has_sounds_without_object_objects_without_sound_and_two_classes_at_once() -> None:
    o = options("llp", clips=MANY)
    only_heard = only_seen = both = 0
    for i in range(MANY):
        s = layouts["llp"].plan(o, i)
        seen, heard = (set().union(*present) for present in (s.seen, s.heard))
        only_heard += bool(heard - seen)
        only_seen += bool(seen - heard)
        both += len(seen & heard) > 1
    assert min(only_heard, only_seen, both) > MANY / 5


def saturated(picture: NDArray[np.uint8], hue_deg: float) -> NDArray[np.bool_]:
    """Pixels in the colour of a class: nothing else in the picture is that saturated."""
    hsv = rgb_to_hsv(picture / 255.0)
    off = np.abs((hsv[..., 0] * 360 - hue_deg + 180) % 360 - 180)
    return np.asarray((hsv[..., 1] > 0.6) & (off < 12))


@pytest.mark.parametrize("layout", ["avs-s4", "avs-ms3"])
def test_masks_hold_the_pixels_in_the_colours_of_what_sounds(
    home: Home, sets: dict[str, Manifest], layout: str
) -> None:
    """Found by colour, which the generator does not use."""
    hues = {c.name: c.hue_deg for c in CLASSES}
    rows, judged = truth(home, layout), 0
    for clip in sets[layout].clips:
        name = clip.extra.get("name", clip.extra["id"])
        folder = next(home.data(SYNTHETIC[layout]).rglob(f"visual_frames/**/{name}"))
        expected = [True] + [layout == "avs-ms3" or clip.split != "train"] * 4
        assert [mask is not None for mask in clip.extra["masks"]] == expected
        for t, text in enumerate(clip.extra["masks"]):
            if text is None:
                continue
            pattern = f"{name}_{t + 1}.png" if layout == "avs-s4" else f"{name}.mp4_{t + 1}.png"
            picture = np.array(Image.open(folder / pattern))
            sounding = set(rows[name]["seen"][t]) & set(rows[name]["heard"][t])
            coloured = np.zeros(picture.shape[:2], dtype=bool)
            for label in sounding:
                coloured |= saturated(picture, hues[label])
            mask = unpack_mask(text)
            assert mask.shape == coloured.shape
            assert (coloured & ~mask).sum() <= 0.02 * mask.size / 10  # a few blended pixels of an edge
            if coloured.sum() > 40:
                judged += 1
                assert (coloured & mask).sum() / mask.sum() > 0.8  # the rest is a dark rim, or dark checks
            if not sounding:
                assert not mask.any()
    assert judged > 20


def test_ms3_has_changing_and_empty_masks_and_a_video_in_two_splits(sets: dict[str, Manifest]) -> None:
    clips = sets["avs-ms3"].clips
    masks = [[unpack_mask(text) for text in clip.extra["masks"]] for clip in clips]
    assert any(not mask.any() for of_clip in masks for mask in of_clip)
    assert any({mask.any() for mask in of_clip} == {True, False} for of_clip in masks)
    pairs = Counter(clip.extra["id"] for clip in clips)
    assert max(pairs.values()) == 2
    names = {
        clip.extra["id"]: {c.split for c in clips if c.extra["id"] == clip.extra["id"]} for clip in clips
    }
    assert {key[:11] for key in leaked_keys(sets["avs-ms3"])} == {n for n, s in names.items() if len(s) > 1}


def test_things_are_rendered_in_their_third_and_as_loud_as_planned() -> None:
    o = options("music-avqa", clips=12, size_px=96)
    placed = measured = 0
    for i in range(o.clips):
        scenario = layouts["music-avqa"].plan(o, i)
        pictures = [picture for n, picture in enumerate(frames(o, scenario)) if n % o.fps == o.fps // 2]
        counts = Counter(thing.cls for thing in scenario.things if thing.lane is not None)
        for n, thing in enumerate(scenario.things):
            for t, picture in enumerate(pictures):
                spots = saturated(picture, CLASSES[thing.cls].hue_deg)
                if n in scenario.seen[t] and counts[thing.cls] == 1 and spots.sum() > 15:
                    placed += 1
                    assert thing.lane == int(np.nonzero(spots)[1].mean() / o.size_px * 3)
                if thing.lane is None:
                    assert spots.sum() < 15
        wave = waveform(o, scenario).reshape(o.seconds, -1)
        for t, heard in enumerate(scenario.heard):
            if len(heard) == 1 and scenario.things[heard[0]].level > 0.1:
                measured += 1
                rms = float(np.sqrt((wave[t] ** 2).mean()))
                assert rms == pytest.approx(scenario.things[heard[0]].level, rel=0.35)
            if not heard:
                assert np.sqrt((wave[t] ** 2).mean()) < 0.04
    assert placed > 100 and measured > 5


def test_clip_rows_name_what_the_generator_wrote(sets: dict[str, Manifest]) -> None:
    clip: Clip = sets["avs-s4"].clips[0]
    assert clip.extra["category"] in simple_names(8) and clip.media.startswith(
        "Single-source/s4_data/audio_wav/"
    )
    assert sets["music-avqa"].classes[:2] == ("yes", "no") and set(simple_names(8)) <= set(
        sets["music-avqa"].classes
    )
    assert sets["llp"].classes[5] == "Hopping_box_square"
