"""A report as people open it: in a browser without network, with hostile names, by clicks, at three widths."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stopping import train_logged

from caeav.cli.report import write_report
from caeav.manifests.clip import Clip
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.masks import pack_mask
from caeav.model.report import recipes
from caeav.model.report.cards import Media, bare_card, with_row
from caeav.model.report.compare import evidence
from caeav.model.report.page import (
    Page,
    Section,
    card_list,
    card_lists,
    facts,
    figure,
    render,
    script_json,
    table,
    text,
)
from caeav.model.report.recipes import best_so_far, recipes_section
from caeav.model.report.run import open_run
from caeav.model.tasks.config import StressConfig
from caeav.model.train.agreement import AGREEMENT_FILE
from caeav.model.train.comparison import Cell, Measures, complete
from caeav.model.train.comparison_files import find_comparison, folder_of, publish_comparison, read_comparison
from caeav.model.train.comparison_table import Comparison, build_comparison
from caeav.model.train.config_file import resolve_config
from caeav.model.train.cost import Curve
from caeav.model.train.experiment import prepare
from caeav.model.train.predictions import read_predictions
from caeav.model.train.runs import Run, create_run

HOSTILE = "<script>document.title='taken'</script>"
FAST = ["training.epochs=2", "model.head.width=16", "training.device=cpu", "model.adapters.avmoe.latents=2"]


@pytest.fixture(scope="module")
def runs(tiny_home: Home) -> list[Run]:
    found = []
    for recipe in ("full", "none"):
        experiment = prepare(tiny_home, resolve_config("ave", recipe, None, FAST, {"dataset": "tiny"}))
        found.append(create_run(tiny_home, experiment.config))
        train_logged(experiment, found[-1])
    return found


@pytest.fixture(scope="module")
def compared(tiny_home: Home, runs: list[Run]) -> tuple[Path, Comparison]:
    """The folder and the table of a comparison of the runs, as `caeav compare` makes it."""
    measures = Measures("test", StressConfig(swap=0.5, caption_drop=1))
    for run in runs:
        complete(tiny_home, run, measures, device="cpu")
    cells = [Cell(run.config().recipe, run.config().seed, run) for run in runs]
    table = build_comparison(cells, "caeav compare --task ave")
    folder = folder_of(tiny_home, "ave", "tiny")
    publish_comparison(folder, table)
    return folder, table


@pytest.fixture(scope="module")
def browser(needs: Any) -> Iterator[Any]:
    needs("playwright")
    needs("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def plotly(needs: Any) -> None:
    needs("plotly")


def opened(browser: Any, file: Path, width: int = 1280) -> tuple[Any, list[str]]:
    """The page, and everything that should not happen: console messages, errors, requests."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("data:", "blob:")) or wrong.append(asked.url))
    page.goto(file.as_uri())
    page.wait_for_timeout(300)
    assert wrong.pop(0) == file.as_uri()  # the page itself is the only request
    return page, wrong


def data_of(file: Path) -> dict[str, Any]:
    held = re.search(r'id="page-data">(.*?)</script>', file.read_text("utf-8"), re.S)
    assert held is not None
    found: dict[str, Any] = json.loads(held[1])
    return found


