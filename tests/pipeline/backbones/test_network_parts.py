"""What visual networks and text towers declare, and the order of their taps, without any weights."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.clip_visual import MEAN, STD, ClipNetwork, published_by
from caeav.pipeline.backbones.image import IMAGENET_MEAN, FrameSettings, LearnedVisual
from caeav.pipeline.backbones.text_tower import TextTower
from caeav.pipeline.backbones.timm_models import SwinNetwork, TimmNetwork, _converted, _published_by


def bare(kind: Any, **held: Any) -> Any:
    """An object of a class with these attributes, made without calling `__init__`."""
    made = object.__new__(kind)
    vars(made).update(held)
    return made


def names(word: str, count: int) -> list[str]:
    return [*(f"visual.{word}{i + 1}" for i in range(count)), "visual.pooled"]


@pytest.mark.parametrize(
    ("word", "count", "chosen"),
    [
        ("level", 5, (2, 3, 4, 5)),
        ("level", 3, (1, 2, 3)),
        ("block", 12, (3, 6, 9, 12)),
        ("block", 6, (1, 3, 4, 6)),
    ],
)
def test_the_default_taps_are_the_deepest_levels_or_evenly_spaced_blocks(
    word: str, count: int, chosen: tuple[int, ...]
) -> None:
    for family in (TimmNetwork, ClipNetwork) if word == "block" else (TimmNetwork,):
        assert bare(family).default_taps(names(word, count)) == [f"visual.{word}{i}" for i in chosen]
    stages = ["visual.frames", "visual.stage1", "visual.stage2", "visual.norm"]
    assert bare(SwinNetwork).default_taps(stages) == ["visual.stage1", "visual.stage2"]


def test_frame_settings_come_from_the_models_record() -> None:
    record = SimpleNamespace(
        input_size=(3, 20, 30), crop_pct=0.5, interpolation="bilinear", mean=(1, 2, 3), std=(4, 5, 6)
    )
    found = bare(TimmNetwork, _record=record).own_frames
    assert found == FrameSettings(
        (20, 30), "crop", 0.5, "bilinear", True, "float", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    )
    for size, wanted in ((32, (32, 32)), ([24, 48], (24, 48))):
        frames = bare(ClipNetwork, _vision={"image_size": size}).own_frames
        assert (frames.size, frames.fit, frames.mean, frames.std) == (wanted, "crop", MEAN, STD)
    assert MEAN != IMAGENET_MEAN and bare(ClipNetwork, _quick_gelu=True).more_settings() == {
        "quick_gelu": True
    }


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://h.com/o/r/releases/download/v1/w.pth", "the repository o/r, its release file w.pth"),
        ("https://elsewhere.com/w.pth", "timm's record, https://elsewhere.com/w.pth"),
        ("", "whoever trained it: timm knows no weights of this architecture"),
    ],
)
def test_the_publisher_of_weights_is_read_from_the_record(url: str, message: str) -> None:
    assert _published_by(url) == message


def test_clips_publishers_are_those_with_the_same_activation() -> None:
    tags: dict[str, dict[str, Any]] = {
        "a": {"hf_hub": "x/one/"},
        "b": {"hf_hub": "x/two/", "quick_gelu": True},
        "c": {"url": "u"},
        "d": {"hf_hub": "x/three/"},
        "e": {"hf_hub": "x/four/"},
    }
    library = SimpleNamespace(
        get_model_config=lambda name: {"quick_gelu": name == "quick"},
        list_pretrained_tags_by_model=lambda name: [] if name == "none" else list(tags),
        get_pretrained_cfg=lambda name, tag: tags[tag],
    )
    assert published_by(library, "quick") == "hub:x/two"
    assert (
        published_by(library, "plain") == "hub:x/one, hub:x/three and 1 more of open_clip.list_pretrained()"
    )
    assert published_by(library, "none").startswith("whoever trained it")


@pytest.mark.parametrize(("size", "options"), [((8, 8), {}), ((8, 16), {"img_size": (8, 16)})])
def test_a_fixed_network_is_built_with_a_size_only_if_it_differs(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    asked: list[Any] = []
    made = SimpleNamespace(forward_intermediates=None)

    def create(name: str, **how: Any) -> Any:
        asked.append((name, how))
        return made

    record = SimpleNamespace(fixed_input_size=True, input_size=(3, 8, 8))
    network = bare(
        TimmNetwork, _record=record, _architecture="net", _timm=SimpleNamespace(create_model=create)
    )
    assert network.build({"size": list(size)}) is made
    record.fixed_input_size = False
    network.build({"size": [5, 5]})
    usual = {"pretrained": False, "num_classes": 0}
    assert asked == [("net", usual | options), ("net", usual)]
    del made.forward_intermediates
    with pytest.raises(CaeavError, match="net of timm has no intermediate outputs"):
        network.build({"size": [8, 8]})


class Levels(nn.Module):
    """Stands in for a network of timm with levels of these widths."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.feature_info = [{"num_chs": width, "reduction": 4} for width in widths]
        self.asked: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append("forward")
        return x.flatten(1)

    def forward_intermediates(self, x: Tensor, **how: Any) -> Any:
        self.asked.append(how)
        places = range(len(self.feature_info)) if how["indices"] is None else how["indices"]
        return x, [x + i for i in places]

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        self.asked.append("head")
        return -x


