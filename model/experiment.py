"""One experiment from configuration to scored run: join, build, train, load the best, score once, write it all down.

The test split is scored once, after training, with the weights that did best on the selection split.
`prepare` fails on anything wrong before a run folder exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from caeav.manifests.clip import SPLITS
from caeav.manifests.errors import CaeavError
from caeav.manifests.home import Home
from caeav.manifests.jsonl import manifest_digest
from caeav.model.card import write_card
from caeav.model.checkpoint import load_into, parameter_counts, read_tensors, trainable_state, write_tensors
from caeav.model.config import RunConfig
from caeav.model.data import MIB, SplitData, clip_bytes, fits
from caeav.model.environment import describe_environment
from caeav.model.evaluate import score
from caeav.model.join import Joined, join_stores, store_facts
from caeav.model.network import Network, build_network
from caeav.model.placements.live import Live, LiveOpener
from caeav.model.placements.needs import needed
from caeav.model.resume import BEST, seed_epoch
from caeav.model.runs import ADAPTER, ENVIRONMENT, INPUTS, RESULT, STORES, Inputs, Run
from caeav.model.task import TASKS, Scores, Task
from caeav.model.train import Trainer, Watcher, choose_device
from caeav.pipeline.store import StoreReader


@dataclass(frozen=True)
class Experiment:
    """Everything that is known before training: checked configuration, joined data, task, device."""

    config: RunConfig
    home: Home
    task: Task
    device: torch.device
    joined: Joined
    inputs: Inputs
    live: Live | None = None

    @cached_property
    def targets(self) -> dict[str, dict[str, Tensor]]:
        """Split -> targets."""
        return {name: self.task.targets(self.inputs, samples) for name, samples in self.joined.splits.items()}

    @cached_property
    def preloaded(self) -> bool:
        """Whether all splits together fit into the RAM that the configuration allows."""
        return fits(self.joined, self.clips, self.config.training.preload_mb)

    @property
    def clips(self) -> int:
        """Clips of all splits."""
        return sum(map(self.joined.clips, self.joined.splits))

    @cached_property
    def data(self) -> dict[str, SplitData]:
        """Split -> samples, read once and shared by all seeds."""
        return {
            name: SplitData(
                self.joined,
                samples,
                self.targets[name],
                extra=self.task.given(self.inputs, samples),
                changes=self.task.changes(self.config),
                preload=self.preloaded,
            )
            for name, samples in self.joined.splits.items()
        }

    def build(self) -> Network:
        """The network with the initial weights of the run's seed."""
        seed_epoch(self.config.seed, 0)
        return build_network(self.task, self.inputs, self.config.model, self.live).to(self.device)

    def score(self, model: nn.Module, split: str) -> Scores:
        """Official score of `model` on `split`."""
        return score(self.task, model, self.data[split], self.inputs, self.config, self.device)

    def majority(self, split: str) -> float:
        """Score on `split` of the best constant answer that the training targets suggest."""
        return self.task.majority(self.inputs, self.config, self.targets["train"], self.targets[split])

    def stores_json(self) -> dict[str, Any]:
        """What is joined, for the run's `stores.json`."""
        return {
            "labels": manifest_digest(self.joined.manifest),
            "stores": store_facts(self.joined, self.home),
        }

    def introduction(self) -> list[str]:
        """What joins what, line by line, for the reader before training."""
        config, joined = self.config, self.joined
        training = config.training
        parts = parameter_counts(self.build())
        lines = [
            f"{config.task} / {config.recipe} on {config.dataset}: {self.device.type}, {training.precision}, "
            f"{torch.get_num_threads()} threads, best epoch by {config.select_on}"
        ]
        for store in joined.stores:
            lines.append(
                f"  {store.recipe.kind:<9} {store.path.name}: {len(store.keys)} clips, {_shapes_said(store)}"
            )
        counts = ", ".join(
            f"{name} {joined.clips(name)}"
            + (f" (+{len(joined.left_out[name])} in quarantine)" if joined.left_out[name] else "")
            + (f" with {len(samples)} questions" if len(samples) > joined.clips(name) else "")
            for name, samples in joined.splits.items()
        )
        lines.append(f"  clips     {counts}; {self.task.about(self.inputs)}")
        if self.live is not None:
            taps = ", ".join(tap.name for tap in (*self.inputs.spec.visual, *self.inputs.spec.audio))
            lines.append(
                f"  live      frozen backbones, run from {taps}; adapters from {config.model.adapters.inject_from} on"
            )
        each = clip_bytes(joined)
        held = "kept in RAM" if self.preloaded else "read from the stores as needed"
        lines.append(f"  memory    {each / MIB:.2f} MiB a clip, {each * self.clips / MIB:.0f} MiB {held}")
        lines.append(
            f"  trainable {sum(parts.values()):,}: {', '.join(f'{part} {n:,}' for part, n in parts.items())}"
        )
        if not joined.splits["test"]:
            lines.append("  note      no test clips: only val will be scored")
        return lines + [f"  note      {remark}" for remark in joined.remarks]

    def with_seed(self, seed: int) -> Experiment:
        """The same experiment with another seed, sharing the data already read."""
        other = Experiment(
            self.config.model_copy(update={"seed": seed}),
            self.home,
            self.task,
            self.device,
            self.joined,
            self.inputs,
            self.live,
        )
        for name in ("targets", "preloaded", "data"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other


def prepare(home: Home, config: RunConfig, live: LiveOpener | None = None) -> Experiment:
    """Find the device, join the stores, check the splits; raises `CaeavError` before anything is written.

    `live` opens the stores' backbones where the placement needs them.

    The configuration of the result names the joined stores in full, so that the run's own copy repeats it.
    """
    device = choose_device(config.training.device)
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
    joined = replace(joined, spec=needed(joined.spec, adapters, keeps_stages=task.keeps_stages))
    for split in dict.fromkeys(("train", config.select_on)):
        if not joined.splits[split]:
            raise CaeavError(
                f"data set {config.dataset!r} has no usable clip in split {split!r}; it has {_counts(joined)}",
                hint="give clips a split (train, val, test) in the manifest and build it again",
            )
    pinned = config.stores.model_copy(
        update={
            "tokens": [store.path.name for store in joined.tokens],
            "captions": joined.captions.path.name if joined.captions is not None else "",
        }
    )
    manifest = joined.manifest
    facts = task.learn(manifest, joined.splits)
    inputs = Inputs(config.dataset, task.classes(manifest, facts), manifest.segment_s, joined.spec, facts)
    opened = None
    if live is not None and adapters.placement == "inject":
        opened = live([store.recipe for store in joined.tokens])
    pinned_config = config.model_copy(update={"stores": pinned})
    experiment = Experiment(pinned_config, home, task, device, joined, inputs, opened)
    _ = experiment.targets  # unusable labels are an error now, not after the run folder exists
    if adapters.placement == "inject":
        experiment.build()  # and so are backbones that do not fit the taps
    return experiment


def reopen(home: Home, run: Run, device: str | None = None, live: LiveOpener | None = None) -> Experiment:
    """The experiment of an existing run; refused when its stores or labels are no longer the same."""
    config = run.config()
    if device is not None:
        config = config.model_copy(update={"training": config.training.model_copy(update={"device": device})})
    experiment = prepare(home, config, live)
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


def train(experiment: Experiment, run: Run, watchers: Sequence[Watcher] = ()) -> dict[str, Any]:
    """Train (or go on training) into `run`, score, and return what `result.json` says."""
    run.write(ENVIRONMENT, describe_environment(experiment.device))
    run.write(INPUTS, experiment.inputs.as_json())
    run.write(STORES, experiment.stores_json())
    config, model = experiment.config, experiment.build()
    trainer = Trainer(
        task=experiment.task,
        config=config,
        model=model,
        device=experiment.device,
        data=experiment.data["train"],
        select=lambda: experiment.score(model, config.select_on),
        checkpoints=run.checkpoints,
        watchers=watchers,
    )
    progress = trainer.fit()
    load_best(run, model)
    scored = {name: experiment.score(model, name) for name in SPLITS[1:] if experiment.joined.splits[name]}
    result = {
        "run": run.name,
        "group": run.origin()["group"],
        "task": config.task,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "seed": config.seed,
        "metric": experiment.task.metric,
        "rows": experiment.task.rows,
        "select_on": config.select_on,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "stopped_early": progress.stopped_early,
        "scores": {name: scores.value for name, scores in scored.items()},
        "majority": {name: experiment.majority(name) for name in scored},
        "details": {name: dict(scores.details) for name, scores in scored.items()},
        "per_class": {name: [dict(row) for row in scores.per_class] for name, scores in scored.items()},
        "clips": {name: len(samples) for name, samples in experiment.joined.splits.items()},
        "left_out": {name: len(keys) for name, keys in experiment.joined.left_out.items()},
        "parameters": parameter_counts(model),
    }
    facts = {"inputs": experiment.inputs.as_json(), "config": config.model_dump(mode="json"), "run": run.name}
    write_tensors(run.folder / ADAPTER, trainable_state(model), facts)
    write_card(run, experiment, result)
    run.write(RESULT, result)
    return result


def load_best(run: Run, model: nn.Module) -> None:
    """Load the weights that did best on the selection split into `model`."""
    path = run.checkpoints / BEST
    if not path.exists():
        raise CaeavError(
            f"run {run.name} has no finished epoch yet ({path} is not there)",
            hint=f"caeav train --resume {run.name}",
        )
    tensors, _ = read_tensors(path)
    load_into(model, tensors, path)


def _shapes_said(store: StoreReader) -> str:
    """`visual.stage1 64x64, ...`: tokens by channels of a tap, caption masks left out."""
    specs = {name: spec for name, spec in store.array_specs().items() if not name.endswith("_mask")}
    return ", ".join(f"{name} {spec.shape[-2]}x{spec.shape[-1]}" for name, spec in specs.items())


def _counts(joined: Joined) -> str:
    return ", ".join(f"{name} {len(samples)}" for name, samples in joined.splits.items())
