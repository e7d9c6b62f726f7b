"""Run folders found and read back, and predictions from arrays with their reports."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import CaptionSpec, Inputs
from caeav.model.tasks.ave.prediction import BACKGROUND, Timeline
from caeav.model.tasks.avs.prediction import Masks
from caeav.model.tasks.avvp.prediction import Tracks
from caeav.model.tasks.prediction import SegmentTimes, TaskPrediction
from caeav.model.train import prediction_files, runs
from caeav.model.train.checkpoint import CheckpointError
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import prepare, reopen
from caeav.model.train.groups import summarise_group
from caeav.model.train.predict import Prediction, Predictor
from caeav.model.train.prediction_files import draw, prediction_json, write_prediction
from caeav.model.train.runs import Run, RunError, create_run, find_run, list_runs, summarise
from caeav.model.train.session import train
from caeav.pipeline.store.record import Tap


@pytest.fixture(scope="module")
def run(tiny_home: Home) -> Run:
    sets = [
        "training.epochs=3",
        "model.head.width=16",
        "model.adapters.avmoe.enabled=false",
        "training.device=cpu",
    ]
    experiment = prepare(tiny_home, resolve_config(assignments=sets, options={"dataset": "tiny"}))
    made = create_run(tiny_home, experiment.config)
    train(experiment, made)
    return made


def arrays_of(home: Home, run: Run, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    joined = reopen(home, run).joined
    record = joined.tokens[0].read(key)
    assert joined.captions is not None
    return {**record.arrays, **joined.captions.read(key).arrays}, dict(record.info)


def test_predictions_add_up_to_the_test_score(tiny_home: Home, run: Run) -> None:
    """Predicting clip by clip from arrays gives the same as batches from the store."""
    predictor = Predictor.load(run, "cpu")
    joined = reopen(tiny_home, run).joined
    hits = total = 0
    for sample in joined.splits["test"]:
        clip = sample.clip
        arrays, info = arrays_of(tiny_home, run, clip.key)
        prediction = predictor.predict(clip.key, arrays, info)
        found = prediction.decoded
        assert isinstance(found, Timeline)
        [event] = clip.events
        truth = [event.label if event.start_s <= t < event.end_s else BACKGROUND for t in range(6)]
        hits += sum(a == b for a, b in zip(truth, found.events, strict=True))
        total += 6
        assert prediction.agreement is not None and all(0 <= a <= 1 for a in prediction.agreement)
        assert np.allclose(found.table.sum(axis=1), 1, atol=1e-5)
        chosen = [(*found.classes, BACKGROUND).index(name) for name in found.events]
        assert np.allclose(found.probability, found.table[range(6), chosen])
    result = run.result()
    assert result is not None
    assert 100 * hits / total == pytest.approx(result["scores"]["test"])


def test_arrays_that_do_not_fit_are_refused_by_name(tiny_home: Home, run: Run) -> None:
    arrays, info = arrays_of(tiny_home, run, "clip000")
    arrays["visual.stage2"] = arrays["visual.stage2"][:, :2]
    del arrays["audio_caption"]
    with pytest.raises(CaeavError) as caught:
        Predictor.load(run, "cpu").predict("clip000", arrays, info)
    assert r"visual.stage2: [6, 2, 16]; allowed: [6, 4, 16]" in str(caught.value)
    assert "audio_caption: absent; allowed: [5, 16]" in str(caught.value)


def test_every_input_of_a_clip_reaches_its_place(
    tiny_home: Home, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, info = arrays_of(tiny_home, run, "clip000")
    frames, audio = [t != 1 for t in range(6)], [t not in (2, 3) for t in range(6)]
    masks = {"visual_caption_mask": np.arange(5) < 2, "audio_caption_mask": np.arange(5) < 4}
    predictor = Predictor.load(run, "cpu")
    met: list[tuple[Any, bool, bool]] = []
    predictor._model.register_forward_pre_hook(
        lambda module, given: met.append((given[0], module.training, torch.is_autocast_enabled("cpu")))
    )
    precise = predictor.config
    for precision in ("fp32", "bf16"):
        limits = precise.training.model_copy(update={"precision": precision})
        predictor.config = precise.model_copy(update={"training": limits})
        predictor.predict("clip000", {**arrays, **masks}, {**info, "frames_ok": frames, "audio_ok": audio})
    assert [(training, lower) for _, training, lower in met] == [(False, False), (False, True)]
    batch = met[0][0]
    assert batch.frames_ok.tolist() == [frames] and batch.audio_ok.tolist() == [audio]
    for name, wanted in {**arrays, **masks}.items():
        held = getattr(batch, name, None) if "caption" in name else {**batch.visual, **batch.audio}[name]
        assert held is not None and np.array_equal(held[0].numpy(), wanted.astype(held.numpy().dtype))
    predictor.predict("clip000", arrays, {})  # an old record without flags: all of it is real
    assert met[-1][0].frames_ok.all() and met[-1][0].audio_ok.all()


def test_inputs_of_a_run_come_back_whole(run: Run) -> None:
    inputs = run.inputs()
    assert inputs.spec.visual_caption == inputs.spec.audio_caption == CaptionSpec(5, 16)
    motion = replace(inputs, spec=replace(inputs.spec, other=(Tap("motion.r3d", 1, 7),)), facts={"a": [1]})
    assert Inputs.from_json(json.loads(json.dumps(motion.as_json()))) == motion
    old = inputs.as_json()
    del old["spec"]["other"], old["facts"]
    assert Inputs.from_json(json.loads(json.dumps(old))) == inputs


def test_an_older_result_is_honest_and_without_intervals_and_a_newer_says_itself(tmp_path: Path) -> None:
    made = Run(tmp_path)
    made.write("result.json", {"scores": {}})
    assert made.result() == {"scores": {}, "protocol": "honest", "intervals": {}}
    made.write("result.json", {"protocol": "published", "intervals": {"val": 1}})
    assert made.result() == {"protocol": "published", "intervals": {"val": 1}}


def test_a_run_gives_the_recipes_of_its_stores(tiny_home: Home, run: Run) -> None:
    joined = reopen(tiny_home, run).joined
    assert [r.fingerprint for r in run.token_recipes()] == [s.recipe.fingerprint for s in joined.tokens]
    captions = run.caption_recipe()
    assert joined.captions is not None and captions is not None
    assert captions.fingerprint == joined.captions.recipe.fingerprint


def some_prediction(start_s: float = 0.0, agreement: bool = True) -> Prediction:
    events = ("bell", "bell", BACKGROUND, "dog", BACKGROUND, "bell")
    table = np.full((6, 3), 0.1, np.float32)
    for t, name in enumerate(events):
        table[t, ("bell", "dog", BACKGROUND).index(name)] = 0.8
    decoded = Timeline(("bell", "dog"), events, (0.8,) * 6, table)
    said = (0.5,) * 6 if agreement else None
    return Prediction("clip", SegmentTimes(start_s, 1.0, 6), decoded, said, calibrated=agreement)


@pytest.mark.parametrize(
    ("start_s", "media_s", "shown", "end_s"),
    [
        (0.0, None, 6, 6.0),
        (0.0, 99.0, 6, 6.0),
        (0.0, 6.0, 6, 6.0),
        (0.0, 5.97, 6, 6.0),  # containers round
        (0.0, 3.064, 3, 3.0),  # a codec's padding
        (0.0, 3.3, 4, 3.3),
        (0.0, 2.9, 3, 3.0),
        (0.0, 2.8, 3, 2.8),
        (0.0, 0.05, 1, 0.05),
        (10.0, 12.5, 3, 12.5),
    ],
)
def test_what_is_shown_ends_where_the_media_end(
    start_s: float, media_s: float | None, shown: int, end_s: float
) -> None:
    times = SegmentTimes(start_s, 1.0, 6, media_s)
    assert (times.shown, times.end_s) == (shown, pytest.approx(end_s))
    assert [times.bounds(t)[0] for t in range(shown)] == [start_s + t for t in range(shown)]


def test_rows_json_and_spans_leave_out_what_is_behind_the_end_of_the_media() -> None:
    whole = some_prediction()
    cut = replace(whole, times=replace(whole.times, media_s=3.5))
    assert [(row["segment"], row["seconds"]) for row in cut.rows()] == [
        (1, "0 to 1"), (2, "1 to 2"), (3, "2 to 3"), (4, "3 to 3.5")]  # fmt: skip
    value = prediction_json(cut, {})
    assert [segment["end_s"] for segment in value["segments"]] == [1.0, 2.0, 3.0, 3.5]
    assert value["agreement"] == [0.5] * 4
    assert value["events"] == [
        {"event": "bell", "start_s": 0.0, "end_s": 2.0},
        {"event": "dog", "start_s": 3.0, "end_s": 3.5},
    ]
    [said] = cut.remarks()
    assert said.startswith("the media end at 3.5 s: 4 of the 6 segments")
    assert whole.remarks() == []


def test_an_event_is_shown_with_its_own_probability() -> None:
    """Where some event is likely (0.9) but the predicted one is not (0.5), both are shown under their names."""
    table = np.array([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8]], np.float32)
    decoded = Timeline(("bell", "dog"), ("bell", BACKGROUND), (0.5, 0.8), table)
    prediction = Prediction("clip", SegmentTimes(0.0, 1.0, 2), decoded, None)
    rows = [(row["event"], row["probability"], round(row["any event"], 3)) for row in prediction.rows()]
    assert rows == [("bell", 0.5, 0.9), (BACKGROUND, 0.8, 0.2)]
    segments = prediction_json(prediction, {})["segments"]
    assert [(s["probability"], s["any_event"]) for s in segments] == [(0.5, 0.9), (0.8, 0.2)]
    bars, numbers, line = drawn(decoded, prediction.times)
    assert [bar.get_height() for bar in bars] == pytest.approx([0.5, 0.8])
    assert numbers == ["0.50", "0.80", "bell"]
    assert list(line) == pytest.approx([0.9, 0.2])


def drawn(decoded: TaskPrediction, times: SegmentTimes) -> tuple[list[Any], list[str], Any]:
    """Bars of some width, texts, and the values of the line in the task's last panel."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle, StepPatch

    axis = Figure().subplots()
    decoded.panels(times, [])[-1].draw(axis)
    bars = [p for p in axis.patches if isinstance(p, Rectangle) and p.get_height() and p.get_width()]
    lines = [p.get_data().values for p in axis.patches if isinstance(p, StepPatch)]
    return bars, [text.get_text() for text in axis.texts], lines[0] if lines else None


