"""Every task from hand-made rows and a store to a scored, readable run: targets, training, prediction, drawings.

The world: classes 0..2; where a class is seen its direction is in all (or, for masks, some) visual tokens of a second,
where it is heard in the audio tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.masks import pack_mask, unpack_mask
from caeav.model.adapters.batch import NEGATIVE, Epoch
from caeav.model.tasks.avs.task import masks_of
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import Experiment, prepare, reopen
from caeav.model.train.predict import Prediction, Predictor
from caeav.model.train.prediction_files import prediction_json, write_prediction
from caeav.model.train.predictions import read_predictions
from caeav.model.train.runs import Run, create_run
from caeav.model.train.session import train
from caeav.pipeline.store import Recipe, Record, open_for_writing

CLASSES = ("bell", "dog", "drum")
TAPS = {"visual.s1": (16, 8), "visual.s2": (4, 16), "audio.s1": (4, 8), "audio.s2": (4, 16)}
SIDE = 16
"""Height and width of a mask."""

Rows = Sequence[tuple[Clip, np.ndarray, np.ndarray]]
"""A clip, and what of each class is seen and heard: `[T, K, 4]` by quarter of the frame, `[T, K]`."""


def directions(name: str) -> np.ndarray:
    return np.random.default_rng(len(name) + ord(name[0])).normal(size=(len(CLASSES), TAPS[name][1]))


def record(key: str, seen: np.ndarray, heard: np.ndarray, rng: np.random.Generator) -> Record:
    arrays: dict[str, Any] = {}
    for name, (tokens, channels) in TAPS.items():
        x = rng.normal(scale=0.3, size=(len(seen), tokens, channels))
        if name.startswith("audio"):
            x += (heard @ directions(name))[:, None]
        else:
            side = int(tokens**0.5)
            at = np.arange(tokens)
            quarter = 2 * (at // side >= side // 2) + (at % side >= side // 2)
            x += np.einsum("tkl,kc->tlc", seen[:, :, quarter], directions(name))
        arrays[name] = x.astype(np.float16)
    return Record(key, arrays, {"frames_ok": [True] * len(seen), "audio_ok": [True] * len(seen), "facts": {}})


def write_home(root: Path, dataset: str, rows: Rows, classes: tuple[str, ...] = CLASSES) -> Home:
    home = Home(root)
    segments = len(rows[0][1])
    manifest = Manifest(dataset, segments, 1.0, classes, tuple(clip for clip, _, _ in rows))
    rng = np.random.default_rng(5)
    records = {clip.key: record(clip.key, seen, heard, rng) for clip, seen, heard in rows}
    recipe = Recipe("tokens", "hand", {"made": "by the tests", "shard_clips": 16})
    with open_for_writing(home.stores / dataset, recipe, manifest) as writer:
        for plan in writer.plan():
            writer.publish(plan, {key: records[key] for key in plan.missing})
        writer.finish()
    return home


def runs_of(on: np.ndarray) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(int), [0]])))
    return [(float(a), float(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def split_of(i: int) -> str:
    return "train" if i % 4 < 2 else ("val", "test")[i % 2]


def llp_rows(clips: int = 48, segments: int = 6) -> Rows:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(clips):
        seen, heard = np.zeros((segments, 3, 4)), np.zeros((segments, 3))
        events = []
        for k in {i % 3, (i + rng.integers(3)) % 3}:
            for modality, held in (("audio", heard), ("visual", seen)):
                if rng.random() < 0.8 or not events:
                    held[:, k] = 1
                    events.append(Event(CLASSES[k], 0.0, float(segments), modality))
        split = split_of(i)
        labels = sorted({event.label for event in events})
        kept = () if split == "train" else tuple(events)
        clip = Clip(f"v{i}", f"v{i}.mp4", 0.0, float(segments), split, kept, {"labels": labels})
        rows.append((clip, seen, heard))
    return rows


def avs_rows(clips: int = 80, frames: int = 3) -> Rows:
    """One class sounds; its quarter is the mask. Another is visible as well."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(clips):
        k, place = i % 3, i // 4 % 4
        seen, heard = np.zeros((frames, 3, 4)), np.zeros((frames, 3))
        seen[:, k, place] = heard[:, k] = seen[:, (k + 1) % 3, (place + rng.integers(1, 4)) % 4] = 1
        mask = np.zeros((2, 2), bool)
        mask.flat[place] = True
        text = pack_mask(np.kron(mask, np.ones((SIDE // 2, SIDE // 2), bool)))
        texts = [text, None, None] if split_of(i) == "train" else [text] * frames
        extra = {"category": CLASSES[k], "masks": texts}
        rows.append((Clip(f"m{i}", f"m{i}.mp4", 0.0, float(frames), split_of(i), (), extra), seen, heard))
    return rows


def avqa_rows(clips: int = 48, segments: int = 4) -> Rows:
    rng = np.random.default_rng(3)
    rows = []
    for i in range(clips):
        seen, heard = np.zeros((segments, 3, 4)), np.zeros((segments, 3))
        see, hear = (int(x) for x in rng.integers(3, size=2))
        seen[:, see], heard[:, hear] = 1, 1
        asked = []
        for q, (kind, word, k) in enumerate(
            ((["Visual", "Location"], "seen", see), (["Audio", "Counting"], "heard", hear))
        ):
            text = {"words": ["What", "is", word], "text": f"What is {word}?", "template": ""}
            asked.append(
                {"id": 2 * i + q, "split": split_of(i + q), "type": kind, "answer": CLASSES[k]} | text
            )
        clip = Clip(f"q{i}", f"q{i}.mp4", 0.0, float(segments), "", (), {"questions": asked})
        rows.append((clip, seen, heard))
    return rows


def ave_rows(clips: int = 48, segments: int = 6) -> Rows:
    """The event is where a class is both seen and heard; elsewhere it is one of the two."""
    rng = np.random.default_rng(4)
    rows = []
    for i in range(clips):
        k, both = i % 3, np.zeros(segments, bool)
        both[int(rng.integers(0, 3)) : int(rng.integers(3, segments + 1))] = True
        alone = rng.random(segments) < 0.5
        seen, heard = np.zeros((segments, 3, 4)), np.zeros((segments, 3))
        seen[:, k], heard[:, k] = (both | alone)[:, None], both | ~alone
        events = tuple(Event(CLASSES[k], a, b) for a, b in runs_of(both))
        rows.append((Clip(f"e{i}", f"e{i}.mp4", 0.0, float(segments), split_of(i), events), seen, heard))
    return rows


WORLDS: dict[str, Callable[[], Rows]] = {
    "ave-weak": ave_rows,
    "avvp": llp_rows,
    "avs-s4": avs_rows,
    "avs-ms3": avs_rows,
    "avqa": avqa_rows,
}
SMALL_AVS = [
    "model.head.input_norm=none",
    "model.head.channels=16",
    "model.head.mask_size=8",
    "model.head.out_channels=[16,8]",
]
SETS = {
    "ave-weak": ["model.head.width=32", "training.epochs=16"],
    "avvp": ["model.head.width=32", "training.epochs=12"],
    "avs-s4": [*SMALL_AVS, "optimiser.lr=0.01", "training.epochs=10"],
    "avs-ms3": [*SMALL_AVS, "training.epochs=2", "loss.masked=0.01"],
    "avqa": ["training.epochs=16", "loss.match=0.5", "model.head.match_widths=[16,8,8]"],
}
COMMON = ["training.device=cpu", "optimiser.lr=0.005", "schedule.warmup_epochs=0", "training.workers=0"]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Home]:
    root = tmp_path_factory.mktemp("tasks")
    return {
        task: write_home(root / task, "hand", rows(), () if task == "avs-ms3" else CLASSES)
        for task, rows in WORLDS.items()
    }


def experiment(homes: dict[str, Home], task: str, *sets: str, recipe: str = "none") -> Experiment:
    config = resolve_config(task, recipe, None, [*COMMON, *SETS[task], *sets], {"dataset": "hand"})
    return prepare(homes[task], config)


@pytest.fixture(scope="module")
def runs(homes: dict[str, Home]) -> dict[str, tuple[Run, dict[str, Any]]]:
    """One training a task, on the head alone."""
    found = {}
    for task in WORLDS:
        made = experiment(homes, task)
        run = create_run(homes[task], made.config)
        found[task] = (run, train(made, run))
    return found


@pytest.mark.parametrize("task", [task for task in WORLDS if task != "avs-ms3"])
def test_it_learns_what_no_constant_answer_knows(runs: dict[str, Any], task: str) -> None:
    _, result = runs[task]
    assert result["scores"]["test"] > result["majority"]["test"] + 15, result


@pytest.mark.parametrize("task", WORLDS)
@pytest.mark.parametrize("recipe", ["audio", "visual"])
def test_a_baseline_never_sees_the_other_modality(homes: dict[str, Home], task: str, recipe: str) -> None:
    made = experiment(homes, task, recipe=recipe)
    model = made.build().eval()
    batch = made.data["train"].batch(range(4), Epoch(0, 1)).to(torch.device("cpu"), torch.float32)
    before = made.task.losses(model(batch).found, batch, made.config)
    other = batch.visual if recipe == "audio" else batch.audio
    for x in [*other.values(), *(x for n, x in batch.extra.items() if recipe == "audio" and n == NEGATIVE)]:
        x.normal_()
    after = made.task.losses(model(batch).found, batch, made.config)
    assert all(torch.equal(after[name], loss) for name, loss in before.items())


def predicted(homes: dict[str, Home], runs: dict[str, Any], task: str, question: str = "") -> Prediction:
    run, _ = runs[task]
    joined = reopen(homes[task], run).joined
    held = joined.tokens[0].read(joined.splits["test"][0].clip.key)
    return Predictor.load(run, "cpu").predict("clip", held.arrays, held.info, 10.0, question)


@pytest.mark.parametrize("task", WORLDS)
def test_a_prediction_is_drawn_and_written(
    homes: dict[str, Home], runs: dict[str, Any], task: str, tmp_path: Path
) -> None:
    found = predicted(homes, runs, task, "what is heard?" if task == "avqa" else "")
    frames = [np.full((12, 20, 3), 90, np.uint8)] * found.times.segments
    written = write_prediction(found, tmp_path, "title", {"run": "r"}, frames)
    assert written[1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads(written[0].read_text()) == json.loads(json.dumps(prediction_json(found, {"run": "r"})))
    rows = found.rows()
    assert len(rows) == (3 if task == "avqa" else found.times.segments)
    assert len({tuple(row) for row in rows}) == 1
    if task.startswith("avs"):
        from PIL import Image

        assert Image.open(tmp_path / "mask-3.png").size == (SIDE, SIDE)


@pytest.mark.parametrize("task", WORLDS)
def test_the_rows_that_are_kept_add_up_to_the_score(
    homes: dict[str, Home], runs: dict[str, Any], task: str
) -> None:
    run, result = runs[task]
    rows = list(read_predictions(run))
    samples = {split: reopen(homes[task], run).joined.splits[split] for split in ("val", "test")}
    assert [(row["split"], row["key"]) for row in rows] == [
        (split, sample.key) for split, held in samples.items() for sample in held
    ]
    for split, score in result["scores"].items():
        own = [row["score"] for row in rows if row["split"] == split]
        assert 100 * float(np.mean(own)) == pytest.approx(score, abs=1e-3)
        if task.startswith("avs"):
            f_measures = [row["f_measure"] for row in rows if row["split"] == split]
            told = result["details"][split]["f_measure"]
            assert 100 * float(np.mean(f_measures)) == pytest.approx(told, abs=1e-3)
    for row in rows:
        assert 0.3 < row["confidence"] <= 1 and row["labels"]
        if task == "avqa":
            assert (
                row["question"].startswith("What is ") and (row["truth"] == row["prediction"]) == row["score"]
            )
            assert row["probabilities"][CLASSES.index(row["prediction"])] == max(row["probabilities"])
        elif task.startswith("avs"):
            known = [
                (unpack_mask(a), unpack_mask(b))
                for a, b in zip(row["truth"], row["prediction"], strict=True)
                if a
            ]
            ious = [(a & b).sum() / (a | b).sum() for a, b in known]
            assert float(np.mean(ious)) == pytest.approx(row["score"], abs=1e-4)
        elif task == "avvp":
            for modality in ("audio", "visual"):
                for names, chance in zip(
                    row["prediction"][modality], row["probabilities"][modality], strict=True
                ):
                    assert all(chance[CLASSES.index(name)] >= 0.5 for name in names)
        else:
            hits = [a == b for a, b in zip(row["truth"], row["prediction"], strict=True)]
            assert float(np.mean(hits)) == pytest.approx(row["score"])
            assert np.allclose(np.sum(row["probabilities"], axis=1), 1, atol=1e-5)


def test_avvp_targets_come_from_labels_in_train_and_from_events_elsewhere(homes: dict[str, Home]) -> None:
    made = experiment(homes, "avvp")
    train_targets, val = made.targets["train"], made.targets["val"]
    assert not train_targets["timed"].any() and val["timed"].all()
    assert train_targets["labels"].sum() >= len(train_targets["labels"]) and not train_targets["audio"].any()
    for row, sample in enumerate(made.joined.splits["val"]):
        for event in sample.clip.events:
            assert val[event.modality][row, :, CLASSES.index(event.label)].all()
    with pytest.raises(CaeavError, match="labels of the whole clip only"):
        made.score(made.build(), "train")


def test_avvp_reads_motion_from_the_store_when_asked(tmp_path: Path) -> None:
    TAPS["motion.r2plus1d"] = (1, 12)
    try:
        home = write_home(tmp_path, "hand", llp_rows(16))
    finally:
        del TAPS["motion.r2plus1d"]
    sets = [*COMMON, *SETS["avvp"], "model.head.motion=true"]
    made = prepare(home, resolve_config("avvp", "none", None, sets, {"dataset": "hand"}))
    model = made.build().eval()
    batch = made.data["val"].batch([0, 1]).to(torch.device("cpu"), torch.float32)
    before = model(batch).found.visual_prob
    batch.extra["motion.r2plus1d"].normal_()
    assert not torch.equal(before, model(batch).found.visual_prob)


def test_asking_for_motion_that_no_store_holds_is_refused(homes: dict[str, Home]) -> None:
    with pytest.raises(CaeavError, match="hold 0 taps named motion"):
        experiment(homes, "avvp", "model.head.motion=true")


def test_masks_survive_as_bits_and_unknown_frames_are_not_scored(homes: dict[str, Home]) -> None:
    made = experiment(homes, "avs-s4")
    targets = made.targets["train"]
    assert targets["known"].sum(dim=1).tolist() == [1] * len(targets["known"])
    masks = masks_of(targets, (SIDE, SIDE))
    assert masks.shape[1:] == (3, SIDE, SIDE)
    assert masks[:, 0].sum(dim=(1, 2)).tolist() == [(SIDE // 2) ** 2] * len(masks) and not masks[:, 1:].any()
    scores = made.score(made.build(), "train")
    assert scores.details["frames"] == len(masks) and scores.details["clips_per_call"] == 1
    assert sum(row["clips"] for row in scores.per_class) == len(masks)


def test_the_number_of_clips_per_call_changes_only_the_f_measure(
    homes: dict[str, Home], runs: dict[str, Any]
) -> None:
    one, many = (
        reopen(homes["avs-s4"], runs["avs-s4"][0]),
        experiment(homes, "avs-s4", "metric.clips_per_call=4"),
    )
    from caeav.model.train.session import load_best

    model = one.build()
    load_best(runs["avs-s4"][0], model)
    a, b = one.score(model, "test"), many.score(model, "test")
    assert a.value == pytest.approx(b.value) and b.details["clips_per_call"] == 4
    assert a.details["f_measure"] > b.details["f_measure"]  # one threshold per clip, or one for four clips


@pytest.mark.parametrize(("variant", "reaches"), [("reference", False), ("revised", True)])
def test_captions_reach_the_mask_only_in_the_revised_variant(variant: str, reaches: bool) -> None:
    from caeav.model.adapters.batch import CaptionSpec, Inputs, InputSpec, TokenBatch
    from caeav.model.tasks.base import TASKS
    from caeav.model.train.config_file import config_class
    from caeav.model.train.network import build_network
    from caeav.pipeline.store.record import Tap

    spec = InputSpec(
        3,
        *(
            tuple(Tap(n, *TAPS[n]) for n in TAPS if n.startswith(modality))
            for modality in ("visual", "audio")
        ),
        CaptionSpec(4, 8),
        CaptionSpec(4, 8),
    )
    head = {"channels": 8, "width": 8, "hidden": 8, "heads": 2, "mask_size": 8, "out_channels": [8, 4]}
    model = {"variant": variant, "head": head, "adapters": {"case": {"proj_dim": 8}, "avmoe": {"latents": 2}}}
    values = {"task": "avs-s4", "recipe": "full", "dataset": "d", "model": model}
    config = config_class("avs-s4").model_validate(values)
    torch.manual_seed(0)
    inputs = Inputs("d", CLASSES, 1.0, spec, {"mask_size": [SIDE, SIDE]})
    network = build_network(TASKS["avs-s4"], inputs, config.model).eval()
    ok = torch.ones(2, 3, dtype=torch.bool)
    tokens = {n: torch.randn(2, 3, *shape) for n, shape in TAPS.items()}
    batch = TokenBatch(
        ["a", "b"],
        {n: x for n, x in tokens.items() if n.startswith("visual")},
        {n: x for n, x in tokens.items() if n.startswith("audio")},
        ok,
        ok,
        torch.randn(2, 4, 8),
        ok.new_ones(2, 4),
        torch.randn(2, 4, 8),
        ok.new_ones(2, 4),
    )
    trunk = network.trunk(batch)
    trunk.visual.retain_grad()
    network.head(trunk).mask_logits.sum().backward()
    grad = trunk.visual.grad
    assert (grad is not None and bool(grad.any())) is reaches


def test_questions_are_rows_and_their_words_and_answers_are_saved(
    homes: dict[str, Home], runs: dict[str, Any]
) -> None:
    made = experiment(homes, "avqa")
    data = made.data["train"]
    assert len(data) == len(made.joined.splits["train"]) > 24 - 1
    assert made.joined.clips("train") <= len(data)
    facts = runs["avqa"][0].inputs().facts
    assert facts["words"] == [
        "<pad>",
        "What",
        "is",
        *sorted({"seen", "heard"}, key=facts["words"].index),
        "<unk>",
    ]
    assert facts["answers"] == list(CLASSES) and facts["places"] == 14
    batch = data.batch([0, 1])
    assert batch.extra["question"].shape == (2, 14) and NEGATIVE not in batch.extra


def test_negatives_of_the_reference_depend_on_epoch_and_row_only(homes: dict[str, Home]) -> None:
    held, read = (
        experiment(
            homes, "avqa", "model.head.negatives=mixed", "loss.match=0.5", f"training.preload_mb={size}"
        ).data["train"]
        for size in (100, 0)
    )
    first = held.batch([3, 5], Epoch(0, 1)).extra[NEGATIVE]
    assert torch.equal(first, read.batch([3, 5], Epoch(0, 1)).extra[NEGATIVE])
    assert torch.equal(first[1], held.batch([5], Epoch(0, 1)).extra[NEGATIVE][0])
    assert not torch.equal(first, held.batch([3, 5], Epoch(0, 2)).extra[NEGATIVE])


def test_the_reference_mixes_videos_among_its_negatives(homes: dict[str, Home]) -> None:
    made = experiment(homes, "avqa", "model.head.negatives=mixed", "loss.match=0.5")
    data = made.data["train"]
    negative = data.batch([0], Epoch(0, 1)).extra[NEGATIVE][0].numpy()
    stored = {key: made.joined.tokens[0].read(key).arrays["visual.s2"] for key in data.clips}
    owners = {
        key for x in negative for key, held in stored.items() if any(np.array_equal(x, s) for s in held)
    }
    assert len(owners) > 1


def test_a_question_is_needed_where_one_is_answered_and_refused_elsewhere(
    homes: dict[str, Home], runs: dict[str, Any]
) -> None:
    with pytest.raises(CaeavError, match="--question"):
        predicted(homes, runs, "avqa")
    with pytest.raises(CaeavError, match="answers no questions"):
        predicted(homes, runs, "avvp", "why?")
    found = predicted(homes, runs, "avqa", "What is purple?").decoded
    assert found.remarks() and "purple" in found.remarks()[0]


def test_unused_taps_are_neither_read_nor_counted(homes: dict[str, Home]) -> None:
    from caeav.model.train.data import clip_bytes

    made = experiment(homes, "avs-s4", "stores.taps=[visual.s2, audio.s2]")
    assert clip_bytes(made.joined) == 3 * 2 * (4 * 16 + 4 * 16)
    assert list(made.data["val"].batch([0]).visual) == ["visual.s2"]
    with pytest.raises(CaeavError, match=r"names visual\.s9; the joined stores hold audio\.s1"):
        experiment(homes, "avs-s4", "stores.taps=[visual.s9]")


def test_ms3_is_scored_by_objects_and_their_number_where_its_rows_have_them(tmp_path: Path) -> None:
    rows = [
        (replace(clip, extra={"masks": clip.extra["masks"], "objects": sorted(CLASSES[: 1 + i % 2])}), *truth)
        for i, (clip, *truth) in enumerate(avs_rows(16))
    ]
    home = {"avs-ms3": write_home(tmp_path, "hand", rows, ())}
    made = experiment(home, "avs-ms3")
    assert made.inputs.classes == ("bell", "dog", "(1 sounding)", "(2 sounding)")
    scores = made.score(made.build(), "val")
    counts = {row["class"]: row["clips"] for row in scores.per_class}
    assert counts["bell"] == scores.clips == counts.get("(1 sounding)", 0) + counts.get("(2 sounding)", 0)
    assert scores.ungrouped == ""


def test_the_f_measure_is_among_the_differences_of_two_runs(
    homes: dict[str, Home], runs: dict[str, Any]
) -> None:
    from caeav.model.report.compare import differences
    from caeav.model.report.run import Subject

    run = runs["avs-s4"][0]
    rows = list(read_predictions(run))

    def subject(rows: list[dict[str, Any]]) -> Subject:
        return Subject(run, rows, {}, lambda key: {}, {}, [])

    better = [{**row, "f_measure": min(1.0, row["f_measure"] + 0.1)} for row in rows]
    found = differences(subject(rows), subject(better))
    assert found is not None
    [(iou, same, *_), (name, gap, low, high)] = found.scores
    gaps = [
        b["f_measure"] - a["f_measure"] for a, b in zip(rows, better, strict=True) if a["split"] == "test"
    ]
    assert (iou, same, name) == ("mean_iou", 0.0, "f_measure") and low <= gap <= high
    assert gap == pytest.approx(100 * float(np.mean(gaps)))
    for row in better:  # as runs of older versions
        del row["f_measure"]
    older = differences(subject(rows), subject(better))
    assert older is not None and [name for name, *_ in older.scores] == ["mean_iou"]


def test_a_missing_table_of_classes_is_explained(homes: dict[str, Home], tmp_path: Path) -> None:
    rows = [(replace(clip, extra={"masks": clip.extra["masks"]}), *truth) for clip, *truth in avs_rows(8)]
    made = experiment({"avs-ms3": write_home(tmp_path, "hand", rows, ())}, "avs-ms3")
    assert "name none" in made.score(made.build(), "val").ungrouped
    several = experiment(homes, "avs-s4", "metric.clips_per_call=4")
    assert "several clips" in several.score(several.build(), "val").ungrouped
