"""An extraction on devices that is repeatedly killed ends with the bytes of an undisturbed one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from caeav.pipeline.store.media_record import PREFIX, read_record

KILLS = 3
SCRIPT = """
import sys
import torch
from torch import nn
from caeav.manifests.dataset import load_dataset
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones import visual_backbones
from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.store.record import Tap
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.extract.jobs import TokenOptions
from caeav.pipeline.extract.context import RunContext, RunOptions
from pathlib import Path

class Mean(TorchBackbone):
    name, modality, rate_hz = "mean", "visual", None
    def __init__(self, choice):
        torch.manual_seed(0)
        self.net = nn.Linear(48, 32).eval()
    def taps(self): return (Tap("visual.stage1", 16, 32),)
    def describe(self): return {}
    def module(self): return self.net
    def prepare(self, clip):
        x = torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float()
        return nn.functional.adaptive_avg_pool2d(x, 16)
    def forward(self, batch):
        x = nn.functional.unfold(batch.flatten(0, 1), 4, stride=4).transpose(1, 2)
        return {"visual.stage1": self.net(x / 255).unflatten(0, batch.shape[:2])}

visual_backbones.register("mean")(Mean)
home, root = Home(Path(sys.argv[1])), Path(sys.argv[2])
manifest = load_dataset("synthetic", root, home)
options = [
    TokenOptions("mean", "none", shard_clips=2, compute=ComputeOptions(batch=2)),
    TokenOptions("none", "classic", shard_clips=3),
]
run = RunOptions(2, devices=("cpu", "cpu"))
print([s.stored for s in extract_all(RunContext(manifest, home, run), options)])
"""


def start(small_set: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, str(home), str(small_set)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def media_of(home: Path) -> dict[str, object]:
    """The media record of each store, without the digests of whole files, which are lost in a kill, and without times,
    which are not recorded for recently written files."""
    found: dict[str, object] = {}
    for path in (home / "stores").glob(f"*/{PREFIX}*"):
        seen = read_record(path.with_name(path.name.removeprefix(PREFIX)))
        assert seen is not None
        found[path.name] = {name: replace(facts, whole=b"", stamp=0) for name, facts in seen.items()}
    assert found
    return found


def test_repeated_kills_do_not_change_the_stores(
    small_set: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    def bytes_of(home: Path) -> dict[str, str]:
        return {x: y for x, y in digests(home / "stores").items() if PREFIX not in x}

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(small_set, whole)
    out, error = process.communicate(timeout=120)
    assert out.strip() == b"[24, 24]", error.decode()
    rng = random.Random(0)
    killed = 0
    for kill in range(KILLS):
        process = start(small_set, parts)
        published = len(list(parts.glob("stores/*/*/index/[0-9]*")))
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if len(list(parts.glob("stores/*/*/index/[0-9]*"))) > published + kill % 2:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert killed >= 2
    out, error = start(small_set, parts).communicate(timeout=120)
    assert out.strip() == b"[24, 24]", error.decode()
    assert bytes_of(parts) == bytes_of(whole)
    assert media_of(parts) == media_of(whole)