def test_bars_end_where_the_media_end() -> None:
    decoded = some_prediction().decoded
    bars, numbers, line = drawn(decoded, SegmentTimes(0.0, 1.0, 6, 3.5))
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 3.5),
    ]
    assert numbers == ["0.80"] * 4 + ["bell", "dog"] and len(line) == 4


def test_tracks_name_each_event_with_its_own_probability() -> None:
    on = {"audio": np.array([[1, 0], [1, 1]], bool), "visual": np.zeros((2, 2), bool)}
    chance = {
        "audio": np.array([[0.9, 0.2], [0.6, 0.7]], np.float32),
        "visual": np.array([[0.4, 0.1], [0.1, 0.1]], np.float32),
    }
    tracks = Tracks(("bell", "dog"), on, chance)
    assert tracks.rows(SegmentTimes(0.0, 1.0, 2)) == [
        {"segment": 1, "seconds": "0 to 1", "heard": "bell 0.90", "seen": "-"},
        {"segment": 2, "seconds": "1 to 2", "heard": "bell 0.60, dog 0.70", "seen": "-"},
    ]
    assert drawn(tracks, SegmentTimes(0.0, 1.0, 2))[1] == ["0.70", "0.90", "0.60"]
    cut = SegmentTimes(0.0, 1.0, 2, 1.0)
    assert drawn(tracks, cut)[1] == ["0.90"] and len(tracks.as_json(cut)["segments"]) == 1


