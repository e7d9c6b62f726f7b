"""What a captioner costs: seconds a clip by length of caption, tokens a second, memory. Random weights, real size.

    python benchmarks/captioners.py qwen2-audio --tokens 2,8
    python benchmarks/captioners.py blip2 --tokens 2,8 --set dtype=bfloat16 --set frames=1 --set beams=1
    python benchmarks/captioners.py vlm:NAME --weights FOLDER --tokens 2,8

One clip of 10 s (10 pictures of 640 x 360, or sound), one thread, counted in the process' CPU time, after one pass to
warm up. Random weights never end a sentence, so every length asked for is written in full; tokens a second are the
difference between the longest and the shortest. Memory is the largest of the process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from caeav.cli.options import choose_one
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.checkpoints import LearnedCaptioner
from caeav.pipeline.captioners.generate import Decoding, settle_decoding
from caeav.pipeline.extract.device.devices import steady
from caeav.pipeline.media.clip import DecodedClip

SECONDS, RATE_HZ = 10, 16_000


def noise() -> DecodedClip:
    """A clip that no captioner passes over in silence."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (SECONDS, 360, 640, 3), dtype=np.uint8)
    wave = rng.normal(0, 0.1, SECONDS * RATE_HZ).astype(np.float32)
    return DecodedClip(frames, wave, (True,) * SECONDS, (True,) * SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a learned captioner of `caeav models ls`")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--tokens", default="2,10", help="numbers of tokens to write, by commas")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    lengths = sorted(int(text) for text in options.tokens.split(","))

    registry = visual_captioners if options.name in visual_captioners else audio_captioners
    captioner = registry[options.name](choose_one(options.name, options.weights, options.assignments))
    if not isinstance(captioner, LearnedCaptioner):
        sys.exit(f"{options.name} writes without a model")
    began = time.process_time()
    with steady():
        model = captioner.model
        print(f"built in {time.process_time() - began:.0f} s of CPU time", file=sys.stderr)
        clip, taken = noise(), {}
        for length in [lengths[0], *lengths]:
            captioner.settings["max_tokens"] = length
            decoding = Decoding(captioner.settings["beams"], length, captioner.settings["repetition_penalty"])
            settle_decoding(model, decoding, captioner.kept)
            began = time.process_time()
            captioner.caption([clip])
            taken[length] = time.process_time() - began
            print(f"{length} tokens: {taken[length]:.2f} s", file=sys.stderr)
    named = ("dtype", "beams", "frames")
    told = ", ".join(f"{key} {captioner.settings[key]}" for key in named if key in captioner.settings)
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    shown = ", ".join(f"{length} tokens {s:.1f} s" for length, s in taken.items())
    rate = (lengths[-1] - lengths[0]) / (taken[lengths[-1]] - taken[lengths[0]]) if len(lengths) > 1 else 0.0
    print(f"| {options.name} | {parameters:.2f} G | {told} | {shown} | {rate:.2f} | {gib:.1f} GiB |")


if __name__ == "__main__":
    main()
