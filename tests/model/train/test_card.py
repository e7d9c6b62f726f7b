"""What people read about a run: the card's tables, the lines before training, and its environment."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted
from caeav.model.tasks.sample import Samples
from caeav.model.train import card, provenance
from caeav.model.train.card import besides, card_text, introduction
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import Experiment, prepare
from caeav.model.train.provenance import describe_environment, environment_differences
from caeav.model.train.runs import Run, RunError, create_run
from caeav.model.train.used_stores import STORES

SMALL = ["model.head.width=16", "model.adapters.avmoe.enabled=false"]
INTERVALS = {"level": 95, "resamples": 2000, "unit": "clips"}
RESULT: dict[str, Any] = {
    "metric": "accuracy",
    "rows": "questions",
    "scores": {"val": 61.234, "test": 58.5},
    "majority": {"val": 20.0, "test": 21.5},
    "clips": {"val": 12, "test": 34},
    "left_out": {"val": 1, "test": 2},
    "intervals": {"test": {**INTERVALS, "bounds": {"accuracy": [50.0, 66.0], "recall": [10.0, 30.0]}}},
    "details": {"val": {"recall": 7.125}, "test": {"recall": 21.0}},
    "per_class": {"test": [{"class": "a|b", "accuracy": 90.0}, {"class": "dog", "accuracy": 10.125}]},
    "parameters": {"adapters": 12345, "head": 655},
    "epochs": 7,
    "best_epoch": 5,
    "stopped_early": False,
}


def rows_under(text: str, head: str) -> list[list[str]]:
    """The cells of a table's rows."""
    lines = text.split("\n" + head + "\n", 1)[1].splitlines()[1:]
    shown = lines[: lines.index("")] if "" in lines else lines
    return [[cell.strip() for cell in line.replace("\\|", "!").strip("|").split("|")] for line in shown]


@pytest.fixture(scope="module")
def experiment(tiny_home: Home) -> Experiment:
    given = {"dataset": "tiny", "seed": 4}
    return prepare(tiny_home, resolve_config("ave", "full", assignments=SMALL, options=given))


def carded(experiment: Experiment, run: Run, **changed: Any) -> str:
    return card_text(run, experiment, {**RESULT, **changed})


@pytest.fixture(scope="module")
def run(tiny_home: Home, experiment: Experiment) -> Run:
    made = create_run(tiny_home, experiment.config)
    made.write(STORES, experiment.stores_json())
    made.write("origin.json", {"command": "caeav train --seed 4", "group": "", "seeds": []})
    return made


def test_every_number_of_a_card_stands_under_its_name(experiment: Experiment, run: Run) -> None:
    text = carded(experiment, run)
    head = "| split | score | interval | majority | questions | clips left out (quarantine) |"
    assert rows_under(text, head) == [
        ["val", "61.23", "", "20.00", "12", "1"],
        ["test", "58.50", "50.00 to 66.00", "21.50", "34", "2"],
    ]
    assert rows_under(text, "| also | val | test |") == [["recall", "7.12", "21.00 (10.00 to 30.00)"]]
    assert rows_under(text, "| class | accuracy |") == [["a!b", "90.00"], ["dog", "10.12"]]
    assert rows_under(text, "| part | parameters |") == [
        ["`adapters`", "12,345"],
        ["`head`", "655"],
        ["**all**", "13,000"],
    ]
    tokens, captions = experiment.joined.stores
    assert rows_under(text, "| store | folder | fingerprint | clips | quarantined |") == [
        [
            store.recipe.kind,
            f"`{fact['folder']}`",
            f"`{store.recipe.fingerprint[:12]}`",
            str(len(store.keys)),
            lost,
        ]
        for store, lost, fact in zip(
            (tokens, captions), ("1", "1"), experiment.stores_json()["stores"], strict=True
        )
    ]


def test_a_card_says_how_the_score_came_about_and_how_to_repeat_it(experiment: Experiment, run: Run) -> None:
    text = carded(experiment, run)
    assert "Accuracy in percent, official metric." in text
    assert "Seed 4, 7 epochs, best epoch 5. Majority: always" in text
    assert "Intervals: 95 %, bootstrap of 2000 resamples over clips;" in text
    assert "6 segments of 1 s. Backbones: not known;" in text and "3 classes" in text
    assert "```\ncaeav train --seed 4\n# or, from this folder's own" in text
    assert "\ncaeav train --task ave --recipe full --config config.yaml\n```" in text
    assert "seed: 4\n" in text.partition("```yaml\n")[2]
    for remark in experiment.joined.remarks:
        assert f"\n- {remark}" in text
    early = carded(experiment, run, stopped_early=True, intervals={}, per_class={}, details={})
    assert "best epoch 5, stopped early. Majority" in early and "Intervals" not in early
    assert "class by class" not in early and "| also |" not in early


def test_remarks_beside_a_score() -> None:
    made = {
        "rows": "clips",
        "bare": {"val": [3, 72], "test": [0, 60]},
        "peaks": {"test": {"mean_iou": 70.0, "f_measure": 82.456}},
        "leaks": {"left_out": {"train": 1, "test": 2}, "scores_with": {"val": 50.0, "test": 60.5}},
    }
    bare, peaks, leaks = besides(made)
    assert "neither frames nor audio, as past the end of the media: val 3 of 72, test 0 of 60." in bare
    assert peaks == "Best over epochs on test, each number in its own epoch: mean_iou 70.00, f_measure 82.46."
    assert "left out everywhere (clips: 1 of train, 2 of test); scored with them: val 50.00, test 60.50." in (
        leaks
    )
    assert besides({"rows": "clips"}) == besides({"rows": "clips", "bare": {}, "peaks": {}}) == []