def test_masks_are_of_the_media_only() -> None:
    masks = Masks(np.ones((5, 4, 4), np.float32))
    times = SegmentTimes(0.0, 1.0, 5, 2.0)
    assert list(masks.files(times)) == ["mask-1.png", "mask-2.png"]
    assert len(masks.rows(times)) == len(masks.as_json(times)["frames"]) == 2


def test_a_gate_that_is_no_probability_is_not_called_agreement() -> None:
    gate = replace(some_prediction(), calibrated=False)
    value = prediction_json(gate, {})
    assert value["agreement"] is None and value["caste_gate"] == [0.5] * 6
    assert gate.rows()[0]["CASTE's gate"] == 0.5 and "agreement" not in gate.rows()[0]
    value = prediction_json(some_prediction(), {})
    assert value["agreement_means"] == "probability that audio and frames belong together"
    assert "caste_gate" not in value and some_prediction().rows()[0]["agreement"] == 0.5


def test_missing_media_are_reported_by_segment(tiny_home: Home, run: Run) -> None:
    """Without frames or audio nothing can agree; segments are numbered from 1, as in captions."""
    arrays, info = arrays_of(tiny_home, run, "clip000")
    info |= {
        "frames_ok": [True] * 5 + [False],
        "audio_ok": [True, True, False, True, True, True],
        "silent": [False, False, True, False, True, False],
    }
    prediction = Predictor.load(run, "cpu").predict("clip000", arrays, info)
    assert [row["missing"] for row in prediction.rows()] == ["-", "-", "sound", "-", "sound", "picture"]
    value = prediction_json(prediction, {})
    assert [a is None for a in value["agreement"]] == [False, False, True, False, True, True]
    assert value["missing"] == [[], [], ["sound"], [], ["sound"], ["picture"]]
    assert prediction.remarks() == [
        "no picture in segment 6: the run was given the nearest picture there",
        "no sound in segments 3 and 5: the run was given silence there",
    ]
    assert replace(prediction, weak="it tells little").remarks()[-1] == "it tells little"
    assert replace(prediction, weak="it tells little", agreement=None).remarks() == prediction.remarks()
    info["audio_ok"] = [False] * 6
    assert (
        "no sound in the whole clip: the run was given silence"
        in Predictor.load(run, "cpu").predict("clip000", arrays, info).remarks()
    )
    assert draw(prediction, "title")


