"""The model card of a finished run: what it is, what it was trained on, how it scored, how to repeat it.

What a training tells its reader before it begins: what joins what, how large it is, what to be careful about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from caeav.manifests.core.atomic import publish_text
from caeav.manifests.core.util import counted
from caeav.model.tasks.bootstrap import format_interval
from caeav.model.train.config_file import dump_config
from caeav.model.train.data import MIB, clip_bytes
from caeav.model.train.protocol import AS_PUBLISHED, PUBLISHED, sentence
from caeav.model.train.runs import ADAPTER, CARD, CONFIG, Run, backbones
from caeav.model.train.stress import active, said
from caeav.model.train.table import literal, markdown_table
from caeav.pipeline.store import StoreReader

if TYPE_CHECKING:
    from caeav.model.train.experiment import Experiment


def introduction(experiment: Experiment) -> list[str]:
    """The lines."""
    config, joined = experiment.config, experiment.joined
    training = config.training
    parts = experiment.parameters
    lines = [
        f"{config.task} / {config.recipe} on {config.dataset}: {experiment.device.type}, {training.precision}, "
        f"{torch.get_num_threads()} threads, best epoch by {config.select_on}"
    ]
    if config.protocol == PUBLISHED:
        lines.append(f"  protocol  published: {AS_PUBLISHED[config.task].rules}")
    for store in joined.stores:
        lines.append(
            f"  {store.recipe.kind:<9} {store.path.name}: {counted(len(store.keys), 'clip')}, {_shapes_said(store)}"
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
            f"  live      frozen backbones, run from {taps}; adapters from {config.model.adapters.inject_from} on"
        )
    each = clip_bytes(joined)
    held = "kept in RAM" if experiment.preloaded else "read from the stores as needed"
    lines.append(f"  memory    {each / MIB:.2f} MiB a clip, {each * experiment.clips / MIB:.0f} MiB {held}")
    lines.append(
        f"  trainable {sum(parts.values()):,}: {', '.join(f'{part} {n:,}' for part, n in parts.items())}"
    )
    if active(config.augment):
        lines.append(f"  augment   {said(config.augment)}")
    if not joined.splits["test"]:
        lines.append("  note      no test clips: only val will be scored")
    return lines + [f"  note      {remark}" for remark in joined.remarks]


def _shapes_said(store: StoreReader) -> str:
    """`visual.stage1 64x64, ...`: tokens by channels of a tap, caption masks left out."""
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
        f"{inputs.segment_s:g} s. Backbones: {literal(backbones(config, run.token_recipes()))}; they are frozen and no "
        f"part of this model. `{ADAPTER}` holds all trained parameters.",
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
    """Sentences: segments of which no media were, the best of all epochs each for itself, the score with leaked clips,
    where the run has them."""
    said = []
    if result.get("bare"):
        said.append(bare_said({split: tuple(pair) for split, pair in result["bare"].items()}))
    for split, peaks in result.get("peaks", {}).items():
        best = ", ".join(f"{name} {value:.2f}" for name, value in peaks.items())
        said.append(f"Best over epochs on {split}, each number for itself: {best}.")
    if "leaks" in result:
        gone = ", ".join(f"{n} of {split}" for split, n in result["leaks"]["left_out"].items())
        whole = ", ".join(f"{split} {x:.2f}" for split, x in result["leaks"]["scores_with"].items())
        said.append(
            f"Clips whose video is in another split too are left out everywhere ({result['rows']}: {gone}); "
            f"scored with them: {whole}."
        )
    return said


def bare_said(bare: Mapping[str, tuple[int, int]]) -> str:
    """Split -> in how many of how many segments there was neither picture nor sound: what that means for the scores."""
    counts = ", ".join(f"{split} {n} of {of}" for split, (n, of) in bare.items())
    return (
        f"Segments with neither picture nor sound, as past the end of the media: {counts}. They count with their "
        "labels in losses and scores, as in the official code."
    )
