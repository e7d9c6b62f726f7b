"""From folders of published features to a trained video parser and a prediction, with the commands alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import invoke
from typer.testing import Result

from caeav.cli import imports, predict, train
from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.manifest import write_manifest

T = 4
CLASSES = ("bell", "dog")
SHAPES = {"visual.res152": (2 * T, 12), "audio.vggish": (T, 8), "motion.r2plus1d": (T, 6)}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """16 clips as in LLP, known by manifest and features only, which are larger in the place of a clip's class."""
    home = Home(tmp_path / "home")
    rng = np.random.default_rng(0)
    clips = []
    for i in range(16):
        split = ("train", "val", "train", "test")[i % 4]
        label = CLASSES[i // 4 % 2]
        events = (
            ()
            if split == "train"
            else tuple(Event(label, 0, T, modality) for modality in ("audio", "visual"))
        )
        clips.append(
            Clip(
                f"id{i:02d}_0_4",
                f"video/id{i:02d}.mp4",
                0,
                T,
                split,
                events,
                {"id": f"id{i:02d}", "labels": [label]},
            )
        )
        for tap, shape in SHAPES.items():
            folder = tmp_path / tap
            folder.mkdir(exist_ok=True)
            x = rng.normal(scale=0.2, size=shape) + np.eye(shape[1])[CLASSES.index(label)]
            np.save(folder / f"id{i:02d}.npy", x.astype(np.float32))
    manifest = Manifest("mine", T, 1.0, CLASSES, tuple(clips), media_root=str(tmp_path))
    write_manifest(manifest, home.manifest("mine"))
    return home


def call(home: Home, *arguments: str) -> Result:
    return invoke((imports, train, predict), *arguments, "--home", home.root)


def taps(root: Path, *names: str) -> list[str]:
    return [part for name in names for part in ("--tap", f"{name}={root / name}")]


def test_published_features_train_a_parser_with_motion_and_predict(home: Home, tmp_path: Path) -> None:
    made = call(home, "import", "--dataset", "mine", *taps(tmp_path, *SHAPES), "--name", "official")
    assert made.exit_code == 0, made.output
    assert "stored       16 of 16" in made.output and "model.head.motion=true" in made.output
    sets = ["model.head.motion=true", "model.head.width=16", "training.epochs=2", "training.device=cpu"]
    given = [part for text in sets for part in ("--set", text)]
    trained = call(home, "train", "--task", "avvp", "--dataset", "mine", "--recipe", "none", *given, "--json")
    assert trained.exit_code == 0, trained.output
    clip = tmp_path / "new.mp4"
    clip.write_bytes(b"")
    features = [p for tap in SHAPES for p in ("--features", f"{tap}={tmp_path / tap / 'id03.npy'}")]
    found = call(home, "predict", str(clip), "--run", "last", *features, "--json")
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)["segments"]) == T
    refused = call(home, "predict", str(clip), "--run", "last", *features[:4])
    assert isinstance(refused.exception, CaeavError)
    assert "--features motion.r2plus1d=FILE.npy" in str(refused.exception)


def test_the_next_step_joins_motion_features_with_another_store(home: Home, tmp_path: Path) -> None:
    call(
        home,
        "import",
        "--dataset",
        "mine",
        *taps(tmp_path, "visual.res152", "audio.vggish"),
        "--name",
        "frames",
    )
    made = call(home, "import", "--dataset", "mine", *taps(tmp_path, "motion.r2plus1d"))
    assert "caeav train --task avvp --dataset mine" in made.stdout
    assert "--set stores.tokens=frames,r2plus1d --set model.head.motion=true" in made.stdout


def test_the_next_step_joins_the_missing_modality_by_unambiguous_names(home: Home, tmp_path: Path) -> None:
    def joined(*arguments: str) -> str:
        made = call(home, "import", "--dataset", "mine", *arguments)
        assert made.exit_code == 0, made.output
        return made.stdout.partition("stores.tokens=")[2].split()[0]

    audio, visual = (taps(tmp_path, name) for name in ("audio.vggish", "visual.res152"))
    assert joined(*audio) == "OTHER,vggish"
    assert joined(*audio, "--name", "again") == "OTHER,again"  # another store of audio is not what is missing
    assert joined(*visual) == "again,res152"
    other = joined(*audio, "--dtype", "float32")  # now two are called vggish
    name, own = other.split(",")
    assert name == "res152" and len(list((home.stores / "mine").glob(f"tokens-vggish-{own}*"))) == 1
    call(home, "import", "--dataset", "mine", *audio, *visual, "--name", "both")
    shutil.rmtree(next((home.stores / "mine").glob("tokens-res152-*")))
    assert joined(*audio, "--name", "third") == "both:visual,third"
    stores = joined(*audio, "--name", "fourth")
    options = ("--task", "avvp", "--dataset", "mine", "--recipe", "none", "--set", "training.epochs=1")
    trained = call(
        home, "train", *options, "--set", f"stores.tokens={stores}", "--set", "model.head.width=16"
    )
    assert trained.exit_code == 0, trained.output


@pytest.mark.parametrize("text", ["motion.r2plus1d", "=x", "motion.r2plus1d="])
def test_a_tap_needs_a_folder(home: Home, text: str) -> None:
    assert "TAP=PATH" in str(call(home, "import", "--dataset", "mine", "--tap", text).exception)


def test_too_many_clips_without_features_are_counted_and_an_error(home: Home, tmp_path: Path) -> None:
    for i in range(0, 16, 2):
        (tmp_path / "audio.vggish" / f"id{i:02d}.npy").unlink()
    arguments = ["import", "--dataset", "mine", *taps(tmp_path, "audio.vggish")]
    made = call(home, *arguments)
    assert isinstance(made.exception, CaeavError)
    assert "8 of 16 clips are quarantined; --max-failed allows" in str(made.exception)
    assert "fix the features and import again" in str(made.exception)
    assert "stored       8 of 16" in made.stdout and "8 x features: no file" in made.stdout
    assert "audio.vggish: 8 clips of 16 without features in audio.vggish" in made.stderr
    assert call(home, *arguments, "--max-failed", "8").exit_code == 0


def test_features_too_large_for_the_format_say_which_option_helps(home: Home, tmp_path: Path) -> None:
    for path in (tmp_path / "audio.vggish").iterdir():
        np.save(path, np.load(path) * np.float32(1e6))
    arguments = ["import", "--dataset", "mine", *taps(tmp_path, "audio.vggish")]
    made = call(home, *arguments)
    assert made.exit_code != 0
    reason = "16 x features: audio.vggish has values too large for float16, give --dtype bfloat16 or float32"
    assert reason in made.stdout
    assert call(home, *arguments, "--dtype", "bfloat16").exit_code == 0
