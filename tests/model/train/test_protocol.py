"""The published protocol, leaks left out, groups completed by resuming, and the table beside the peers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from stopping import train_logged

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.home import Home
from caeav.model.tasks.base import TASKS
from caeav.model.train.card import card_text, introduction
from caeav.model.train.config_file import ConfigError, resolve_config
from caeav.model.train.examine import examine, remarks
from caeav.model.train.experiment import prepare
from caeav.model.train.groups import finished_group, summarise_group
from caeav.model.train.log import read_metrics
from caeav.model.train.protocol import AS_PUBLISHED, sentence, stamp
from caeav.model.train.provenance import backbones
from caeav.model.train.resume import STATE
from caeav.model.train.runs import METRICS, ORIGIN, RESULT, Run, create_run, summarise
from caeav.model.train.table import build_table, markdown
from caeav.pipeline.store import Recipe, StoreReader, find_store, open_for_writing

SMALL = ["training.epochs=2", "model.head.width=16", "training.batch_size=8"]


def run_once(home: Home, group: str = "", **given: Any) -> tuple[Run, dict[str, Any]]:
    experiment = prepare(
        home, resolve_config("ave", "none", assignments=SMALL, options={"dataset": "tiny", **given})
    )
    run = create_run(home, experiment.config)
    run.write(ORIGIN, {"command": "", "group": group, "seeds": [0, 1] if group else []})
    result = train_logged(experiment, run)
    return run, result


def test_published_selects_and_averages_as_the_papers_and_says_so_everywhere(make_home: Any) -> None:
    home = make_home()
    run, result = run_once(home, protocol="published")
    assert (result["select_on"], result["protocol"]) == ("test", "published")
    logged = [record["accuracy"] for record in read_metrics(run.folder / METRICS)]
    assert result["scores"]["test"] == max(logged)  # the score of test chose the epoch
    state = json.loads((run.checkpoints / STATE).read_text())
    assert set(state["peaks"]) == {"accuracy", "pooled_accuracy"} and state["peaks"]["accuracy"] == max(
        logged
    )
    assert "pooled_accuracy" in result["details"]["test"]  # the score itself is the mean over batches
    assert run.name.endswith("-ave-none-published-s0")
    assert summarise(run)["protocol"] == "published, best epoch by test"
    experiment = prepare(home, run.config())
    assert any("published: the epoch is chosen on test" in line for line in introduction(experiment))
    assert "**Published protocol**: the epoch is chosen on test" in card_text(run, experiment, result)
    assert "Backbones: not known; they are frozen" in card_text(run, experiment, result)
    (line,) = [line for line in build_table(home, "ave").sections[1].lines if line.own]
    assert line.protocol == "published, best epoch by test"
    assert line.values[0] is not None and line.values[0].mean == result["scores"]["test"]


@pytest.mark.parametrize("task", TASKS.names())
def test_every_task_has_its_published_rules(task: str) -> None:
    config = resolve_config(task, "none", options={"protocol": "published"})
    assert config.select_on == ("test" if task.startswith(("ave", "avs")) else "val")
    assert resolve_config(task, "none").protocol == "honest"
    assert resolve_config(task, "none").select_on == "val"
    assert AS_PUBLISHED[task].rules


@pytest.mark.parametrize("given", [{"select_on": "val"}, {"metric.average": "seconds"}, {"drop_leaks": True}])
def test_what_departs_from_the_published_protocol_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="published protocol"):
        resolve_config("ave", options={"protocol": "published", **given})


def test_a_task_without_published_rules_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(AS_PUBLISHED, "avqa")  # type: ignore[arg-type]
    assert resolve_config("avqa", "none").protocol == "honest"
    with pytest.raises(ConfigError, match="no rules are known for task 'avqa', allowed: 'honest'"):
        resolve_config("avqa", "none", options={"protocol": "published"})


@pytest.mark.parametrize(("protocol", "select_on", "optimistic"), [
    ("honest", "val", False), ("honest", "test", True), ("published", "val", False), ("published", "test", True)
])  # fmt: skip
def test_a_score_whose_epoch_test_chose_is_called_optimistic(
    protocol: str, select_on: str, optimistic: bool
) -> None:
    said = sentence("ave", protocol, select_on)
    assert ("The test score is therefore optimistic" in said) is optimistic
    assert ("Published protocol" in said) is (protocol == "published")
    assert ("was scored once, afterwards" in said) is (protocol == "honest" and select_on == "val")


def test_a_stamp_names_protocol_and_selection() -> None:
    assert stamp("honest", "val") == "honest"
    assert stamp("honest", "test") == "selected on test"
    assert stamp("published", "val") == "published, best epoch by val"


@pytest.fixture
def leaky_home(make_home: Any) -> Home:
    """Two test clips of which one shares its video with a train clip, the other with a val clip."""
    home: Home = make_home(captions=False)
    old = StoreReader.open(find_store(home.stores, "tiny", "tokens"))
    clips = list(old.manifest.clips)
    for i, video in ((0, "a"), (48, "a"), (36, "b"), (49, "b")):
        clips[i] = replace(clips[i], extra={"id": video})
    changed = replace(old.manifest, dataset="leaky", clips=tuple(clips))
    with open_for_writing(home.stores / "leaky", old.recipe, changed) as writer:
        for item in old.quarantined:
            writer.quarantine(item)
        for plan in writer.plan():
            writer.publish(plan, {key: old.read(key) for key in plan.missing})
        writer.finish()
    return home


def test_leaked_clips_leave_all_splits_and_both_scores_are_reported(leaky_home: Home) -> None:
    run, result = run_once(leaky_home, dataset="leaky", drop_leaks=True)
    assert result["leaks"]["left_out"] == {"train": 1, "val": 1, "test": 2}
    assert result["clips"] == {"train": 34, "val": 11, "test": 10}
    experiment = prepare(leaky_home, run.config())
    assert any(
        "1 of 35 of train, 1 of 12 of val, 2 of 12 of test" in line for line in introduction(experiment)
    )
    assert any("in both splits of train/test" in line for line in introduction(experiment))
    assert not any("--drop-leaks" in line for line in introduction(experiment))
    keys = {sample.key for samples in experiment.joined.splits.values() for sample in samples}
    assert not keys & {"clip000", "clip036", "clip048", "clip049"}
    model = experiment.build()
    kept, whole = experiment.score(model, "test"), experiment.score_with_leaks(model, "test")
    assert (kept.clips, whole.clips) == (10, 12)
    assert set(result["leaks"]["scores_with"]) == {"val", "test"}
    assert "scored with them: val" in card_text(run, experiment, result)


def test_eval_can_leave_leaked_clips_out_of_any_run(leaky_home: Home) -> None:
    experiment = prepare(leaky_home, resolve_config("ave", "none", options={"dataset": "leaky"}))
    model = experiment.build()
    found = examine(experiment, model, "test", drop_leaks=True)
    assert found.scores.clips == 10 and found.left_out == 2
    assert found.with_leaks is not None and found.with_leaks.value == experiment.score(model, "test").value
    assert "2 test clips left out" in remarks(found)[0]
    assert examine(experiment, model, "test").scores.clips == 12


def test_questions_about_a_video_of_two_splits_go_together(tiny_home: Home) -> None:
    from caeav.model.train.join import join

    def asked(key: str, *splits: str) -> Clip:
        questions = [
            {
                "id": str(i),
                "split": split,
                "type": ["Audio", "Counting"],
                "text": "?",
                "words": ["how"],
                "answer": "one",
            }
            for i, split in enumerate(splits)
        ]
        return Clip(key, f"{key}.mp4", 0.0, 6.0, "", (), {"questions": questions})

    store = StoreReader.open(find_store(tiny_home.stores, "tiny", "tokens"))
    rows = [("train", "train"), ("train", "test", "test"), ("test",), ("val",), ("val", "test")]
    clips = tuple(asked(f"clip{i:03d}", *splits) for i, splits in enumerate(rows))
    clips = tuple(replace(c, media=o.media) for c, o in zip(clips, store.manifest.clips, strict=False))
    joined = join(Manifest("q", 6, 1.0, ("one",), clips), [store], None, samples=TASKS["avqa"].samples)
    kept = joined.without_leaks().splits
    assert {split: [s.key for s in samples] for split, samples in kept.items()} == {
        "train": ["clip000+0", "clip000+1"], "val": ["clip003+0"], "test": ["clip002+0"]
    }  # fmt: skip


def test_a_group_is_summarised_when_its_last_run_is_finished(make_home: Any) -> None:
    home = make_home(captions=False)
    name = "g-seeds-0-1"
    given: dict[str, Any] = {"captions": False, "augment.mute": 0.5}
    _, first = run_once(home, name, seed=0, **given)
    assert finished_group(home, name) == []
    _, second = run_once(home, name, seed=1, **given)
    summary = summarise_group(name, finished_group(home, name))
    assert summary["seeds"] == [0, 1]
    values = [first["scores"]["test"], second["scores"]["test"]]
    assert summary["scores"]["test"]["values"] == values
    (line,) = [line for line in build_table(home, "ave").sections[1].lines if line.own]
    assert line.values[0] is not None and line.values[0].mean == pytest.approx(sum(values) / 2)
    assert line.values[0].deviation == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (line.method, line.source) == ("none, seeds 0, 1, augmented (mute)", name)


def test_best_over_epochs_stands_in_the_table_where_the_protocol_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    config = resolve_config("avs-s4", "none", options={"protocol": "published"})
    run = create_run(home, config)
    held = {
        "run": run.name, "group": "", "task": "avs-s4", "recipe": "none", "dataset": "avs-s4", "seed": 0,
        "metric": "mean_iou", "select_on": "test", "protocol": "published", "best_epoch": 1,
        "scores": {"val": 1.0, "test": 70.0}, "details": {"val": {}, "test": {"f_measure": 80.0}},
        "intervals": {"test": {"bounds": {"mean_iou": [60.0, 75.0]}}}, "rows": "clips", "clips": {"test": 740},
    }  # fmt: skip
    run.write(RESULT, held)
    plain = [line for line in build_table(home, "avs-s4").sections[0].lines if line.own]
    assert [v.shown() for v in plain[0].values if v] == ["70.00 (60.0 to 75.0)", "80.0"]
    run.write(RESULT, held | {"peaks": {"test": {"mean_iou": 70.0, "f_measure": 82.5}}})
    peaks = [line for line in build_table(home, "avs-s4").sections[0].lines if line.own]
    assert [v.shown() for v in peaks[0].values if v] == ["70.0", "82.5"]


def placed(home: Home, task: str = "ave", recipe: str = "none", group: str = "", **held: Any) -> None:
    """A finished run with a made-up result; `held`: entries of `result.json`."""
    given, source = held.pop("given", {}), held.pop("source", "hub:a/b")
    config = resolve_config(task, recipe, options={"protocol": held.get("protocol", "honest"), **given})
    run = create_run(home, config)
    result = {
        "run": run.name, "group": group, "task": task, "recipe": recipe, "dataset": "ave", "seed": 0,
        "metric": "accuracy", "rows": "clips", "select_on": config.select_on, "protocol": config.protocol,
        "scores": {"test": 70.0}, "details": {"test": {}}, "clips": {"test": 402},
    }  # fmt: skip
    run.write(RESULT, result | held)
    fields = {modality: {"name": name, "weights": {"source": source}} for modality, name, source in (
        ("visual", "swinv2-large", source), ("audio", "hts-at", "file.ckpt"))}  # fmt: skip
    recipe_of = {"schema": 1, "kind": "tokens", "name": "x", "fields": fields}
    run.write("stores.json", {"stores": [{"kind": "tokens", "recipe": recipe_of}]})


def test_only_official_data_under_known_protocols_stand_beside_published_numbers(tmp_path: Path) -> None:
    home = Home(tmp_path)
    placed(home)
    placed(home, protocol="published")
    placed(home, clips={"test": 390})  # some videos are gone from the net
    main, *others = build_table(home, "ave").sections
    assert others == [] and len([line for line in main.lines if line.own]) == 3
    assert [(line.backbones, line.tested) for line in main.lines if line.own][2] == (
        "swinv2-large + hts-at",
        390,
    )
    shown = markdown(build_table(home, "ave"))
    assert "| **none, seed 0**, swinv2-large + hts-at, 390 test clips | 70.0 | honest |" in shown


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"dataset": "synthetic", "clips": {"test": 9}}, "not the data set ave"),
        ({"clips": {"test": 9}}, "9 test clips, officially 402"),  # `ave` by name only
        ({"clips": {"test": 381}}, "381 test clips, officially 402"),
        ({"clips": {"test": 500}}, "500 test clips, officially 402"),
        ({"clips": {}}, "how many test clips were scored is not known"),
        ({"given": {"select_on": "test"}}, "selected on test, not by the published protocol"),
        ({"leaks": {"left_out": {}}}, "clips are left out"),
        ({"given": {"metric.average": "batches"}}, "metric.average batches"),
    ],
)
def test_all_else_stands_apart_with_backbone_clips_and_the_reason(
    tmp_path: Path, held: dict[str, Any], why: str
) -> None:
    home = Home(tmp_path)
    placed(home, **held)
    main, apart = build_table(home, "ave").sections
    assert not [line for line in main.lines if line.own] and not main.apart
    (line,) = apart.lines
    assert apart.apart and line.apart == why
    assert (line.backbones, line.tested) == (
        "swinv2-large + hts-at",
        held.get("clips", {"test": 402}).get("test"),
    )
    text = markdown(build_table(home, "ave")).split("### ")[2]
    assert text.startswith(
        f"AVE, event localisation: on {apart.dataset}, not to be compared with published numbers"
    )
    assert "| method | backbones | test clips | accuracy | protocol | source | why apart |" in text


def test_random_backbones_stand_apart(tmp_path: Path) -> None:
    home = Home(tmp_path)
    placed(home, source="random:0")
    (line,) = build_table(home, "ave").sections[1].lines
    assert (line.backbones, line.apart) == ("swinv2-large (random values) + hts-at", "random backbone")


def test_a_group_with_one_run_apart_stands_apart_whole(tmp_path: Path) -> None:
    home = Home(tmp_path)
    placed(home, group="g", seed=0)
    placed(home, group="g", seed=1, clips={"test": 9})
    main, apart = build_table(home, "ave").sections
    assert not [line for line in main.lines if line.own]
    (line,) = apart.lines
    assert line.method == "none, seeds 0, 1" and line.apart == "9 test clips, officially 402"


def test_backbones_are_named_by_what_the_run_reads() -> None:
    fields = {
        "visual": {"name": "swinv2-large", "weights": {"source": "random:0"}},
        "audio": {"name": "clap"},
    }
    made = [Recipe("tokens", "x", fields), Recipe("tokens", "r3d", {"other": {"name": "features"}})]
    named = {
        "both": "swinv2-large (random values) + clap",
        "audio": "clap",
        "neither": "none",
    }
    for modalities, said in named.items():
        sets = [f"model.modalities={modalities}", "model.adapters.case.enabled=false"]
        config = resolve_config("ave", "none", assignments=sets)
        assert backbones(config, made) == said
    imported = Recipe("tokens", "vggish", {"audio": {"name": "features"}})
    both = resolve_config("ave", "none")
    assert backbones(both, [Recipe("tokens", "x", {"visual": {"name": "classic"}}), imported]) == (
        "classic + imported vggish"
    )
    assert (
        backbones(both, [Recipe("tokens", "x", {s: {"name": "classic"} for s in ("visual", "audio")})])
        == "classic"
    )


def test_damaged_results_are_reported_and_do_not_hide_the_others(tmp_path: Path) -> None:
    home = Home(tmp_path)
    run = create_run(home, resolve_config("ave", "none"))
    (run.folder / RESULT).write_text("{")
    table = build_table(home)
    assert len(table.remarks) == 1 and run.name in table.remarks[0]
    assert json.dumps(table.as_json())


def test_the_documentation_has_the_table_of_the_command(repository: Path) -> None:
    text = (repository / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    quoted = text.split("<!-- table: caeav runs table -->\n")[1].split("<!-- end of table -->")[0]
    assert quoted.strip() == markdown(build_table(None)).strip()


def test_peers_are_complete_rows_with_a_source_that_may_be_quoted(repository: Path) -> None:
    known = yaml.safe_load((repository / "model" / "train" / "peers.yaml").read_text(encoding="utf-8"))
    assert set(known["tasks"]) == set(TASKS.names())
    assert {source["mark"] for source in known["sources"].values()} <= {"C", "P", "I"}
    for facts in known["tasks"].values():
        for method, source, chosen, values in facts["rows"]:
            assert source in known["sources"] and chosen in ("", "val", "test"), method
            assert len(values) == len(facts["metrics"]) and any(v is not None for v in values), method
            assert all(v is None or 0 < v < 100 for v in values), method