def test_a_run_is_shown_filtered_and_sorted_by_clicks(
    plotly: None, browser: Any, tiny_home: Home, runs: list[Run]
) -> None:
    file = write_report(tiny_home, [runs[0].name])
    assert file == runs[0].folder / "report.html" and file.stat().st_size < 15_000_000
    page, wrong = opened(browser, file)
    assert page.locator(".plot .main-svg").count() > 3  # the figures are drawn
    result = runs[0].result() or {}
    assert f"{result['scores']['test']:.2f}" in page.locator("#run").inner_text()
    page.locator('[data-list="random"]').click()
    assert page.locator(".entry").count() == 12 and page.locator(".count").inner_text() == "12 of 12"
    rows = {row["key"]: row for row in read_predictions(runs[0]) if row["split"] == "test"}
    page.locator("select.sort").select_option("score")
    shown = page.locator(".entry .name").all_inner_texts()
    scores = [rows[key]["score"] for key in shown]
    assert scores == sorted(scores) and set(shown) == rows.keys()
    page.locator("select.sort").select_option("-confidence")
    sure = [rows[key]["confidence"] for key in page.locator(".entry .name").all_inner_texts()]
    assert sure == sorted(sure, reverse=True)
    page.locator("select.label").select_option("dog")
    dogs = {key for key, row in rows.items() if row["labels"] == ["dog"]}
    assert set(page.locator(".entry .name").all_inner_texts()) == dogs
    page.locator("input.search").fill(sorted(dogs)[0])
    assert page.locator(".entry").count() == 1
    card = page.locator(".entry").inner_text()
    assert "truth" in card and "predicted" in card and "no such" not in card
    assert "captions" not in card and "dog" in card
    page.locator("summary").first.click()
    assert "stage1.p1.visual" in page.locator(".entry").inner_text()
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert wrong == []


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_is_wider_than_the_screen(
    plotly: None, browser: Any, tiny_home: Home, runs: list[Run], width: int, tmp_path: Path
) -> None:
    file = write_report(tiny_home, [run.name for run in runs], out=tmp_path / "r.html")
    page, wrong = opened(browser, file, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and wrong == []
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and page.locator(".entry").first.is_visible()


def test_hostile_names_are_shown_as_text(plotly: None, browser: Any, tmp_path: Path) -> None:
    card = {
        **dict.fromkeys(
            ("title", "split", "question", "truth", "problem", "strip", "sound", "agreement_name"), ""
        ),
        **{
            name: []
            for name in (
                "labels",
                "notes",
                "times",
                "rows",
                "masks",
                "answers",
                "captions",
                "routing",
                "experts",
            )
        },
        **dict.fromkeys(("score", "confidence", "together", "agreement", "chosen")),
        "search": "",
    }
    card |= {
        "title": HOSTILE,
        "labels": [HOSTILE],
        "captions": [["visual", HOSTILE]],
        "question": HOSTILE,
        "problem": HOSTILE,
    }
    card |= {
        "rows": [{"name": HOSTILE, "cells": [{"text": HOSTILE, "on": True}]}],
        "answers": [[HOSTILE, 0.5]],
    }
    blocks = [
        text(HOSTILE),
        facts([(HOSTILE, HOSTILE)]),
        table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE),
        figure("f", HOSTILE, [{"type": "bar", "x": [HOSTILE], "y": [1]}], {"title": {"text": HOSTILE}}),
        card_lists("c", [card_list("l", HOSTILE, HOSTILE, [(["a"], HOSTILE)])]),
    ]
    made = Page(HOSTILE, HOSTILE, [Section("s", HOSTILE, blocks)], {"a": card}, [HOSTILE])
    file = tmp_path / "page.html"
    file.write_bytes(render(made))
    page, wrong = opened(browser, file)
    assert page.title() == HOSTILE and wrong == []
    assert page.locator(".entry .name").inner_text() == HOSTILE and page.locator("h1").inner_text() == HOSTILE
    assert page.locator(".entry script").count() == 0


def test_json_inside_a_script_cannot_end_it() -> None:
    said = script_json({"a": "</script><!--", "b": "\u2028 & é"})
    assert "<" not in said and ">" not in said and "\u2028" not in said
    assert json.loads(said) == {"a": "</script><!--", "b": "\u2028 & é"}


