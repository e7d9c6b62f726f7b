"""The generated files, decoded: they are as promised, and what the truth file says can be measured in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from numpy.typing import NDArray

from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.manifests.synthetic.classes import BACKGROUND, CLASSES, class_names
from caeav.manifests.synthetic.layouts.ave import HEADER

OPTIONS = SyntheticOptions(
    clips=24, seconds=6, size_px=96, fps=5, rate_hz=22_050, seed=5, misaligned=0.8, distractors=0.0
)


@dataclass
class Decoded:
    truth: dict[str, Any]
    frames: NDArray[np.uint8]  # [frames, H, W, 3]
    samples: NDArray[np.float32]  # [samples]

    def rms(self) -> NDArray[np.float64]:
        return np.asarray(np.sqrt((self.seconds().astype(np.float64) ** 2).mean(axis=1)))

    def seconds(self) -> NDArray[np.float32]:
        return self.samples[: OPTIONS.seconds * OPTIONS.rate_hz].reshape(OPTIONS.seconds, -1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    synthesise(folder, OPTIONS, workers=1)
    return folder


@pytest.fixture(scope="module")
def clips(root: Path) -> list[Decoded]:
    rows = [json.loads(line) for line in (root / "truth.jsonl").read_text().splitlines()]
    return [decode(row, root / "AVE" / f"{row['id']}.mp4") for row in rows]


def decode(row: dict[str, Any], path: Path) -> Decoded:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        samples = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return Decoded(row, np.stack(frames), np.concatenate(samples))


def test_files_are_h264_and_aac_of_the_promised_length(root: Path) -> None:
    files = sorted((root / "AVE").iterdir())
    assert len(files) == 24 and all(f.suffix == ".mp4" and len(f.stem) == 11 for f in files)
    for path in files:
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.average_rate) == (96, 96, 5)
            assert (audio.rate, audio.channels) == (22_050, 1)
            assert float(video.duration * video.time_base) == 6.0
            assert float(audio.duration * audio.time_base) == pytest.approx(6.0, abs=1e-3)
            assert video.start_time == audio.start_time == 0


def test_every_frame_and_sample_decodes(clips: list[Decoded]) -> None:
    for clip in clips:
        assert clip.frames.shape == (30, 96, 96, 3)
        assert 0 <= len(clip.samples) - 6 * 22_050 < 1024  # the last AAC frame is filled up
        assert np.abs(clip.samples).max() < 1.05


def test_truth_agrees_with_the_official_files(root: Path) -> None:
    truth = [json.loads(line) for line in (root / "truth.jsonl").read_text().splitlines()]
    header, *rows = (root / "Annotations.txt").read_text().splitlines()
    assert header == HEADER
    by_split = {
        split: (root / f"{split}Set.txt").read_text().splitlines() for split in ("train", "val", "test")
    }
    assert sorted(line for lines in by_split.values() for line in lines) == sorted(rows)
    assert (root / "categories.txt").read_text().splitlines() == list(class_names(8))
    assert len(rows) == len(truth) == 24
    for row, line in zip(truth, rows, strict=True):
        assert line == f"{row['category']}&{row['id']}&good&{row['start_s']}&{row['end_s']}"
        assert line in by_split[row["split"]]
        event = range(row["start_s"], row["end_s"])
        assert row["label"] == [row["category"] if t in event else BACKGROUND for t in range(6)]
        for t in range(6):
            both = set(row["seen"][t]) & set(row["heard"][t])
            assert both == ({row["category"]} if t in event else set())
    facts = json.loads((root / "dataset.json").read_text())
    assert (facts["segments"], facts["segment_s"], facts["synthetic"]["seed"]) == (6, 1.0, 5)


def class_colour_share(hsv: NDArray[np.float64], hue_deg: float) -> NDArray[np.float64]:
    """Share of each frame's pixels that are strongly coloured in the class's hue."""
    off = np.abs((hsv[..., 0] * 360 - hue_deg + 180) % 360 - 180)
    return np.asarray(((off < 11) & (hsv[..., 1] > 0.6) & (hsv[..., 2] > 0.5)).mean(axis=(1, 2)))


def test_objects_are_in_the_picture_when_the_truth_says_so(clips: list[Decoded]) -> None:
    seen_shares, other_shares = [], []
    for clip in clips:
        hsv = rgb_to_hsv(clip.frames / 255.0)
        for cls in CLASSES[:8]:
            per_frame = class_colour_share(hsv, cls.hue_deg).reshape(6, 5)
            for t, present in enumerate(clip.truth["seen"]):
                (seen_shares if cls.name in present else other_shares).extend(per_frame[t])
    assert len(seen_shares) > 300
    assert min(seen_shares) > 2 * max(other_shares), (min(seen_shares), max(other_shares))


def test_objects_move(clips: list[Decoded]) -> None:
    for clip in clips:
        hue = {c.name: c.hue_deg for c in CLASSES}[clip.truth["category"]]
        first = clip.truth["start_s"] * 5
        hsv = rgb_to_hsv(clip.frames[first : first + 5] / 255.0)
        off = np.abs((hsv[..., 0] * 360 - hue + 180) % 360 - 180)
        masks = (off < 11) & (hsv[..., 1] > 0.6)
        changed = (masks[1:] ^ masks[:-1]).sum(axis=(1, 2)) / masks.sum(axis=(1, 2)).mean()
        assert changed.max() > 0.1, clip.truth["category"]


def test_sounds_are_in_the_track_when_the_truth_says_so(clips: list[Decoded]) -> None:
    for clip in clips:
        heard = np.array([bool(second) for second in clip.truth["heard"]])
        if heard.all():
            continue
        rms = clip.rms()
        assert rms[heard].min() > 1.3 * rms[~heard].max(), clip.truth


def test_the_wrong_sound_is_another_sound(clips: list[Decoded]) -> None:
    wrong = [clip for clip in clips if clip.truth["kind"] == "wrong_sound"]
    assert wrong
    for clip in wrong:
        event = range(clip.truth["start_s"], clip.truth["end_s"])
        beside = [t for t, second in enumerate(clip.truth["heard"]) if second and t not in event]
        spectra = [
            np.abs(np.fft.rfft(second))[:8000].reshape(200, 40).mean(axis=1) for second in clip.seconds()
        ]
        shapes = [s / np.linalg.norm(s) for s in spectra]
        across = max(float(shapes[a] @ shapes[b]) for a in event for b in beside)
        within = [float(shapes[a] @ shapes[a + 1]) for a in event[:-1]]
        assert across < min([0.9, *within]), clip.truth


def test_the_picture_changes_at_the_cut_and_only_there(clips: list[Decoded]) -> None:
    cuts = [clip.truth["cut_s"] for clip in clips]
    assert None in cuts and any(cuts)
    for clip, cut in zip(clips, cuts, strict=True):
        steps = np.abs(np.diff(clip.frames.mean(axis=(1, 2)), axis=0)).max(axis=1)  # change of mean colour
        if cut is None:
            assert steps.max() < 10
        else:
            assert steps.argmax() == cut * 5 - 1
            assert steps.max() > 1.4 * np.sort(steps)[-2]
