"""The presets `reference` and `lite` side by side: parameters, time and, on the synthetic set, accuracy.

    python benchmarks/presets.py [--home caeav_home/ablation/m60 --seeds 0,1,2] [--repeats 3] [--threads 2]

Parameters and time are those of the ladder at the sizes of Swin-V2-L, HTS-AT and CLIP text: all adapters without a
head, one clip of ten segments, training mode, float32, random weights. Accuracy is that of the `full` recipe on the
embedded tokens of the set in `--home` (made by `benchmarks/ablation.py`); those are small themselves, so `lite` saves
less there and most of its ranks are no narrower than the tokens: the column says that the form still learns, not
what it loses on large backbones. Without `--home` nothing is trained. With it six trainings of the ablation's 12 epochs
take about ten minutes of one core; at the recipe's own number of epochs (`--epochs 0`) it is hours.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from ablation import AS_MEASURED

from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import CaptionSpec, InputSpec, TokenBatch
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.ladder import LadderTrunk
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import prepare
from caeav.model.train.runs import create_run
from caeav.model.train.session import train
from caeav.pipeline.store.record import Tap

VISUAL = ((2304, 192), (576, 384), (144, 768), (36, 1536))
AUDIO = ((4096, 96), (1024, 192), (256, 384), (64, 768))
CAPTION = CaptionSpec(77, 768)
SEGMENTS = 10
SPEC = InputSpec(
    SEGMENTS,
    tuple(Tap(f"visual.stage{i + 1}", *shape) for i, shape in enumerate(VISUAL)),
    tuple(Tap(f"audio.stage{i + 1}", *shape) for i, shape in enumerate(AUDIO)),
    CAPTION,
    CAPTION,
)
PRESETS = ("reference", "lite")
# What a parameter's name contains -> the row it counts in; the first that fits.
PARTS = {
    "merge_": "ladder merges",
    "caste_": "CASTE",
    ".token_proj": "AVMoE: context maps",
    ".channel_proj": "AVMoE: context maps",
    ".low_rank_context": "AVMoE: context maps",
    ".router": "AVMoE: routers",
    "_experts": "AVMoE: experts",
    "guidance.case": "CASE",
    "guidance": "caption mapper and adapters",
}


def parameters(trunk: LadderTrunk) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, p in trunk.named_parameters():
        counts[next(row for part, row in PARTS.items() if part in name)] += p.numel()
    return counts


def random_batch() -> TokenBatch:
    ok = torch.ones(1, SEGMENTS, dtype=torch.bool)
    batch = TokenBatch(
        ["clip"],
        {tap.name: torch.randn(1, SEGMENTS, tap.tokens, tap.channels) for tap in SPEC.visual},
        {tap.name: torch.randn(1, SEGMENTS, tap.tokens, tap.channels) for tap in SPEC.audio},
        ok,
        ok,
    )
    batch.visual_caption, batch.audio_caption = torch.randn(2, 1, CAPTION.tokens, CAPTION.channels)
    batch.visual_caption_mask = batch.audio_caption_mask = torch.ones(1, CAPTION.tokens, dtype=torch.bool)
    return batch


def step_seconds(trunk: LadderTrunk, batch: TokenBatch, repeats: int) -> float:
    """Median CPU time of forward and backward over all threads, after one warm-up."""
    taken = []
    for _ in range(repeats + 1):
        began = time.process_time()
        out = trunk(batch)
        (out.visual.square().mean() + out.audio.square().mean()).backward()
        taken.append(time.process_time() - began)
        trunk.zero_grad(set_to_none=True)
    return statistics.median(taken[1:])


def accuracy(place: Path, preset: str, seeds: list[int], assignments: list[str]) -> tuple[list[float], int]:
    """Test accuracy by seed, and the adapters' parameters; the run folders are not kept."""
    home, found, count = Home(place), [], 0
    for seed in seeds:
        sets = [f"model.adapters.preset={preset}", f"seed={seed}", "training.workers=0", *assignments]
        given = {"dataset": "synthetic", "training.device": "cpu"}
        experiment = prepare(home, resolve_config("ave", "full", None, sets, given))
        run = create_run(home, experiment.config)
        try:
            result = train(experiment, run)
        finally:
            shutil.rmtree(run.folder)
        found.append(result["scores"]["test"])
        count = sum(n for part, n in result["parameters"].items() if part.startswith("trunk"))
    return found, count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--home", type=Path, help="a level of benchmarks/ablation.py, e.g. caeav_home/ablation/m60"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--epochs", type=int, default=12, help="as benchmarks/ablation.py; 0: the recipe's own"
    )
    parser.add_argument("--variant", default="revised", choices=("reference", "revised"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    counts, seconds = {}, {}
    batch = random_batch()
    for preset in PRESETS:
        trunk = LadderTrunk(SPEC, AdapterConfig(variant=options.variant, preset=preset))  # type: ignore[arg-type]
        counts[preset] = parameters(trunk)
        seconds[preset] = step_seconds(trunk, batch, options.repeats)
    print(f"| {options.variant} | " + " | ".join(PRESETS) + " |")
    print("|---" * (1 + len(PRESETS)) + "|")
    for row in dict.fromkeys(PARTS.values()):
        print(f"| {row}, M | " + " | ".join(f"{counts[p][row] / 1e6:.3f}" for p in PRESETS) + " |")
    print("| **all adapters, M** | " + " | ".join(f"{counts[p].total() / 1e6:.3f}" for p in PRESETS) + " |")
    print("| forward + backward, CPU s a clip | " + " | ".join(f"{seconds[p]:.2f}" for p in PRESETS) + " |")
    if options.home is None:
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]
    common = [*AS_MEASURED, *([f"training.epochs={options.epochs}"] if options.epochs else [])]
    scored = {p: accuracy(options.home, p, seeds, [*common, *options.assignments]) for p in PRESETS}
    print(
        "| adapters on embedded tokens, M | "
        + " | ".join(f"{scored[p][1] / 1e6:.3f}" for p in PRESETS)
        + " |"
    )
    deviation = {p: statistics.stdev(s) if len(s) > 1 else 0.0 for p, (s, _) in scored.items()}
    print(
        "| test accuracy there, % | "
        + " | ".join(f"{statistics.fmean(scored[p][0]):.1f} ± {deviation[p]:.1f}" for p in PRESETS)
        + " |"
    )


if __name__ == "__main__":
    main()
