"""What people read about a run: a few lines before training, and the model card after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from caeav.manifests.core.atomic import publish_text
from caeav.manifests.core.util import capitalised, counted
from caeav.model.tasks.bootstrap import format_interval
from caeav.model.train.agreement import weak_agreement
from caeav.model.train.config_file import dump_config
from caeav.model.train.data import MIB, clip_bytes
from caeav.model.train.experiment import Experiment
from caeav.model.train.markdown import literal, markdown_table
from caeav.model.train.protocol import AS_PUBLISHED, PUBLISHED, sentence
from caeav.model.train.provenance import backbones
from caeav.model.train.runs import ADAPTER, CARD, CONFIG, Run
from caeav.model.train.stress import active, stress_text
from caeav.pipeline.store import StoreReader


def introduction(experiment: Experiment) -> list[str]:
    """The lines printed before training: what is joined, how large it is, what to be careful about."""
    config, joined = experiment.config, experiment.joined
    training = config.training
    parts = experiment.parameters
    lines = [
        f"{config.task} / {config.recipe} on {config.dataset}: {experiment.device.type}, {training.precision}, "
        f"{counted(torch.get_num_threads(), 'thread')}, best epoch by {config.select_on}"
    ]
    if config.protocol == PUBLISHED:
        lines.append(f"  protocol  published: {AS_PUBLISHED[config.task].rules}")
    for store in joined.stores:
        name, clips = store.url or store.path.name, counted(len(store.keys), "clip")
        lines.append(f"  {store.recipe.kind:<9} {name}: {clips}, {_shapes_text(store)}")
    if config.stores.window_shards:
        lines.append(
            f"  order     within windows of {counted(config.stores.window_shards, 'shard')}, as the cache holds no more"
        )
    noun = experiment.task.sample_noun
    counts = ", ".join(
        f"{name} {joined.clips(name)}"
        + (f" (+{len(joined.left_out[name])} in quarantine)" if joined.left_out[name] else "")
        + (f" with {counted(len(samples), noun)}" if len(samples) > joined.clips(name) else "")
        for name, samples in joined.splits.items()
    )
    lines.append(f"  clips     {counts}; {experiment.task.describe(experiment.inputs)}")
    if experiment.live is not None:
        taps = ", ".join(tap.name for tap in (*experiment.inputs.spec.visual, *experiment.inputs.spec.audio))
        lines.append(
            f"  live      frozen backbones run from {taps}; adapters from {config.model.adapters.inject_from} on"
        )
    each = clip_bytes(joined)
    held = "kept in RAM" if experiment.preloaded else "read from the stores as needed"
    lines.append(f"  memory    {each / MIB:.2f} MiB per clip, {each * experiment.clips / MIB:.0f} MiB {held}")
    lines.append(
        f"  trainable {sum(parts.values()):,}: {', '.join(f'{part} {n:,}' for part, n in parts.items())}"
    )
    if active(config.augment):
        lines.append(f"  augment   {stress_text(config.augment)}")
    if not joined.splits["test"]:
        lines.append("  note      no test clips: only val will be scored")
    return lines + [f"  note      {remark}" for remark in joined.remarks]


def _shapes_text(store: StoreReader) -> str:
    """`visual.stage1 64x64, ...`: tokens by channels of each array, without caption masks."""
    specs = {name: spec for name, spec in store.array_specs().items() if not name.endswith("_mask")}
    return ", ".join(f"{name} {spec.shape[-2]}x{spec.shape[-1]}" for name, spec in specs.items())


def write_card(run: Run, experiment: Experiment, result: dict[str, Any]) -> None:
    """Publish `card.md`."""
    publish_text(run.folder / CARD, card_text(run, experiment, result))


def card_text(run: Run, experiment: Experiment, result: dict[str, Any]) -> str:
    """The card in Markdown."""
    command = run.origin()["command"]
    config, inputs = experiment.config, experiment.inputs
    scores = [
        [
            name,
            f"{value:.2f}",
            format_interval(result["intervals"].get(name), result["metric"]),
            f"{result['majority'][name]:.2f}",
            str(result["clips"][name]),
            str(result["left_out"][name]),
        ]
        for name, value in result["scores"].items()
    ]
    stores = [
        [
            fact["kind"],
            f"`{literal(fact['folder'])}`",
            f"`{fact['fingerprint'][:12]}`",
            str(fact["clips"]),
            str(fact["quarantined"]),
        ]
        for fact in experiment.stores_json()["stores"]
    ]
    parts = [[f"`{part}`", f"{count:,}"] for part, count in result["parameters"].items()]
    parts.append(["**all**", f"{sum(result['parameters'].values()):,}"])
    per_class = [[literal(value) for value in row.values()] for row in result["per_class"].get("test", [])]
    columns = list(result["per_class"]["test"][0]) if per_class else []
    details = [
        [name, *(_with_interval(result, split, name) for split in result["scores"])]
        for name in next(iter(result["details"].values()), {})
    ]
    sections = [
        f"# {run.name}",
        f"Adapters and head for task **{config.task}** (recipe `{config.recipe}`) on cached tokens of the data set "
        f"**{literal(config.dataset)}**: {experiment.task.describe(inputs)}, {inputs.spec.segments} segments of "
        f"{inputs.segment_s:g} s. Backbones: {literal(backbones(config, run.token_recipes()))}; they are frozen and "
        f"not part of this model. `{ADAPTER}` holds all trained parameters.",
        "## Scores",
        f"{result['metric'].capitalize()} in percent, official metric. "
        f"{sentence(config.task, config.protocol, config.select_on)} Seed "
        f"{config.seed}, {result['epochs']} epochs, best epoch {result['best_epoch']}"
        f"{', stopped early' if result['stopped_early'] else ''}. Majority: always the most frequent answer of train. "
        f"{_about_intervals(result)}",
        markdown_table(
            ["split", "score", "interval", "majority", result["rows"], "clips left out (quarantine)"],
            scores,
        ),
        *besides(result),
        *([markdown_table(["also", *result["scores"]], details)] if details else []),
        *(["### Test, class by class", markdown_table(columns, per_class)] if per_class else []),
        "## Trained on",
        markdown_table(["store", "folder", "fingerprint", "clips", "quarantined"], stores),
        *(
            ["\n".join(f"- {literal(remark)}" for remark in experiment.joined.remarks)]
            if experiment.joined.remarks
            else []
        ),
        "## Trainable parameters",
        markdown_table(["part", "parameters"], parts),
        "## Repeat it",
        "```\n"
        + (f"{command}\n# or, from this folder's own configuration:\n" if command else "")
        + f"caeav train --task {config.task} --recipe {config.recipe} --config {CONFIG}\n```",
        "## Configuration",
        f"```yaml\n{dump_config(config)}```",
    ]
    return "\n\n".join(sections) + "\n"


def _about_intervals(result: dict[str, Any]) -> str:
    for made in result["intervals"].values():
        return (
            f"Intervals: {made['level']:g} %, bootstrap of {made['resamples']} resamples over {made['unit']}; they say "
            "what other test clips could change, not what another seed would."
        )
    return ""


def _with_interval(result: dict[str, Any], split: str, name: str) -> str:
    held = format_interval(result["intervals"].get(split), name)
    return f"{result['details'][split][name]:.2f}" + (f" ({held})" if held else "")


def besides(result: dict[str, Any]) -> list[str]:
    """Further sentences about a result: segments without media, best numbers over epochs, the score with leaked
    clips, as far as the run has them."""
    sentences = []
    if result.get("bare"):
        sentences.append(bare_sentence({split: tuple(pair) for split, pair in result["bare"].items()}))
    if weak := weak_agreement(result.get("agreement", {}).get("auc")):
        sentences.append(f"{capitalised(weak)}.")
    for split, peaks in result.get("peaks", {}).items():
        best = ", ".join(f"{name} {value:.2f}" for name, value in peaks.items())
        sentences.append(f"Best over epochs on {split}, each number in its own epoch: {best}.")
    if "leaks" in result:
        gone = ", ".join(f"{n} of {split}" for split, n in result["leaks"]["left_out"].items())
        whole = ", ".join(f"{split} {x:.2f}" for split, x in result["leaks"]["scores_with"].items())
        sentences.append(
            f"Clips whose video is in another split too are left out everywhere ({result['rows']}: {gone}); "
            f"scored with them: {whole}."
        )
    return sentences


def bare_sentence(bare: Mapping[str, tuple[int, int]]) -> str:
    """What segments without media mean for the scores; `bare`: split -> how many of how many segments."""
    counts = ", ".join(f"{split} {n} of {of}" for split, (n, of) in bare.items())
    return (
        f"Segments with neither frames nor audio, as past the end of the media: {counts}. Losses and scores count "
        "them with their labels, as the official code does."
    )
