"""How `caeav manifest` prints a report: counts, what constant answers score, classes, and what was found."""

from __future__ import annotations

from caeav.cli.console import print_table, printable, say
from caeav.manifests.checks import Report
from caeav.manifests.clip import SPLITS
from caeav.manifests.findings import TOLD
from caeav.manifests.wording import counted

NO_SPLIT = "none"


def print_counts(report: Report) -> None:
    """How many clips, where, and in the measure of the data set's labels what a constant answer scores."""
    missing = f", {len(report.missing)} of them without media" if report.missing else ""
    kinds = counted(len(report.classes), *(("answer",) if report.questions else ("class", "classes")))
    print(printable(f"{report.dataset}: {counted(report.clips, 'clip')}{missing}, {kinds}"))
    print(printable(f"media: {report.media_root}"))
    print()
    if report.questions:
        _print_questions(report)
    elif report.masks:
        _print_masks(report)
    elif report.modalities:
        _print_modalities(report)
    else:
        _print_seconds(report)
    _print_leaks(report)


def _print_seconds(report: Report) -> None:
    columns = ["split", "clips", "seconds"]
    rows: list[list[object]] = [
        [split or NO_SPLIT, count, round(report.shares[split].seconds)]
        for split, count in report.splits.items()
    ]
    # without events everything would look like background
    if any(share.event_share for share in report.shares.values()):
        columns += ["event seconds", "constant answer scores"]
        for row, share in zip(rows, (report.shares[split] for split in report.splits), strict=True):
            row += [f"{share.event_share:.1%}", f"{share.majority_accuracy:.1%} ({share.majority_label})"]
    print_table(columns, rows)


def _print_modalities(report: Report) -> None:
    rows: list[list[object]] = []
    for split, count in report.splits.items():
        shares = report.modalities.get(split, {})
        for modality, share in shares.items():
            rows.append(
                [
                    split or NO_SPLIT,
                    count,
                    modality,
                    share.events,
                    f"{share.event_share:.1%}",
                    share.clips_without,
                ]
            )
        if not shares:
            rows.append([split or NO_SPLIT, count, "labels of the clip alone", "-", "-", "-"])
    print_table(("split", "clips", "labelled", "events", "seconds with any", "clips without any"), rows)


def _print_masks(report: Report) -> None:
    rows: list[list[object]] = []
    for split, count in report.splits.items():
        share = report.masks.get(split)
        row: list[object] = [split or NO_SPLIT, count]
        if share is None:
            row += ["-"] * 5
        else:
            row += [share.frames, share.masks, share.empty, f"{share.area:.1%}"]
            row += [f"{share.constant_iou:.1%} ({share.constant})"]
        rows.append(row)
    columns = ("split", "clips", "frames", "masks", "empty", "pixels that sound", "M_J of a constant mask")
    print_table(columns, rows)


def _print_questions(report: Report) -> None:
    columns: list[str] = ["type"]
    splits = list(report.questions)
    for split in splits:
        columns += [f"{split}: questions", "videos", "constant answer scores"]
    rows: list[list[object]] = []
    for name in dict.fromkeys(name for split in splits for name in report.questions[split]):
        row: list[object] = [name]
        for split in splits:
            share = report.questions[split].get(name)
            if share is None:
                row += [0, 0, "-"]
            else:
                scores = f"{share.majority_accuracy:.1%} ({share.majority_answer})"
                row += [share.questions, share.videos, scores]
        rows.append(row)
    print_table(columns, rows)


def _print_leaks(report: Report) -> None:
    """How much of what is scored is about videos that another split has too."""
    scored = {split: others for split, others in report.leaked.items() if split != SPLITS[0]}
    if not scored:
        return
    what = "questions" if report.questions else "clips"
    print()
    for split, others in scored.items():
        total = report.questions[split]["all"].questions if report.questions else report.splits[split]
        for other, count in others.items():
            print(f"leak: {count} of {total} {what} of {split} are of videos that {other} has too")


def print_classes(report: Report) -> None:
    """Clips by class and split, or questions by answer and split, and how far the largest is from the smallest."""
    if not report.classes:
        return
    columns = [split for split in (*SPLITS, "") if any(n.get(split) for n in report.classes.values())]
    print()
    rows = [(name, *(n.get(s, 0) for s in columns), sum(n.values())) for name, n in report.classes.items()]
    title = "answer" if report.questions else "class"
    print_table((title, *(split or NO_SPLIT for split in columns), "all"), rows)
    if len(report.classes) == 1:
        return
    sizes = sorted((sum(n.values()), name) for name, n in report.classes.items())
    (least, rare), (most, frequent) = sizes[0], sizes[-1]
    print()
    print(printable(f"balance: {frequent} {most} times, {rare} {least} times"))


def print_findings(report: Report) -> None:
    """What was found, by kind, the first of each; of what may make every number wrong the next ones too."""
    if not report.findings:
        say("nothing odd was found")
        return
    print()
    rows: list[tuple[object, ...]] = []
    for group in report.findings:
        examples = group.examples if group.code in TOLD else group.examples[:1]
        said = [f"{found.where}: {found.detail}" for found in examples]
        rows.append((group.code, group.count, group.meaning, said[0]))
        rows += [("", "", "", text) for text in said[1:]]
    print_table(("found", "times", "meaning", "the first"), rows)
