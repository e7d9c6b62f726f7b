"""Several runs side by side: what differs in their settings, by how much they differ, and on which clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from caeav.manifests.core.errors import CaeavError
from caeav.model.report.cards import Media, Row
from caeav.model.report.page import Block, Page, Section, card_list, card_lists, table, text
from caeav.model.report.run import Subject, card_of
from caeav.model.tasks.avvp.metric import clip_f, clip_scores, level_counts
from caeav.model.tasks.bootstrap import LEVEL, RESAMPLES, Evidence, interval_over_seeds, mean_of
from caeav.model.tasks.config import RunConfig
from caeav.model.train.config_file import flat_settings

SHOWN = 60


def comparison(subjects: Sequence[Subject], page: Page, media: Media) -> Section:
    """The first run against each of the others; raises `CaeavError` for runs of different tasks."""
    first = subjects[0]
    require_one_task(subjects)
    blocks: list[Block] = [_overview(subjects), *_settings(subjects)]
    for other in subjects[1:]:
        blocks += _against(first, other, page, media)
    return Section("comparison", "Comparison", blocks)


def require_one_task(subjects: Sequence[Subject]) -> None:
    """Raise `CaeavError` for runs of different tasks."""
    tasks = {subject.run.config().task for subject in subjects}
    if len(tasks) > 1:
        raise CaeavError(
            f"runs of the tasks {', '.join(sorted(tasks))} cannot be compared",
            hint="compare runs of one task",
        )


def _overview(subjects: Sequence[Subject]) -> Block:
    results = [subject.run.result() or {} for subject in subjects]
    splits = list(dict.fromkeys(split for result in results for split in result["scores"]))
    rows = [
        (
            subject.run.name,
            result["recipe"],
            result["dataset"],
            *(f"{result['scores'][split]:.2f}" if split in result["scores"] else "-" for split in splits),
            sum(result["parameters"].values()),
        )
        for subject, result in zip(subjects, results, strict=True)
    ]
    return table(
        "Runs", ("run", "recipe", "data set", *(f"{split} %" for split in splits), "parameters"), rows
    )


def _settings(subjects: Sequence[Subject]) -> list[Block]:
    """The settings that are not equal in all runs."""
    rows = differing_settings([subject.run.config() for subject in subjects])
    if not rows:
        return [text("The runs have the same settings.")]
    return [table("What differs in their settings", ("setting", *(s.run.name for s in subjects)), rows)]


def differing_settings(configs: Sequence[RunConfig]) -> list[tuple[str, ...]]:
    """`(path, value in the first, value in the second, ...)` of the settings that are not equal in all."""
    flat = [flat_settings(config) for config in configs]
    names = dict.fromkeys(name for held in flat for name in held)
    return [
        (name, *(str(held.get(name, "-")) for held in flat))
        for name in names
        if len({str(held.get(name, "-")) for held in flat}) > 1
    ]


@dataclass(frozen=True)
class Differences:
    """How much the second of two runs scores above the first, on the samples of `split` that both kept.

    `scores`: name, difference in points, and its interval. `units`: how many `unit` were drawn again. `relabelled`:
    samples whose truth is not the same in both. `pairs`: both rows of each sample, those that differ most first.
    """

    split: str
    scores: list[tuple[str, float, float, float]]
    units: int
    unit: str
    relabelled: int
    pairs: list[tuple[Row, Row]]


def differences(first: Subject, other: Subject) -> Differences | None:
    """The paired differences of two runs of one task; None without samples that both keep predictions of."""
    split = first.split if any(row["split"] == first.split for row in other.rows) else ""
    held = {row["key"]: row for row in first.rows if row["split"] == split and row["score"] is not None}
    pairs = [
        (held[row["key"]], row)
        for row in other.rows
        if row["split"] == split and row["key"] in held and row["score"] is not None
    ]
    if not pairs:
        return None
    before, after = (evidence(first, [pair[i] for pair in pairs]) for i in (0, 1))
    scores = []
    for name in (name for name in before.parts if name in after.parts):
        old, new = before.parts[name], after.parts[name]
        bounds = interval_over_seeds([new], [old])  # the same clips are drawn for both
        if bounds is not None:
            scores.append((name, 100 * (_ratio(new) - _ratio(old)), *bounds))
    return Differences(
        split=split,
        scores=scores,
        units=len(next(iter(before.parts.values()))[0]),
        unit=before.unit,
        relabelled=sum(a["truth"] != b["truth"] for a, b in pairs),
        pairs=sorted(pairs, key=lambda pair: -abs(pair[0]["score"] - pair[1]["score"])),
    )


def beyond_chance(low: float, high: float) -> str:
    """Whether an interval leaves out zero."""
    return "yes" if low > 0 or high < 0 else "no"


def _against(first: Subject, other: Subject, page: Page, media: Media) -> list[Block]:
    """Paired differences on the split that both kept, and the clips where they differ most."""
    names = f"{other.run.name} against {first.run.name}"
    found = differences(first, other)
    if found is None:
        return [text(f"{names}: no clips that both keep predictions of; caeav eval --run writes them.")]
    rows = [
        (name, f"{gap:+.2f}", f"{low:+.2f} to {high:+.2f}", beyond_chance(low, high))
        for name, gap, low, high in found.scores
    ]
    note = (
        f"Both runs on the same {len(found.pairs):,} samples of {found.split}; {LEVEL:g} % interval of {RESAMPLES} "
        f"paired resamples of {found.units:,} {found.unit}. Another seed may change more than this."
    )
    if found.relabelled:
        note += (
            f" The truth of {found.relabelled:,} of them is not the same in both: labels have changed since."
        )
    title = f"{names}: difference in points, {found.split}"
    blocks = [table(title, ("score", "difference", "interval", "beyond chance"), rows, note)]
    ordered = [pair for pair in found.pairs[:SHOWN] if pair[0]["score"] != pair[1]["score"]]
    clips = [first.clips[a["clip"]] for a, _ in ordered if a["clip"] in first.clips]
    media.fetch(list({clip.key: clip for clip in clips}.values()))
    entries = []
    for a, b in ordered:
        ids = []
        for subject, row in ((first, a), (other, b)):
            name = f"{subject.run.name}/{row['key']}"
            page.cards[name] = {
                **card_of(subject, row, media),
                "title": f"{row['key']}  ({subject.run.name})",
            }
            ids.append(name)
        entries.append((ids, f"{100 * a['score']:.0f} % against {100 * b['score']:.0f} %"))
    if entries:
        note = "The clips on which the two runs differ most, both predictions below each other."
        lists = [card_list("differ", "where they differ", note, entries)]
        blocks.append(card_lists(f"differ-{other.run.name}", lists))
    return blocks


def _ratio(terms: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(terms[0].double().sum() / terms[1].double().sum())


def evidence(subject: Subject, rows: Sequence[Row]) -> Evidence:
    """The scores that rows alone can give, clip by clip: the metric; for AVVP all ten, for AVQA also by modality, for
    AVS also M_F (not of runs of older versions, which did not keep it)."""
    result = subject.run.result() or {}
    score = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
    parts = {result["metric"]: mean_of(score)}
    if isinstance(rows[0]["truth"], Mapping):
        parts = _tracks(rows, subject.run.inputs().classes)
    elif isinstance(rows[0]["truth"], str):
        for modality in dict.fromkeys(row["labels"][0].split()[0] for row in rows):
            of = torch.tensor([row["labels"][0].split()[0] == modality for row in rows], dtype=torch.float64)
            parts[modality.lower()] = (score * of, of)
    else:
        said = [row["f_measure"] for row in rows if row.get("f_measure") is not None]
        if len(said) == len(rows):
            parts["f_measure"] = mean_of(torch.tensor(said, dtype=torch.float64))
    places = {key: i for i, key in enumerate(dict.fromkeys(row["clip"] for row in rows))}
    return Evidence(parts).by_clip([places[row["clip"]] for row in rows])


def _tracks(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The ten official scores of AVVP."""
    place = {name: k for k, name in enumerate(classes)}

    def tracks(column: str, modality: str) -> torch.Tensor:
        seconds = max(len(row[column][modality]) for row in rows)
        on = torch.zeros(len(rows), len(classes), seconds, dtype=torch.bool)  # [N, K, T]
        for i, row in enumerate(rows):
            for t, names in enumerate(row[column][modality]):
                on[i, [place[name] for name in names], t] = True
        return on

    pairs = [(tracks("prediction", m), tracks("truth", m)) for m in ("audio", "visual")]
    return {
        f"{level}_{name}": mean_of(x)
        for level, events in (("segment", False), ("event", True))
        for name, x in clip_scores(clip_f(level_counts(pairs[0], pairs[1], events=events))).items()
    }