def test_the_picture_names_what_is_missing_and_its_curve_has_gaps_there() -> None:
    from matplotlib.figure import Figure

    whole = some_prediction()
    lacks = ((), ("sound",), ("sound",), ("picture",), ("sound",), ())
    cut = replace(whole, times=replace(whole.times, media_s=3.5), missing=lacks)
    assert prediction_files._time_label(whole) == "seconds"
    assert (
        prediction_files._time_label(cut)
        == "seconds  (segments above; hatched: no sound in 2 to 3; no picture in 4)"
    )
    axis = Figure().subplots()
    prediction_files._hatch_missing(axis, whole)
    assert not axis.patches
    prediction_files._hatch_missing(axis, cut)
    [hatched] = axis.patches  # one stretch, up to the end of the media
    assert hatched.get_hatch() and (hatched.get_x(), hatched.get_width()) == (1.0, 2.5)
    agreements = cut.agreements()
    assert agreements == [0.5, None, None, None]
    axis = Figure().subplots()
    prediction_files._agreement_panel(agreements, cut.times).draw(axis)
    [line] = axis.get_lines()
    assert list(line.get_xdata()) == [0.5, 1.5, 2.5, 3.25]
    assert np.isnan(line.get_ydata()).tolist() == [False, True, True, True]


def test_plots_are_hatched_and_frames_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    hatched: list[str] = []
    monkeypatch.setattr(prediction_files, "_hatch_missing", lambda axis, _: hatched.append(axis.get_ylabel()))
    draw(some_prediction(), "title", [np.zeros((4, 6, 3), np.uint8)] * 6)
    assert hatched == ["probability", "agreement"]


def test_a_short_last_segment_has_audio_where_any_is_heard(tiny_home: Home, run: Run) -> None:
    """Media that end at 3.3 s fill less than half of the fourth segment; its audio counts all the same."""
    arrays, info = arrays_of(tiny_home, run, "clip000")
    info |= {"audio_ok": [True] * 3 + [False] * 3, "facts": {"media_s": 3.3}}
    predictor = Predictor.load(run, "cpu")
    silent = {"none": [False] * 4 + [True] * 2, "there": [False] * 3 + [True] * 3}
    for where, lacks in (("none", ()), ("there", ("sound",))):
        prediction = predictor.predict("clip000", arrays, {**info, "silent": silent[where]})
        assert prediction.missing[:4] == ((), (), (), lacks)


def test_segments_are_numbered_in_words() -> None:
    times = SegmentTimes(0.0, 1.0, 6)
    assert times.segment_list([True] * 6) == "1 to 6"
    assert times.segment_list([False, True, True, False, True, False]) == "2 to 3 and 5"
    assert times.segment_list([True, False, True, False, True, True]) == "1, 3 and 5 to 6"
    assert replace(times, media_s=2.0).segment_list([True] * 6) == "1 to 2"


def test_spans_join_neighbours_only() -> None:
    prediction = some_prediction(10.0)
    assert isinstance(prediction.decoded, Timeline)
    assert prediction.decoded.spans(prediction.times) == [
        ("bell", 10.0, 12.0),
        ("dog", 13.0, 14.0),
        ("bell", 15.0, 16.0),
    ]


def test_json_holds_rows_events_and_facts(tmp_path: Path) -> None:
    written = write_prediction(some_prediction(agreement=False), tmp_path, "title", {"run": "r"})
    assert [path.name for path in written] == ["prediction.json", "prediction.png"]
    value = json.loads(written[0].read_text())
    assert value == json.loads(json.dumps(prediction_json(some_prediction(agreement=False), {"run": "r"})))
    assert value["run"] == "r" and value["classes"] == ["bell", "dog", BACKGROUND]
    assert value["segments"][3]["event"] == "dog" and value["agreement"] is None
    assert value["events"][1] == {"event": "dog", "start_s": 3.0, "end_s": 4.0}


