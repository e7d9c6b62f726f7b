"""Errors about unknown names, and errors from other processes."""

from __future__ import annotations

import pickle

import pytest

from caeav.manifests.core.errors import CaeavError, choices, did_you_mean
from caeav.manifests.core.registry import Registry

NAMES = ("clap", "clip-vit-l14", "swinv2-large", "timm:<name>")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("swin2-large", "swinv2-large"),
        ("clip", "clip-vit-l14"),
        ("clp", "clap"),
        ("tim:resnet18", "timm:<name>"),
        ("tim:a-very-long-name-of-a-model", "timm:<name>"),
        ("xyz", ""),
    ],
)
def test_the_nearest_known_name_is_suggested(typed: str, meant: str) -> None:
    assert did_you_mean(typed, NAMES) == (f"did you mean {meant!r}?" if meant else "")
    assert choices(typed, NAMES).endswith(f"choose one of: {', '.join(NAMES)}")


def test_a_registry_suggests_the_nearest_name() -> None:
    models: Registry[int] = Registry("model")
    models.register("resnet")(1)
    models.register("timm:")(2)
    with pytest.raises(CaeavError, match=r"did you mean 'resnet'\? choose one of: resnet, timm:<name>"):
        models["resnt"]


def test_an_error_keeps_its_problem_and_next_step_when_pickled() -> None:
    error = CaeavError("no file x", hint="look for it")
    assert (error.problem, error.hint, str(error)) == (
        "no file x",
        "look for it",
        "no file x\n  next: look for it",
    )
    assert str(CaeavError("no file x")) == "no file x"
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is CaeavError and str(back) == str(error)


def test_a_prefix_of_three_letters_or_more_suggests_a_name() -> None:
    names = ("resnet", "vit-large", "vit")
    assert did_you_mean("vit", names) == "did you mean 'vit-large'?"
    assert did_you_mean("r", names) == "" and did_you_mean("res", names) == "did you mean 'resnet'?"