def test_runs_are_compared_on_the_clips_of_both(
    plotly: None, tiny_home: Home, runs: list[Run], tmp_path: Path
) -> None:
    file = write_report(tiny_home, [run.name for run in runs], out=tmp_path / "r.html")
    html, held = file.read_text("utf-8"), data_of(file)
    first, other = ((run.result() or {})["scores"]["test"] for run in runs)
    assert f"{other - first:+.2f}" in html and "paired resamples of 12 clips" in html
    assert "model.adapters.caste.enabled" in html  # what differs
    assert "optimiser.lr" not in html.split("What differs in their settings")[1].split("</table>")[0]
    [differ] = held["lists"][f"differ-{runs[1].name}"]
    gaps = [
        abs(held["cards"][a]["score"] - held["cards"][b]["score"])
        for a, b in (e["cards"] for e in differ["entries"])
    ]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_recipes_are_drawn_from_the_table_of_a_comparison(
    plotly: None, browser: Any, tiny_home: Home, compared: tuple[Path, Comparison], width: int
) -> None:
    folder, table = compared
    file = write_report(tiny_home, [folder.name])
    assert file == folder / "report.html" and file.stat().st_size < 15_000_000
    page, wrong = opened(browser, file, width)
    full = table.rows[0]
    said = page.locator("#recipes").inner_text()
    assert full.interval and full.gain is not None and full.gain_interval
    assert f"{full.score:.2f} ({full.interval[0]:.1f} to {full.interval[1]:.1f})" in said
    assert f"{full.gain:+.2f} ({full.gain_interval[0]:+.1f} to {full.gain_interval[1]:+.1f})" in said
    assert f"{full.parameters:,}" in said and full.runs[0] in said
    drawn = page.locator(".plot:has(.main-svg)").count()
    assert drawn == 9 - (full.agreement_auc is None)  # gains, scores, 3 costs, 2 of time, stress, agreement
    assert page.locator('[data-figure="gains"] .errorbar').count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width and wrong == []
    page.locator("#theme").click()
    assert wrong == []


@pytest.mark.parametrize("older", [False, True])
def test_the_reliability_of_the_agreement_is_drawn_for_older_runs_too(
    plotly: None, tiny_home: Home, runs: list[Run], tmp_path: Path, older: bool
) -> None:
    run = Run(Path(shutil.copytree(runs[0].folder, tmp_path / runs[0].name)))
    held = run.read(AGREEMENT_FILE)
    rows = held["reliability"]
    if older:
        names = {"predicted": "said", "observed": "was"}
        held["reliability"] = [{names.get(name, name): value for name, value in row.items()} for row in rows]
        (run.folder / AGREEMENT_FILE).write_text(json.dumps(held))
    text = write_report(tiny_home, [str(run.folder)]).read_text("utf-8")
    assert json.dumps([row["observed"] for row in rows])[1:-1].replace(" ", "") in text.replace(" ", "")


def test_figures_of_recipes_hold_the_numbers_of_the_table(
    tiny_home: Home, compared: tuple[Path, Comparison]
) -> None:
    table = compared[1]
    full, none = table.rows
    section = recipes_section(table, tiny_home, "-2")
    blocks = [
        b for block in section.blocks for b in (block["figures"] if block["kind"] == "row" else [block])
    ]
    drawn = {block["id"]: block for block in blocks if block["kind"] == "figure"}
    [gain, base] = drawn["gains-2"]["data"]
    assert gain["x"] == [full.gain] and base["x"] == [None] and full.gain_interval and full.gain is not None
    assert gain["error_x"]["array"] == [full.gain_interval[1] - full.gain]
    sure = not full.gain_interval[0] <= 0 <= full.gain_interval[1]
    assert gain["marker"]["symbol"] == ("circle" if sure else "circle-open")
    assert [trace["x"] for trace in drawn["cost-parameters-2"]["data"]] == [
        [full.parameters],
        [none.parameters],
    ]
    assert drawn["cost-parameters-2"]["layout"]["xaxis"].get("type") == (
        "log" if full.parameters > 20 * none.parameters else None
    )
    assert [trace["x"] for trace in drawn["equal-time-2"]["data"]] == [
        [full.selected, full.timed],
        [none.selected, none.timed],
    ]
    # the head alone reads no captions: there is no score under their loss
    [first, second] = drawn["recipe-stress-2"]["data"]
    assert first["y"] == second["y"] == ["as it is", "swap 0.5", "caption_drop 1"]
    assert first["x"] == [full.score, full.stress["swap 0.5"], full.stress["caption_drop 1"]]
    assert second["x"] == [none.score, none.stress["swap 0.5"], None]
    [curve, _] = drawn["time-curves-2"]["data"]
    assert curve["x"] == sorted(curve["x"]) and curve["y"][-1] == full.selected
    elsewhere = recipes_section(table, Home(tiny_home.root / "elsewhere")).blocks
    assert not any(block.get("id") == "time-curves" for block in elsewhere)  # its runs are not there


