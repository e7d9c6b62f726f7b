"""`caeav manifest build|show|check`: which clips a data set has, what a constant answer scores, and what is odd."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.datasets import KEEPS, LOOKS, load, source
from caeav.cli.options import (
    DatasetOption,
    HomeOption,
    JsonOption,
    LabelsOption,
    RelabelOption,
    RootOption,
    SegmentSecondsOption,
    SegmentsOption,
    StrideOption,
)
from caeav.manifests.checks import ManifestCheck, check, missing_media
from caeav.manifests.clip import SPLITS, Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted
from caeav.manifests.findings import WARNINGS
from caeav.manifests.manifest import manifest_digest, source_digest, write_manifest
from caeav.manifests.masks import unpack_mask
from caeav.manifests.rows import clip_to_row

NO_SPLIT = "none"
SHOWN_CLIPS = 20
commands = typer.Typer(no_args_is_help=True, help="List, count and check the clips of a data set.")


class SplitName(StrEnum):
    """Values of `--split`; `none` means clips without a split."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    NONE = NO_SPLIT


def register(app: typer.Typer) -> None:
    """Add the commands as `manifest`."""
    app.add_typer(commands, name="manifest")


@commands.command()
def build(
    dataset: DatasetOption = "",
    root: RootOption = None,
    labels: LabelsOption = None,
    segments: SegmentsOption = None,
    segment_s: SegmentSecondsOption = None,
    stride_s: StrideOption = None,
    relabel: RelabelOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a data set's files and write its manifest into the home folder."""
    place = Home.find(home)
    given = source(root, labels, segments, segment_s, stride_s)
    manifest = load(dataset, given, place, KEEPS, relabel).manifest
    path = place.manifest(manifest.dataset)
    write_manifest(manifest, path)
    checked = check(manifest)
    if as_json:
        digests = {"digest": manifest_digest(manifest), "source_digest": source_digest(manifest)}
        print_json({"path": str(path), **digests, **checked.as_json()})
        return
    print_counts(checked)
    print_findings(checked)
    say(f"wrote {path}")


@commands.command()
def show(
    dataset: DatasetOption = "",
    root: RootOption = None,
    labels: LabelsOption = None,
    segments: SegmentsOption = None,
    segment_s: SegmentSecondsOption = None,
    stride_s: StrideOption = None,
    split: Annotated[SplitName | None, typer.Option("--split", help="Only this split.")] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="The clip of this key, in full; else all whose key contains it."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="At most this many clips.", show_default=f"{SHOWN_CLIPS}, all with --json"
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print clips: key, split, events, media."""
    given = source(root, labels, segments, segment_s, stride_s)
    manifest = load(dataset, given, Home.find(home), LOOKS).manifest
    clips = _select(manifest, split, key)
    if key is not None and len(clips) == 1 and clips[0].key == key:
        _print_clip(manifest, clips[0], as_json)
        return
    if as_json:
        print_json([clip_to_row(clip) for clip in clips[:limit]])
        return
    shown = clips[: limit or SHOWN_CLIPS]
    print_table(
        ("key", "split", "from s", "seconds", "labels", "media"),
        [
            (clip.key, clip.split or NO_SPLIT, clip.start_s, clip.seconds, _events(clip), clip.media)
            for clip in shown
        ],
    )
    if len(shown) < len(clips):
        say(f"{len(shown)} of {counted(len(clips), 'clip')}; more with --limit")


@commands.command("check")
def check_(
    dataset: DatasetOption = "",
    root: RootOption = None,
    labels: LabelsOption = None,
    segments: SegmentsOption = None,
    segment_s: SegmentSecondsOption = None,
    stride_s: StrideOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report counts per split and class, missing media, leaks between splits, odd rows."""
    given = source(root, labels, segments, segment_s, stride_s)
    checked = check(load(dataset, given, Home.find(home), LOOKS).manifest)
    if as_json:
        print_json(checked.as_json())
        return
    print_counts(checked)
    print_classes(checked)
    print_findings(checked)


def _select(manifest: Manifest, split: str | None, key: str | None) -> list[Clip]:
    """The clips asked for; none is an error, so that a mistyped key does not look like an empty list."""
    clips = [clip for clip in manifest.clips if split is None or (clip.split or NO_SPLIT) == split]
    if key is not None:
        clips = [clip for clip in clips if clip.key == key] or [clip for clip in clips if key in clip.key]
    if not clips:
        asked = [f"is in split {split}"] if split else []
        asked += [f"has {key!r} in its key"] if key else []
        splits = ", ".join(f"{name or NO_SPLIT} ({n})" for name, n in manifest.split_counts().items())
        first = f", its first key is {manifest.clips[0].key}" if manifest.clips else ""
        raise CaeavError(
            f"no clip of {manifest.dataset} {' and '.join(asked) or 'is there'}",
            hint=f"its splits are {splits or 'empty'}{first}",
        )
    return clips


def _events(clip: Clip) -> str:
    """A clip's labels in short, for a table."""
    events = [f"{e.modality} {e.label} {e.start_s:g}-{e.end_s:g}".strip() for e in clip.events]
    questions, masks = clip.extra.get("questions", ()), clip.extra.get("masks", ())
    if questions:
        events.append(counted(len(questions), "question"))
    if masks:
        events.append(counted(sum(mask is not None for mask in masks), "mask"))
    return "; ".join(events or clip.labels()) or "-"


def _print_clip(manifest: Manifest, clip: Clip, as_json: bool) -> None:
    there = not missing_media(replace(manifest, clips=(clip,)))
    path = str(Path(manifest.media_root) / clip.media)
    row: dict[str, Any] = {**clip_to_row(clip), "path": path, "media_there": there}
    if as_json:
        print_json(row)
        return
    row["events"] = _events(clip)
    extra = row.pop("extra")
    masks, questions = extra.pop("masks", ()), extra.pop("questions", ())
    rows = {**row, **{f"extra.{name}": value for name, value in extra.items()}}
    for number, packed in enumerate(masks):
        mask = unpack_mask(packed) if packed else None
        said = "none" if mask is None else f"{mask.shape[1]} x {mask.shape[0]}, {mask.mean():.1%} sound"
        rows[f"mask of second {number}"] = said
    print_table(("field", "value"), [(name, str(value)) for name, value in rows.items()])
    if questions:
        columns = ("id", "split", "type", "question", "answer")
        print_table(
            columns, [(q["id"], q["split"], " ".join(q["type"]), q["text"], q["answer"]) for q in questions]
        )


def print_counts(checked: ManifestCheck) -> None:
    """Print how many clips there are, where media lie, and what a constant answer scores in the labels' metric."""
    missing = f", {len(checked.missing)} of them without media" if checked.missing else ""
    kinds = counted(len(checked.classes), *(("answer",) if checked.questions else ("class", "classes")))
    print(printable(f"{checked.dataset}: {counted(checked.clips, 'clip')}{missing}, {kinds}"))
    print(printable(f"media: {checked.media_root}"))
    print()
    if checked.questions:
        _print_questions(checked)
    elif checked.masks:
        _print_masks(checked)
    elif checked.modalities:
        _print_modalities(checked)
    else:
        _print_seconds(checked)
    _print_leaks(checked)


def _print_seconds(checked: ManifestCheck) -> None:
    columns = ["split", "clips", "seconds"]
    rows: list[list[object]] = [
        [split or NO_SPLIT, count, round(checked.shares[split].seconds)]
        for split, count in checked.splits.items()
    ]
    # without events everything would look like background
    if any(share.event_share for share in checked.shares.values()):
        columns += ["event seconds", "constant answer scores"]
        for row, share in zip(rows, (checked.shares[split] for split in checked.splits), strict=True):
            row += [f"{share.event_share:.1%}", f"{share.majority_accuracy:.1%} ({share.majority_label})"]
    print_table(columns, rows)


def _print_modalities(checked: ManifestCheck) -> None:
    rows: list[list[object]] = []
    for split, count in checked.splits.items():
        shares = checked.modalities.get(split, {})
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


def _print_masks(checked: ManifestCheck) -> None:
    rows: list[list[object]] = []
    for split, count in checked.splits.items():
        share = checked.masks.get(split)
        row: list[object] = [split or NO_SPLIT, count]
        if share is None:
            row += ["-"] * 5
        else:
            row += [share.frames, share.masks, share.empty, f"{share.area:.1%}"]
            row += [f"{share.constant_iou:.1%} ({share.constant})"]
        rows.append(row)
    columns = ("split", "clips", "frames", "masks", "empty", "pixels that sound", "M_J of a constant mask")
    print_table(columns, rows)


def _print_questions(checked: ManifestCheck) -> None:
    columns: list[str] = ["type"]
    splits = list(checked.questions)
    for split in splits:
        columns += [f"{split}: questions", "videos", "constant answer scores"]
    rows: list[list[object]] = []
    for name in dict.fromkeys(name for split in splits for name in checked.questions[split]):
        row: list[object] = [name]
        for split in splits:
            share = checked.questions[split].get(name)
            if share is None:
                row += [0, 0, "-"]
            else:
                scores = f"{share.majority_accuracy:.1%} ({share.majority_answer})"
                row += [share.questions, share.videos, scores]
        rows.append(row)
    print_table(columns, rows)


def _print_leaks(checked: ManifestCheck) -> None:
    """Print how many scored clips or questions are of videos that another split has too."""
    scored = {split: others for split, others in checked.leaked.items() if split != SPLITS[0]}
    if not scored:
        return
    what = "questions" if checked.questions else "clips"
    print()
    for split, others in scored.items():
        total = checked.questions[split]["all"].questions if checked.questions else checked.splits[split]
        for other, count in others.items():
            print(f"leak: {count} of {total} {what} of {split} are of videos that {other} has too")


def print_classes(checked: ManifestCheck) -> None:
    """Print clips per class and split, or questions per answer and split, and the largest and smallest class."""
    if not checked.classes:
        return
    columns = [split for split in (*SPLITS, "") if any(n.get(split) for n in checked.classes.values())]
    print()
    rows = [(name, *(n.get(s, 0) for s in columns), sum(n.values())) for name, n in checked.classes.items()]
    title = "answer" if checked.questions else "class"
    print_table((title, *(split or NO_SPLIT for split in columns), "all"), rows)
    if len(checked.classes) == 1:
        return
    sizes = sorted((sum(n.values()), name) for name, n in checked.classes.items())
    (least, rare), (most, frequent) = sizes[0], sizes[-1]
    print()
    print(printable(f"balance: {frequent} {most} times, {rare} {least} times"))


def print_findings(checked: ManifestCheck) -> None:
    """Print findings by kind: the first of each, and more of those that may make every number wrong."""
    if not checked.findings:
        say("nothing odd was found")
        return
    print()
    rows: list[tuple[object, ...]] = []
    for group in checked.findings:
        examples = group.examples if group.code in WARNINGS else group.examples[:1]
        said = [f"{found.where}: {found.detail}" for found in examples]
        rows.append((group.code, group.count, group.meaning, said[0]))
        rows += [("", "", "", text) for text in said[1:]]
    print_table(("found", "times", "meaning", "the first"), rows)
