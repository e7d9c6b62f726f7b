"""Every option reaches what it is for: the work itself is replaced by spies, and their arguments are checked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import checked, invoke
from typer.testing import Result

from caeav.cli import (
    caption,
    datasets,
    evaluate,
    extract,
    imports,
    predict,
    runs,
    synthesise,
    train,
)
from caeav.cli import (
    stage as stages,
)
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.dataset import Source
from caeav.manifests.synthetic.material import Material
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract.context import RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions

MANIFEST = Manifest("mine", 4, 0.5, (), ())


class Spy:
    """Takes the place of a function, returns a fixed result and keeps what it was called with."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self.result

    @property
    def args(self) -> tuple[Any, ...]:
        return self.calls[-1][0]

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.calls[-1][1]


def call(*arguments: str) -> Result:
    commands = (extract, caption, imports, synthesise, train, evaluate, predict, runs)
    return checked(invoke(commands, *arguments))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The work and the output of the stages, replaced by spies; a home that is empty."""
    monkeypatch.setenv("CAEAV_HOME", str(tmp_path / "home"))
    summary = SimpleNamespace(
        notes={}, stored=0, recipe=SimpleNamespace(fields={"visual": 1, "audio": 1}, name="x")
    )
    spies = SimpleNamespace(
        load=Spy(datasets.Loaded(MANIFEST, "mine", Source())),
        extract=Spy([summary]),
        caption=Spy(summary),
        imported=Spy(summary),
        reembed=Spy(summary),
        finish=Spy(),
        finish_all=Spy(),
        summary=summary,
    )
    monkeypatch.setattr(stages, "load", spies.load)
    monkeypatch.setattr(stages, "finish", spies.finish)
    monkeypatch.setattr(stages, "finish_all", spies.finish_all)
    monkeypatch.setattr("caeav.pipeline.extract.tokens.extract_all", spies.extract)
    monkeypatch.setattr("caeav.pipeline.extract.captions.caption", spies.caption)
    monkeypatch.setattr("caeav.pipeline.extract.features.import_features", spies.imported)
    monkeypatch.setattr("caeav.pipeline.extract.captions.reembed", spies.reembed)
    return spies


STORE = [
    "--dtype",
    "int8",
    "--shard-clips",
    "7",
    "--backend",
    "zarr",
    "--batch",
    "3",
    "--precision",
    "bf16",
    "--decoder",
    "decord",
]
RUN = [
    "--workers",
    "3",
    "--deadline",
    "9",
    "--retry-failed",
    "--max-failed",
    "5",
    "--devices",
    "cpu,cpu",
    "--slice",
    "2/3",
    "--changed",
    "keep",
]
CUT = [
    "--labels",
    "folders",
    "--segments",
    "4",
    "--segment-seconds",
    "0.5",
    "--stride-seconds",
    "2",
    "--relabel",
    "--root",
    "there",
]


def of_store(options: TokenOptions | CaptionOptions) -> tuple[Any, ...]:
    compute = options.compute
    return (
        options.dtype,
        options.shard_clips,
        options.backend,
        compute.batch,
        compute.precision,
        options.decoder,
    )


def of_run(run: RunOptions) -> tuple[Any, ...]:
    return (
        *(run.workers, run.deadline_s, run.retry_failed, run.max_failed, run.devices),
        *((run.part.number, run.part.count), run.changed, run.relabel),
    )


WANTED_STORE = ("int8", 7, "zarr", 3, "bf16", "decord")
WANTED_RUN = (3, 9.0, True, "5", ("cpu", "cpu"), (2, 3), "keep", True)


def assert_cut(load: Spy) -> None:
    (dataset, given, _, *_), kwargs = load.calls[-1]
    assert dataset == "clips"
    assert given == datasets.source(Path("there"), "folders", 4, 0.5, 2.0)
    assert True in (kwargs.get("relabel"), load.args[-1])


def test_extract_passes_its_options_on(stage: SimpleNamespace) -> None:
    call(
        *("extract", "--dataset", "clips", *STORE, *RUN, *CUT, "--compile", "--captions"),
        *("--visual", "a,b", "--visual-weights", "wa,wb", "--audio", "c", "--audio-weights", "wc"),
        *("--caption-visual", "cv", "--caption-visual-weights", "wcv"),
        *("--caption-audio", "ca", "--caption-audio-weights", "wca"),
        *("--caption-visual-text", "cvt", "--caption-visual-text-weights", "wcvt"),
        *("--caption-audio-text", "cat", "--caption-audio-text-weights", "wcat"),
        *("--set", "visual2.size=3", "--set", "audio.hop=4", "--set", "caption-audio.beams=2", "--json"),
    )
    context, wanted = stage.extract.args
    assert context.manifest is MANIFEST
    first, second, captions = wanted
    assert (first.visual, first.audio) == (ModelChoice("a", "wa"), ModelChoice("c", "wc", {"hop": 4}))
    assert (second.visual, second.audio) == (ModelChoice("b", "wb", {"size": 3}), "none")
    assert captions.visual == ModelChoice("cv", "wcv")
    assert captions.audio == ModelChoice("ca", "wca", {"beams": 2})
    assert captions.visual_text == ModelChoice("cvt", "wcvt")
    assert captions.audio_text == ModelChoice("cat", "wcat")
    assert [of_store(options) for options in wanted] == [WANTED_STORE] * 3
    assert all(options.compute.compile for options in wanted)
    assert of_run(context.options) == WANTED_RUN
    assert_cut(stage.load)
    summaries, as_json, step = stage.finish_all.args
    assert (summaries, as_json) == ([stage.summary], True) and "store merge mine" in step


def test_caption_passes_its_options_on(stage: SimpleNamespace) -> None:
    call(
        *("caption", "--dataset", "clips", *STORE, *RUN, *CUT),
        *("--visual", "cv", "--visual-weights", "wcv", "--audio", "ca", "--audio-weights", "wca"),
        *("--visual-text", "cvt", "--visual-text-weights", "wcvt", "--audio-text", "cat"),
        *("--audio-text-weights", "wcat", "--set", "audio.beams=2", "--json"),
    )
    context, options = stage.caption.args
    assert context.manifest is MANIFEST
    assert options.visual == ModelChoice("cv", "wcv")
    assert options.audio == ModelChoice("ca", "wca", {"beams": 2})
    assert options.visual_text == ModelChoice("cvt", "wcvt")
    assert options.audio_text == ModelChoice("cat", "wcat")
    assert of_store(options) == WANTED_STORE and of_run(context.options) == WANTED_RUN
    assert_cut(stage.load)
    summary, as_json, step = stage.finish.args
    assert (summary, as_json) == (stage.summary, True) and "store merge mine" in step


@pytest.mark.parametrize(
    ("command", "said"),
    [(["extract"], "caption"), (["extract", "--captions"], "train"), (["caption"], "train")],
)
def test_the_next_step_after_a_whole_store_is_the_next_stage(
    stage: SimpleNamespace, command: list[str], said: str
) -> None:
    call(*command)
    step = (stage.finish_all if command[0] == "extract" else stage.finish).args[2]
    assert step.startswith(f"caeav {said}") and "--dataset mine" in step


def test_options_left_out_have_their_defaults(stage: SimpleNamespace) -> None:
    call("extract", "--captions", "--audio-weights", "w")
    tokens, captions = stage.extract.args[1]
    assert (tokens.visual, tokens.audio) == (ModelChoice("classic"), ModelChoice("classic", "w"))
    assert captions == CaptionOptions(
        *(ModelChoice("descriptor"), ModelChoice("descriptor"), ModelChoice("hashed"), ModelChoice("hashed"))
    )


@pytest.mark.parametrize("given", [["--caption-visual", "x"], ["--caption-audio-text-weights", "x"]])
def test_caption_options_are_refused_without_captions(stage: SimpleNamespace, given: list[str]) -> None:
    with pytest.raises(CaeavError, match=rf"{given[0]} without captions\n.*add --captions"):
        call("extract", *given)
    assert not stage.extract.calls


@pytest.mark.parametrize("given", [["--visual", "a,"], ["--visual-weights", "a,b", "--visual", "x,"], []])
def test_a_list_with_a_gap_or_too_many_weights_is_refused(stage: SimpleNamespace, given: list[str]) -> None:
    if not given:
        given = ["--visual", "x,y", "--visual-weights", "a,b,c"]
    with pytest.raises(CaeavError, match="--visual names 2 backbones"):
        call("extract", *given)


@pytest.mark.parametrize("given", [[], ["--stride-seconds", "1"]])
def test_longer_files_are_reported_unless_a_stride_covers_them(
    stage: SimpleNamespace, given: list[str]
) -> None:
    stage.summary.notes["longer_media"] = 3
    stage.load.result = datasets.Loaded(MANIFEST, "mine", Source(stride_s=1.0 if given else None))
    said = call("extract", *given).stderr
    assert ("3 clips of files longer than their clip" in said) is not bool(given)
    assert given or "--stride-seconds 2" in said  # 4 x 0.5 s


def test_import_passes_its_options_on(stage: SimpleNamespace) -> None:
    call(
        *("import", "--dataset", "clips", "--tap", "motion.x=~/f", "--name", "n", "--max-failed", "5"),
        *(*STORE[:6], *CUT, "--json"),
    )
    context, options = stage.imported.args
    assert context.manifest is MANIFEST
    assert options.sources == {"motion.x": Path("~/f").expanduser()}
    assert (options.name, options.dtype, options.shard_clips, options.backend) == ("n", "int8", 7, "zarr")
    assert (context.options.max_failed, context.options.relabel) == ("5", True)
    assert_cut(stage.load)


def test_embed_passes_its_options_on(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from caeav.cli import caption as captions

    monkeypatch.setattr(captions.datasets, "name", lambda dataset, home: "mine")
    found = Spy("folder")
    monkeypatch.setattr(captions, "find_store", found)
    reader = SimpleNamespace(manifest=MANIFEST)
    monkeypatch.setattr(captions, "StoreReader", SimpleNamespace(open={"folder": reader}.get))
    call(
        *("caption", "embed", "--store", "s", "--visual-text", "a", "--visual-text-weights", "wa"),
        *("--audio-text", "b", "--audio-text-weights", "wb", "--set", "audio-text.max_tokens=4"),
        *("--dtype", "int8", "--devices", "cpu,cpu", "--max-failed", "5", "--json"),
    )
    context, source, visual, audio, dtype = stage.reembed.args
    run = context.options
    assert found.args[1:] == ("mine", "captions", "s") and source is reader and context.manifest is MANIFEST
    assert visual == ModelChoice("a", "wa") and audio == ModelChoice("b", "wb", {"max_tokens": 4})
    assert (dtype, run.devices, run.max_failed) == ("int8", ("cpu", "cpu"), "5")
    call("caption", "embed", "--audio-text", "b")
    assert stage.reembed.args[2:5] == (None, ModelChoice("b"), None)
    with pytest.raises(CaeavError, match="--visual-text-weights without --visual-text"):
        call("caption", "embed", "--visual-text-weights", "w")


def test_synthesise_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Spy(SimpleNamespace())
    monkeypatch.setattr("caeav.manifests.synthetic.synthesise", made)
    monkeypatch.setattr(synthesise, "_as_json", lambda summary: {"done": True})
    call(
        *[
            "synthesise",
            "--dataset",
            "music-avqa",
            "--clips",
            "11",
            "--classes",
            "6",
            "--seconds",
            "7",
            "--size",
            "96",
            "--fps",
            "12",
            "--rate",
            "22050",
        ],
        *[
            "--seed",
            "4",
            "--misaligned",
            "0.5",
            "--mix",
            "cut=1,silent=2",
            "--distractors",
            "0.25",
            "--splits",
            "0.5,0.25,0.25",
        ],
        *("--questions", "9", "--workers", "2", "--home", str(tmp_path), "--json"),
    )
    where, options, workers, _ = made.args
    assert where == tmp_path / "data" / "synthetic-music-avqa" and workers == 2
    values = options.to_json()
    assert {name: values[name] for name in ("clips", "classes", "seconds", "size_px", "fps", "rate_hz")} == {
        "clips": 11,
        "classes": 6,
        "seconds": 7,
        "size_px": 96,
        "fps": 12,
        "rate_hz": 22050,
    }
    assert (values["seed"], values["misaligned"], values["distractors"]) == (4, 0.5, 0.25)
    assert values["mix"] == {"offscreen": 0, "silent": 2, "wrong_sound": 0, "cut": 1}
    assert values["splits"] == [0.5, 0.25, 0.25] and values["questions"] == 9
    assert values["layout"] == "music-avqa"
    read = Spy(Material(tuple("abcdefg"), ()))
    monkeypatch.setattr("caeav.manifests.synthetic.material.load_material", read)
    sources = ["--material", "one", "--material", "two.csv", "--backgrounds", "walls"]
    call("synthesise", *sources, "--splits", "0.5,0,0.5", "--home", str(tmp_path), "--json")
    assert read.args == ([Path("one"), Path("two.csv")], Path("walls"), (0.5, 0.0, 0.5))
    assert made.args[1].material is read.result and made.args[1].classes == 7
    call("synthesise", *sources[:4], "--classes", "5", "--home", str(tmp_path), "--json")
    assert made.args[1].names() == ("a", "b", "c", "d", "e") and read.args[1] is None
    call("synthesise", "--dataset", "synthetic-avs-s4", "--root", str(tmp_path / "r"), "--json")
    where, options, workers, _ = made.args
    assert (where, workers, options.seconds, options.size_px) == (tmp_path / "r", None, 5, 224)
    with pytest.raises(CaeavError, match="--splits is 'a,b'; expected numbers"):
        call("synthesise", "--splits", "a,b")
    with pytest.raises(CaeavError, match="seconds is 0"):
        call("synthesise", "--seconds", "0")


def test_train_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = Spy([{"run": "r"}])
    finish = Spy()
    monkeypatch.setattr(train, "_train_all", asked)
    monkeypatch.setattr(train, "finish", finish)
    monkeypatch.setattr(train.datasets, "name", lambda dataset, home: dataset)
    call(
        *("train", "--task", "avvp", "--dataset", "mine", "--recipe", "none", "--config", "c.yaml"),
        *("--set", "training.epochs=2", "--set", "seed=3", "--seeds", "4,5", "--select-on", "test"),
        *("--protocol", "published", "--drop-leaks", "--device", "cpu", "--inject-from", "stage2"),
        *("--home", str(tmp_path), "--json"),
    )
    home, (task, recipe, config, assignments, dedicated), seeds, command, processes = asked.args
    assert processes.count == 1
    assert (home.root, task, recipe, config) == (tmp_path, "avvp", "none", Path("c.yaml"))
    assert assignments == ["training.epochs=2", "seed=3"] and seeds == [4, 5]
    assert dedicated == {
        "dataset": "mine",
        "select_on": "test",
        "protocol": "published",
        "drop_leaks": True,
        "training.device": "cpu",
        "model.adapters.placement": "inject",
        "model.adapters.inject_from": "stage2",
    }
    assert command == (
        "caeav train --task avvp --recipe none --dataset mine --config c.yaml --set training.epochs=2 --set seed=3 "
        "--seeds 4,5 --select-on test --protocol published --drop-leaks --inject-from stage2"
    )
    assert finish.args[0] == [{"run": "r"}] and finish.args[2] is True
    call("train", "--task", "ave", "--dataset", "mine", "--home", str(tmp_path))
    assert asked.args[1] == ("ave", "full", None, [], {"dataset": "mine"}) and asked.args[2] == []


@pytest.mark.parametrize("text", ["1,1", "-1", "a", "", "1,,2"])
def test_malformed_seeds_are_refused(text: str) -> None:
    with pytest.raises(CaeavError, match="different whole numbers from 0 on: --seeds 0,1,2"):
        train.seed_list(text)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--task", "ave"], "--task"),
        (["--recipe", "full"], "--recipe"),
        (["--dataset", "x", "--seeds", "1"], "--dataset, --seeds"),
        (["--select-on", "val", "--protocol", "honest"], "--select-on, --protocol"),
        (["--set", "a=1", "--config", "c", "--drop-leaks"], "--config, --set, --drop-leaks"),
        (["--inject-from", "stage1"], "--inject-from"),
    ],
)
def test_resuming_takes_no_other_options(given: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match=rf"own configuration; {named} cannot change it"):
        call("train", "--resume", "r", *given, "--home", str(tmp_path))


def test_the_rest_of_a_group_starts_on_the_given_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the seeds 1, 2, 3 the first has a run."""
    from caeav.manifests.core.home import Home
    from caeav.model.train.processes import ONE

    origin = {"command": "c", "group": "g", "seeds": [1, 2, 3]}
    begun = SimpleNamespace(name="r", config=lambda: SimpleNamespace(seed=1), origin=lambda: origin)
    monkeypatch.setattr("caeav.model.train.groups.members", lambda home, group: [begun])
    monkeypatch.setattr("caeav.model.train.runs.find_run", lambda home, name: {"r": begun}[name])
    opened = Spy(
        SimpleNamespace(with_seed=lambda seed: SimpleNamespace(config=f"seed {seed}", processes=ONE))
    )
    monkeypatch.setattr("caeav.model.train.experiment.reopen", opened)
    written = Spy()
    monkeypatch.setattr("caeav.model.train.runs.Run.write", lambda run, *given: written(*given))
    made = Spy(SimpleNamespace(name="new"))
    monkeypatch.setattr("caeav.model.train.runs.create_run", made)
    trained = Spy()
    monkeypatch.setattr(train, "_train_one", trained)
    train._begin_rest(Home(tmp_path), "g", "cpu", ONE)
    assert [args[1] for args, _ in made.calls] == ["seed 2", "seed 3"]
    assert [args[0].config for args, _ in trained.calls] == ["seed 2", "seed 3"]
    assert opened.args[1:3] == (begun, "cpu") and written.args[1] == origin


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A run that `find_run` gives for any name, and an experiment that `reopen` gives."""
    scores = SimpleNamespace(per_class=(), ungrouped="", details={}, clips=12, value=50.0)
    (tmp_path / "r").mkdir()
    spies = SimpleNamespace(
        run=SimpleNamespace(
            name="r",
            folder=tmp_path / "r",
            result=lambda: {"scores": {"val": 50.0, "test": 51.0}},
            token_recipes=lambda: ["tokens"],
            caption_recipe=lambda: "captions",
        ),
        experiment=SimpleNamespace(
            build=lambda: "model",
            task=SimpleNamespace(sample_noun="clip", metric="accuracy"),
            config=SimpleNamespace(protocol="honest", select_on="val"),
            joined=SimpleNamespace(splits={"val": (), "test": ()}),
        ),
        found=SimpleNamespace(
            scores=scores,
            plain=None,
            agreement=None,
            with_leaks=None,
            intervals=None,
            majority=30.0,
            as_json=lambda: {"split": "val"},
        ),
    )
    spies.find_run, spies.reopen, spies.load_best = Spy(spies.run), Spy(spies.experiment), Spy()
    spies.examine = Spy(spies.found)
    monkeypatch.setattr("caeav.model.train.runs.find_run", spies.find_run)
    monkeypatch.setattr("caeav.model.train.experiment.reopen", spies.reopen)
    monkeypatch.setattr("caeav.model.train.session.load_best", spies.load_best)
    monkeypatch.setattr("caeav.model.train.examine.examine", spies.examine)
    monkeypatch.setattr("caeav.model.train.examine.remarks", lambda found: [])
    return spies


def test_eval_passes_its_options_on(run: SimpleNamespace, tmp_path: Path) -> None:
    call(
        *("eval", "--run", "name", "--split", "val", "--stress", "shift=2", "--stress-seed", "7"),
        *("--drop-leaks", "--device", "cpu", "--home", str(tmp_path), "--json", "--stress-labels", "follow"),
    )
    assert run.examine.kwargs["follow"] is True
    assert run.find_run.args[1] == "name" and run.reopen.args[1:3] == (run.run, "cpu")
    assert run.load_best.args == (run.run, "model")  # scored are the best weights, not those it begins with
    assert run.examine.args[1:] == ("model", "val")
    assert run.examine.kwargs["strengths"].shift == 2
    assert (run.examine.kwargs["seed"], run.examine.kwargs["drop_leaks"]) == (7, True)


def test_eval_is_compared_with_the_training_only_where_the_clips_are_the_same(
    run: SimpleNamespace, tmp_path: Path
) -> None:
    at = ("--run", "r", "--home", str(tmp_path))
    said = call("eval", *at).stderr
    assert "right after training it was 51.0000 %, now 50.0000 %" in said
    assert "note:" not in call("eval", *at, "--split", "val").stderr
    assert '"score_after_training": 50.0' in call("eval", *at, "--split", "val", "--json").stdout
    for name in ("plain", "with_leaks"):
        setattr(run.found, name, run.found.scores)
        assert "note:" not in call("eval", *at).stderr
        setattr(run.found, name, None)
    with pytest.raises(CaeavError, match="--stress-curve scores each kind alone"):
        call("eval", *at, "--stress-curve", "all", "--drop-leaks")


def test_predict_passes_its_options_on(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = SimpleNamespace(arrays={"tap": 1}, info={"notes": [{"code": "c", "detail": "d"}]})
    written = SimpleNamespace(arrays={"caption": 2}, info={"texts": {"visual": "a dog", "audio": ""}})
    process = Spy(SimpleNamespace(tokens=record, captions=written, frames=[0]))
    monkeypatch.setattr("caeav.pipeline.extract.single_file.process_file", process)
    when = SimpleNamespace(end_s=14.0, media_s=20.0, segment_s=1.0)
    prediction = SimpleNamespace(times=when, remarks=lambda: ["look"], rows=lambda: [{"s": 1}])
    predictor = SimpleNamespace(check=Spy(), predict=Spy(prediction), config=run.experiment.config)
    load = Spy(predictor)
    monkeypatch.setattr("caeav.model.train.predict.Predictor", SimpleNamespace(load=load))
    report = Spy([tmp_path / "x.json"])
    monkeypatch.setattr("caeav.model.train.prediction_files.write_prediction", report)
    monkeypatch.setattr("caeav.model.train.prediction_files.prediction_json", lambda prediction, facts: facts)
    file = tmp_path / "a film.mp4"
    file.touch()
    at = ("predict", str(file), "--run", "name", "--home", str(tmp_path), "--start", "4")
    result = call(*at, "--question", "why?", "--features", "motion.x=f.npy", "--device", "cpu")
    assert load.args[:2] == (run.run, "cpu") and predictor.check.args == ("why?",)
    assert process.args == (file, ["tokens"], "captions")
    assert process.kwargs == {"start_s": 4.0, "device": "cpu", "features": {"motion.x": Path("f.npy")}}
    _key, arrays, info, start_s, question = predictor.predict.args
    assert (arrays, info, start_s, question) == ({"tap": 1, "caption": 2}, record.info, 4.0, "why?")
    folder, facts = report.args[1], report.args[3]
    assert folder.name.startswith("a_film") and folder.name.endswith("-from-4s")
    assert folder.parent == run.run.folder / "predictions"
    assert (facts["start_s"], facts["captions"]) == (4.0, written.info["texts"])
    for text in ("note: look", "note: c: d", "lasts 20.0 s, this is 4 to 14 s; continue with --start 14"):
        assert text in result.stderr
    assert "visual caption: a dog" in result.stderr and "audio caption" not in result.stderr
    when.media_s = 14.9
    out = tmp_path / "out"
    result = call(*at, "--out", str(out), "--json")
    assert report.args[1] == out and "lasts" not in result.stderr and '"file"' in result.stdout


def test_runs_table_takes_a_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build = Spy(SimpleNamespace(remarks=["a run"], as_json=lambda: {"rows": []}))
    monkeypatch.setattr("caeav.model.train.table.build_table", build)
    result = call("runs", "table", "--task", "avvp", "--home", str(tmp_path), "--json")
    assert (build.args[0].root, build.args[1]) == (tmp_path, "avvp")
    assert "not read: a run" in result.stderr and '"rows"' in result.stdout


def test_json_of_synthesise_holds_the_whole_summary() -> None:
    from caeav.manifests.synthetic.options import SyntheticOptions

    score = SimpleNamespace(knows="nothing", accuracy=0.5, rule="one class")
    counts = {name: {name: 1} for name in ("splits", "kinds", "classes")}
    options = SyntheticOptions(clips=5)
    made = SimpleNamespace(
        root=Path("r"),
        options=options,
        written=2,
        kept=3,
        **counts,
        background=0.25,
        measure="m",
        scores=(score,),
    )
    assert synthesise._as_json(made) == {  # type: ignore[arg-type]
        "root": "r",
        "options": options.to_json(),
        "written": 2,
        "kept": 3,
        **counts,
        "background": 0.25,
        "measure": "m",
        "bounds": [{"knows": "nothing", "accuracy": 0.5, "rule": "one class"}],
    }