def test_a_file_name_that_is_no_utf8_is_escaped_in_json(tmp_path: Path) -> None:
    write_prediction(some_prediction(), tmp_path, "title", {"file": "b\udcff.mp4"})
    assert json.loads((tmp_path / "prediction.json").read_bytes())["file"] == "b\udcff.mp4"


def test_letters_the_font_lacks_are_drawn_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(draw(some_prediction(), "\u65e5\u672c.mp4")) > 1000


@pytest.mark.parametrize("agreement", [True, False])
@pytest.mark.parametrize("frames", [True, False])
def test_the_timeline_is_a_picture(agreement: bool, frames: bool) -> None:
    images = [np.full((32, 48, 3), 40 * t, np.uint8) for t in range(6)] if frames else []
    data = draw(some_prediction(agreement=agreement), "name with $math$ and \x1b[31m", images)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 800 and height > 200


def test_runs_are_found_by_name_part_folder_and_last(tiny_home: Home, run: Run) -> None:
    assert find_run(tiny_home, run.name).folder == run.folder
    assert find_run(tiny_home, str(run.folder)).folder == run.folder
    assert find_run(tiny_home, "last") == list_runs(tiny_home)[-1]
    with pytest.raises(RunError, match=r"fits \d+ runs"):
        create_run(tiny_home, run.config())
        find_run(tiny_home, "-ave-full-s0")


def test_runs_begun_in_the_same_second_do_not_clash(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    config = resolve_config()
    names = [create_run(home, config).name for _ in range(3)]
    assert len(set(names)) == 3
    assert [summarise(found)["state"] for found in list_runs(home)] == ["unfinished"] * 3


def test_a_whole_name_is_found_even_where_others_contain_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)  # one second for all three names
    monkeypatch.setattr(runs, "datetime", SimpleNamespace(now=lambda: now))
    first, second, third = (create_run(home, resolve_config()) for _ in range(3))
    assert second.name.startswith(first.name)
    assert find_run(home, first.name) == first and find_run(home, second.name) == second
    assert find_run(home, "last") == third and list_runs(home) == [first, second, third]
    (home.runs / "no-run").mkdir()
    assert list_runs(home) == [first, second, third]


def test_a_name_says_how_the_epoch_was_chosen(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for given, mark in (
        ({}, ""),
        ({"select_on": "test"}, "-selected-on-test"),
        ({"protocol": "published"}, "-published"),
    ):
        name = create_run(home, resolve_config(options={"seed": 7, **given})).name
        assert name.partition("-ave-full")[2] == f"{mark}-s7"


def test_no_runs_at_all_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="caeav train --task ave"):
        find_run(Home(tmp_path), "x")


def test_a_damaged_run_is_listed_as_such(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    run = create_run(home, resolve_config())
    (run.folder / "result.json").write_text("{")
    assert summarise(run)["state"] == "damaged"
    with pytest.raises(RunError, match="cannot read"):
        run.result()


def test_unfinished_runs_cannot_predict(tmp_path: Path, run: Run) -> None:
    other = create_run(Home(tmp_path / "home"), run.config())
    other.write("inputs.json", run.inputs().as_json())
    assert other.inputs() == run.inputs()
    with pytest.raises(CaeavError, match=f"caeav train --resume {other.name}"):
        Predictor.load(other, "cpu")


def test_a_group_of_one_has_no_deviation() -> None:
    result = {"task": "ave", "recipe": "full", "dataset": "d", "metric": "accuracy", "select_on": "val",
              "protocol": "honest", "run": "r", "seed": 0,
              "scores": {"val": 50.0}, "majority": {"val": 40.0}}  # fmt: skip
    assert summarise_group("g", [result])["scores"]["val"] == {"mean": 50.0, "std": 0.0, "values": [50.0]}
    other = {**result, "seed": 1, "scores": {"val": 54.0}}
    spread = summarise_group("g", [result, other])["scores"]["val"]
    assert (spread["mean"], spread["std"]) == (
        52.0,
        pytest.approx(8**0.5),
    )  # of a sample, not of all there are


@pytest.mark.parametrize(("channels", "said"), [(1 << 20, "of another shape"), (1 << 40, "is impossible")])
def test_a_run_that_claims_enormous_inputs_allocates_nothing(
    channels: int, said: str, run: Run, tmp_path: Path
) -> None:
    """Run folders may come from strangers: shapes are compared with the weights before the network is built."""
    folder = tmp_path / run.name
    shutil.copytree(run.folder, folder)
    inputs = json.loads((folder / "inputs.json").read_text())
    for tap in inputs["spec"]["visual"]:
        tap["channels"] = channels
    (folder / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(CheckpointError, match=said):
        Predictor.load(Run(folder), "cpu")
