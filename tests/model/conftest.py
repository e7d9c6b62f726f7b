"""A tiny home folder with a token store and a caption store that hold something to learn.

A clip of class `k` shows its object in some segments and sounds it in some; the event is where both agree.
Either modality alone cannot tell, since each is also present without the other.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.home import Home
from caeav.pipeline.store import Quarantined, Recipe, Record, open_for_writing

SEGMENTS = 6
CLASSES = ("bell", "dog", "drum")
TAPS = {
    "visual.stage1": (16, 8),
    "visual.stage2": (4, 16),
    "audio.stage1": (16, 8),
    "audio.stage2": (4, 12),
}
CAPTION = (5, 16)  # [W, C]
COUNTS = {"train": 36, "val": 12, "test": 12}


def class_vector(name: str, label: int) -> np.ndarray:
    """A fixed direction for a class in a tap or caption."""
    width = TAPS[name][1] if name in TAPS else CAPTION[1]
    return np.random.default_rng([zlib.crc32(name.encode()), label]).normal(size=width).astype(np.float32)


def tiny_clip(number: int, split: str) -> tuple[Clip, np.ndarray, np.ndarray, int]:
    """A manifest row, and where its object is seen and heard."""
    rng = np.random.default_rng([7, number])
    label = number % len(CLASSES)
    both = (int(rng.integers(0, 3)), int(rng.integers(3, SEGMENTS + 1)))
    seen, heard = np.zeros(SEGMENTS, bool), np.zeros(SEGMENTS, bool)
    seen[both[0] : both[1]] = heard[both[0] : both[1]] = True
    outside = [t for t in range(SEGMENTS) if not both[0] <= t < both[1]]
    for t in outside:
        (seen if rng.random() < 0.5 else heard)[t] = True
    event = Event(CLASSES[label], float(both[0]), float(both[1]))
    clip = Clip(f"clip{number:03d}", f"clip{number:03d}.mp4", 0.0, float(SEGMENTS), split, (event,))
    return clip, seen, heard, label


def tiny_record(clip: Clip, seen: np.ndarray, heard: np.ndarray, label: int) -> Record:
    """Noise, with the class direction added to every token where the object is present."""
    rng = np.random.default_rng([11, zlib.crc32(clip.key.encode())])
    arrays: dict[str, Any] = {}
    for name, (tokens, channels) in TAPS.items():
        present = seen if name.startswith("visual") else heard
        x = rng.normal(scale=0.3, size=(SEGMENTS, tokens, channels))
        arrays[name] = (x + present[:, None, None] * class_vector(name, label)).astype(np.float16)
    truth = [True] * SEGMENTS
    return Record(clip.key, arrays, {"frames_ok": truth, "audio_ok": truth, "notes": [], "facts": {}})


def tiny_captions(clip: Clip, label: int) -> Record:
    """Three caption tokens of five, one of which names the class."""
    rng = np.random.default_rng([13, zlib.crc32(clip.key.encode())])
    arrays: dict[str, Any] = {}
    for name in ("visual_caption", "audio_caption"):
        x = np.zeros(CAPTION, np.float32)
        x[:3] = rng.normal(scale=0.3, size=(3, CAPTION[1]))
        x[1] += class_vector(name, label)
        arrays[name] = x.astype(np.float16)
        arrays[f"{name}_mask"] = np.arange(CAPTION[0]) < 3
    return Record(
        clip.key, arrays, {"texts": {"visual": CLASSES[label], "audio": CLASSES[label]}, "notes": []}
    )


def write_tiny_home(
    root: Path,
    *,
    dataset: str = "tiny",
    counts: dict[str, int] = COUNTS,
    captions: bool = True,
    uncaptioned: int = 0,
    quarantined: int = 1,
) -> Home:
    """A home with the stores of `dataset`; the last `quarantined` train clips could not be decoded, and the first
    `uncaptioned` clips are unknown to the caption store."""
    home = Home(root)
    rows = [tiny_clip(i, split) for i, split in enumerate(s for s, n in counts.items() for _ in range(n))]
    clips = tuple(row[0] for row in rows)
    broken = (
        {clip.key for clip in [c for c in clips if c.split == "train"][-quarantined:]}
        if quarantined
        else set()
    )
    manifest = Manifest(dataset, SEGMENTS, 1.0, CLASSES, clips)
    known = Manifest(dataset, SEGMENTS, 1.0, CLASSES, clips[uncaptioned:])
    makers = [("tokens", "tinytokens", manifest, {row[0].key: tiny_record(*row) for row in rows})]
    if captions:
        makers.append(
            ("captions", "tinycaptions", known, {row[0].key: tiny_captions(row[0], row[3]) for row in rows})
        )
    for kind, name, held, records in makers:
        recipe = Recipe(kind, name, {"made": "by the tests", "shard_clips": 16})  # type: ignore[arg-type]
        with open_for_writing(home.stores / dataset, recipe, held) as writer:
            for clip in held.clips:
                if clip.key in broken:
                    writer.quarantine(Quarantined(clip.key, "decode", "made to fail by the tests", 1))
            for plan in writer.plan():
                writer.publish(plan, {key: records[key] for key in plan.missing})
            writer.finish()
    return home


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Stores with captions and one quarantined clip; tests only read the stores and add runs."""
    return write_tiny_home(tmp_path_factory.mktemp("tiny") / "home")


@pytest.fixture
def make_home(tmp_path: Path) -> Callable[..., Home]:
    """`make_home(**options of write_tiny_home)`: a home of this test alone."""
    return lambda **options: write_tiny_home(tmp_path / "home", **options)
