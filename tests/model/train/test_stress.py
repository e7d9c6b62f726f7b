"""Each kind of stress damages exactly the arrays and clips that it should, and nothing at strength 0."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import Epoch, TokenBatch
from caeav.model.tasks.base import Scores
from caeav.model.tasks.config import StressConfig
from caeav.model.train.config_file import resolve_config
from caeav.model.train.data import SplitData, epoch_order
from caeav.model.train.examine import examine, remarks
from caeav.model.train.experiment import prepare
from caeav.model.train.join import join_stores
from caeav.model.train.stress import KINDS, Augment, Stress, parse_stress, stress_text
from caeav.model.train.stress_curves import (
    draw_curves,
    kinds_of,
    strengths_of,
    stress_curves,
    table,
    write_curves,
)

VISUAL, AUDIO = ("visual.stage1", "visual.stage2"), ("audio.stage1", "audio.stage2")
CAPTIONS = ("visual_caption", "visual_caption_mask", "audio_caption", "audio_caption_mask")
EVERYTHING = ("frames_ok", "audio_ok", *VISUAL, *AUDIO, *CAPTIONS)


def arrays(batch: TokenBatch) -> dict[str, torch.Tensor]:
    captions = {name: x for name in CAPTIONS if (x := getattr(batch, name)) is not None}
    return {
        **batch.visual,
        **batch.audio,
        **captions,
        "frames_ok": batch.frames_ok,
        "audio_ok": batch.audio_ok,
    }


@pytest.fixture(scope="module", params=[True, False], ids=["in-ram", "from-store"])
def data(request: pytest.FixtureRequest, tiny_home: Home) -> SplitData:
    joined = join_stores(tiny_home, "tiny")
    return SplitData(joined, joined.splits["test"], {}, preload=request.param)


@pytest.fixture(scope="module")
def plain(data: SplitData) -> dict[str, torch.Tensor]:
    return arrays(data.batch(range(len(data))))


def stressed(data: SplitData, seed: int = 0, **strengths: float) -> dict[str, torch.Tensor]:
    change = Stress(StressConfig.model_validate(strengths), seed)
    return arrays(data.transformed(change).batch(range(len(data))))


def same(found: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], names: tuple[str, ...]) -> bool:
    return all(torch.equal(found[name], plain[name]) for name in names)


def owner(x: torch.Tensor, all_of: torch.Tensor) -> list[int]:
    """The clip that each row comes from; every row must be exactly one clip's."""
    return [next(i for i, other in enumerate(all_of) if torch.equal(row, other)) for row in x]


def test_strength_zero_is_the_plain_batch_itself(data: SplitData, plain: dict[str, torch.Tensor]) -> None:
    assert same(stressed(data), plain, EVERYTHING)
    batch = data.batch([0, 1])
    assert Stress(StressConfig())(batch, [0, 1], data, None) is batch


@pytest.mark.parametrize("steps", [2, -1])
def test_shift_moves_audio_against_the_frames(
    data: SplitData, plain: dict[str, torch.Tensor], steps: int
) -> None:
    found = stressed(data, shift=steps)
    for name in AUDIO:
        for t in range(6):
            assert torch.equal(found[name][:, (t + steps) % 6], plain[name][:, t])
    assert same(found, plain, ("frames_ok", *VISUAL, *CAPTIONS))


