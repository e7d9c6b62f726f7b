"""Presets, files and `--set` values: precedence, and all faults reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import RunConfig
from caeav.model.train import config_file, presets
from caeav.model.train.config_file import (
    ConfigError,
    config_class,
    dump_config,
    load_config,
    preset_names,
    resolve_config,
)


def faults_of(**options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_config(**options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("name", ["full", "avmoe", "caste", "case", "none", "audio", "visual"])
@pytest.mark.parametrize("task", TASKS.names())
def test_every_packaged_recipe_is_valid_and_carries_its_name(task: str, name: str) -> None:
    config = resolve_config(task=task, preset=name)
    assert (config.task, config.recipe) == (task, name)
    assert config.model.adapters.variant == "revised"


def test_recipes_are_listed() -> None:
    assert preset_names("ave")[0] == "full"
    own = {"full", "avmoe", "caste", "case", "none", "audio", "visual"}
    assert set(preset_names("ave")) == own | {"lavish", "dg-sct", "probe", "probe-mlp"}


def test_later_sources_win(tmp_path: Path) -> None:
    packaged = resolve_config()
    file = tmp_path / "mine.yaml"
    file.write_text("training: {epochs: 3, batch_size: 5}\noptimiser: {lr: 0.25}\n")
    config = resolve_config(
        file=file,
        assignments=["training.batch_size=7", "optimiser.lr=1e-3", "training.device=cuda"],
        options={"training.device": "cpu"},
    )
    assert config.training.epochs == 3  # file over preset
    assert config.training.batch_size == 7  # --set over file
    assert config.optimiser.lr == 0.001  # YAML 1.1 reads 1e-3 as text; it must be a number all the same
    assert config.training.device == "cpu"  # an option of its own over --set
    assert config.training.clip_norm == packaged.training.clip_norm  # untouched neighbours stay


@pytest.mark.parametrize("given", ["tokens-a", "tokens-a,tokens-b", "[tokens-a, tokens-b]"])
def test_store_names_may_be_given_without_brackets(given: str) -> None:
    stores = resolve_config(assignments=[f"stores.tokens={given}"]).stores
    assert stores.tokens == given.strip("[]").replace(" ", "").split(",")


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training: {epochs: -3}\nsched: {name: cosine}\n")
    text = faults_of(
        file=file,
        assignments=["optimiser.name=adamv", "model.modalities=sound", "optimiser.lrate=1", "nonsense"],
    )
    assert "6 faults" in text
    for part in (
        "training.epochs: -3; input should be greater than or equal to 1",
        "sched: no such key",
        "optimiser.name: 'adamv'; allowed: 'adam' or 'adamw'; did you mean 'adam",
        "model.modalities: 'sound'; allowed: 'both', 'audio', 'visual' or 'neither'",
        "optimiser.lrate: no such key (value 1); allowed here: name, lr, weight_decay, head_lr_factor",
        "did you mean 'lr'?",
        "--set 'nonsense' sets nothing; write key.path=value",
        "next:",
    ):
        assert part in text
    assert "did you mean 'schedule'?" in text


def test_adapter_settings_are_checked_like_our_own() -> None:
    assert "model.adapters.nosuch: no such key (value 1)" in faults_of(
        assignments=["model.adapters.nosuch=1"]
    )


def test_task_and_recipe_are_options_not_settings(tmp_path: Path) -> None:
    """A run named after one preset but trained with another would be worse than an error."""
    text = faults_of(assignments=["recipe=none"])
    assert "recipe: 'none', but --recipe is 'full'; leave the key out, or give --recipe none" in text
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(resolve_config("avvp", "none")))
    assert "task: 'avvp', but --task is 'ave'" in faults_of(preset="none", file=file)
    assert resolve_config("avvp", "none", file=file) == resolve_config("avvp", "none")


def test_conflicting_settings_are_reported_alone() -> None:
    text = faults_of(assignments=["captions=false"])
    assert "  - model.adapters.case.enabled is true, but captions is false; allowed: captions true" in text


def test_a_path_through_a_single_value_is_a_fault() -> None:
    assert "seed is a single value" in faults_of(assignments=["seed.first=1"])


def test_unknown_recipe_and_task_name_the_known_ones() -> None:
    assert "recipe: 'ful' is not known" in faults_of(preset="ful")
    assert "did you mean 'full'?" in faults_of(preset="ful")
    known = "ave, ave-weak, avqa, avs-ms3, avs-s4, avvp"
    assert f"task: 'avee' is not known; allowed: {known}; did you mean 'ave'?" in faults_of(task="avee")


@pytest.mark.parametrize(
    "content",
    ["[1, 2]", "a: [", "!!python/object/apply:os.system ['true']", "x" * 1_100_000],
    ids=["list", "torn", "python", "huge"],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    assert "bad.yaml" in faults_of(file=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "absent.yaml" in faults_of(file=tmp_path / "absent.yaml")


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = resolve_config(preset="avmoe", assignments=["seed=5", "stores.tokens=[a, b]"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert isinstance(config, RunConfig)


def test_a_config_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(resolve_config()) + "future_key: 1\n")
    with pytest.raises(ConfigError, match="future_key"):
        load_config(path)


@pytest.mark.parametrize(
    ("assignment", "meant"),
    [("epochs=1", "'training.epochs'"), ("epoch=1", "'training.epochs'"), ("lr=0.1", "'optimiser.lr'"),
     ("caste.enabled=false", "'model.adapters.caste'"), ("modalities=audio", "'model.modalities'"),
     ("training.lr=0.1", "'optimiser.lr'"), ("name=adam", "'optimiser.name' or 'schedule.name'")],
)  # fmt: skip
def test_a_key_of_another_section_is_named(assignment: str, meant: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_config(assignments=[assignment])
    [fault] = raised.value.faults
    assert fault.endswith(f"; did you mean {meant}?")


def test_a_task_overlay_precedes_the_common_one_and_a_preset_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most specific file wins; keys that it does not name stay."""
    for name, text in {
        "root": "seed: 1\ntraining: {epochs: 1, batch_size: 1, accumulation: 1, workers: 1}",
        "ave": "inherit: root\ndataset: ave\ntraining: {epochs: 2, batch_size: 2, accumulation: 2}",
        "+mine": "training: {epochs: 3, batch_size: 3}",
        "ave+mine": "training: {epochs: 4}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    presets._parsed.cache_clear()
    monkeypatch.setattr(presets, "_folder", lambda: tmp_path)
    try:
        found = resolve_config("ave", "mine")
    finally:
        presets._parsed.cache_clear()
    limits = found.training
    assert (limits.epochs, limits.batch_size, limits.accumulation, limits.workers) == (4, 3, 2, 1)
    assert (found.seed, found.dataset) == (1, "ave")


def test_without_a_recipe_a_run_is_selected_on_val_and_honest() -> None:
    plain = config_class("ave")(task="ave", recipe="full", dataset="d")
    assert (plain.select_on, plain.protocol, plain.drop_leaks, plain.seed) == ("val", "honest", False, 0)


@pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
def test_numbers_without_a_value_are_refused(value: str) -> None:
    assert "optimiser.weight_decay" in faults_of(assignments=[f"optimiser.weight_decay={value}"])
    for path in (
        "optimiser.lr",
        "model.head.gamma",
        "model.adapters.gate_init",
        "model.adapters.avmoe.router_noise",
    ):
        assert path in faults_of(assignments=[f"{path}={value}"])


def test_a_file_too_large_for_a_configuration_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_file, "MAX_CONFIG_BYTES", 10)
    (tmp_path / "big.yaml").write_text("seed: 1\nx: [" + "1, " * 9 + "]\n")
    assert "larger than 10 bytes" in faults_of(file=tmp_path / "big.yaml")


