"""Does caeav decode as the `ffmpeg` command does? One table: families of media against what differs, for each decoder.

    python benchmarks/differential.py [--decoder pyav] [--only PATTERN] [--each] [--keep FOLDER]

Writes truth-coded media (tests/pipeline/decode/differential), decodes each clip with each decoder and with ffmpeg, and
compares pictures, sound and what is called real. `--only` takes the cases whose file name holds the pattern (a regular
expression), `--each` prints every difference in words, `--keep` leaves the media in a folder. The exit status is 1 when
something differs that tests/pipeline/decode/differential/known.py does not explain, or no longer differs though listed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pipeline" / "decode" / "differential"))

from cases import FAMILIES
from differential import DECODERS, compared, loads, no_ffmpeg
from known import KNOWN, explained, no_longer, unexplained


def main() -> int:
    """Run, print, and say by the exit status whether anything is unexplained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", action="append", choices=DECODERS)
    parser.add_argument("--only", default="")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    why = no_ffmpeg()
    if why:
        print(why, file=sys.stderr)
        return 1
    decoders = [name for name in options.decoder or DECODERS if loads(name)]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows, bad = [], []
        clips: dict[str, Counter[str]] = defaultdict(Counter)
        files: Counter[str] = Counter()
        seen: Counter[tuple[str, str, str]] = Counter()
        for family, make_cases in FAMILIES.items():
            cases = [case for case in make_cases() if re.search(options.only, case.file)]
            files[family] = len(cases)
            for row in compared(cases, decoders, folder, keep=options.keep is not None):
                if isinstance(row, str):
                    print(row)
                    files[family] -= 1
                    continue
                rows.append(row)
                clips[family][row.decoder] += 1
                strange = unexplained(row)
                clips[family][f"{row.decoder} differs"] += bool(row.found)
                bad += [(row, kind) for kind in strange]
                for kind, said in row.found.items():
                    seen[row.decoder, kind, explained(row, kind) or "NOT EXPLAINED"] += 1
                    if options.each or kind in strange:
                        mark = "" if kind in strange else " (known)"
                        print(
                            f"{row.decoder} {row.case.file} from {row.start_s:g} s: {kind}{mark}: {said}",
                            flush=True,
                        )
    gone = [] if options.only else no_longer(rows)
    print(f"\n| media | files | {' | '.join(decoders)} |\n|---|---|{'---|' * len(decoders)}")
    for family, count in files.items():
        if count:
            counts = [f"{clips[family][f'{name} differs']} of {clips[family][name]}" for name in decoders]
            print(f"| {family} | {count} | {' | '.join(counts)} |")
    sums = [
        (sum(c[f"{name} differs"] for c in clips.values()), sum(c[name] for c in clips.values()))
        for name in decoders
    ]
    print(f"| all | {sum(files.values())} | {' | '.join(f'{a} of {b}' for a, b in sums)} |")
    if seen:
        print("\n| decoder | differs in | clips | why |\n|---|---|---|---|")
        for (decoder, kind, why), count in sorted(seen.items()):
            print(f"| {decoder} | {kind} | {count} | {why} |")
    for entry in gone:
        print(f"listed, but differs no more: {entry}")
    spent_s = time.process_time() - began
    print(
        f"\n{len(bad)} unexplained, {len(gone)} clips of the {len(KNOWN)} lines differ no more; {spent_s:.0f} s"
    )
    return int(bool(bad or gone))


if __name__ == "__main__":
    sys.exit(main())
