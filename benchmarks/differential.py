"""Does caeav decode as the `ffmpeg` command does? Two tables: how many clips differ, and in what and why.

    python benchmarks/differential.py [--decoder pyav] [--only PATTERN] [--each] [--keep FOLDER]

Writes truth-coded media (tests/pipeline/media/differential), decodes each clip with each decoder and with ffmpeg, and
compares frames, audio and which segments are called real. `--only` takes the cases whose file name matches a regular
expression, `--each` prints every difference in words, `--keep` leaves the media in a folder. The exit status is 1 if
something differs that tests/pipeline/media/differential/known.py does not explain, or if a listed difference is gone.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pipeline" / "media" / "differential"))

from cases import FAMILIES
from differential import DECODERS, Row, compared, loads, no_ffmpeg
from known import explained, outdated, unexplained


def print_differences(row: Row, each: bool) -> None:
    """Print a row's differences in words: the unexplained ones, or all."""
    unknown = unexplained(row)
    for kind, detail in row.found.items():
        if each or kind in unknown:
            mark = "" if kind in unknown else " (known)"
            clip = f"{row.decoder} {row.case.file} from {row.start_s:g} s"
            print(f"{clip}: {kind}{mark}: {detail}", flush=True)


def tables(rows: dict[str, list[Row]], decoders: Sequence[str]) -> str:
    """Markdown: how many clips differ, one row per family of media; then what differs, and why."""
    everything = [row for family in rows.values() for row in family]
    lines = [f"| media | files | {' | '.join(decoders)} |", f"|---|---|{'---|' * len(decoders)}"]
    for family, of in [*rows.items(), ("all", everything)]:
        counts = []
        for name in decoders:
            mine = [row for row in of if row.decoder == name]
            counts.append(f"{sum(bool(row.found) for row in mine)} of {len(mine)}")
        if of:
            lines.append(f"| {family} | {len({row.case.file for row in of})} | {' | '.join(counts)} |")
    seen: Counter[tuple[str, str, str]] = Counter()
    for row in everything:
        for kind in row.found:
            seen[row.decoder, explained(row, kind) or "NOT EXPLAINED", kind] += 1
    lines += ["", "| decoder | why it differs | in what, and in how many clips |", "|---|---|---|"]
    for name in decoders:
        reasons: dict[str, list[str]] = {}
        for (decoder, why, kind), count in sorted(seen.items()):
            if decoder == name:
                reasons.setdefault(why, []).append(f"{kind} {count}")
        lines += [f"| {name} | {why} | {', '.join(kinds)} |" for why, kinds in reasons.items()]
    return "\n".join(lines)


def main() -> int:
    """Run and print; the exit status says whether anything is unexplained."""
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
    began = time.monotonic()
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for family, make_cases in FAMILIES.items():
            cases = [case for case in make_cases() if re.search(options.only, case.file)]
            rows[family] = []
            for row in compared(cases, decoders, folder, keep=options.keep is not None):
                if isinstance(row, str):
                    print(row)
                    continue
                print_differences(row, options.each)
                rows[family].append(row)
    everything = [row for family in rows.values() for row in family]
    gone = outdated(everything)
    for entry in gone:
        print(f"listed, but differs no more: {entry}")
    strange = sum(len(unexplained(row)) for row in everything)
    print(f"\n{tables(rows, decoders)}\n")
    print(f"{strange} unexplained, {len(gone)} listed that differ no more; {time.monotonic() - began:.0f} s")
    return int(bool(strange or gone))


if __name__ == "__main__":
    sys.exit(main())
