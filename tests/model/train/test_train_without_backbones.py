"""Training from shards loads no backbone and no decoder, and nothing heavy that it does not need."""

from __future__ import annotations

import json
import subprocess
import sys

from caeav.manifests.core.home import Home

FORBIDDEN = (
    "av",
    "decord",
    "torchcodec",
    "torchvision",
    "torchaudio",
    "timm",
    "transformers",
    "open_clip",
    "matplotlib",
    "caeav.pipeline.media",
    "caeav.pipeline.backbones",
    "caeav.pipeline.captioners",
    "caeav.pipeline.extract.tokens",
)

CODE = """
import json, sys
import typer
from caeav.cli import train
app = typer.Typer()
train.register(app)
app(sys.argv[1:], standalone_mode=False)
print(json.dumps([name for name in sys.modules]))
"""


def test_a_whole_run_by_the_command_imports_no_decoder_and_no_backbone(tiny_home: Home) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CODE,
            "--dataset",
            "tiny",
            "--home",
            str(tiny_home.root),
            "--set",
            "training.epochs=1",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "caeav.pipeline.store.reader" in loaded and "torch" in loaded  # it did train from a store
    assert [name for name in FORBIDDEN if name in loaded] == []
    assert "accuracy" in done.stdout
