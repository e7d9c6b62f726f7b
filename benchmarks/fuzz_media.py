"""Can hostile media hang a run, end it or exhaust its memory? One table: kinds of damage and what became of them.

    CAEAV_SHARED=../shared python benchmarks/fuzz_media.py [--variants 2000] [--decoder pyav] [--seed 0] [--keep FOLDER]

Real files (or `--media FOLDER`) are damaged at random places: bits flipped, cut off, blocks zeroed, repeated or
exchanged with another file's, the beginning or the end replaced by another file's, numbers in the containers'
tables set to extremes. Each variant is decoded in the pool that extraction uses, with its memory limit and a
deadline. A variant is decoded clean, decoded with notes, refused with a reason, or costs its process (killed at the
deadline, crashed); `unexpected` are errors other than `DecodeError`. The exit status is 1 if there are any of these, or
if a result was wrong or missing. `--keep` keeps the files that were neither decoded nor refused.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from caeav.pipeline.media.clip import DecodedClip, Sampling
from caeav.pipeline.media.registry import decoders
from caeav.pipeline.media.workers.pool import Outcome, WorkerPool

SAMPLING = Sampling(3, 1.0, 16_000)
ENDINGS = {".mp4", ".mkv", ".webm", ".avi", ".mov"}
COLUMNS = ("clean", "noted", "refused", "memory", "deadline", "crash", "unexpected", "wrong")
ACCIDENTS = ("memory", "deadline", "crash")
EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\1",
    b"\x80\0\0\0",
    b"\xff\xff\xff\x7f",
)
TABLES = (b"stsz", b"stsc", b"stco", b"stts", b"ctts", b"tkhd", b"mdhd", b"mvhd", b"elst", b"trun", b"avcC", b"stsd",
          b"idx1", b"strh", b"strf", b"\x16\x54\xae\x6b", b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75")  # fmt: skip
DEADLINE_S = 30.0


def setup(
    settings: Mapping[str, Any],
) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]:
    """The job of a child process: decode one variant and tell what came, its time and the process' peak memory."""
    decoder = decoders[settings["decoder"]]()

    def job(request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        began = time.process_time()
        clip = decoder.decode(request["path"], request["start_s"], SAMPLING)
        return {}, {
            "notes": [note.code for note in clip.notes],
            "wrong": wrong(clip),
            "cpu_s": time.process_time() - began,
            "peak_mib": peak_mib(),
        }

    return job


def peak_mib() -> int:
    """Peak memory of this process; on Linux not `ru_maxrss`, which begins at the size of whoever started it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return int(status.read_text().split("VmHWM:")[1].split()[0]) // 1024


def wrong(clip: DecodedClip) -> str:
    """What an answer lacks to be whole; empty when it is."""
    if clip.frames is None and clip.wave is None:
        return "neither pictures nor sound, and no refusal"
    if clip.frames is not None and (clip.frames.ndim != 4 or clip.frames.shape[0] != SAMPLING.segments):
        return f"pictures of shape {clip.frames.shape}"
    if clip.wave is not None and (clip.wave.shape != (SAMPLING.samples,) or not abs(clip.wave).max() <= 1):
        return f"sound of shape {clip.wave.shape}, or not within -1 to 1"
    return "" if all((*clip.frames_ok, *clip.audio_ok)) or clip.notes else "not all ok, and nothing said"


def flipped(data: bytearray, _: bytes, rng: random.Random) -> None:
    """1 to 300 bits."""
    for _ in range(int(10 ** rng.uniform(0, 2.5))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flipped_head(data: bytearray, _: bytes, rng: random.Random) -> None:
    """1 to 30 bits among the first or last 4 KiB, where containers describe themselves."""
    for _ in range(rng.randint(1, 30)):
        at = rng.randrange(min(4096, len(data)))
        data[at if rng.random() < 0.5 else -1 - at] ^= 1 << rng.randrange(8)


def cut(data: bytearray, _: bytes, rng: random.Random) -> None:
    """The end is missing."""
    del data[rng.randrange(len(data)) :]


def zeroed(data: bytearray, _: bytes, rng: random.Random) -> None:
    """A block of up to 64 KiB is zero."""
    at, size = rng.randrange(len(data)), rng.randint(1, 1 << 16)
    data[at : at + size] = bytes(len(data[at : at + size]))


def exchanged(data: bytearray, other: bytes, rng: random.Random) -> None:
    """A block is another file's."""
    at, size, there = rng.randrange(len(data)), rng.randint(1, 1 << 16), rng.randrange(len(other))
    data[at : at + size] = other[there : there + size]


def repeated(data: bytearray, _: bytes, rng: random.Random) -> None:
    """A block comes again, up to 50 times."""
    at, size = rng.randrange(len(data)), rng.randint(1, 1 << 14)
    data[at:at] = bytes(data[at : at + size]) * rng.randint(1, 50)


def spliced(data: bytearray, other: bytes, rng: random.Random) -> None:
    """The beginning or the end is another file's."""
    size = int(2 ** rng.uniform(4, 17))
    if rng.random() < 0.7:
        data[:size] = other[:size]
    else:
        data[-size:] = other[-size:]


def extremes(data: bytearray, _: bytes, rng: random.Random) -> None:
    """Numbers in a container's tables become 0, 1 or as large as they can be."""
    places = [at for name in TABLES if (at := data.find(name)) >= 0]
    for _ in range(rng.randint(1, 4)):
        at = rng.choice(places or [0]) + 4 * rng.randint(1, 24)
        data[at : at + 4] = rng.choice(EXTREMES)


KINDS = (flipped, flipped_head, cut, zeroed, exchanged, repeated, spliced, extremes)


def kind_of(outcome: Outcome) -> str:
    """The column an outcome belongs to."""
    if outcome.failure is None:
        return "wrong" if outcome.info["wrong"] else "noted" if outcome.info["notes"] else "clean"
    reason = outcome.failure.reason
    if "out of memory" in reason or "Cannot allocate memory" in reason:
        return "memory"
    if reason.startswith("no answer within"):
        return "deadline"
    if "process" in reason and ("died" in reason or "exited" in reason or "closed" in reason):
        return "crash"
    head = reason.split(":")[0]
    return "unexpected" if head.endswith(("Error", "Exception", "Interrupt")) else "refused"


def variants(
    files: list[bytes], names: list[str], count: int, seed: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Write `count` damaged files, one by one, each when it is asked for."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        which, kind = rng.randrange(len(files)), KINDS[number % len(KINDS)]
        data = bytearray(files[which])
        kind(data, rng.choice(files), rng)
        path = folder / f"{number:06d}-{kind.__name__}-{names[which]}"
        path.write_bytes(data)
        yield {"id": path.name, "path": str(path), "start_s": rng.choice((0.0, 0.0, 0.0, 4.0, 6.5))}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", type=int, default=2000)
    parser.add_argument("--decoder", default="pyav")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--media", type=Path)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    folder = args.media or Path(os.environ.get("CAEAV_SHARED", "../shared")) / "data" / "media"
    paths = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)
    if not paths:
        parser.error(f"no media in {folder}; set CAEAV_SHARED or give --media")
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    cpu_s, highest_mib, said, bytes_read, lost = [0.0], 0, [], 0, args.variants
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        requests = variants(
            [p.read_bytes() for p in paths], [p.name for p in paths], args.variants, args.seed, Path(place)
        )
        pool = WorkerPool(
            "fuzz_media:setup",
            {"decoder": args.decoder},
            workers=args.workers,
            deadline_s=DEADLINE_S,
            retries=0,
        )
        with pool:
            for outcome in pool.map(requests):
                lost -= 1
                file = Path(place) / outcome.id
                column = kind_of(outcome)
                table[outcome.id.split("-")[1]][column] += 1
                bytes_read += file.stat().st_size
                if outcome.failure is None:
                    cpu_s.append(outcome.info["cpu_s"])
                    highest_mib = max(highest_mib, outcome.info["peak_mib"])
                if column not in ("clean", "noted", "refused"):
                    reason = outcome.failure.reason if outcome.failure else outcome.info["wrong"]
                    said.append(f"{column}: {outcome.id}: {reason[:150]}")
                    if args.keep:
                        args.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(file, args.keep)
                file.unlink()
    print(f"| damage | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for kind in KINDS:
        print(f"| {kind.__name__} | {' | '.join(str(table[kind.__name__][name]) for name in COLUMNS)} |")
    total = sum(table.values(), Counter[str]())
    print(f"| all | {' | '.join(str(total[name]) for name in COLUMNS)} |\n")
    own_mib = peak_mib()
    print(
        f"{args.variants} variants of {len(paths)} files, {bytes_read / 2**20:.0f} MiB, decoder {args.decoder}, "
    )
    print(
        f"{time.monotonic() - began:.0f} s; longest decoding that answered {max(cpu_s):.1f} s of processor time; "
    )
    print(f"peak memory of a decoding process {highest_mib} MiB, of this one {own_mib} MiB; {lost} lost")
    print("\n".join(said[:40]))
    return int(bool(total["unexpected"] or total["wrong"] or lost))


if __name__ == "__main__":
    sys.exit(main())
