"""What a prediction shows, number by number: rows, JSON, panels and the drawing around them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from caeav.model.tasks import prediction as base
from caeav.model.tasks.ave.prediction import BACKGROUND, Timeline
from caeav.model.tasks.avqa.prediction import Answer
from caeav.model.tasks.avs.prediction import Masks
from caeav.model.tasks.avvp.prediction import Tracks
from caeav.model.tasks.prediction import (
    BLUE,
    GREY,
    ORANGE,
    Panel,
    SegmentTimes,
    colours_of,
    plain,
    strip_panel,
)
from caeav.model.train import prediction_files
from caeav.model.train.predict import Prediction

TIMES = SegmentTimes(10.0, 2.0, 4)


def axis_of(panel: Panel) -> Any:
    axis = Figure().subplots()
    panel.draw(axis)
    return axis


def bars_of(axis: Any) -> list[Any]:
    return [bar for bar in axis.patches if hasattr(bar, "get_width") and bar.get_height() and bar.get_width()]


# ---- answer --------------------------------------------------------------------------------------------------


def answer() -> Answer:
    chance = torch.tensor([0.05, 0.4, 0.1, 0.02, 0.3, 0.13])
    return Answer.of("how many?", ("a", "b", "c", "d", "e", "f"), chance, ("zither", "oud"))


def test_the_likeliest_answers_come_first_each_with_its_probability() -> None:
    best = [("b", 0.4), ("e", 0.3), ("f", 0.13), ("c", 0.1), ("a", 0.05)]
    assert [(name, round(p, 4)) for name, p in answer().best] == best
    facts = answer().as_json(TIMES)
    assert (facts["question"], facts["answer"]) == ("how many?", "b")
    assert facts["unknown_words"] == ["zither", "oud"]
    assert [(x["answer"], round(x["probability"], 4)) for x in facts["answers"]] == best
    assert answer().rows(TIMES) == facts["answers"]
    assert answer().remarks() == ["the training questions hold no 'zither', 'oud': read as unknown words"]
    few = Answer.of("?", ("yes", "no"), torch.tensor([0.2, 0.8]), ())
    assert [name for name, _ in few.best] == ["no", "yes"] and few.remarks() == []


def test_the_bars_of_answers_are_sorted_by_probability() -> None:
    [panel] = answer().panels(TIMES, [])
    assert not panel.timed and panel.height == pytest.approx(0.7 + 5 * 0.3)
    axis = axis_of(panel)
    bars = bars_of(axis)
    assert [round(bar.get_width(), 4) for bar in bars] == [0.05, 0.1, 0.13, 0.3, 0.4]  # from below
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [GREY] * 4 + [BLUE]
    assert [x.get_text() for x in axis.get_yticklabels()] == ["a", "c", "f", "e", "b"]
    assert [x.get_text() for x in axis.texts] == ["0.05", "0.10", "0.13", "0.30", "0.40"]
    assert [x.get_position()[1] for x in axis.texts] == [0, 1, 2, 3, 4]
    assert axis.get_title(loc="left") == "how many?"


# ---- timeline ------------------------------------------------------------------------------------------------


def timeline() -> Timeline:
    table = torch.tensor([[0.3, 0.2, 0.5], [0.1, 0.1, 0.8], [0.1, 0.7, 0.2], [0.0, 0.9, 0.1]])
    return Timeline.of(torch.tensor([0, 2, 1, 1]), table, ("bell", "dog"))


def test_a_timeline_is_made_of_what_was_chosen() -> None:
    found = timeline()
    assert found.events == ("bell", BACKGROUND, "dog", "dog")
    assert found.probability == pytest.approx((0.3, 0.8, 0.7, 0.9))  # of what was chosen, the largest or not
    assert found.spans(TIMES) == [("bell", 10.0, 12.0), ("dog", 14.0, 18.0)]
    assert [round(found.any_event(t), 4) for t in range(4)] == [0.5, 0.2, 0.8, 0.9]
    facts = found.as_json(TIMES)
    assert facts["classes"] == ["bell", "dog", BACKGROUND]
    assert facts["segments"][2] == {
        "start_s": 14.0, "end_s": 16.0, "event": "dog", "probability": pytest.approx(0.7),
        "any_event": 0.8, "probabilities": [0.1, 0.7, 0.2],
    }  # fmt: skip


def test_the_bars_of_a_timeline_have_the_colour_of_the_predicted_event() -> None:
    axis = axis_of(timeline().panels(TIMES, [])[-1])
    colours = {name: to_hex(colour) for name, colour in colours_of(["bell", "dog"]).items()}
    said = [(bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor())) for bar in bars_of(axis)]
    assert said == [
        (10, 2, colours["bell"]), (12, 2, GREY), (14, 2, colours["dog"]), (16, 2, colours["dog"])
    ]  # fmt: skip
    spans = [(line.get_xdata().tolist(), to_hex(line.get_color())) for line in axis.get_lines()[:2]]
    assert [x for line, _ in spans for x in line] == pytest.approx([10.04, 11.96, 14.04, 17.96])
    assert [colour for _, colour in spans] == [colours["bell"], colours["dog"]]
    assert [x.get_position()[0] for x in axis.texts] == [11, 13, 15, 17, 11, 16]
    assert [x.get_text() for x in axis.get_legend().get_texts()] == [
        "any event (said from 0.5 on)", "of the event said", BACKGROUND
    ]  # fmt: skip
    assert axis.get_lines()[2].get_ydata()[0] == 0.5
    nothing = Timeline(("bell",), (BACKGROUND,) * 4, (0.9,) * 4, np.full((4, 2), 0.5, np.float32))
    quiet = axis_of(nothing.panels(TIMES, [])[-1])
    assert quiet.texts[-1].get_text() == "no event that is both seen and heard"
    assert quiet.texts[-1].get_position()[0] == 14
    assert [x.get_text() for x in quiet.get_legend().get_texts()] == [
        "any event (said from 0.5 on)", BACKGROUND
    ]  # fmt: skip


# ---- tracks --------------------------------------------------------------------------------------------------


def tracks() -> Tracks:
    """Of four classes, one heard, one seen, one nearly seen, one not at all."""
    heard, seen = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)  # [K, T]
    heard[0, 1:3] = True
    seen[1, 0] = True
    audio, visual = torch.full((4, 4), 0.05), torch.full((4, 4), 0.1)  # [T, K]
    audio[1:3, 0], visual[0, 1], visual[3, 2] = 0.8, 1.3, 0.35
    on, probability = {"audio": heard, "visual": seen}, {"audio": audio, "visual": visual}
    return Tracks.of(("bell", "dog", "drum", "cat"), on, probability)


def test_tracks_keep_audio_and_visual_events_apart() -> None:
    found = tracks()
    assert found.rows(TIMES)[:2] == [
        {"segment": 1, "seconds": "10 to 12", "heard": "-", "seen": "dog 1.00"},
        {"segment": 2, "seconds": "12 to 14", "heard": "bell 0.80", "seen": "-"},
    ]
    facts = found.as_json(TIMES)
    assert facts["events"] == [
        {"modality": "audio", "event": "bell", "start_s": 12.0, "end_s": 16.0},
        {"modality": "visual", "event": "dog", "start_s": 10.0, "end_s": 12.0},
    ]
    assert facts["segments"][0] == {
        "start_s": 10.0, "end_s": 12.0, "audio": [0.05] * 4, "visual": [0.1, 1.0, 0.1, 0.1]
    }  # fmt: skip
    assert facts["classes"] == ["bell", "dog", "drum", "cat"]


def test_a_track_is_drawn_for_classes_that_are_predicted_or_nearly() -> None:
    [panel] = tracks().panels(TIMES, [])
    assert panel.height == pytest.approx(0.5 + 3 * 0.42)
    axis = axis_of(panel)
    assert [x.get_text() for x in axis.get_yticklabels()] == ["drum", "dog", "bell"]
    coloured = [
        (to_hex(b.get_facecolor()), b.get_x(), b.get_width(), round(b.get_y() + b.get_height() / 2, 2),
         round(b.get_alpha(), 2))
        for b in bars_of(axis) if to_hex(b.get_facecolor()) != GREY
    ]  # fmt: skip
    assert coloured == [
        (BLUE, 10, 2, 0.87, 1.0), (ORANGE, 12, 2, 2.27, 0.87), (ORANGE, 14, 2, 2.27, 0.87)
    ]  # fmt: skip
    faint = [round(b.get_alpha(), 2) for b in bars_of(axis) if to_hex(b.get_facecolor()) == GREY]
    assert len(faint) == 3 * 2 * 4 - 3 and max(faint) == 0.35 and min(faint) == 0.06
    assert [(x.get_text(), x.get_position()[0]) for x in axis.texts] == [
        ("1.00", 11), ("0.80", 13), ("0.80", 15)
    ]  # fmt: skip
    assert [x.get_text() for x in axis.get_legend().get_texts()][:2] == ["heard", "seen"]
    handles = axis.get_legend().get_patches()
    assert [to_hex(x.get_facecolor()) for x in handles] == [ORANGE, BLUE, GREY]
    cut = SegmentTimes(10.0, 2.0, 4, 12.0)  # of the first segment alone
    assert [x.get_text() for x in axis_of(tracks().panels(cut, [])[0]).get_yticklabels()] == ["dog"]


# ---- masks ---------------------------------------------------------------------------------------------------


def masks() -> Masks:
    probability = np.full((4, 4, 6), 0.2, np.float32)
    probability[0, :2, :3] = 0.9
    probability[1, 0, 0] = 0.5  # not more than one half
    probability[2] = 0.7
    return Masks(probability)


def test_masks_say_how_much_sounds_in_each_frame() -> None:
    rows = masks().rows(TIMES)
    assert [round(row["sounding %"], 4) for row in rows] == [25.0, 0.0, 100.0, 0.0]
    assert [round(row["highest probability"], 4) for row in rows] == [0.9, 0.5, 0.7, 0.2]
    facts = masks().as_json(TIMES)
    assert facts["size"] == [4, 6]
    assert [frame["sounding"] for frame in facts["frames"]] == [0.25, 0.0, 1.0, 0.0]
    assert [frame["start_s"] for frame in facts["frames"]] == [10, 12, 14, 16]
    for data, on in (
        (masks().files(TIMES)["mask-1.png"], 255),
        (base64.b64decode(facts["frames"][0]["mask"]), True),
    ):
        with Image.open(io.BytesIO(data)) as image:
            seen = np.asarray(image)
        assert seen.shape == (4, 6) and (seen[:2, :3] == on).all() and seen.sum() == 6 * int(on)


def test_frames_with_masks_stand_above_the_probabilities() -> None:
    frames = [np.full((8, 12, 3), (40 * t, 10, 10), np.uint8) for t in range(4)]
    strip, below = masks().panels(TIMES, frames)
    assert len(masks().panels(TIMES, [])) == 1
    boxes = axis_of(below).child_axes
    assert len(boxes) == 4
    assert [box.images[0].get_array().max() for box in boxes] == pytest.approx([0.9, 0.5, 0.7, 0.2])
    assert {box.images[0].get_clim() for box in boxes} == {(0, 1)}
    drawn = axis_of(strip).child_axes
    assert [box.get_title() for box in drawn] == ["1", "2", "3", "4"]
    whole, dark = drawn[2].images[0].get_array(), drawn[3].images[0].get_array()
    assert (whole[4, 6] == frames[2][4, 6]).all()
    assert (dark == int(0.35 * (120 + 20) / 3)).all()  # grey, and a third as bright


# ---- what they share -----------------------------------------------------------------------------------------


def test_frames_stand_over_their_segments_and_none_are_drawn_where_some_are_missing() -> None:
    frames = [np.zeros((10, 20, 3), np.uint8) for _ in range(4)]
    assert strip_panel(TIMES, frames[:3]) == strip_panel(TIMES, []) == []
    cut = SegmentTimes(10.0, 2.0, 4, 13.0)
    [panel], [alone] = strip_panel(cut, frames), strip_panel(SegmentTimes(10.0, 2.0, 4, 12.0), frames)
    assert panel.height == pytest.approx(0.15 + 0.93 * 9.0 / 2 / 2) and alone.height == base.TALLEST
    [usual] = strip_panel(TIMES, frames)
    assert usual.height == pytest.approx(0.15 + 0.93 * 9.0 / 4 / 2)
    axis = Figure().subplots()
    axis.set_xlim(10, 13)
    panel.draw(axis)
    assert len(axis.child_axes) == 2
    axis.figure.draw_without_rendering()
    to_seconds = axis.transData.inverted()
    edges = [to_seconds.transform(box.get_window_extent())[:, 0] for box in axis.child_axes]
    assert max(edges[1]) <= 13 and abs(np.mean(edges[0]) - 11) < 0.01 and abs(np.mean(edges[1]) - 12.5) < 0.01


@pytest.mark.parametrize(("shown", "width"), [(4, 9.0), (20, 19.0), (100, 40.0)])
def test_a_picture_grows_with_its_segments_within_bounds(shown: int, width: float) -> None:
    assert SegmentTimes(0.0, 1.0, shown).width_in == pytest.approx(width)


def test_colours_are_by_order_and_text_of_files_is_plain() -> None:
    colours = colours_of(["b", "a", "b"])
    assert list(colours) == ["b", "a"] and colours["b"] != colours["a"]
    many = colours_of([str(i) for i in range(11)])
    assert many["0"] == many["10"] and many["0"] == colours["b"]
    assert plain("a\nb\x1b$x$", 20) == r"a b \$x\$"
    assert plain("abcdef", 6) == "abcdef" and plain("abcdefg", 6) == "abcde…"


def test_spans_end_at_a_gap() -> None:
    times = SegmentTimes(0.0, 1.0, 5)
    assert times.spans(["a", None, "a", "b", "b"]) == [("a", 0, 1), ("a", 2, 3), ("b", 3, 5)]
    assert times.segment_cells(2) == {"segment": 3, "seconds": "2 to 3"}


# ---- the report ----------------------------------------------------------------------------------------------


def prediction(agreement: bool = True) -> Prediction:
    return Prediction("c", TIMES, timeline(), (0.1, 0.2, 0.3, 0.4) if agreement else None)


def test_a_picture_stacks_its_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    save = Figure.savefig

    def saved(figure: Any, *args: Any, **more: Any) -> None:
        made.append(figure)
        save(figure, *args, **more)

    monkeypatch.setattr(Figure, "savefig", saved)
    prediction_files.draw(prediction(), "title $x$")
    prediction_files.draw(prediction(agreement=False), "t" * 200)
    prediction_files.draw(Prediction("c", TIMES, answer(), (0.5,) * 4), "t")
    first, second, third = made
    bars, curve = first.axes
    assert bars.get_xlim() == curve.get_xlim() == (10, 18)
    assert [x.get_text() for x in curve.get_xticklabels()] == ["10", "12", "14", "16", "18"]
    assert {x.get_text() for x in bars.get_xticklabels()} == {""}
    assert (bars.get_xlabel(), curve.get_xlabel()) == ("", "seconds")
    [line] = curve.get_lines()
    assert list(line.get_ydata()) == [0.1, 0.2, 0.3, 0.4]
    assert first.get_suptitle() == r"title \$x\$" and first.get_size_inches().tolist() == [9, 2.3 + 1.1 + 0.9]
    [only] = second.axes
    assert only.get_xlabel() == "seconds" and len(second.get_suptitle()) == 90
    answers, agreement = third.axes
    assert answers.get_xlabel() == "probability" and agreement.get_xlabel() == "seconds"


def test_of_many_segments_only_some_have_a_tick() -> None:
    axis = Figure().subplots()
    prediction_files._time_axis(axis, SegmentTimes(0.0, 1.0, 61), "seconds")
    assert [x.get_text() for x in axis.get_xticklabels()][-3:] == ["57", "60", "61"]


def test_a_report_of_another_file_or_question_is_not_overwritten(tmp_path: Path) -> None:
    folder, file, other = tmp_path / "out", tmp_path / "a.mp4", tmp_path / "b" / "a.mp4"
    assert prediction_files.folder_for(file, folder) == folder
    asked = [(file, "?"), (other, "?"), (file, ""), (file, " ? ")]
    places = []
    for which, question in asked:
        place = prediction_files.folder_for(which, folder, question)
        places.append(place.name)
        place.mkdir(exist_ok=True)
        facts = {"file": str(which), "question": question.strip()}
        (place / prediction_files.JSON_FILE).write_text(json.dumps(facts))
    assert places == ["out", "out-2", "out-3", "out"]
    (folder / prediction_files.JSON_FILE).write_text("{")
    assert prediction_files.folder_for(other, folder) == folder


def test_a_report_holds_the_prediction_and_its_files(tmp_path: Path) -> None:
    whole = Prediction("c", TIMES, masks(), None, ((), ("sound",), (), ("picture", "sound")))
    written = prediction_files.write_prediction(
        whole, tmp_path / "x", "t", {"run": "r", "agreement": "not mine"}
    )
    names = [path.name for path in written]
    assert names == ["prediction.json", "prediction.png", *(f"mask-{t}.png" for t in (1, 2, 3, 4))]
    value = json.loads(written[0].read_text())
    assert value["agreement"] is None and value["run"] == "r" and value["size"] == [4, 6]
    assert value["missing"] == [[], ["sound"], [], ["picture", "sound"]]
    cut = replace(whole, times=replace(TIMES, media_s=14.0))
    assert prediction_files.prediction_json(cut, {})["missing"] == [[], ["sound"]]
    assert written[2].read_bytes() == masks().files(TIMES)["mask-1.png"]
