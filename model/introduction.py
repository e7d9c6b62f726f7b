"""What a training tells its reader before it begins: what joins what, how large it is, what to be careful about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from caeav.manifests.wording import counted
from caeav.model.train.data import MIB, clip_bytes
from caeav.model.train.protocol import AS_PUBLISHED, PUBLISHED
from caeav.model.train.stress import active, said
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
    counts = ", ".join(
        f"{name} {joined.clips(name)}"
        + (f" (+{len(joined.left_out[name])} in quarantine)" if joined.left_out[name] else "")
        + (f" with {counted(len(samples), experiment.task.row)}" if len(samples) > joined.clips(name) else "")
        for name, samples in joined.splits.items()
    )
    lines.append(f"  clips     {counts}; {experiment.task.about(experiment.inputs)}")
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
