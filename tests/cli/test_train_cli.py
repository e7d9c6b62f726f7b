"""`caeav train`, `eval` and `runs` as a user meets them, on tiny stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import invoke, refusal
from tiny_home import write_tiny_home
from typer.testing import CliRunner, Result

from caeav.cli import evaluate, predict, runs, train
from caeav.manifests.core.home import Home

FAST = ["--set", "training.epochs=2", "--set", "model.head.width=16", "--recipe", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The tiny stores that the tests of `model` train on."""
    return write_tiny_home(tmp_path_factory.mktemp("cli") / "home")


def call(home: Home, *arguments: str) -> Result:
    return invoke((train, evaluate, predict, runs), *arguments, "--home", home.root)


@pytest.fixture(scope="module")
def trained(home: Home) -> dict[str, Any]:
    result = call(home, "train", "--dataset", "tiny", *FAST, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_train_prints_what_it_joins_and_the_next_step(home: Home) -> None:
    result = call(home, "train", "--dataset", "tiny", *FAST)
    assert result.exit_code == 0
    for part in (
        "ave / none on tiny",
        "tokens-tinytokens-",
        "train 35 (+1 in quarantine), val 12, test 12",
        "trainable",
        "clip035",
        "next: caeav predict FILE --run",
        "caeav eval --run",
    ):
        assert part in result.stderr
    assert "majority %" in result.stdout and "test" in result.stdout


def test_eval_gives_the_score_of_the_training(home: Home, trained: dict[str, Any]) -> None:
    for split in ("val", "test"):
        scored = json.loads(call(home, "eval", "--run", trained["run"], "--split", split, "--json").stdout)
        assert scored["score"] == pytest.approx(trained["scores"][split])
        assert scored["majority"] == pytest.approx(trained["majority"][split])
        assert scored["clips"] == 12
    table = call(home, "eval", "--run", trained["run"])
    assert "background" in table.stdout and f"{trained['scores']['test']:.2f}" in table.stdout
    assert "note:" not in table.stderr


def test_per_class_rows_add_up_to_the_score(home: Home, trained: dict[str, Any]) -> None:
    scored = json.loads(call(home, "eval", "--run", trained["run"], "--json").stdout)
    seconds = sum(row["seconds"] for row in scored["per_class"])
    assert seconds == 12 * 6
    hits = sum(row["seconds"] * row["accuracy"] for row in scored["per_class"])
    assert hits / seconds == pytest.approx(scored["score"])


def test_several_seeds_give_mean_and_deviation(home: Home) -> None:
    result = call(home, "train", "--dataset", "tiny", *FAST, "--seeds", "3,4", "--json")
    group = json.loads(result.stdout)
    values = group["scores"]["val"]["values"]
    assert group["seeds"] == [3, 4] and len(values) == 2
    assert group["scores"]["val"]["mean"] == pytest.approx(sum(values) / 2)
    assert group["scores"]["val"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    shown = call(home, "runs", "show", group["group"])
    assert "deviation" in shown.stdout and f"{values[1]:.2f}" in shown.stdout
    assert group["runs"][1] in shown.stderr
    listed = {row["run"]: row for row in json.loads(call(home, "runs", "ls", "--json").stdout)}
    assert {listed[run]["group"] for run in group["runs"]} == {group["group"]}


def test_an_interrupted_group_is_finished_by_resuming_the_run_that_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caeav.model.train import session

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "train", stopped)
        result = call(home, "train", "--dataset", "tiny", *FAST, "--seeds", "7,8,9")
    assert result.exit_code == 130
    [line] = [line for line in result.stderr.splitlines() if "--resume" in line]
    assert line.endswith(f"-s7 --home {home.root}")  # it can be typed as it stands
    assert "after it come the seeds not begun yet: 8, 9" in result.stderr
    name = line.split()[line.split().index("--resume") + 1]
    resumed = call(home, "train", "--resume", name, "--json")
    assert resumed.exit_code == 0, resumed.output
    group = json.loads(
        (home.root / "runs" / f"{name.removesuffix('-s7')}-seeds-7-8-9.group.json").read_text()
    )
    assert group["seeds"] == [7, 8, 9]
    assert json.loads(resumed.stdout) == group
    again = call(home, "train", "--resume", group["runs"][1])
    assert "nothing to do" in again.stderr and "by seed" in again.stdout
    assert len(list((home.root / "runs").glob("*-s[789]"))) == 3


def test_the_given_device_is_the_one_that_computes(
    home: Home, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from caeav.model.train import session

    facts = json.loads(call(home, "runs", "show", trained["run"], "--json").stdout)
    assert facts["config"]["training"]["device"] == "cpu"  # a recipe says auto
    seen: list[Any] = []

    def stopped(made: Any, *_: Any) -> None:
        seen.append((str(made.device), made.config.training.device))
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "train", stopped)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    begun = call(home, "train", "--dataset", "tiny", *FAST)
    assert seen == [("cpu", "cpu")]
    [line] = [line for line in begun.stderr.splitlines() if "--resume" in line]
    name = line.split()[line.split().index("--resume") + 1]
    for arguments in (
        ("train", "--dataset", "tiny", *FAST[:-2], "--device", "cuda"),
        ("train", "--resume", name, "--device", "cuda"),
    ):
        assert "cuda" in refusal(call(home, *arguments))
    assert len(seen) == 1


def test_runs_are_listed_and_shown(home: Home, trained: dict[str, Any]) -> None:
    listed = {row["run"]: row for row in json.loads(call(home, "runs", "ls", "--json").stdout)}
    assert listed[trained["run"]]["test"] == pytest.approx(trained["scores"]["test"])
    assert trained["run"] in call(home, "runs", "ls").stdout
    facts = json.loads(call(home, "runs", "show", trained["run"], "--json").stdout)
    assert facts["config"]["training"]["epochs"] == 2 and facts["stores"]["stores"][0]["kind"] == "tokens"
    card = call(home, "runs", "show", trained["run"]).stdout
    assert "## Scores" in card and "caeav train --task ave --recipe none --dataset tiny" in card


def test_a_finished_run_is_not_trained_again(home: Home, trained: dict[str, Any]) -> None:
    result = call(home, "train", "--resume", trained["run"], "--json")
    assert "is finished; nothing to do" in result.stderr
    assert json.loads(result.stdout) == trained


def test_an_unfinished_run_is_resumed(home: Home, trained: dict[str, Any]) -> None:
    """As after a kill in the first epoch: same configuration, same numbers, same command in its card."""
    from caeav.model.train.runs import ORIGIN, create_run, find_run

    first = find_run(home, trained["run"])
    run = create_run(home, first.config())
    run.write(ORIGIN, first.origin())
    shown = call(home, "runs", "show", run.name)
    assert f"continue with: caeav train --resume {run.name}" in shown.stderr
    result = json.loads(call(home, "train", "--resume", run.name, "--json").stdout)
    assert {**result, "run": ""} == {**trained, "run": ""}
    assert "caeav train --task ave --recipe none --dataset tiny" in (run.folder / "card.md").read_text()


def test_wrong_settings_are_reported_together_and_nothing_is_made(home: Home) -> None:
    before = sorted(home.runs.iterdir()) if home.runs.exists() else []
    text = refusal(
        call(
            home,
            "train",
            "--dataset",
            "tiny",
            "--set",
            "training.epoch=2",
            "--set",
            "seed=-1",
            "--recipe",
            "fulll",
        )
    )
    for part in ("3 faults", "did you mean 'epochs'?", "seed: -1", "did you mean 'full'?"):
        assert part in text
    assert (sorted(home.runs.iterdir()) if home.runs.exists() else []) == before


def test_predict_prints_a_table_and_writes_json_and_picture(
    home: Home, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding is replaced: a stored record takes its place."""
    import numpy as np

    from caeav.model.train.runs import find_run
    from caeav.pipeline.extract import single_file as single
    from caeav.pipeline.store import Record, StoreReader

    facts = find_run(home, trained["run"]).stores()["stores"][0]
    record = StoreReader.open(home.root / facts["folder"]).read("clip040")
    asked: dict[str, Any] = {}

    def process(
        path: Path, tokens: Any, captions: Any = None, *, start_s: float, device: str, features: Any
    ) -> single.Processed:
        asked.update(path=path, recipe=tokens[0].fingerprint, captions=captions, start_s=start_s)
        info = {
            **record.info,
            "notes": [{"code": "short_audio", "detail": "bad \x1b[31m"}],
            "facts": {"media_s": 99.0},
        }
        return single.Processed(Record("x", record.arrays, info), None, np.zeros((6, 8, 8, 3), np.uint8))

    monkeypatch.setattr(single, "process_file", process)
    media = tmp_path / "my film.mp4"
    media.write_bytes(b"")
    out = tmp_path / "out"
    result = call(home, "predict", str(media), "--run", trained["run"], "--start", "3", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert asked == {"path": media, "recipe": facts["fingerprint"], "captions": None, "start_s": 3.0}
    lines = result.stdout.splitlines()
    columns = ["segment", "seconds", "event", "probability", "any", "event"]
    assert lines[0].split() == columns  # no CASTE in this recipe, so no agreement
    assert [line.split()[:4] for line in lines[1:7]] == [
        [str(n + 1), str(n + 3), "to", str(n + 4)] for n in range(6)
    ]
    assert "short_audio: bad \\x1b[31m" in result.stderr
    assert "the file lasts 99.0 s, this is 3 to 9 s; continue with --start 9" in result.stderr
    value = json.loads((out / "prediction.json").read_text())
    assert len(value["segments"]) == 6 and value["run"] == trained["run"]
    assert value["protocol"] == "honest"
    assert (out / "prediction.png").stat().st_size > 1000
    for start in ("0", "3"):
        call(home, "predict", str(media), "--run", trained["run"], "--start", start)
    folders = find_run(home, trained["run"]).folder / "predictions"
    kept = [json.loads(path.read_text())["start_s"] for path in sorted(folders.glob("*/prediction.json"))]
    assert kept == [0.0, 3.0]  # the next part of a file does not replace the one before


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, dict[str, Any], Path]:
    """A home whose stores come from small media files, a run on them, and one of the files."""
    from caeav.manifests.dataset import load_dataset
    from caeav.manifests.synthetic import SyntheticOptions, synthesise
    from caeav.pipeline.extract.context import RunContext, RunOptions
    from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
    from caeav.pipeline.extract.tokens import extract_all

    home = Home(tmp_path_factory.mktemp("decoded"))
    options = SyntheticOptions(clips=10, classes=5, seconds=4, size_px=64, fps=5)
    synthesise(home.data("synthetic"), options, workers=1)
    manifest = load_dataset("synthetic", None, home)
    extract_all(
        RunContext(manifest, home, RunOptions(workers=1), lambda _: None), [TokenOptions(), CaptionOptions()]
    )
    small = ["--set", "training.epochs=1", "--set", "model.head.width=16", "--recipe", "full", "--json"]
    result = call(home, "train", "--dataset", "synthetic", "--device", "cpu", *small)
    assert result.exit_code == 0, result.output
    return home, json.loads(result.stdout), Path(manifest.media_root)


@pytest.mark.parametrize("part", [0, 1])
def test_predict_decodes_the_file_to_what_the_stores_hold(
    decoded: tuple[Home, dict[str, Any], Path], part: int, tmp_path: Path
) -> None:
    """The whole path from media to table gives the same as the stored tokens and captions of that file."""
    from caeav.model.train.predict import Predictor
    from caeav.model.train.prediction_files import prediction_json
    from caeav.model.train.runs import find_run
    from caeav.pipeline.store import StoreReader

    home, trained, media = decoded
    run = find_run(home, trained["run"])
    stores = [StoreReader.open(home.root / fact["folder"]) for fact in run.stores()["stores"]]
    clip = stores[0].manifest.clips[part]
    records = [store.read(clip.key) for store in stores]
    result = call(
        home, "predict", str(media / clip.media), "--run", run.name, "--out", str(tmp_path), "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    arrays = {name: x for record in records for name, x in record.arrays.items()}
    wanted = Predictor.load(run, "cpu").predict(clip.key, arrays, records[0].info)
    assert len(found["segments"]) == 4
    assert found["segments"] == json.loads(json.dumps(prediction_json(wanted, {})))["segments"]
    assert found["captions"] == records[1].info["texts"]
    later = call(home, "predict", str(media / clip.media), "--run", run.name, "--start", "1", "--json")
    assert later.exit_code == 0, later.output
    assert json.loads(later.stdout)["segments"] != found["segments"]  # and it begins at the given second


def test_many_files_are_predicted_at_once_as_each_alone(
    decoded: tuple[Home, dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Components are made once for all files, and a damaged file costs only itself."""
    from caeav.pipeline.extract import single_file

    home, trained, media = decoded
    films = sorted(media.rglob("*.mp4"))[:3]
    folder = tmp_path / "films"
    folder.mkdir()
    for name, film in zip(("a.mp4", "c.mp4", "d.mp4"), films, strict=True):
        (folder / name).symlink_to(film)
    (folder / "b.mp4").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("no media")
    made: list[Any] = []
    job_of = single_file.job_of
    monkeypatch.setattr(single_file, "job_of", lambda recipe: made.append(recipe) or job_of(recipe))
    out = tmp_path / "out"
    result = call(home, "predict", str(folder), "--run", trained["run"], "--out", str(out))
    assert "1 file of 4 could not be predicted" in refusal(result) and str(folder / "b.mp4") in refusal(
        result
    )
    assert f"failed: {folder / 'b.mp4'}" in result.stderr and len(made) == 2
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert "error" in rows[1] and sorted(p.name for p in out.iterdir()) == [
        "a.png",
        "c.png",
        "d.png",
        "predictions.jsonl",
    ]
    alone = call(home, "predict", str(films[1]), "--run", trained["run"], "--json")
    assert rows[2]["segments"] == json.loads(alone.stdout)["segments"]
    for name in ("a", "c", "d"):
        assert f"{name}.mp4" in result.stdout


def test_windows_go_through_a_whole_file_and_end_with_it(
    decoded: tuple[Home, dict[str, Any], Path], tmp_path: Path
) -> None:
    home, trained, media = decoded
    film = sorted(media.rglob("*.mp4"))[0]  # of 4 s, as long as a window
    out = tmp_path / "out"
    result = call(home, "predict", str(film), "--run", trained["run"], "--stride", "1.5", "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["start_s"] for row in rows] == [0.0, 1.5, 3.0]
    assert [len(row["segments"]) for row in rows] == [4, 3, 1]  # rows end where the media do
    assert all(row["end_s"] <= 4.1 and row["segments"][-1]["end_s"] == row["end_s"] for row in rows)
    assert (out / f"{film.stem}-from-1.5s.png").exists()


def test_a_split_is_predicted_from_its_media(
    decoded: tuple[Home, dict[str, Any], Path], tmp_path: Path
) -> None:
    home, trained, _ = decoded
    at = ("predict", "--run", trained["run"], "--dataset", "synthetic")
    result = call(home, *at, "--split", "val", "--json", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    from caeav.manifests.dataset import load_dataset

    wanted = [clip.key for clip in load_dataset("synthetic", None, home).clips if clip.split == "val"]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["picture"] for row in rows] == [f"{key}.png" for key in wanted]
    assert json.loads(result.stdout)["windows"] == len(wanted)
    assert "have their own start and questions" in refusal(call(home, *at, "--stride", "2"))
    assert "two things to predict" in refusal(call(home, *at, "x.mp4"))
    assert "nothing to predict" in refusal(call(home, "predict", "--run", trained["run"]))


def test_rows_of_windows_are_written_in_order_whatever_order_they_come_in(tmp_path: Path) -> None:
    from caeav.cli.predict_many import Item, Ordered, Windows
    from caeav.manifests.core.atomic import publishing

    items = [Item(Path("a"), "a"), Item(Path("b"), "b", 2.0)]
    windows = Windows(items)
    parts = iter(windows)
    a, b = next(parts), next(parts)
    assert a is not None and b is not None and next(parts) is None  # none for the moment: both may have more
    windows.settle(0, items[0], [])
    windows.settle(1, items[1], [4.0, 6.0])
    assert [getattr(part, "start_s", None) for part in (next(parts), next(parts))] == [4.0, 6.0]
    assert next(parts) is None
    windows.settle(1, items[1], [])
    windows.settle(1, items[1], [])
    assert list(parts) == []
    with publishing(tmp_path / "rows") as out:
        ordered = Ordered(out)
        ordered.windows[1] = 2
        ordered.add(1, 1, [{"at": 3}])
        ordered.add(1, 0, [{"at": 1}, {"at": 2}])
        ordered.windows[0] = 1
        ordered.add(0, 0, [{"at": 0}])
    assert [json.loads(line)["at"] for line in (tmp_path / "rows").read_text().splitlines()] == [0, 1, 2, 3]


def test_a_question_to_a_task_without_answers_is_refused_before_decoding(
    home: Home, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caeav.pipeline.extract.single_file.process_file", None)
    (tmp_path / "clip.mp4").touch()
    asked = call(
        home, "predict", str(tmp_path / "clip.mp4"), "--run", trained["run"], "--question", "how many?"
    )
    assert "task 'ave' answers no questions" in refusal(asked)


@pytest.mark.parametrize("name", ["gpu", "0", "cuda:x"])
def test_an_unknown_device_is_refused_with_the_known_ones(
    home: Home, trained: dict[str, Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / "clip.mp4").touch()
    for command in (("predict", str(tmp_path / "clip.mp4"), "--run"), ("eval", "--run")):
        said = refusal(call(home, *command, trained["run"], "--device", name))
        assert f"unknown device '{name}'" in said and "choose one of: auto, cpu, cuda" in said


def test_predict_needs_a_file(home: Home, trained: dict[str, Any]) -> None:
    assert "no file nosuch.mp4" in refusal(call(home, "predict", "nosuch.mp4", "--run", trained["run"]))


def test_an_unknown_run_names_the_known_ones(home: Home, trained: dict[str, Any]) -> None:
    newest = json.loads(call(home, "runs", "ls", "--json").stdout)[-1]["run"]
    assert newest in refusal(call(home, "eval", "--run", "nosuchrun"))


def test_a_data_set_without_stores_names_the_next_step(home: Home) -> None:
    assert "caeav extract --dataset ave" in refusal(call(home, "train", "--dataset", "ave"))


def test_every_recipe_is_named_in_the_help() -> None:
    from caeav.model.train.config_file import preset_names

    app = typer.Typer()
    train.register(app)
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    assert [name for name in preset_names("ave") if name not in text] == []