def test_curves_of_several_seeds_are_one() -> None:
    curves = [Curve((1.0, 1.0), (50.0, 40.0)), Curve((2.0, 3.0), (60.0, 80.0))]
    assert best_so_far(curves) == [(2.0, 55.0), (5.0, 65.0)]
    assert best_so_far([]) == []


def test_a_run_shows_the_comparison_that_it_is_part_of(
    plotly: None, tiny_home: Home, runs: list[Run], compared: tuple[Path, Comparison], tmp_path: Path
) -> None:
    part = 'id="recipes"'
    with_it = write_report(tiny_home, [runs[0].name], out=tmp_path / "with.html").read_text("utf-8")
    assert part in with_it and with_it.index('id="run"') < with_it.index(part)
    both = write_report(tiny_home, [run.name for run in runs], out=tmp_path / "both.html").read_text("utf-8")
    assert part in both
    other = Run(shutil.copytree(runs[0].folder, tmp_path / "another"))
    for shown in ([str(other.folder)], [runs[0].name, str(other.folder)]):
        without = write_report(tiny_home, shown, out=tmp_path / "without.html").read_text("utf-8")
        assert part not in without


def test_a_recipe_of_which_one_run_is_gone_has_no_curves(
    runs: list[Run], compared: tuple[Path, Comparison]
) -> None:
    table = compared[1]
    held = {run.name: run for run in runs}
    row = next(row for row in table.rows if set(row.runs) <= held.keys())
    assert len(recipes._curves(row, table.metric, held)) == len(row.runs)
    assert recipes._curves(replace(row, runs=(*row.runs, "gone")), table.metric, held) == []


def test_an_f_measure_that_some_rows_lack_is_not_compared() -> None:
    subject: Any = SimpleNamespace(run=SimpleNamespace(result=lambda: {"metric": "mean_iou"}))
    rows = [{"clip": name, "score": 50.0, "truth": None, "f_measure": 0.5} for name in "ab"]
    assert set(evidence(subject, rows).parts) == {"mean_iou", "f_measure"}
    assert set(evidence(subject, [rows[0], {**rows[1], "f_measure": None}]).parts) == {"mean_iou"}


def test_a_file_that_is_no_table_of_a_comparison_is_refused(
    tiny_home: Home, compared: tuple[Path, Comparison], tmp_path: Path
) -> None:
    folder, table = compared
    assert read_comparison(folder) == table and find_comparison(tiny_home, str(folder)) == folder
    assert find_comparison(tiny_home, "no-such") is None
    held = json.loads((folder / "table.json").read_text())
    for key, value, said in (
        ("majority", float("nan"), "not JSON compliant"),
        ("baseline", "lavish", "no row of the baseline 'lavish'"),
        ("seeds", [1, 2], "one run and one score for each seed"),
        ("rows", "none", "no table of a comparison"),
    ):
        (tmp_path / "table.json").write_text(json.dumps({**held, key: value}))
        with pytest.raises(CaeavError, match=said):
            read_comparison(tmp_path)


def test_media_and_stores_that_are_gone_are_reported_and_the_rest_is_shown(
    plotly: None, tiny_home: Home, runs: list[Run], tmp_path: Path
) -> None:
    file = write_report(tiny_home, [runs[0].name], out=tmp_path / "r.html")
    held = data_of(file)
    assert "media of tiny are not found" in file.read_text("utf-8")
    card = next(iter(held["cards"].values()))
    assert card["rows"] and card["captions"] and not card["strip"]
    moved = Home(tmp_path / "elsewhere")
    shutil.copytree(runs[0].folder, moved.runs / runs[0].name)
    file = write_report(moved, [runs[0].name], out=tmp_path / "m.html")
    card = next(iter(data_of(file)["cards"].values()))
    assert "the stores that know the clip" in card["problem"] and card["rows"] and not card["captions"]
    assert "cannot be read" in file.read_text("utf-8")


