"""Models chosen on the command line: which name, weights and settings each part gets, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caeav.cli import options
from caeav.cli.options import choose, choose_one, paths_of_taps
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.choice import ModelChoice

PARTS = {"visual": ("a", "w"), "audio": ("b", None)}


def test_each_part_gets_its_own_model() -> None:
    asked = [
        "visual.size=[192, 256]",
        "audio.hop=10",
        "visual.antialias=false",
        "visual.name=x=y",
        "audio.hop=20",
    ]
    assert choose(PARTS, asked) == {
        "visual": ModelChoice("a", "w", {"size": [192, 256], "antialias": False, "name": "x=y"}),
        "audio": ModelChoice("b", "", {"hop": 20}),  # what is said last
    }
    assert choose(PARTS, None)["visual"] == ModelChoice("a", "w")


@pytest.mark.parametrize(
    "text", ["motion.size=3", "size=3", "visual.=3", ".size=3", "visual.size", "=3", "visual=3"]
)
def test_an_assignment_to_nothing_is_refused(text: str) -> None:
    with pytest.raises(CaeavError, match=r"sets nothing\n  next: write PART.KEY=VALUE, .* visual, audio"):
        choose(PARTS, [text])


def test_a_value_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(CaeavError, match=r"is not a value of YAML\n  next: quote it"):
        choose(PARTS, ["visual.size=[1"])


def test_settings_of_a_single_model_name_no_part() -> None:
    assert choose_one("a", "w", ["size=3", "name='4'"]) == ModelChoice("a", "w", {"size": 3, "name": "4"})
    assert choose_one("a", None, None) == ModelChoice("a")
    with pytest.raises(CaeavError, match="write KEY=VALUE"):
        choose_one("a", None, ["size"])


def test_taps_and_their_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = paths_of_taps("--tap", ["motion.x=~/f=1", "visual.y=/d"])
    assert found == {"motion.x": tmp_path / "f=1", "visual.y": Path("/d")}
    assert paths_of_taps("--tap", None) == {}
    for wrong in ("motion.x", "=f", "motion.x="):
        with pytest.raises(CaeavError, match=f"--tap '{wrong}' is no TAP=PATH"):
            paths_of_taps("--tap", [wrong])
    with pytest.raises(CaeavError, match="names a tap again"):
        paths_of_taps("--tap", ["motion.x=a", "motion.x=b"])


DEFAULTS: dict[str, Any] = {
    "flag": False,
    "count": 3,
    "share": 0.5,
    "name": "x",
    "names": [],
    "any": None,
}
PRESETS = {"big": {"count": 9, "share": 0.9}}


def test_own_settings_override_the_preset_and_the_preset_the_defaults() -> None:
    choice = ModelChoice("m", "", {"preset": "big", "count": 4})
    assert choice.resolve(DEFAULTS, PRESETS) == {**DEFAULTS, "count": 4, "share": 0.9}
    assert ModelChoice("m").resolve(DEFAULTS, PRESETS) == DEFAULTS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flag", True),
        ("count", 4),
        ("share", 1),
        ("share", 0.1),
        ("name", "y"),
        ("names", ("a",)),
        ("any", "z"),
    ],
)
def test_values_of_the_type_of_the_default_are_accepted(key: str, value: object) -> None:
    assert ModelChoice("m", "", {key: value}).resolve(DEFAULTS)[key] == value


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        *(("flag", 1, "true or false"), ("flag", "yes", "true or false"), ("count", True, "a whole number")),
        *(("count", 1.0, "a whole number"), ("share", False, "a number"), ("share", "1", "a number")),
        *(("name", 1, "a text"), ("names", "a", "a list"), ("count", None, "a whole number")),
    ],
)
def test_values_of_another_type_are_refused(key: str, value: object, wanted: str) -> None:
    with pytest.raises(
        CaeavError, match=rf"setting '{key}' of m is .*, its default is .*\n  next: give {wanted}"
    ):
        ModelChoice("m", "", {key: value}).resolve(DEFAULTS)


def test_unknown_settings_presets_and_weights_are_refused() -> None:
    with pytest.raises(CaeavError, match=r"m has no setting 'cuont'\n  next: did you mean 'count'\?.*preset"):
        ModelChoice("m", "", {"cuont": 1}).resolve(DEFAULTS, PRESETS)
    with pytest.raises(CaeavError, match="m has no preset 'bigg'"):
        ModelChoice("m", "", {"preset": "bigg"}).resolve(DEFAULTS, PRESETS)
    with pytest.raises(CaeavError, match="m has no setting 'preset'"):
        ModelChoice("m", "", {"preset": "big"}).resolve(DEFAULTS)
    with pytest.raises(CaeavError, match="it has no settings"):
        ModelChoice("m", "", {"a": 1}).refuse_options()
    with pytest.raises(CaeavError, match="m has no weights, but 'w' was given"):
        ModelChoice("m", "w").refuse_options()
    ModelChoice("m").refuse_options()


def test_a_name_alone_is_a_choice() -> None:
    assert ModelChoice.of("timm:resnet18") == ModelChoice("timm:resnet18")
    assert ModelChoice.of(ModelChoice("a", "w")) == ModelChoice("a", "w")
    assert ModelChoice("timm:resnet18").variant == "resnet18" and ModelChoice("clap").variant == ""


def test_both_backbones_are_opened_each_for_its_modality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [SimpleNamespace()]
    asked: list[Any] = []

    def opened(recipes: Any, modality: str) -> Any:
        asked.append((recipes, modality))
        return SimpleNamespace(stages=stages, module=modality)

    remembered: list[Any] = []
    monkeypatch.setattr("caeav.pipeline.extract.jobs.open_live", opened)
    monkeypatch.setattr(
        "caeav.pipeline.backbones.weights.remember_at", lambda *given: remembered.append((asked[:], given))
    )
    home = Home(tmp_path)
    recipes: Any = ["recipe"]
    assert options.live_opener(home)(recipes).modules == ("visual", "audio")
    assert asked == [(recipes, "visual"), (recipes, "audio")]
    assert remembered == [([], (home, options.say))]  # before any weights are looked for
