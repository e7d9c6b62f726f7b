"""The agreement of audio and visual: how it is trained, calibrated and judged, and which models have one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from caeav.manifests.clip import Clip
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.synthetic.truth import Truth, read_truth, truth_of
from caeav.model.adapters.batch import Epoch, TokenBatch
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.correspondence import Correspondence, Match
from caeav.model.tasks.base import TASKS, Together
from caeav.model.tasks.config import StressConfig
from caeav.model.train.agreement import (
    AGREEMENT_FILE,
    BY_LABELS,
    BY_MISMATCH,
    BY_TRUTH,
    GATE,
    MEANING,
    OTHER_CLIP,
    OTHER_TIME,
    Calibration,
    auc,
    calibrate,
    calibration_error,
    judge,
    read_calibration,
    reliability,
    weak_agreement,
)
from caeav.model.train.card import besides
from caeav.model.train.config_file import config_class, load_config, resolve_config
from caeav.model.train.correspondence import SHARPNESS, correspondence
from caeav.model.train.examine import examine, remarks
from caeav.model.train.experiment import prepare
from caeav.model.train.network import build_network
from caeav.model.train.predict import Predictor
from caeav.model.train.runs import create_run
from caeav.model.train.session import load_best, train
from caeav.model.train.stress import Augment, Stress
from caeav.pipeline.store.record import Tap

B, T = 2, 3
SHARED = "model.adapters.caste.shared_agreement"


def pair_batch(**more: Any) -> TokenBatch:
    ok = torch.ones(B, T, dtype=torch.bool)
    return TokenBatch(["a", "b"], {}, {}, ok, ok.clone(), **more)


def some_match() -> Match:
    torch.manual_seed(0)
    vectors = [F.normalize(torch.randn(B, T, 4), dim=-1).requires_grad_() for _ in range(2)]
    return Match(vectors[0], vectors[1], torch.tensor(3.0), torch.tensor(-0.5))


def loss_of(logit: float, belongs: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(belongs * math.log(p) + (1 - belongs) * math.log(1 - p))


def parts_by_hand(match: Match) -> tuple[list[list[float]], list[float]]:
    """Logits of own pairs, and of all pairs from two clips."""

    def logit(i: int, t: int, j: int, u: int) -> float:
        return 3.0 * float(match.visual[i, t].detach() @ match.audio[j, u].detach()) - 0.5

    own = [[logit(i, t, i, t) for t in range(T)] for i in range(B)]
    crossed = [logit(i, t, 1 - i, u) for i in range(B) for t in range(T) for u in range(T)]
    return own, crossed


# ---- the objective ---------------------------------------------------------------------------------------------


def test_the_objective_with_labels_of_seconds_by_hand() -> None:
    match, seconds = some_match(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    own, crossed = parts_by_hand(match)
    known = [loss_of(own[i][t], float(seconds[i, t])) for i in range(B) for t in range(T)]
    want = (2 * sum(known) / 6 + sum(loss_of(x, 0) for x in crossed) / len(crossed)) / 2
    apart = torch.stack([seconds, torch.zeros(B, T)], dim=-1)
    apart[1] = apart[1].flip(-1)  # the clips' events are of two classes
    got = correspondence(match, Together(seconds=apart), pair_batch())
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_seconds_of_two_clips_that_share_an_event_belong_together() -> None:
    """And whatever else these clips hold is no pair at all: what is seen or heard there alone, labels do not tell."""
    match, seconds = some_match(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    own, _ = parts_by_hand(match)
    known = [loss_of(own[i][t], float(seconds[i, t])) for i in range(B) for t in range(T)]
    both = [
        3.0 * float(match.visual[i, t].detach() @ match.audio[j, u].detach()) - 0.5
        for i, t, j, u in [(0, 0, 1, 2), (0, 2, 1, 2), (1, 2, 0, 0), (1, 2, 0, 2)]
    ]
    events, alike = seconds.unsqueeze(-1), torch.ones(B, 1)
    want = (2 * sum(known) / 6 + sum(loss_of(x, 1) for x in both) / len(both)) / 2
    got = correspondence(match, Together(events, alike), pair_batch())
    assert got.item() == pytest.approx(want, rel=1e-5)
    # A second whose sound is from elsewhere, or that lacks one, is none of them.
    some = sum(loss_of(x, 1) for x in (both[1], both[3])) / 2
    rest = 2 * (sum(known) - known[0]) / 5
    moved = torch.zeros(B, T, dtype=torch.long)
    moved[0, 0] = 1
    got = correspondence(match, Together(events, alike), pair_batch(sound_from=moved))
    assert got.item() == pytest.approx((rest + some) / 2, rel=1e-5)
    batch = pair_batch()
    batch.frames_ok[0, 0] = False
    assert correspondence(match, Together(events, alike), batch).item() == pytest.approx((rest + some) / 2)


def test_without_labels_the_best_second_of_every_clip_counts_most() -> None:
    match = some_match()
    own, crossed = parts_by_hand(match)
    belongs = 0.0
    for clip in own:
        sure = [SHARPNESS * -loss_of(x, 1) for x in clip]
        weights = [math.exp(x) / sum(map(math.exp, sure)) for x in sure]
        belongs += sum(w * loss_of(x, 1) for w, x in zip(weights, clip, strict=True)) / B
    want = (belongs + sum(loss_of(x, 0) for x in crossed) / len(crossed)) / 2
    got = correspondence(match, Together(), pair_batch())
    assert got.item() == pytest.approx(want, rel=1e-5)
    got.backward()
    assert match.visual.grad is not None and match.visual.grad.any()


def test_clips_that_share_a_label_are_no_negatives_for_each_other() -> None:
    match, seconds = some_match(), torch.eye(2).unsqueeze(1).expand(B, T, 2)  # an event each, never the same
    own, _ = parts_by_hand(match)
    alike = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    known = sum(loss_of(x, 1) for clip in own for x in clip) / 6
    got = correspondence(match, Together(seconds, alike), pair_batch())
    assert got.item() == pytest.approx(known, rel=1e-5)
    assert correspondence(match, Together(None, alike), pair_batch()).item() == 0
    apart = correspondence(match, Together(seconds, torch.eye(2)), pair_batch())
    assert apart.item() == correspondence(match, Together(seconds), pair_batch()).item() != got.item()


@pytest.mark.parametrize("labelled", [True, False])
def test_segments_without_media_give_no_loss(labelled: bool) -> None:
    together = Together(torch.ones(B, T, 1) if labelled else None)
    losses = []
    for far in (0.0, 1.0):
        match = some_match()
        with torch.no_grad():
            match.audio[1, 2] = F.normalize(match.audio[1, 2] + far, dim=-1)
        batch = pair_batch()
        batch.audio_ok[1, 2] = False
        losses.append(correspondence(match, together, batch).item())
    assert losses[0] == losses[1]
    batch.audio_ok[:] = False
    assert correspondence(match, together, batch).item() == 0


def test_swapped_audio_is_a_mismatched_pair_and_shifted_audio_is_left_out() -> None:
    match, seconds = some_match(), torch.eye(2).unsqueeze(1).expand(B, T, 2)
    own, crossed = parts_by_hand(match)
    moved = torch.tensor([[0, 0, 1], [2, 2, 2]])
    kept = [own[0][0], own[0][1]]
    against = [*crossed, *own[1]]
    want = (2 * sum(loss_of(x, 1) for x in kept) / 2 + sum(loss_of(x, 0) for x in against) / len(against)) / 2
    got = correspondence(match, Together(seconds), pair_batch(sound_from=moved))
    assert got.item() == pytest.approx(want, rel=1e-5)
    assert math.isfinite(correspondence(match, Together(), pair_batch(sound_from=moved)).item())


def test_augmentation_records_where_the_audio_is_from(tiny_home: Home) -> None:
    experiment = prepare(tiny_home, tiny_config())
    data = experiment.data["train"]
    rows = list(range(len(data)))

    def moved(**strengths: float) -> torch.Tensor:
        augment = Augment(StressConfig.model_validate(strengths))
        found = augment(data.batch(rows), rows, data, Epoch(0, 1)).sound_from
        assert found is not None
        return found

    assert (moved(swap=1.0) == 2).all() and not moved(mute=1.0).any()
    some = moved(swap=0.5)
    assert 0 < (some == 2).all(dim=1).sum() < len(rows) and not (some == 1).any()
    assert set(moved(shift=2).unique().tolist()) == {0, 1}
    cut = moved(cut=1.0)
    assert not cut[:, 0].any() and (cut[:, -1] == 2).all() and (cut.diff(dim=1) >= 0).all()
    assert data.batch(rows).sound_from is None


# ---- models with one ---------------------------------------------------------------------------------------------


def tiny_config(*more: str, task: str = "ave", recipe: str = "full") -> Any:
    plain = ["training.device=cpu", "training.workers=0", "model.head.width=16"]
    if task == "ave":
        plain += ["model.head.hidden=16", "model.head.visual_in=16", "model.head.audio_in=16"]
    return resolve_config(task, recipe, assignments=[*plain, *more], options={"dataset": "tiny"})


def caste(config: Any) -> bool:
    return bool(config.model.adapters.caste.shared_agreement)


def test_only_the_revised_method_shares_an_agreement_that_is_trained() -> None:
    assert caste(resolve_config()) and resolve_config().loss.correspondence == 1
    assert not caste(resolve_config(assignments=["model.variant=reference"]))
    assert not caste(resolve_config(assignments=["loss.correspondence=0"]))
    assert caste(resolve_config(assignments=["loss.correspondence=0", f"{SHARED}=true"]))
    assert not caste(resolve_config(assignments=[f"{SHARED}=false"]))
    assert not AdapterConfig(variant="revised", placement="inject").caste.shared_agreement


def test_an_older_run_keeps_the_gates_it_was_trained_with() -> None:
    values = resolve_config().model_dump(mode="json")
    del values["loss"]["correspondence"]
    for name in ("shared_agreement", "agreement_dropout", "agreement_gradient"):
        del values["model"]["adapters"]["caste"][name]
    old = config_class("ave").model_validate(values)
    assert not caste(old) and old.model.adapters.variant == "revised"


def test_every_caste_adapter_reads_the_one_agreement(tiny_home: Home) -> None:
    experiment = prepare(tiny_home, tiny_config())
    batch = experiment.data["train"].batch(range(4)).to(torch.device("cpu"), torch.float32)
    for gradient in (False, True):
        config = tiny_config(f"model.adapters.caste.agreement_gradient={str(gradient).lower()}")
        trunk = build_network(experiment.task, experiment.inputs, config.model).trunk.eval()
        assert all(stage.caste_visual.gate is None for stage in trunk.stages)
        out = trunk(batch)
        torch.testing.assert_close(out.agreement, out.match.logits().sigmoid())
        for stage in trunk.stages:
            for part in (stage.caste_visual, stage.caste_audio):
                torch.nn.init.ones_(part.gamma)
        trunk(batch).visual.sum().backward()
        taught = trunk.correspondence.visual_map.weight.grad
        assert (taught is not None and bool(taught.any())) is gradient
    own = build_network(experiment.task, experiment.inputs, tiny_config("loss.correspondence=0").model).trunk
    assert own.correspondence is None and own(batch).match is None


@pytest.mark.parametrize("task", ["ave", "ave-weak"])
def test_a_head_reads_an_agreement_only_where_there_is_one(task: str, tiny_home: Home) -> None:
    def reads(*more: str, recipe: str = "caste") -> bool:
        experiment = prepare(tiny_home, tiny_config(*more, task=task, recipe=recipe))
        head = experiment.build().head
        return bool(head.agreement is not None if task == "ave" else head.reads_agreement)

    assert reads()
    assert not reads("model.head.reads_agreement=false") and not reads("model.variant=reference")
    assert not reads("loss.correspondence=0") and not reads(recipe="none")
    useless = "no effect, because model.adapters.caste.shared_agreement is false"
    with pytest.raises(CaeavError, match=useless):
        tiny_config("model.variant=reference", "model.head.reads_agreement=true", task=task)


@pytest.mark.parametrize("task", ["ave", "ave-weak", "avqa"])
def test_an_older_configuration_file_keeps_its_meaning(task: str, tmp_path: Path) -> None:
    values = resolve_config(task).model_dump(mode="json")
    path = tmp_path / "config.yaml"

    def read() -> list[Any]:
        path.write_text(yaml.safe_dump(values))
        return [load_config(path), resolve_config(task, "full", path)]

    for config in read():
        assert config == resolve_config(task)
    values["model"]["head"].pop("reads_agreement", None)
    for config in read():
        assert not getattr(config.model.head, "reads_agreement", False)
        assert caste(config) and config.loss.correspondence == 1
    del values["loss"]["correspondence"], values["model"]["adapters"]["caste"]["shared_agreement"]
    for config in read():
        assert not caste(config) and config.loss.correspondence == 0
    path.write_text(
        "model: {adapters: {caste: {topk_ratio: 0.5}}}"
    )  # a user's own, which leaves the rest to defaults
    assert resolve_config(task, "full", path).loss.correspondence == 1


def test_the_agreement_is_of_the_mean_tokens_whatever_their_scale() -> None:
    made = Correspondence(Tap("visual.s", 3, 5), Tap("audio.s", 2, 4), 6, 0.5)
    torch.manual_seed(0)
    visual, audio = torch.randn(4, 7, 3, 5) * 100 + 50, torch.randn(4, 7, 2, 4)
    made.train()(visual, audio)
    for norm in (made.visual_norm, made.audio_norm):
        norm.momentum = None
        norm.reset_running_stats()
    made.train()(visual, audio)
    match = made.eval()(visual, audio)
    assert match.visual.shape == (4, 7, 6) and match.logits().shape == (4, 7)
    torch.testing.assert_close(match.visual.norm(dim=-1), torch.ones(4, 7))
    torch.testing.assert_close(match.all_logits().diagonal().view(4, 7), match.logits())
    means = visual.mean(dim=2).flatten(0, 1)
    standard = (means - means.mean(0)) / means.std(0)
    want = F.normalize(made.visual_map(standard), dim=-1).view(4, 7, 6)
    torch.testing.assert_close(match.visual, want, atol=1e-4, rtol=1e-4)


# ---- numbers ---------------------------------------------------------------------------------------------------


def test_the_area_counts_ordered_pairs() -> None:
    scores, truth = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(scores, truth) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auc(-scores, truth) == pytest.approx(1 - 3.5 / 4)
    assert auc(scores, np.ones(4, bool)) is None


def test_the_calibration_error_by_hand() -> None:
    said, truth = np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True])
    rows = reliability(said, truth)
    assert [row["seconds"] for row in rows] == [2, 2]
    assert rows[0]["observed"] == 0.5 and rows[1]["predicted"] == pytest.approx(0.975)
    assert calibration_error(rows) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def test_a_calibration_finds_the_distortion_of_the_logits() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(scale=2, size=20000)
    truth = rng.random(20000) < 1 / (1 + np.exp(-real))
    found = Calibration.fit((real - 0.7) * 3, truth)  # real = logit / 3 + 0.7
    assert found.temperature == pytest.approx(3, rel=0.05) and found.bias == pytest.approx(0.7, abs=0.05)
    np.testing.assert_allclose(found.apply(np.array([-0.7 * 3])), 0.5, atol=0.05)
    assert Calibration.fit(real, np.ones(20000, bool)) == Calibration()
    apart = Calibration.fit(np.array([-1.0, 1.0]), np.array([False, True]))
    assert 0 < apart.temperature < 1


def test_the_truth_of_generated_sets_is_read_back(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "kind": "cut", "seen": [["a"], ["a", "b"], []], "heard": [["b"], ["b"], []]},
        {"id": "y", "name": "y_1", "kind": "silent", "seen": [["a"]] * 3, "heard": [[], ["a"], ["c"]]},
        {"id": "z", "kind": "aligned", "things": [
            {"seen": [True, False, True], "heard": [True, True, False]},
            {"seen": [False, True, True], "heard": [False, True, False]},
        ]},
    ]  # fmt: skip
    assert read_truth(tmp_path) == {}
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_truth(tmp_path)
    assert {name: truth.together for name, truth in found.items()} == {
        "x": (False, True, False), "y_1": (False, True, False), "z": (True, True, False)}  # fmt: skip
    assert found["x"].seen == (("a",), ("a", "b"), ()) and found["x"].heard[0] == ("b",)
    assert found["z"].seen == found["z"].heard == ()
    clip = Clip("key", "m/z.mp4", 0.0, 3.0)
    assert truth_of(clip, found) is found["z"]
    assert truth_of(Clip("key", "m.mp4", 0.0, 3.0, extra={"id": "y", "name": "y_1"}), found) is found["y_1"]
    assert truth_of(Clip("key", "m.mp4", 0.0, 3.0), found) is None
    (tmp_path / "truth.jsonl").write_text("{}\n")
    with pytest.raises(CaeavError, match="cannot read"):
        read_truth(tmp_path)


# ---- labels that follow ----------------------------------------------------------------------------------------


def test_labels_of_events_follow_the_audio(tiny_home: Home) -> None:
    experiment = prepare(tiny_home, tiny_config())
    data = experiment.data["test"]
    plain = data.batch(range(len(data))).targets["labels"]
    from caeav.model.train.examine import followed_labels

    followed = followed_labels(experiment, "test")

    def labels(**strengths: float) -> torch.Tensor:
        stress = Stress(StressConfig.model_validate(strengths), 0, followed)
        return data.transformed(stress).batch(range(len(data))).targets["labels"]

    events = plain[..., :-1]
    shifted = labels(shift=2)
    torch.testing.assert_close(shifted[..., :-1], events * events.roll(2, dims=1))
    assert (shifted.sum(dim=-1) == 1).all() and 0 < shifted[..., :-1].sum() < events.sum()
    assert (labels(mute=1.0)[..., -1] == 1).all() and (labels(blind=1.0)[..., -1] == 1).all()
    swapped = labels(swap=1.0)[..., :-1]
    assert (swapped <= events).all() and swapped.sum() < events.sum()
    fixed = data.transformed(Stress(StressConfig(swap=1.0))).batch(range(len(data))).targets["labels"]
    assert torch.equal(fixed, plain)


def test_in_a_generated_set_labels_follow_its_exact_truth(
    tiny_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is only seen comes together with what is only heard, which labels of events cannot tell."""
    from caeav.model.train import examine as module

    experiment = prepare(tiny_home, tiny_config())
    data, first, second = experiment.data["test"], *experiment.inputs.classes[:2]
    segments = experiment.inputs.spec.segments
    seen = ((first,), *[(first, second)] * (segments - 1))
    heard = (*[(second,)] * (segments - 1), (first,))
    truths = [Truth("silent", (True,) * segments, seen, heard)] * len(data.clips)
    monkeypatch.setattr(module, "generated_truth", lambda *_: truths)
    stress = Stress(StressConfig(shift=1), 0, module.followed_labels(experiment, "test"))
    labels = data.transformed(stress).batch(range(len(data))).targets["labels"].argmax(dim=-1)
    assert labels.tolist() == [[0] + [1] * (segments - 1)] * len(data)
    unknown = [Truth("silent", (True,) * segments, (("no such class",),), ((),))] * len(data.clips)
    monkeypatch.setattr(module, "generated_truth", lambda *_: unknown)
    told = module.followed_labels(experiment, "test")
    assert torch.equal(told.seen, experiment.targets["test"]["labels"][..., :-1])


