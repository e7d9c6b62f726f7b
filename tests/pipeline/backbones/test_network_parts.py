"""What visual and sound networks say of themselves and how their places are ordered, without any weights."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caeav.manifests.errors import CaeavError
from caeav.pipeline.backbones.clap_audio import ClapAudio
from caeav.pipeline.backbones.clap_sound import LAION, _front_of
from caeav.pipeline.backbones.frames import IMAGENET_MEAN, FrameSettings
from caeav.pipeline.backbones.htsat import HtsatConfig
from caeav.pipeline.backbones.htsat_blocks import (
    MASKED,
    HtsatBlock,
    PatchMerging,
    StochasticDepth,
    from_windows,
    relative_index,
    shift_mask,
    to_windows,
)
from caeav.pipeline.backbones.htsat_sound import SoundConfig, fold, mix_up
from caeav.pipeline.backbones.sound_backbone import FRONT_END, SoundBackbone, front_end, sound_config
from caeav.pipeline.backbones.text_tower import TextTower
from caeav.pipeline.backbones.visual import LearnedVisual
from caeav.pipeline.backbones.visual_clip import MEAN, STD, ClipNetwork, published_by
from caeav.pipeline.backbones.visual_timm import SwinNetwork, TimmNetwork, _converted, _published_by
from caeav.pipeline.weights import WeightsError


def bare(kind: Any, **held: Any) -> Any:
    """An object of a class without what its making would ask for."""
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
def test_the_deepest_levels_or_blocks_evenly_apart_are_cached(
    word: str, count: int, chosen: tuple[int, ...]
) -> None:
    for family in (TimmNetwork, ClipNetwork) if word == "block" else (TimmNetwork,):
        assert bare(family).default_taps(names(word, count)) == [f"visual.{word}{i}" for i in chosen]
    stages = ["visual.frames", "visual.stage1", "visual.stage2", "visual.norm"]
    assert bare(SwinNetwork).default_taps(stages) == ["visual.stage1", "visual.stage2"]


def test_frames_are_those_of_the_record() -> None:
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
    ("url", "said"),
    [
        ("https://h.com/o/r/releases/download/v1/w.pth", "the repository o/r, its release file w.pth"),
        ("https://elsewhere.com/w.pth", "timm's record, https://elsewhere.com/w.pth"),
        ("", "whoever trained it: timm knows no weights of this architecture"),
    ],
)
def test_who_publishes_weights_is_read_from_the_record(url: str, said: str) -> None:
    assert _published_by(url) == said


def test_clips_publishers_are_those_of_the_same_activation() -> None:
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
def test_only_another_size_than_its_own_is_asked_of_a_fixed_network(
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
    """Stands for a network of timm with places of the widths named."""

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


def test_only_what_is_asked_for_is_kept_and_named_by_its_place() -> None:
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


def test_clips_blocks_are_asked_for_in_order() -> None:
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


def test_a_networks_module_is_made_once_frozen_and_by_chance_only_where_that_is_asked() -> None:
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
    assert torch.equal(torch.get_rng_state(), before)  # whoever draws numbers elsewhere is not disturbed


# --- HTS-AT -------------------------------------------------------------------------------------------


def grid_of(height: int, width: int) -> Tensor:
    return torch.arange(height * width).reshape(1, -1, 1)


def test_windows_go_row_by_row_and_come_back() -> None:
    x = grid_of(4, 6)
    found = to_windows(x, (4, 6), 2)
    assert found[:4, :, 0].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]]
    assert torch.equal(from_windows(found, (4, 6), 2), x)


def test_the_bias_of_two_places_is_that_of_their_distance_rows_first() -> None:
    places = [(r, c) for r in range(3) for c in range(3)]
    wanted = [[(qr - kr + 2) * 5 + qc - kc + 2 for kr, kc in places] for qr, qc in places]
    assert relative_index(3).tolist() == wanted


def test_places_that_the_shift_brought_together_do_not_look_at_each_other() -> None:
    mask = shift_mask((4, 8), 4, 2)
    assert mask.shape == (2, 16, 16) and set(mask.unique().tolist()) == {MASKED, 0.0}
    rolled = torch.arange(32).reshape(4, 8).roll((-2, -2), (0, 1)).reshape(1, -1, 1)
    for window, held in zip(mask, to_windows(rolled, (4, 8), 4)[..., 0].tolist(), strict=True):
        for i, a in enumerate(held):
            for j, b in enumerate(held):
                near = abs(a // 8 - b // 8) < 4 and abs(a % 8 - b % 8) < 4
                torn = (a // 8 < 2) != (b // 8 < 2) or (abs(a % 8 - b % 8) >= 4)
                assert bool(window[i, j] == 0) == (near and not torn)


@pytest.mark.parametrize(("grid", "window", "shift"), [((4, 4), 4, 0), ((2, 4), 2, 0), ((8, 8), 4, 2)])
def test_one_window_is_not_shifted(grid: tuple[int, int], window: int, shift: int) -> None:
    block = HtsatBlock(4, 2, grid, window=4, shift=2)
    assert (block.window, block.shift, block.mask is None) == (window, shift, shift == 0)


class Same(nn.Module):
    """Attention that leaves every token as it is."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x


