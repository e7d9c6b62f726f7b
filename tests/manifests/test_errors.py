"""What an error says of a name that is not known."""

from __future__ import annotations

import pytest

from caeav.manifests.errors import CaeavError, choices, did_you_mean
from caeav.manifests.registry import Registry

NAMES = ("clap", "clip-vit-l14", "swinv2-large", "timm:<name>")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("swin2-large", "swinv2-large"),
        ("clip", "clip-vit-l14"),
        ("clp", "clap"),
        ("tim:resnet18", "timm:<name>"),
        ("xyz", ""),
    ],
)
def test_the_nearest_known_name_is_offered(typed: str, meant: str) -> None:
    assert did_you_mean(typed, NAMES) == (f"did you mean {meant!r}?" if meant else "")
    assert choices(typed, NAMES).endswith(f"choose one of: {', '.join(NAMES)}")


def test_a_registry_offers_it() -> None:
    models: Registry[int] = Registry("model")
    models.register("resnet")(1)
    models.register("timm:")(2)
    with pytest.raises(CaeavError, match=r"did you mean 'resnet'\? choose one of: resnet, timm:<name>"):
        models["resnt"]