def test_a_data_set_and_a_store_have_pages_too(plotly: None, tiny_home: Home) -> None:
    of_data = write_report(tiny_home, [], dataset="tiny")
    assert of_data == tiny_home.root / "reports" / "data_set_tiny.html"
    said = of_data.read_text("utf-8")
    for part in ("Clips of each label", "Norms of tokens", "tinycaptions", "made to fail by the tests"):
        assert part in said
    names = {one["name"] for one in data_of(of_data)["lists"]["data"]}
    assert names == {"labels", "duplicates", "apart", "examples"}
    store = next(path for path in (tiny_home.stores / "tiny").iterdir() if path.name.startswith("tokens-"))
    assert "Arrays of a clip" in write_report(tiny_home, [], store=store.name).read_text("utf-8")


def test_what_cannot_be_reported_is_refused_with_the_next_step(
    tiny_home: Home, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CaeavError, match=r"jinja2 and plotly, which are not installed\n.*caeav\[report\]"):
        write_report(tiny_home, [runs[0].name])
    monkeypatch.undo()
    bare = Run(shutil.copytree(runs[0].folder, tiny_home.root / "bare"))
    (bare.folder / "result.json").unlink()
    with pytest.raises(CaeavError, match="not finished"):
        open_run(bare, tiny_home)
    shutil.rmtree(bare.folder)


def test_more_media_than_a_page_may_have_are_left_out_with_a_note() -> None:
    clips = [Clip(f"c{i}", "x.mp4", 0.0, 2.0) for i in range(4)]
    media = Media(
        lambda asked: [SimpleNamespace(key=c.key, strip=b"x" * 40, sound=b"", problem="") for c in asked], 100
    )
    media.fetch(clips[:3])
    media.fetch(clips[3:])
    cards = [media.onto(bare_card(clip, 2, 1.0), clip.key) for clip in clips]
    assert [bool(card["strip"]) for card in cards] == [True, True, False, False]
    assert all("too large" in card["problem"] for card in cards[2:])


def test_cards_of_every_task_show_truth_and_prediction(runs: list[Run]) -> None:
    common = {"key": "k", "split": "test", "labels": ["a"], "notes": [], "score": 0.5, "confidence": 0.9}
    bare = bare_card(Clip("k", "k.mp4", 0.0, 2.0), 2, 1.0)
    answer = {
        **common,
        "question": "how many?",
        "truth": "two",
        "prediction": "one",
        "probabilities": [0.2, 0.7, 0.1],
    }
    card = with_row(bare, answer, ("two", "one", "three"), (), 4)
    assert card["answers"][0] == ["one", 0.7] and (card["truth"], card["question"]) == ("two", "how many?")
    tracks = {"audio": [["dog"], []], "visual": [[], ["cat"]]}
    said = {"audio": [["dog"], ["dog"]], "visual": [[], ["cat"]]}
    chance = {"audio": [[0.0]], "visual": [[0.0]]}
    rows = with_row(
        bare, {**common, "truth": tracks, "prediction": said, "probabilities": chance}, (), (), 4
    )["rows"]
    assert [row["name"] for row in rows] == ["heard, true", "heard, said", "seen, true", "seen, said"]
    assert rows[1]["wrong"] == [False, True] and rows[3]["wrong"] == [False, False]
    mask = pack_mask(np.eye(8, dtype=bool))
    masks = {**common, "truth": [mask, None], "prediction": [mask, mask], "probabilities": [0.8, 0.9]}
    drawn = with_row(bare, masks, (), (), 4)["masks"]
    assert [one["name"] for one in drawn] == ["true mask", "predicted"]
    assert drawn[0]["src"] != drawn[1]["src"] and drawn[0]["src"].startswith("data:image/png;base64,")
    chosen = with_row(bare, {**masks, "chosen": {"visual": [[3], [0]]}}, (), (), 4)["chosen"]
    assert chosen == {"side": 2, "seconds": [[3], [0]]}
    assert with_row(bare, {**masks, "chosen": {"visual": [[3], [0]]}}, (), (), 5)["chosen"] is None
