"""How often what `--audio tags` names is right, by threshold, on labelled recordings, and what both captioners cost.

    python benchmarks/tags.py ESC_FOLDER yamnet.safetensors lite0.safetensors

ESC_FOLDER holds `ESC.csv` (columns `file`, `category`) and the recordings of ESC-10's classes. Each is heard as five
segments of 1 s. A name counts as right if it is in `RIGHT` for the recording's class; other sounds that a recording
really holds count as wrong, so the shares are too low rather than too
high. Cost: one clip of 10 s, one thread, CPU time.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners.tags.audio import RATE_HZ, TagAudio
from caeav.pipeline.captioners.tags.visual import TagFrames
from caeav.pipeline.media.clip import DecodedClip, Sampling
from caeav.pipeline.media.registry import decoders

RIGHT = {
    "dog": (
        "dog",
        "bark",
        "yip",
        "howl",
        "bow-wow",
        "growling",
        "whimper",
        "animal",
        "domestic animals",
        "dogs",
    ),
    "chainsaw": (
        "chainsaw",
        "power tool",
        "tools",
        "engine",
        "light engine",
        "medium engine",
        "sawing",
        "idling",
    ),
    "clock_tick": ("clock", "tick", "tick-tock", "mechanisms", "clicking", "ratchet", "alarm clock"),
    "crackling_fire": ("fire", "crackle", "crack"),
    "crying_baby": ("crying", "baby cry", "whimper", "wail", "screaming"),
    "helicopter": (
        "helicopter",
        "aircraft",
        "vehicle",
        "engine",
        "aircraft engine",
        "propeller",
        "heavy engine",
    ),
    "rain": ("rain", "raindrop", "water", "liquid"),
    "rooster": ("fowl", "chicken", "crowing", "animal", "bird", "farm animals", "bird vocalization", "cluck"),
    "sea_waves": ("ocean", "waves", "water", "wind", "stream", "liquid", "waterfall"),
    "sneezing": ("sneeze", "cough", "sniff"),
}
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SECONDS = 10


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    folder, audio, visual = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    rows = list(csv.DictReader((folder / "ESC.csv").read_text(encoding="utf-8").splitlines()))
    paths = {path.name: path for path in folder.rglob("*.ogg")}
    decoder = decoders["pyav"]()
    clips = [
        decoder.decode(str(paths[Path(row["file"]).name]), 0.0, Sampling(5, 1.0, RATE_HZ)) for row in rows
    ]
    print("threshold  names  right   of recordings: one right name  none")
    for threshold in THRESHOLDS:
        captioner = TagAudio(ModelChoice("tags", audio, {"threshold": threshold}))
        named = [captioner.claims_of(clip) for clip in clips]
        right = [
            [claim.name in RIGHT[row["category"]] for claim in found]
            for row, found in zip(rows, named, strict=True)
        ]
        count, good = sum(map(len, right)), sum(map(sum, right))
        any_right, none = sum(map(any, right)), sum(not found for found in right)
        print(f"{threshold:9} {count:6} {good / max(count, 1):6.0%} {any_right:32} {none:5}")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (SECONDS, 360, 640, 3), dtype=np.uint8)
    wave = (0.1 * rng.standard_normal(SECONDS * RATE_HZ)).astype(np.float32)
    clip = DecodedClip(frames, wave, (True,) * SECONDS, (True,) * SECONDS)
    for made in (TagFrames(ModelChoice("tags", visual)), TagAudio(ModelChoice("tags", audio))):
        made.module()
        made.caption([clip])
        begin = time.process_time()
        for _ in range(5):
            made.caption([clip])
        print(f"{made.modality}: {(time.process_time() - begin) / 5:.2f} s per clip")


if __name__ == "__main__":
    main()
