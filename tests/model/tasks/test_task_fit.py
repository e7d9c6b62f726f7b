"""A task on a data set without its labels: refused before anything is written, with the command that works."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.lazy_clips import LazyClips
from caeav.manifests.manifest import read_manifest, write_manifest
from caeav.manifests.readers import MARKER_FILES
from caeav.model.adapters import trunk as trunk_module
from caeav.model.adapters.batch import TrunkOutput
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.live import Live, pair_blocks
from caeav.model.tasks.ave.config import WeakAveLossConfig
from caeav.model.tasks.ave.head import WeakAveHead
from caeav.model.tasks.ave.loss import weak_ave_loss
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.datasets import LAYOUTS, mismatch_hint, task_for_dataset, task_from_labels
from caeav.model.tasks.sample import Sample, Samples, clip_samples
from caeav.model.train.config_file import resolve_config
from caeav.pipeline.store.record import Tap


@pytest.mark.parametrize(
    ("task", "dataset", "instead"),
    [
        ("avs-s4", "synthetic-music-avqa", "--task avqa --dataset synthetic-music-avqa"),
        ("ave", "llp", "--task avvp --dataset llp"),
        ("avqa", "synthetic", "--task ave --dataset synthetic"),
        ("avqa", "avs-ms3", "--task avs-ms3 --dataset avs-ms3"),
    ],
)
def test_a_mismatch_names_the_right_task_and_the_right_data_sets(
    task: str, dataset: str, instead: str
) -> None:
    hint = mismatch_hint(task, dataset)
    assert f"caeav train {instead}, which" in hint
    for layout in LAYOUTS[task]:
        assert layout in hint


@pytest.mark.parametrize(
    ("task", "dataset"), [("ave-weak", "ave"), ("avs-s4", "synthetic-avs-ms3"), ("avvp", "my-folder")]
)
def test_no_hint_where_task_and_data_set_fit_or_are_unknown(task: str, dataset: str) -> None:
    assert mismatch_hint(task, dataset) == ""


def test_every_task_has_data_sets_of_its_own() -> None:
    assert set(LAYOUTS) == set(TASKS)
    assert {layout for layouts in LAYOUTS.values() for layout in layouts} == set(MARKER_FILES)


@pytest.mark.parametrize(
    ("task", "events", "said"),
    [("ave", {"val", "test"}, "no train clip"), ("ave-weak", {"val"}, "no train clip"),
     ("avvp", {"train"}, "no val or test clip"), ("ave", {"train"}, ""), ("avvp", {"test"}, "")],
)  # fmt: skip
def test_missing_events_are_refused_with_their_split(task: str, events: set[str], said: str) -> None:
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
            TASKS[task].fit_metadata(manifest, splits)
    else:
        assert TASKS[task].fit_metadata(manifest, splits) == {}


@pytest.mark.parametrize(
    ("dataset", "task"),
    [("ave", "ave"), ("synthetic", "ave"), ("llp", "avvp"), ("avs-ms3", "avs-ms3"), ("avs-s4", "avs-s4"),
     ("synthetic-avs-ms3", "avs-ms3"), ("music-avqa", "avqa"), ("my-folder", "")],
)  # fmt: skip
def test_a_known_data_set_has_a_task(dataset: str, task: str) -> None:
    assert task_for_dataset(dataset) == task


TIMED, ONLY_HEARD = Event("dog", 0, 1), Event("dog", 0, 1, "audio")


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        ([((), {})], ""),
        ([((), {}), ((TIMED,), {})], "ave"),
        ([((), {"labels": ["dog"]})], "ave-weak"),
        ([((TIMED,), {}), ((), {"labels": ["dog"]})], "ave"),  # in whatever order
        ([((), {"labels": ["dog"]}), ((TIMED,), {})], "ave"),
        ([((TIMED,), {}), ((TIMED, ONLY_HEARD), {})], "avvp"),
        ([((), {"masks": [None, None]})], ""),
        ([((), {"masks": [None, "x"]})], "avs-ms3"),
        ([((), {"masks": ["x"], "category": "dog"})], "avs-s4"),
        ([((TIMED,), {}), ((), {"questions": [{}], "masks": ["x"]})], "avqa"),
        ([((), {"questions": []})], ""),
    ],
)
def test_the_task_follows_from_the_labels(
    rows: list[tuple[tuple[Event, ...], dict[str, Any]]], task: str
) -> None:
    clips = [Clip(f"c{i}", "a.mp4", 0, 4, "train", events, extra) for i, (events, extra) in enumerate(rows)]
    assert task_from_labels(Manifest("mine", 4, 1.0, ("dog",), tuple(clips))) == task


def test_samples_are_the_clips_of_the_splits_in_memory_and_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = ("train", "", "val", "train", "test", "val")
    clips = tuple(Clip(f"c{i}", "a.mp4", 0, 4, split) for i, split in enumerate(splits))
    manifest = Manifest("mine", 4, 1.0, ("dog",), clips)
    held = clip_samples(manifest)
    assert [(x.key, x.split) for x in held] == [
        ("c0", "train"), ("c2", "val"), ("c3", "train"), ("c4", "test"), ("c5", "val")
    ]  # fmt: skip
    assert all(x.clip is clips[int(x.key[1:])] and x.detail == {} for x in held)
    write_manifest(manifest, tmp_path / "m.jsonl")
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    filed = clip_samples(read_manifest(tmp_path / "m.jsonl"))
    assert isinstance(filed.manifest.clips, LazyClips) and tuple(filed) == tuple(held)
    for split in ("train", "val", "test"):
        assert [x.key for x in filed.of_split(split)] == [x.key for x in held if x.split == split]
    kept = np.array([True, True, False, True, False, True])  # of all clips, those of no split too
    assert [x.key for x in filed.where(kept)] == ["c0", "c3", "c5"]
    assert [x.key for x in filed[1:3]] == ["c2", "c3"] and list(filed.keys[:2]) == ["c0", "c2"]


def test_every_task_is_registered_under_its_name() -> None:
    assert {name: TASKS[name].name for name in TASKS.names()} == {name: name for name in TASKS.names()}


def test_tasks_refuse_questions_and_missing_classes() -> None:
    clip = Clip("c", "a.mp4", 0, 4, "val")
    for name in ("ave", "avvp", "avs-s4"):
        task = TASKS[name]
        with pytest.raises(CaeavError, match=f"task '{name}' answers no questions"):
            task.sample_of(clip, "how many?")
    task = TASKS["ave"]
    assert task.sample_of(clip, "") == Sample("c", clip, "")
    with pytest.raises(CaeavError, match="data set 'mine' has no classes"):
        task.classes(Manifest("mine", 4, 1.0, (), ()), {})
    assert task.classes(Manifest("mine", 4, 1.0, ("dog", "cat"), ()), {}) == ("dog", "cat")
    assert task.describe(SimpleNamespace(classes=("a", "b", "c"))) == "3 classes"  # type: ignore[arg-type]


def test_the_weak_task_builds_its_own_head_and_learns_from_clips() -> None:
    config = resolve_config("ave-weak", assignments=["model.head.width=16"])
    trunk: Any = SimpleNamespace(visual_channels=12, audio_channels=8)
    inputs: Any = SimpleNamespace(classes=("a", "b", "c"))
    head = TASKS["ave-weak"].build_head(trunk, inputs, config.model.head)
    assert isinstance(head, WeakAveHead)
    out = TrunkOutput(torch.randn(2, 5, 4, 12), torch.randn(2, 5, 6, 8))
    assert head(out).seconds.shape == (2, 5, 3)
    clip = torch.rand(2, 3).log().requires_grad_()
    labels = torch.eye(4)[torch.tensor([[0, 3, 3], [1, 1, 3]])]
    batch: Any = SimpleNamespace(targets={"labels": labels})
    losses = TASKS["ave-weak"].losses(SimpleNamespace(clip=clip), batch, config)
    assert losses == {"clip": weak_ave_loss(clip, labels)} and losses["clip"].requires_grad
    assert config.loss.model_dump()["clip"] == WeakAveLossConfig().clip == 1.0


def test_the_placement_decides_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(trunk_module, "LadderTrunk", lambda *given: made.append(("ladder", *given)))
    monkeypatch.setattr(trunk_module, "InjectTrunk", lambda *given: made.append(("inject", *given)))
    spec, live = object(), object()
    config = AdapterConfig()
    trunk_module.build_trunk(spec, config, live)  # type: ignore[arg-type]
    inject = config.model_copy(update={"placement": "inject"})
    trunk_module.build_trunk(spec, inject, live)  # type: ignore[arg-type]
    assert made == [("ladder", spec, config), ("inject", spec, live, inject)]
    with pytest.raises(CaeavError, match="no live backbones were given"):
        trunk_module.build_trunk(spec, inject)  # type: ignore[arg-type]


def test_live_backbones_name_their_taps_and_pair_their_blocks() -> None:
    visual_stages: Any = [SimpleNamespace(tokens=16 // 4**i, channels=8 * 2**i) for i in range(2)]
    audio_stages: Any = [SimpleNamespace(tokens=9 - i, channels=5 + i) for i in range(2)]
    part: Any = SimpleNamespace
    made = Live(part(stages=visual_stages, module="v"), part(stages=audio_stages, module="a"))
    assert made.modules == ("v", "a")
    assert made.taps(1) == (Tap("visual.stage2", 4, 16), Tap("audio.stage2", 8, 6))
    assert pair_blocks(6, 2) == [None, None, 0, None, None, 1]
    for visual, audio in ((3, 2), (2, 4), (2, 0)):
        with pytest.raises(CaeavError, match=f"{visual} visual and {audio} audio blocks"):
            pair_blocks(visual, audio)
    with pytest.raises(CaeavError, match="of 2 visual and 1 audio stages"):
        Live(part(stages=visual_stages), part(stages=audio_stages[:1]))


def test_several_samples_of_a_clip_share_its_place() -> None:
    clips = tuple(Clip(f"c{i}", "a.mp4", 0, 4) for i in range(4))
    manifest = Manifest("mine", 4, 1.0, (), clips)
    listed = [Sample(f"q{n}", clips[row], split) for n, (row, split) in enumerate(
        ((2, "val"), (0, "train"), (2, "train"), (3, "train")))]  # fmt: skip
    samples = Samples.of(listed, manifest)
    assert Samples.of(samples, manifest) is samples and list(samples) == listed
    assert samples.rows.tolist() == [2, 0, 2, 3] and list(samples.keys) == ["q0", "q1", "q2", "q3"]
    keys, clip_of = samples.clips()
    assert (list(keys), list(clip_of)) == (["c2", "c0", "c3"], [0, 1, 0, 2])
    assert list(samples.of_split("train")) == listed[1:] and list(samples[:2]) == listed[:2]
    assert list(samples.where(np.array([True, True, False, True]))) == [listed[1], listed[3]]