def test_the_introduction_names_stores_clips_sizes_and_remarks(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "clip_bytes", lambda joined: 3 * 2**19)
    lines = introduction(experiment)
    tokens, captions = experiment.joined.stores
    assert lines[0] == (
        f"ave / full on tiny: cpu, fp32, {counted(torch.get_num_threads(), 'thread')}, best epoch by val"
    )
    taps = "visual.stage1 16x8, visual.stage2 4x16, audio.stage1 16x8, audio.stage2 4x12"
    assert f"  tokens    {tokens.path.name}: 59 clips, " in lines[1]
    assert sorted(lines[1].partition("clips, ")[2].split(", ")) == sorted(taps.split(", "))
    assert f"  captions  {captions.path.name}: 59 clips, " in lines[2] and "mask" not in lines[2]
    assert "  clips     train 35 (+1 in quarantine), val 12, test 12; 3 classes" in lines
    assert f"  memory    1.50 MiB per clip, {1.5 * 59:.0f} MiB kept in RAM" in lines
    parts = experiment.parameters
    told = ", ".join(f"{name} {n:,}" for name, n in parts.items())
    assert f"  trainable {sum(parts.values()):,}: {told}" in lines
    assert lines[-len(experiment.joined.remarks) :] == [f"  note      {x}" for x in experiment.joined.remarks]
    assert not any(line.startswith(("  augment", "  protocol", "  live")) for line in lines)
    assert not any("no test clips" in line for line in lines)

    sets = ["augment.mute=0.5", "model.head.width=16"]
    config = resolve_config("ave", "none", assignments=sets, options={"dataset": "tiny"})
    without = replace(
        experiment.joined,
        splits={**experiment.joined.splits, "test": experiment.joined.splits["test"][:0]},
        remarks=(),
    )
    other = replace(experiment, config=config, joined=without)
    other.__dict__["preloaded"] = None
    lines = introduction(other)
    assert any(line.startswith("  augment   ") and "mute" in line for line in lines)
    assert lines[-1] == "  note      no test clips: only val will be scored"
    assert any(line.endswith("MiB read from the stores as needed") for line in lines)


def test_questions_and_clips_are_counted_separately(experiment: Experiment) -> None:
    samples = list(experiment.joined.splits["val"])
    twice = replace(
        experiment.joined,
        splits={
            name: Samples.of(listed, experiment.joined.manifest)
            for name, listed in (("train", samples), ("val", samples + samples), ("test", samples[:1] * 3))
        },
        left_out={"train": (), "val": (), "test": ()},
    )
    task = SimpleNamespace(sample_noun="question", describe=lambda inputs: "42 answers")
    other = replace(experiment, joined=twice, task=task)  # type: ignore[arg-type]
    other.__dict__["parameters"] = {"head": 1}
    lines = introduction(other)
    clips = "train 12, val 12 with 24 questions, test 1 with 3 questions; 42 answers"
    assert f"  clips     {clips}" in lines


def test_an_environment_lists_versions_device_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    found = describe_environment(torch.device("cpu"))
    assert found["packages"] == {"torch": provenance.version("torch"), "no-such-package": None}
    assert (found["device"], found["threads"]) == ("cpu", torch.get_num_threads())
    assert found["device_name"] == provenance.platform.processor()


def test_only_what_can_change_numbers_is_a_difference() -> None:
    packages = {"caeav": "1", "torch": "2", "numpy": "3", "matplotlib": "4"}
    then = {"machine": "x", "device": "cpu", "device_name": "c", "threads": 2, "python": "3.11"}
    then["packages"] = packages
    now = {**then, "python": "3.12", "threads": 8, "packages": {**packages, "torch": "9", "matplotlib": "5"}}
    assert environment_differences(then, then) == []
    assert environment_differences(then, now) == ["threads: 2 -> 8", "torch: 2 -> 9"]
    for name in ("machine", "device", "device_name"):
        assert environment_differences(then, {**then, name: "o"}) == [f"{name}: {then[name]} -> o"]
    for name in ("caeav", "numpy"):
        changed = {**then, "packages": {**packages, name: "o"}}
        assert environment_differences(then, changed) == [f"{name}: {packages[name]} -> o"]
    old = {name: value for name, value in then.items() if name != "packages"}  # a record of less
    assert environment_differences(old, then) == ["caeav: None -> 1", "torch: None -> 2", "numpy: None -> 3"]


def test_referenced_stores_are_those_of_all_runs_and_an_incomplete_run_is_named(
    make_home: Any,
) -> None:
    from caeav.model.train.runs import referenced_stores

    home = make_home(captions=False)
    assert referenced_stores(home) == set()
    made = prepare(home, resolve_config("ave", "none", options={"dataset": "tiny", "captions": False}))
    first, second = (create_run(home, made.config) for _ in range(2))
    facts = made.stores_json()
    first.write(STORES, facts)
    elsewhere = {"folder": "stores/other/tokens-x", "fingerprint": "f" * 64}
    second.write(STORES, {"stores": [facts["stores"][0], elsewhere]})
    (home.runs / "notes").mkdir()  # no run
    told = {(x.dataset, x.fingerprint) for x in referenced_stores(home)}
    assert told == {("tiny", facts["stores"][0]["fingerprint"]), ("other", "f" * 64)}
    second.write(STORES, {"stores": [{"folder": "x"}]})
    with pytest.raises(RunError, match=f"run {second.name} does not say which stores it uses") as caught:
        referenced_stores(home)
    assert str(second.folder) in str(caught.value)
    (second.folder / STORES).unlink()  # just begun: its configuration is there alone
    with pytest.raises(RunError, match=second.name):
        referenced_stores(home)
