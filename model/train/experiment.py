"""An experiment: the checked configuration, the joined data, the task and how to build and score its network.

`prepare` makes one and refuses whatever is wrong before a run folder exists; `reopen` makes that of an existing run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.manifest import manifest_digest
from caeav.model.adapters.batch import BatchTransform, Inputs
from caeav.model.adapters.live import Live, LiveOpener
from caeav.model.adapters.trunk import required_inputs
from caeav.model.tasks.base import TASKS, Scores, Task
from caeav.model.tasks.config import RunConfig
from caeav.model.tasks.datasets import mismatch_hint
from caeav.model.tasks.sample import Sample
from caeav.model.train.checkpoint import parameter_counts
from caeav.model.train.data import SplitData, fits
from caeav.model.train.evaluate import Observer, choose_device, score
from caeav.model.train.join import Joined, join_stores, store_facts
from caeav.model.train.network import Network, build_network
from caeav.model.train.processes import ONE, Processes
from caeav.model.train.remarks import some_clips
from caeav.model.train.resume import seed_epoch
from caeav.model.train.runs import Run
from caeav.model.train.store_choice import store_setting
from caeav.model.train.stress import Augment, active, check_stress
from caeav.model.train.used_stores import STORES
from caeav.model.train.windows import fitting_window
from caeav.pipeline.store.remote.cache import cache_limit


@dataclass(frozen=True)
class Experiment:
    """Everything known before training. `all_splits`: the splits before leaked clips were left out of `joined`.

    `processes`: those that train and score together; each holds an experiment of its own on its `device`.
    """

    config: RunConfig
    home: Home
    task: Task
    device: torch.device
    joined: Joined
    inputs: Inputs
    all_splits: Mapping[str, Sequence[Sample]]
    live: Live | None = None
    processes: Processes = ONE

    @cached_property
    def targets(self) -> dict[str, dict[str, Tensor]]:
        """Split -> targets of its samples."""
        return {name: self.task.targets(self.inputs, samples) for name, samples in self.joined.splits.items()}

    @cached_property
    def preloaded(self) -> bool:
        """Whether all splits together fit into the RAM that `training.preload_mb` allows."""
        return fits(self.joined, self.clips, self.config.training.preload_mb)

    @property
    def clips(self) -> int:
        """Number of clips in all splits."""
        return sum(map(self.joined.clips, self.joined.splits))

    @cached_property
    def data(self) -> dict[str, SplitData]:
        """Split -> its data, shared by all seeds."""
        return {
            name: self._data(samples, self.targets[name], preload=self.preloaded)
            for name, samples in self.joined.splits.items()
        }

    def _data(self, samples: Sequence[Sample], targets: Mapping[str, Tensor], *, preload: bool) -> SplitData:
        transforms = self.task.transforms(self.config)
        if active(self.config.augment):
            transforms = (Augment(self.config.augment), *transforms)
        extra = self.task.extra_inputs(self.inputs, samples)
        return SplitData(self.joined, samples, targets, extra=extra, transforms=transforms, preload=preload)

    def build(self) -> Network:
        """The network with the initial weights of the seed."""
        seed_epoch(self.config.seed, 0)
        return self._network().to(self.device)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Trainable parameters per part of the network, counted without allocating it."""
        with torch.device("meta"):
            return parameter_counts(self._network())

    def _network(self) -> Network:
        return build_network(self.task, self.inputs, self.config.model, self.live)

    def score(
        self,
        model: nn.Module,
        split: str,
        stress: BatchTransform | None = None,
        observe: Observer | None = None,
    ) -> Scores:
        """Official score of `model` on `split`, with inputs damaged by `stress`; `observe` sees every batch."""
        data = self.data[split] if stress is None else self.data[split].transformed(stress)
        return score(self.task, model, data, self.inputs, self.config, self.device, observe, self.processes)

    def score_with_leaks(self, model: nn.Module, split: str) -> Scores:
        """Official score of `model` on `split` including the clips left out as leaked."""
        samples = self.all_splits[split]
        data = self._data(samples, self.task.targets(self.inputs, samples), preload=False)
        return score(self.task, model, data, self.inputs, self.config, self.device, processes=self.processes)

    def without_leaks(self) -> Experiment:
        """The same without clips whose video is in another split too; itself when they are left out already."""
        return self if self.config.drop_leaks else replace(self, joined=self.joined.without_leaks())

    def majority(self, split: str) -> float:
        """Score on `split` of the best constant prediction, as found on the training targets."""
        return self.task.majority_score(self.inputs, self.config, self.targets["train"], self.targets[split])

    def stores_json(self) -> dict[str, Any]:
        """What is joined, for the run's `stores.json`."""
        return {
            "labels": manifest_digest(self.joined.manifest),
            "stores": store_facts(self.joined, self.home),
        }

    def with_seed(self, seed: int) -> Experiment:
        """The same experiment with another seed, sharing the data already read."""
        other = replace(self, config=self.config.model_copy(update={"seed": seed}))
        for name in ("targets", "parameters", "preloaded", "data"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other


def prepare(
    home: Home, config: RunConfig, live: LiveOpener | None = None, processes: Processes = ONE
) -> Experiment:
    """Find the device, join the stores, check the splits; raises `CaeavError` and writes nothing.

    `live` opens the stores' backbones where the placement needs them. The experiment's configuration names the joined
    stores in full, so that a run repeats them.
    """
    device = choose_device(config.training.device, processes)
    _require_shares(config, processes)
    task = TASKS[config.task]
    joined = join_stores(
        home,
        config.dataset,
        config.stores.tokens,
        config.stores.captions,
        captions=config.captions,
        taps=config.stores.taps,
        samples=task.samples,
    )
    adapters = config.model.adapters
    joined = replace(joined, spec=required_inputs(joined.spec, adapters, keeps_stages=task.keeps_stages))
    all_splits = joined.splits
    joined = joined.without_leaks() if config.drop_leaks else joined
    augment = config.augment
    check_stress(list(active(augment)), joined.spec, captions=config.captions, shift=augment.shift)
    for split in dict.fromkeys(("train", config.select_on)):
        if not joined.splits[split]:
            raise CaeavError(
                f"data set {config.dataset!r} has no usable clip in split {split!r}; it has {_counts(joined)}",
                hint=mismatch_hint(config.task, config.dataset)
                or _empty_split_hint(joined, split, config.dataset),
            )
    pinned = config.stores.model_copy(
        update={
            "tokens": [store_setting(store) for store in joined.tokens],
            "captions": store_setting(joined.captions) if joined.captions is not None else "",
            "window_shards": _window(config, joined),
        }
    )
    inputs = inputs_of(task, config.dataset, joined)
    backbones = None
    if live is not None and adapters.placement == "inject":
        backbones = live([store.recipe for store in joined.tokens])
    config = config.model_copy(update={"stores": pinned})
    experiment = Experiment(config, home, task, device, joined, inputs, all_splits, backbones, processes)
    _ = experiment.targets  # raises for unusable labels
    _ = experiment.parameters  # raises for taps and backbones that do not fit the model
    return experiment


def inputs_of(task: Task, dataset: str, joined: Joined) -> Inputs:
    """What a network of `task` is told of the joined data; raises `CaeavError` for labels it cannot use."""
    manifest = joined.manifest
    try:
        facts = task.fit_metadata(manifest, joined.splits)
        classes = task.classes(manifest, facts)
    except CaeavError as error:
        raise CaeavError(error.problem, hint=mismatch_hint(task.name, dataset) or error.hint) from error
    return Inputs(dataset, classes, manifest.segment_s, joined.spec, facts)


def reopen(
    home: Home,
    run: Run,
    device: str | None = None,
    live: LiveOpener | None = None,
    processes: Processes = ONE,
) -> Experiment:
    """The experiment of an existing run; raises `CaeavError` when its stores or labels have changed."""
    config = run.config()
    if device is not None:
        config = config.model_copy(update={"training": config.training.model_copy(update={"device": device})})
    experiment = prepare(home, config, live, processes)
    if (run.folder / STORES).exists():
        then, now = run.stores(), experiment.stores_json()
        changed = [
            f"{old['kind']} store {old['folder']}: {field} {old[field]} -> {new[field]}"
            for old, new in zip(then["stores"], now["stores"], strict=True)
            for field in ("fingerprint", "digest")
            if old[field] != new[field]
        ]
        if then["labels"] != now["labels"]:
            changed.append(
                f"labels or splits of {config.dataset}: {then['labels'][:12]} -> {now['labels'][:12]}"
            )
        if changed:
            raise CaeavError(
                f"what run {run.name} was trained on has changed:\n  " + "\n  ".join(changed),
                hint="restore it, or train a new run",
            )
    return experiment


def _require_shares(config: RunConfig, processes: Processes) -> None:
    """Refuse what several processes cannot share."""
    if config.training.batch_size < processes.count:
        raise CaeavError(
            f"a batch of {config.training.batch_size} samples for {processes.count} processes",
            hint="training.batch_size is of the whole batch, which the processes divide; start fewer, or raise it",
        )
    if processes.count > 1 and config.model.adapters.inject.frozen_train_mode:
        raise CaeavError(
            "inject.frozen_train_mode is true: what the backbones draw cannot be divided among processes",
            hint="set it to false, or train with a single process",
        )


def _window(config: RunConfig, joined: Joined) -> int:
    """Shards per window of an epoch: as the run says, else what the cache of a bucket's stores holds; 0 for all."""
    if config.stores.window_shards is not None:
        return config.stores.window_shards
    if not any(store.url for store in joined.stores):
        return 0
    clips = sum(map(joined.clips, joined.splits))
    in_memory = fits(joined, clips, config.training.preload_mb)
    return 0 if in_memory else fitting_window(joined.stores, cache_limit())


def _empty_split_hint(joined: Joined, split: str, dataset: str) -> str:
    """What to do about a split without usable clips."""
    extract = f"caeav extract --dataset {dataset}"
    if joined.left_out[split]:
        return (
            f"all its clips ({some_clips(joined.left_out[split])}) are in quarantine; caeav store show says why, and "
            f"{extract} --retry-failed tries them again"
        )
    return (
        "give each file a split: train, val or test in a column split of the csv that --labels names, or folders "
        f"<split>/<class>/ and --labels folders; then {extract}, which takes them over in seconds"
    )


def _counts(joined: Joined) -> str:
    return ", ".join(f"{name} {len(samples)}" for name, samples in joined.splits.items())