def test_a_shifted_block_puts_its_tokens_back_and_adds_to_them() -> None:
    block = HtsatBlock(4, 2, (8, 8), window=4, shift=2).eval()
    block.attn = Same()  # type: ignore[assignment]
    x = torch.randn(1, 64, 4)
    with torch.no_grad():
        there = x + block.norm1(x)
        torch.testing.assert_close(block(x), there + block.mlp(block.norm2(there)))


def test_neighbours_are_merged_down_then_right() -> None:
    merging = PatchMerging(1, (2, 4))
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    assert merging(grid_of(2, 4)).tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]]]


def test_what_is_left_of_a_dropped_branch_is_scaled_up() -> None:
    torch.manual_seed(0)
    depth = StochasticDepth(0.75)
    found = depth.train()(torch.ones(400, 2))
    assert set(found.unique().tolist()) == {0.0, 4.0} and 0.15 < (found[:, 0] > 0).float().mean() < 0.35
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(depth.eval()(torch.ones(3)), torch.ones(3))


def test_sounds_are_mixed_with_their_opposite_and_time_is_folded_along_frequency() -> None:
    x = torch.tensor([[1.0], [2.0], [4.0]])
    assert mix_up(x, torch.tensor([1.0, 0.5, 0.25])).tolist() == [[1.0], [2.0], [1.75]]
    spectrum = torch.arange(16.0).reshape(1, 1, 8, 2)  # eight frames of two bands
    folded = fold(spectrum, 4)
    assert folded[0, 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    stretched = fold(torch.arange(4.0).repeat_interleave(2).reshape(1, 1, 4, 2), 4)
    assert stretched.shape == (1, 1, 4, 4)
    assert stretched[0, 0, 0, 0].item() == pytest.approx(0) and stretched[0, 0, 2, 3].item() == pytest.approx(
        3
    )
    with pytest.raises(ValueError, match="9 spectral frames do not fit a picture of 8"):
        fold(torch.zeros(1, 1, 9, 2), 4)


@pytest.mark.parametrize(
    ("wrong", "fine"),
    [
        ({"high_hz": 16_001.0}, {"high_hz": 16_000.0}),
        ({"low_hz": 14_000.0}, {"low_hz": 13_999.0}),
        ({"low_hz": -1.0}, {"low_hz": 0.0}),
        ({"bands": 60}, {"bands": 128}),
        ({"window_s": 0}, {"window_s": 1}),
        ({"hop": True}, {"hop": 1}),
        ({"fft": "x"}, {"fft": 512}),
    ],
)
def test_a_front_end_that_makes_no_spectrogram_is_refused(
    wrong: dict[str, Any], fine: dict[str, Any]
) -> None:
    usual = front_end(SoundConfig())
    assert tuple(usual) == FRONT_END
    assert sound_config("m", {**usual, **fine}, 256) == SoundConfig(**{**usual, **fine})
    with pytest.raises(CaeavError, match=f"settings of m make no mel spectrogram: .*{next(iter(wrong))} "):
        sound_config("m", {**usual, **wrong}, 256)
    for key, value in (("mel", "bark"), ("filling", "mirror")):
        with pytest.raises(CaeavError, match=f"setting '{key}' of m is '{value}'"):
            sound_config("m", {**usual, key: value}, 256)


def test_sound_longer_than_the_network_sees_is_refused_and_the_longest_is_not() -> None:
    trunk = SimpleNamespace(config=SimpleNamespace(sound=SoundConfig(rate_hz=10, window_s=2)))
    backbone = bare(SoundBackbone, _trunk=trunk, _settings={"taps": ["audio.stage1"]}, _samples=10, name="m")
    assert backbone.prepare(np.zeros((3, 20))).dtype == torch.float32
    for shape in ((3, 21), (20,)):
        with pytest.raises(CaeavError, match=r"windows \[T, samples\] of at most 20 samples \(2 s\)"):
            backbone.prepare(np.zeros(shape, np.float32))


def test_the_shared_vector_of_clap_is_made_of_the_normed_tokens() -> None:
    sound = SoundConfig(
        rate_hz=2000, fft=128, hop=40, bands=16, low_hz=50, high_hz=900, picture=64, window_s=2
    )
    torch.manual_seed(0)
    tower = ClapAudio(
        HtsatConfig(sound=sound, channels=4, depths=(1, 1), heads=(1, 1), window=4), shared=3
    ).eval()
    nn.init.normal_(tower.norm.bias, std=2)
    with torch.no_grad():
        stages, normed, shared = tower(torch.randn(2, 2000))
        assert [tuple(x.shape) for x in stages] == [(2, 256, 4), (2, 64, 8)]
        assert torch.equal(normed, tower.norm(stages[-1])) and not torch.equal(normed, stages[-1])
        wanted = tower.projection(normed.mean(dim=1))
        torch.testing.assert_close(shared, wanted / wanted.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("fused", [False, True])
def test_claps_front_end_is_what_its_folder_states(fused: bool) -> None:
    state: Any = SimpleNamespace(fused=fused, front_end={})
    assert _front_of(state, "w") == {**front_end(LAION), "mel": "htk" if fused else "slaney"}
    own = "fusion" if fused else "rand_trunc"
    state.front_end = {
        "sampling_rate": 16_000,
        "frequency_max": 8_000,
        "padding": "repeat",
        "truncation": own,
    }
    wanted = {**front_end(LAION), "rate_hz": 16_000, "high_hz": 8_000, "filling": "repeat"}
    assert _front_of(state, "w") == {**wanted, "mel": "htk" if fused else "slaney"}
    state.front_end["top_db"] = 80
    with pytest.raises(WeightsError, match="top_db 80 is not supported"):
        _front_of(state, "w")
    state.front_end = {"truncation": "rand_trunc" if fused else "fusion"}
    with pytest.raises(WeightsError, match=f"the network has {'' if fused else 'no '}fusion"):
        _front_of(state, "w")


# --- texts --------------------------------------------------------------------------------------------


class Letters(TextTower):
    """A tower whose tokens are letters, marked in the places behind a text, too."""

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
def test_a_text_has_room_for_begin_words_and_end(count: int, fits: bool) -> None:
    if fits:
        assert Letters(count).max_tokens == count
        return
    with pytest.raises(CaeavError, match=f"max_tokens of letters is {count}\n  next: give 3 to 6"):
        Letters(count)


def test_a_conversion_of_timms_is_given_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    here = sys.modules[__name__]
    module, state = Levels(1), {"a": torch.ones(1)}
    assert _converted(module, state) is state
    convert: Any
    for convert in (lambda found: {**found, "one": 1}, lambda found, model: {**found, "one": model}):
        monkeypatch.setattr(here, "checkpoint_filter_fn", convert, raising=False)
        assert set(_converted(module, state)) == {"a", "one"} and list(state) == ["a"]
