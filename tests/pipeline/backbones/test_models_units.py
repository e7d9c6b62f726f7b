"""Descriptions and comparisons of models, including models that cannot be built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones import record_check
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.describe import pull_model, view_model, weights_state


def statistics(**change: Any) -> dict[str, dict[str, Any]]:
    x = np.random.default_rng(0).normal(2.0, 0.5, (4, 8, 6))
    return {"x": {**record_check.array_statistics(x), **change}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, []),
        ({"mean": 2.004}, []),
        ({"mean": 2.2}, ["x: mean"]),
        ({"std": 0.6}, ["x: std"]),
        ({"largest": 9.0}, ["x: largest"]),
        ({"shape": [4, 6, 8]}, ["x: shape [4, 6, 8], recorded [4, 8, 6]"]),
        ({"sums": [9.0] * 8}, ["x: sum"]),
        ({"mean": float("nan")}, ["x: mean nan"]),
    ],
)
def test_changed_statistics_are_reported(change: dict[str, Any], message: list[str]) -> None:
    found = record_check.differences(statistics(), statistics(**change))
    assert len(found) == len(message) and all(
        text.startswith(begin) for text, begin in zip(found, message, strict=True)
    )


def test_missing_new_and_changed_arrays_and_texts_are_reported() -> None:
    one, text = statistics(), {"c": {"texts": ["a"]}}
    assert record_check.differences(one, {}) == ["x is missing"]
    assert record_check.differences({}, one) == ["x was not recorded"]
    assert record_check.differences(text, text) == []
    assert record_check.differences(text, {"c": {"texts": ["b"]}}) == ["c: texts ['b'], recorded ['a']"]
    flat = record_check.array_statistics(np.full((2, 3), 4.0))
    assert (flat["mean"], flat["std"], flat["largest"], flat["sums"]) == (4.0, 0.0, 4.0, [0.0] * 8)
    assert record_check.array_statistics(np.array([-5.0, 1.0]))["largest"] == 5.0


def test_a_users_record_takes_precedence_and_replaces_the_one_before(tmp_path: Path) -> None:
    home, choice = Home(tmp_path), ModelChoice("hashed")
    checked = record_check.check_model(choice, "text encoder", home)
    assert checked.against == "caeav" and checked.differences == []
    path = record_check.record(replace(checked, statistics={}), choice, "text encoder", home)
    assert path == tmp_path / "model_records.json"
    again = record_check.check_model(choice, "text encoder", home)
    assert again.against == str(path) and again.differences == [
        "tokens was not recorded",
        "mask was not recorded",
    ]
    record_check.record(again, choice, "text encoder", home)
    record_check.record(replace(again, key="other"), choice, "text encoder", home)
    kept = record_check.check_model(choice, "text encoder", home)
    assert (
        kept.against == str(path) and kept.differences == []
    )  # a record under another key does not replace it
    path.write_text("[]")
    with pytest.raises(CaeavError, match="holds no records of models"):
        record_check.check_model(choice, "text encoder", home)


def facts(**other: Any) -> Any:
    from caeav.pipeline.backbones.facts import ModelFacts

    return ModelFacts(**{"name": "m", "kind": "text encoder", "what": "", "input": "", **other})


def test_the_state_of_weights_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caeav.pipeline.backbones.describe.is_cached", lambda source: source == "hub:a/b")
    assert weights_state(facts()) == "not needed"
    assert weights_state(facts(licence="MIT")) == "give a file"
    assert weights_state(facts(licence="MIT", name="timm:")) == "by model"
    assert weights_state(facts(licence="MIT", weights="hub:a/b")) == "here"
    assert weights_state(facts(licence="MIT", weights="hub:a/c")) == "to pull"
    with pytest.raises(CaeavError, match="has no weights to fetch"):
        pull_model(ModelChoice("hashed"), facts())
    with pytest.raises(CaeavError, match=r"'file.pt' is no name on the hub"):
        pull_model(ModelChoice("m", "file.pt"), facts(licence="MIT"))


def test_a_model_that_cannot_be_built_is_shown_with_the_first_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[ModelChoice] = []

    class Model:
        licence, parameters, default_weights = "own", 7, "hub:x/y"

        def describe(self) -> dict[str, Any]:
            return {"settings": {"a": 1}, "weights": {"digest": "d"}, "version": 2}

    def make(choice: ModelChoice) -> Model:
        tried.append(choice)
        if not choice.weights.startswith(allowed):
            raise CaeavError(f"no weights {choice.weights!r}")
        return Model()

    monkeypatch.setattr(
        "caeav.pipeline.backbones.describe.registry_of", lambda kind: {"m": make, "f:m": make}
    )
    allowed = "random:"
    view = view_model(ModelChoice("m", "w", {"a": 1}), facts(weights="hub:a/b", licence="MIT"))
    assert tried[-1] == ModelChoice("m", "random:0", {"a": 1})
    assert view.problem == "no weights 'w'" and view.described == {"version": 2} and view.settings == {"a": 1}
    assert (view.weights, view.licence, view.parameters) == ("hub:a/b", "MIT", 7)
    allowed = "w"
    view = view_model(ModelChoice("f:m", "w"), facts(name="f:", licence="by model"))
    assert view.problem == "" and view.described == {"weights": {"digest": "d"}, "version": 2}
    assert (view.weights, view.licence) == ("hub:x/y", "own")
    allowed = "never"
    view = view_model(ModelChoice("m", "w"), facts(weights="hub:a/b"))
    assert view.problem == "no weights 'w'" and view.parameters is None and view.taps == ()