def test_only_requested_taps_are_computed_and_returned_in_order() -> None:
    x = torch.arange(12.0).reshape(1, 3, 2, 2)
    network, same, other = bare(TimmNetwork), Levels(8, 8, 8), Levels(4, 8, 8)
    assert list(network.offered(other, x)) == [
        "visual.level1",
        "visual.level2",
        "visual.level3",
        "visual.pooled",
    ]
    found = network.run(same, x, ["visual.block3", "visual.block1"])
    assert list(found) == ["visual.block1", "visual.block3"]
    assert torch.equal(found["visual.block3"], (x + 2).flatten(2).transpose(1, 2))
    assert same.asked == [{"indices": [0, 2], "output_fmt": "NCHW"}]
    pooled = network.run(same, x, ["visual.pooled"])
    assert list(pooled) == ["visual.pooled"] and torch.equal(pooled["visual.pooled"], x.reshape(1, 1, 12))
    assert same.asked[1:] == ["forward"]
    both = network.run(same, x, ["visual.pooled", "visual.block2"])
    assert torch.equal(both["visual.pooled"], -x.reshape(1, 1, 12)) and "visual.block2" in both


def test_clips_blocks_are_returned_in_order() -> None:
    asked: list[Any] = []

    def intermediates(frames: Tensor, **how: Any) -> Any:
        asked.append(how)
        return {
            "image_intermediates": [torch.full((1, 4, 2), i) for i in how["indices"]],
            "image_features": torch.ones(1, 6),
        }

    network = bare(ClipNetwork, _vision={"layers": 3})
    tower: Any = SimpleNamespace(forward_intermediates=intermediates)
    found = network.run(tower, torch.zeros(1), ["visual.pooled", "visual.block3", "visual.block1"])
    assert {name: int(x.max()) for name, x in found.items()} == {
        "visual.block1": 0,
        "visual.block3": 2,
        "visual.pooled": 1,
    }
    assert found["visual.pooled"].shape == (1, 1, 6)
    assert list(network.offered(tower, torch.zeros(1))) == names("block", 3)
    assert [how["output_fmt"] for how in asked] == ["NLC", "NLC"]


def test_a_module_is_built_once_frozen_and_without_using_global_random_numbers() -> None:
    made: list[Any] = []

    class Network:
        def build(self, settings: Any) -> nn.Module:
            made.append(torch.rand(1).item())
            return nn.Dropout()

        def load(self, *given: Any) -> None:
            raise AssertionError("random weights come from no file")

    def backbone(seed: int) -> Any:
        weights = SimpleNamespace(seed=seed, source="random")
        return bare(
            LearnedVisual,
            _network=Network(),
            _weights=weights,
            _settings={},
            _module=None,
            _lock=threading.Lock(),
        )

    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = backbone(1)
    assert one.module() is one.module() and not one.module().training
    backbone(1).module()
    backbone(2).module()
    assert len(made) == 3 and made[0] == made[1] != made[2]
    assert torch.equal(torch.get_rng_state(), before)  # random numbers drawn elsewhere are not affected


# --- texts --------------------------------------------------------------------------------------------


class Letters(TextTower):
    """A tower whose tokens are letters, with values after the end of a text too."""

    def __init__(self, max_tokens: int = 4) -> None:
        super().__init__("letters", max_tokens, 1, 6)
        self.built = 0

    def describe(self) -> dict[str, Any]:
        return {}

    def build(self) -> nn.Module:
        self.built += 1
        return nn.Sequential(nn.Dropout(), nn.Linear(1, 1))

    def tokenize(self, texts: Any) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[ord(c) for c in text.ljust(4, "_")] for text in texts])
        return ids, ids != ord("_")

    def run(self, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled() and not module.training
        assert not any(p.requires_grad for p in module.parameters())
        return ids.unsqueeze(-1).to(torch.float16)


def test_tokens_are_zero_where_there_is_no_text() -> None:
    tower = Letters()
    tokens, mask = tower.encode(["ab", "", " "])
    assert tokens.dtype == np.float32 and tokens[..., 0].tolist() == [[97, 98, 0, 0], [0] * 4, [0] * 4]
    assert mask.tolist() == [[True, True, False, False], [False] * 4, [False] * 4]
    nothing, none = tower.encode([])
    assert (nothing.shape, none.shape, tower.built) == ((0, 4, 1), (0, 4), 1)
    tower.encode(["c"])
    assert tower.built == 1


@pytest.mark.parametrize(("count", "fits"), [(2, False), (3, True), (6, True), (7, False)])
def test_max_tokens_must_allow_begin_word_and_end(count: int, fits: bool) -> None:
    if fits:
        assert Letters(count).max_tokens == count
        return
    with pytest.raises(CaeavError, match=f"max_tokens of letters is {count}\n  next: give 3 to 6"):
        Letters(count)


def test_timms_conversion_functions_get_the_arguments_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    here = sys.modules[__name__]
    module, state = Levels(1), {"a": torch.ones(1)}
    assert _converted(module, state) is state
    convert: Any
    for convert in (lambda found: {**found, "one": 1}, lambda found, model: {**found, "one": model}):
        monkeypatch.setattr(here, "checkpoint_filter_fn", convert, raising=False)
        assert set(_converted(module, state)) == {"a", "one"} and list(state) == ["a"]
