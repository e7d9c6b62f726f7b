"""A task on a data set it is not for: said before anything is made, with the command that would do."""

from __future__ import annotations

import pytest

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.dataset import MARKS
from caeav.manifests.errors import CaeavError
from caeav.model.suits import LAYOUTS, suited
from caeav.model.task import TASKS


@pytest.mark.parametrize(
    ("task", "dataset", "instead"),
    [
        ("avs-s4", "synthetic-music-avqa", "--task avqa --dataset synthetic-music-avqa"),
        ("ave", "llp", "--task avvp --dataset llp"),
        ("avqa", "synthetic", "--task ave --dataset synthetic"),
        ("avqa", "avs-ms3", "--task avs-ms3 --dataset avs-ms3"),
    ],
)
def test_the_task_that_suits_the_data_set_and_the_sets_that_suit_the_task(
    task: str, dataset: str, instead: str
) -> None:
    said = suited(task, dataset)
    assert f"caeav train {instead}, which" in said
    for layout in LAYOUTS[task]:
        assert layout in said


@pytest.mark.parametrize(
    ("task", "dataset"), [("ave-weak", "ave"), ("avs-s4", "synthetic-avs-ms3"), ("avvp", "my-folder")]
)
def test_nothing_is_said_where_they_fit_or_nobody_knows(task: str, dataset: str) -> None:
    assert suited(task, dataset) == ""


def test_every_task_has_data_sets_of_its_own() -> None:
    assert set(LAYOUTS) == set(TASKS)
    assert {layout for layouts in LAYOUTS.values() for layout in layouts} == set(MARKS)


@pytest.mark.parametrize(
    ("task", "events", "said"),
    [("ave", {"val", "test"}, "no train clip"), ("ave-weak", {"val"}, "no train clip"),
     ("avvp", {"train"}, "no val or test clip"), ("ave", {"train"}, ""), ("avvp", {"test"}, "")],
)  # fmt: skip
def test_without_events_there_is_nothing_to_learn_or_to_score(task: str, events: set[str], said: str) -> None:
    clips = tuple(
        Clip(
            split, "a.mp4", 0, 4, split, (Event("dog", 0, 1),) if split in events else (), {"labels": ["dog"]}
        )
        for split in ("train", "val", "test")
    )
    manifest = Manifest("mine", 4, 1.0, ("dog",), clips)
    samples = TASKS[task].samples(manifest)
    splits = {split: [s for s in samples if s.split == split] for split in ("train", "val", "test")}
    if said:
        with pytest.raises(CaeavError, match=said):
            TASKS[task].learn(manifest, splits)
    else:
        assert TASKS[task].learn(manifest, splits) == {}