IDLE = ("bounded_attention", "squashed_gate", "gated_audio")
"""Fixes that other settings of the recipes make idle."""


@pytest.mark.parametrize("task", TASKS.names())
def test_the_variant_of_the_model_is_that_of_its_head_too(task: str) -> None:
    fixes = TASKS[task].head_config.FIXES
    for number, variant in enumerate(("reference", "revised")):
        model = resolve_config(task, assignments=[f"model.variant={variant}"]).model
        assert model.adapters.variant == variant
        assert {name: getattr(model.head, name) for name in fixes} == {n: v[number] for n, v in fixes.items()}
    for name, (before, _) in fixes.items():  # one fix turned back, the others stay
        if isinstance(before, bool) and name not in IDLE:
            head = resolve_config(task, assignments=[f"model.head.{name}={str(before).lower()}"]).model.head
            assert {n: getattr(head, n) for n in fixes} == {
                n: before if n == name else v[1] for n, v in fixes.items()
            }


OLDER = {
    "loss.correspondence": 0.0,
    "model.adapters.case.zero_start": True,
    "model.adapters.caste.agreement_lr_factor": 1.0,
    "model.head.reads_agreement": False,
    "model.head.either_modality": False,
    "model.head.scaled_init": False,
}
"""Settings that are younger than some runs, and what these were trained with."""


@pytest.mark.parametrize("task", TASKS.names())
def test_an_older_run_keeps_what_it_was_trained_with(task: str, tmp_path: Path) -> None:
    """Settings that are younger than a run are missing in its file; the variant's defaults must not fill them."""
    path = tmp_path / "config.yaml"
    whole = resolve_config(task)
    for name in OLDER.keys() & config_file.flat_settings(whole).keys():
        section = name.split(".")
        values = whole.model_dump(mode="json")
        held = values
        for part in section[:-1]:
            held = held[part]
        del held[section[-1]]
        path.write_text(yaml.safe_dump(values))
        for read in (load_config(path), resolve_config(task, "full", path)):
            assert config_file.flat_settings(read)[name] == OLDER[name], name