def test_each_track_of_llp_follows_its_own_modality() -> None:
    seen, heard = torch.rand(2, 4, 3).round(), torch.rand(2, 4, 3).round()
    targets = {
        "labels": torch.zeros(2, 3),
        "audio": heard,
        "visual": seen,
        "timed": torch.ones(2, dtype=bool),
    }
    task = TASKS["avvp"]
    tracks = task.tracks(targets)
    assert tracks is not None and torch.equal(tracks[0], seen) and torch.equal(tracks[1], heard)
    moved = task.with_tracks(targets, seen, heard.roll(1, dims=1))
    assert torch.equal(moved["audio"], heard.roll(1, dims=1)) and torch.equal(moved["visual"], seen)
    assert torch.equal(moved["labels"], ((seen + heard).amax(dim=1) > 0).float())
    found = task.together(targets, training=False).seconds
    assert found is not None and torch.equal(found, seen * heard)
    assert task.together(targets, training=True).seconds is None


# ---- a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "recipe"), [("ave", "caste"), ("ave-weak", "caste")])
def test_a_trained_run_tells_where_audio_and_visual_belong_together(
    tiny_home: Home, task: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("training.epochs=12", "optimiser.lr=0.005", task=task, recipe=recipe)
    experiment = prepare(tiny_home, config)
    run = create_run(tiny_home, experiment.config)
    train(experiment, run)
    held = run.read(AGREEMENT_FILE)
    assert held["meaning"] == MEANING and held["split"] == "val" and held["against"] == BY_LABELS
    model = experiment.build()
    load_best(run, model)
    calibration = read_calibration(run)
    assert calibration == Calibration(held["temperature"], held["bias"], held["auc"])
    assert run.result()["agreement"] == {
        name: held[name] for name in ("auc", "calibration_error", "split", "against")
    }
    assert Predictor.load(run, "cpu").weak == ""
    run.write(AGREEMENT_FILE, held | {"auc": 0.52})
    assert Predictor.load(run, "cpu").weak.startswith("agreement tells little in this run: AUC 0.52")
    found = examine(experiment, model, "test", calibration=calibration)
    assert found.agreement is not None
    value = found.as_json()["agreement"]
    assert value["quantity"] == MEANING and value["against"] == BY_MISMATCH and value["auc"] > 0.5
    assert set(value["by_kind"]) == {OTHER_CLIP, OTHER_TIME}
    assert value["seconds"] == 3 * 12 * 6
    clips = experiment.data["test"].clips
    events = experiment.targets["test"]["labels"][..., -1] == 0
    from caeav.model.train import agreement

    kinds = ["even" if number % 2 else "odd" for number in range(len(clips))]
    truths = [Truth(kind, tuple(row)) for kind, row in zip(kinds, events.tolist(), strict=True)]
    monkeypatch.setattr(agreement, "generated_truth", lambda *_: truths)
    judged = judge(experiment, model, "test", calibration)
    assert judged is not None and judged.against == BY_TRUTH and set(judged.by_kind) == {"even", "odd"}
    assert judged.auc is not None and judged.auc > 0.9
    assert judged.calibration_error is not None and judged.calibration_error < 0.2
    uncalibrated = judge(experiment, model, "test", None)
    assert uncalibrated is not None and uncalibrated.quantity == GATE
    assert uncalibrated.calibration_error is None and uncalibrated.auc == judged.auc
    follow = examine(experiment, model, "test", strengths=StressConfig(swap=1.0), follow=True)
    assert follow.agreement is None and follow.as_json()["stress_labels"] == "follow"
    assert "labels following it" in remarks(follow)[0]


def test_an_agreement_that_ranks_nothing_is_named_where_results_are_read() -> None:
    assert weak_agreement(None) == weak_agreement(0.6) == ""
    text = "agreement tells little in this run: AUC 0.59 where it was calibrated, and chance has 0.5"
    assert weak_agreement(0.594) == text
    result = {"rows": "clips", "agreement": {"auc": 0.594}}
    assert besides(result) == [f"A{text[1:]}."] and besides({**result, "agreement": {"auc": 0.9}}) == []


def test_models_without_a_shared_agreement_have_no_calibration(tiny_home: Home) -> None:
    for more, recipe in ((["loss.correspondence=0"], "caste"), ([], "none")):
        experiment = prepare(tiny_home, tiny_config(*more, recipe=recipe))
        model = experiment.build()
        assert calibrate(experiment, model, "val") is None
        judged = judge(experiment, model, "test", None)
        assert (judged is None) is (recipe == "none")
        assert judged is None or judged.quantity == GATE


def test_only_the_benchmark_gives_its_network_the_truth(
    tiny_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network reads the truth of each clip; that of an ordinary experiment does not."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import agreement as benchmark

    from caeav.model.train import agreement

    experiment = prepare(tiny_home, tiny_config(*benchmark.ORACLE, recipe="caste"))
    segments, rng = experiment.inputs.spec.segments, np.random.default_rng(0)
    truths = {
        split: [Truth("cut", tuple((rng.random(segments) < 0.5).tolist())) for _ in data.clips]
        for split, data in experiment.data.items()
    }
    monkeypatch.setattr(agreement, "generated_truth", lambda _, split: truths[split])
    knowing = benchmark.with_truth(experiment)
    batch = knowing.data["test"].batch([2, 0])
    told = torch.tensor([truths["test"][clip].together for clip in (2, 0)])
    match = knowing.build().trunk(batch.to(torch.device("cpu"), torch.float32)).match
    assert torch.equal(match.logits(), torch.where(told, benchmark.SURE, -benchmark.SURE))
    plain = experiment.data["test"].batch([2, 0])
    assert benchmark.TRUTH not in plain.extra
    own = experiment.build().trunk(plain.to(torch.device("cpu"), torch.float32)).match
    assert own is not None and not torch.equal(own.logits(), match.logits())
    assert benchmark.paired({0: 3.0, 1: 5.0, 2: 1.0}, {0: 1.0, 1: 2.0, 7: 0.0}) == "+2.5 [-3.9, +8.9]"
    assert benchmark.paired({0: 3.0}, {0: 1.0}) == "-"