def test_shift_moves_the_flags_of_missing_audio(tiny_home: Home) -> None:
    joined = join_stores(tiny_home, "tiny")
    data = SplitData(joined, joined.splits["test"], {}, preload=True)
    assert data._stacked is not None
    data._stacked["audio_ok"][0, 5] = False
    assert stressed(data, shift=2)["audio_ok"][0].tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize(("kind", "gone", "kept"), [
    ("mute", ("audio_ok", *AUDIO), ("frames_ok", *VISUAL, *CAPTIONS)),
    ("blind", ("frames_ok", *VISUAL), ("audio_ok", *AUDIO, *CAPTIONS)),
    ("caption_drop", CAPTIONS, ("frames_ok", "audio_ok", *VISUAL, *AUDIO)),
    ("caption_empty", ("visual_caption", "audio_caption"),
     ("visual_caption_mask", "audio_caption_mask", "frames_ok", "audio_ok", *VISUAL, *AUDIO)),
])  # fmt: skip
def test_what_is_removed_is_zero_and_marked_missing(
    data: SplitData, plain: dict[str, torch.Tensor], kind: str, gone: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    found = stressed(data, **{kind: 1.0})
    assert all(not found[name].any() for name in gone)
    assert all(found[name].dtype == plain[name].dtype for name in gone)
    assert same(found, plain, kept)
    some = stressed(data, **{kind: 0.5})
    hit = [not some[gone[0]][i].any() for i in range(12)]
    assert 0 < sum(hit) < 12
    for name in gone:
        for i in range(12):
            assert torch.equal(some[name][i], found[name][i] if hit[i] else plain[name][i])


@pytest.mark.parametrize(("kind", "given", "kept"), [
    ("swap", AUDIO, ("frames_ok", *VISUAL, *CAPTIONS)),
    ("caption_swap", ("visual_caption", "audio_caption"), ("frames_ok", "audio_ok", *VISUAL, *AUDIO)),
])  # fmt: skip
def test_swapped_arrays_are_all_of_one_other_clip(
    data: SplitData, plain: dict[str, torch.Tensor], kind: str, given: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    found = stressed(data, **{kind: 1.0})
    donors = owner(found[given[0]], plain[given[0]])
    assert all(donor != i for i, donor in enumerate(donors))
    assert len(set(donors)) > 4
    assert all(owner(found[name], plain[name]) == donors for name in given)
    assert same(found, plain, kept)


def test_a_cut_shows_another_clip_from_some_segment_on(
    data: SplitData, plain: dict[str, torch.Tensor]
) -> None:
    found = stressed(data, cut=1.0)
    assert same(found, plain, ("audio_ok", *AUDIO, *CAPTIONS))
    places = []
    for i in range(12):
        own = [torch.equal(found[VISUAL[0]][i, t], plain[VISUAL[0]][i, t]) for t in range(6)]
        place = own.index(False)
        assert place >= 1 and own == [t < place for t in range(6)]
        (donor,) = owner(found[VISUAL[0]][i : i + 1, place:], plain[VISUAL[0]][:, place:])
        assert donor != i
        assert torch.equal(found[VISUAL[1]][i, :place], plain[VISUAL[1]][i, :place])
        assert torch.equal(found[VISUAL[1]][i, place:], plain[VISUAL[1]][donor, place:])
        places.append(place)
    assert len(set(places)) > 2


def test_what_happens_to_a_clip_depends_on_seed_and_key_alone(data: SplitData) -> None:
    strengths = StressConfig(swap=0.5, cut=0.5, mute=0.3)
    changed = data.transformed(Stress(strengths, 4))
    together = arrays(changed.batch(range(12)))
    for rows in ([7], [3, 11, 0]):
        alone = arrays(changed.batch(rows))
        assert all(torch.equal(alone[name], together[name][rows]) for name in EVERYTHING)
    other = arrays(data.transformed(Stress(strengths, 5)).batch(range(12)))
    assert not same(together, other, EVERYTHING)


def test_a_greater_share_hits_the_same_clips_and_more(data: SplitData) -> None:
    hit = [
        {i for i, ok in enumerate(stressed(data, mute=share)["audio_ok"]) if not ok.any()}
        for share in (0.2, 0.5, 0.8, 1.0)
    ]
    assert all(a <= b for a, b in pairwise(hit)) and len(hit[0]) < len(hit[3]) == 12


def test_each_kind_is_drawn_independently(data: SplitData) -> None:
    """Each kind hits clips independently of the others."""
    muted = [not ok.any() for ok in stressed(data, mute=0.5)["audio_ok"]]
    blinded = [not ok.any() for ok in stressed(data, blind=0.5)["frames_ok"]]
    assert muted != blinded
    both = stressed(data, mute=0.5, blind=0.5)
    assert [not ok.any() for ok in both["audio_ok"]] == muted
    assert [not ok.any() for ok in both["frames_ok"]] == blinded


def test_kinds_add_up_in_their_order(data: SplitData, plain: dict[str, torch.Tensor]) -> None:
    swapped = stressed(data, swap=1.0)
    both = stressed(data, swap=1.0, shift=1)
    assert torch.equal(both[AUDIO[0]], swapped[AUDIO[0]].roll(1, 1))
    assert not stressed(data, swap=1.0, mute=1.0)["audio_ok"].any()


def test_augmentation_touches_training_batches_only_and_is_new_each_epoch(
    data: SplitData, plain: dict[str, torch.Tensor]
) -> None:
    changed = data.transformed(Augment(StressConfig(shift=2, mute=0.5)))
    rows = range(12)
    assert same(arrays(changed.batch(rows)), plain, EVERYTHING)
    first, again, second, other = (
        arrays(changed.batch(rows, epoch)) for epoch in (Epoch(0, 1), Epoch(0, 1), Epoch(0, 2), Epoch(1, 1))
    )
    assert same(first, again, EVERYTHING)
    assert not same(first, second, EVERYTHING) and not same(first, other, EVERYTHING)
    assert not same(first, plain, AUDIO)
    only = arrays(data.transformed(Augment(StressConfig(shift=2))).batch(rows, Epoch(0, 1)))
    steps = [
        next(n for n in range(-2, 3) if torch.equal(x, own.roll(n, 0)))
        for x, own in zip(only[AUDIO[0]], plain[AUDIO[0]], strict=True)
    ]
    assert min(steps) < 0 < max(steps)
    scored = data.transformed(Stress(StressConfig(mute=1.0)))
    assert same(arrays(scored.batch(rows, Epoch(0, 1))), plain, EVERYTHING)


def test_strengths_are_parsed_and_faults_reported_together() -> None:
    found = parse_stress("shift=-2, swap=0.3,cut=1")
    assert (found.shift, found.swap, found.cut, found.mute) == (-2, 0.3, 1.0, 0.0)
    assert stress_text(found) == "cut=1,swap=0.3,shift=-2"
    with pytest.raises(CaeavError) as error:
        parse_stress("swop=1,mute=2,shift=0.5,cut,cut=0.1")
    for part in (
        "'swop' is no stress, did you mean 'swap'?",
        "mute=2",
        "shift=0.5",
        "cut is given twice",
        "whole number of segments",
    ):
        assert part in str(error.value)


def test_a_run_is_examined_under_stress(tiny_home: Home, tmp_path: Path) -> None:
    experiment = prepare(tiny_home, resolve_config("ave", "none", options={"dataset": "tiny"}))
    model = experiment.build()
    plain = examine(experiment, model, "test")
    nothing = examine(experiment, model, "test", strengths=StressConfig())
    assert nothing.scores == plain.scores and nothing.plain is None and remarks(plain) == []
    muted = examine(experiment, model, "test", strengths=StressConfig(mute=1.0, blind=1.0))
    assert muted.plain is not None and muted.plain.value == plain.scores.value
    assert "under stress blind=1,mute=1; without: accuracy" in remarks(muted)[0]
    assert muted.as_json()["stress"] == {"blind": 1.0, "mute": 1.0}
    with pytest.raises(CaeavError, match="reads no captions"):
        examine(experiment, model, "test", strengths=StressConfig(caption_drop=0.5))
    with pytest.raises(CaeavError, match="6 segments"):
        examine(experiment, model, "test", strengths=StressConfig(shift=-7))
    with pytest.raises(CaeavError, match="6 segments"):
        examine(experiment, model, "test", strengths=StressConfig(shift=6))

    with pytest.raises(CaeavError, match="no such stress: swop"):
        kinds_of("swop,mute", experiment)
    kinds = kinds_of("all", experiment)
    assert kinds == [kind for kind in KINDS if not kind.startswith("caption")]
    curves = stress_curves(experiment, model, "test", ["shift", "mute"])
    assert [point["strength"] for point in curves["curves"]["shift"]] == [0, 1, 2, 3, 4]
    assert {points[0]["score"] for points in curves["curves"].values()} == {plain.scores.value}
    last = experiment.score(model, "test", Stress(StressConfig(mute=1.0)))
    assert curves["curves"]["mute"][-1]["score"] == last.value
    columns, rows = table(curves)
    assert columns[:3] == ["stress", "none", "step 1"] and rows[1][-1] == "0.25 0.5 0.75 1"
    files = write_curves(curves, tmp_path, "a title")
    assert [path.name for path in files] == ["test.json", "test.png"]
    assert files[1].read_bytes() == draw_curves(curves, "a title")
    assert files[1].read_bytes()[:4] == b"\x89PNG"
    assert strengths_of("shift", 3) == (0, 1, 2)


def test_scores_under_stress_are_of_damaged_inputs_drawn_from_the_seed(
    tiny_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = prepare(tiny_home, resolve_config("ave", "none", options={"dataset": "tiny"}))
    model, met = experiment.build(), []
    model.register_forward_pre_hook(lambda _, given: met.extend(given[0].audio_ok.any(dim=1).tolist()))
    experiment.score(model, "test", Stress(StressConfig(mute=0.5), 3))
    damaged = stressed(experiment.data["test"], seed=3, mute=0.5)["audio_ok"].any(dim=1).tolist()
    assert met == damaged and 0 < sum(damaged) < 12
    met.clear()
    found = examine(experiment, model, "test", strengths=StressConfig(mute=0.5), seed=3)
    assert met == [*damaged, *[True] * 12]  # under stress, and once without
    assert found.plain == experiment.score(model, "test")
    for split in ("val", "test"):
        assert examine(experiment, model, split).majority == experiment.majority(split)


def test_curves_are_of_the_given_split_and_seed(tiny_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = prepare(tiny_home, resolve_config("ave", "none", options={"dataset": "tiny"}))
    asked: list[tuple[str, object]] = []

    def noted(self: object, model: object, split: str, stress: Stress | None = None) -> Scores:
        asked.append((split, stress and (stress._seed, stress._strengths.mute)))
        return Scores(float(len(asked)), 12)

    monkeypatch.setattr(type(experiment), "score", noted)
    found = stress_curves(experiment, experiment.build(), "val", ["mute"], seed=5)
    assert asked == [("val", None), *(("val", (5, share)) for share in (0.25, 0.5, 0.75, 1.0))]
    assert [point["score"] for point in found["curves"]["mute"]] == [1, 2, 3, 4, 5]
    assert (found["split"], found["seed"], found["clips"]) == ("val", 5, 12)
    assert found["majority"] == experiment.majority("val")


def test_augmented_training_data_are_those_of_the_configuration(tiny_home: Home) -> None:
    config = resolve_config("ave", "none", assignments=["augment.mute=1.0"], options={"dataset": "tiny"})
    data = prepare(tiny_home, config).data["train"]
    rows = epoch_order(len(data), 0, 1)[:4]
    assert not data.batch(rows, Epoch(0, 1)).audio_ok.any()
    assert data.batch(rows).audio_ok.all()
    assert np.isfinite(data.batch(rows).visual["visual.stage1"].float().numpy()).all()
    with pytest.raises(CaeavError, match="reads no captions"):
        prepare(tiny_home, config.model_copy(update={"augment": StressConfig(caption_drop=0.1)}))
