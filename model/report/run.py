"""What a page says about a run: what it is, how it scored and on whom, and its clips, the most telling ones first.

Everything comes from the run's own folder; stores and media, where they are still there, add captions, frames and
audio.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caeav.manifests.clip import Clip
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.remembered import media_root
from caeav.manifests.synthetic.truth import read_truth, truth_of
from caeav.model.report import figures
from caeav.model.report.cards import Media, Row, bare_card, with_captions, with_row
from caeav.model.report.page import Block, Card, Page, Section, card_list, card_lists, facts, table, text
from caeav.model.tasks.bootstrap import format_interval
from caeav.model.train.agreement import AGREEMENT_FILE, reliability
from caeav.model.train.card import besides
from caeav.model.train.groups import members, summarise_group
from caeav.model.train.log import read_metrics
from caeav.model.train.predictions import read_predictions
from caeav.model.train.protocol import sentence
from caeav.model.train.provenance import backbones
from caeav.model.train.runs import ENVIRONMENT, METRICS, Run
from caeav.model.train.stress_curves import FOLDER as STRESS
from caeav.model.train.table import build_table
from caeav.pipeline.store import StoreReader

SHOWN = 100
"""Clips of each list."""
MOST_ROWS = 60_000
"""Predictions that are read; of more, an even sample."""
CAPTION_STEPS = (10, 20, 30)
"""Words of both captions at which groups of clips begin."""
OLDER_NAMES = {"said": "predicted", "was": "observed"}
"""Names in the reliability of `agreement.json` before 0.2.0 was released -> what they are now."""


@dataclass
class Subject:
    """A run that a page is about, with what could be found of it: rows, and the clips by their key."""

    run: Run
    rows: list[Row]
    clips: Mapping[str, Clip]
    captions: Callable[[str], Mapping[str, str]]
    kinds: Mapping[str, str]
    remarks: list[str]

    @property
    def split(self) -> str:
        """The split that is looked at first: test, where it was scored."""
        found = {row["split"] for row in self.rows}
        return next((split for split in ("test", "val", "train") if split in found), "")


def open_run(run: Run, home: Home) -> Subject:
    """Read what is known of a run; raises `CaeavError` for one that is not finished."""
    if run.result() is None:
        raise CaeavError(
            f"run {run.name} is not finished: there is no score to report",
            hint=f"caeav train --resume {run.name}",
        )
    remarks: list[str] = []
    rows: list[Row] = list(read_predictions(run))
    if not rows:
        remarks.append(
            f"{run.name} keeps no predictions, as runs of older versions: caeav eval --run {run.name} writes them."
        )
    if len(rows) > MOST_ROWS:
        step = -(-len(rows) // MOST_ROWS)
        remarks.append(f"Of {len(rows):,} predictions of {run.name} every {step}th is read.")
        rows = rows[::step]
    clips, captions = _clips(run, home, remarks)
    kinds: dict[str, str] = {}
    with suppress(CaeavError):  # the media are gone, and with them the truth of a generated set
        truths = read_truth(media_root(home, run.config().dataset))
        found = {key: truth_of(clip, truths) for key, clip in clips.items()} if truths else {}
        kinds = {key: truth.kind for key, truth in found.items() if truth is not None}
    return Subject(run, rows, clips, captions, kinds, remarks)


def _clips(
    run: Run, home: Home, remarks: list[str]
) -> tuple[Mapping[str, Clip], Callable[[str], Mapping[str, str]]]:
    """The clips of the run's stores by key, and what their captions say."""
    stores = {}
    for fact in run.stores()["stores"]:
        place = home.root / Path(fact["folder"])
        try:
            stores[fact["kind"]] = StoreReader.open(place)
        except CaeavError as error:
            remarks.append(
                f"The {fact['kind']} store {place.name} cannot be read: {error.problem.splitlines()[0]}"
            )
    held = next(iter(stores.values()), None)
    wanted = {} if held is None else {clip.key: clip for clip in held.manifest.clips}
    captions = stores.get("captions")

    def texts(key: str) -> Mapping[str, str]:
        if captions is None or key not in captions:
            return {}
        found = captions.info(key).get("texts", {})
        return {str(name): str(said) for name, said in found.items()}

    return wanted, texts


def run_sections(subject: Subject, home: Home, page: Page, media: Media, mark: str = "") -> list[Section]:
    """The sections of one run; its cards are put into `page`. `mark` keeps ids of several runs apart."""
    run = subject.run
    name = f" {run.name}" if mark else ""
    made = [Section(f"run{mark}", f"Run{name}", [*_facts(subject), *_scores(subject, home)])]
    drawn = [*_curves(run), *_by_class(subject), *_groups(subject), *_reliability(subject), *_stress(run)]
    made.append(Section(f"scores{mark}", f"Scores by part{name}", [_marked(block, mark) for block in drawn]))
    if subject.rows:
        block = card_lists(f"clips{mark}", _lists(subject, page, media, mark))
        made.append(Section(f"clips{mark}", f"Clips{name}", [block]))
    return made


def _marked(block: Block, mark: str) -> Block:
    return {**block, "id": f"{block['id']}{mark}"} if "id" in block else block


def _facts(subject: Subject) -> list[Block]:
    run = subject.run
    config, inputs, result = run.config(), run.inputs(), run.result() or {}
    environment = run.read(ENVIRONMENT) if (run.folder / ENVIRONMENT).exists() else {}
    stores = [f"{fact['name']} ({fact['kind']}, {fact['clips']:,} clips)" for fact in run.stores()["stores"]]
    parameters = sum(result["parameters"].values())
    adapters = config.model.adapters
    used = [
        name
        for name, on in (
            ("CASTE", adapters.caste.enabled),
            ("AVMoE", adapters.avmoe.enabled),
            ("CASE", adapters.case.enabled),
        )
        if on
    ]
    return [
        facts(
            (
                ("task", f"{config.task}, recipe {config.recipe}"),
                ("data set", f"{config.dataset}: {inputs.spec.segments} segments of {inputs.segment_s:g} s"),
                ("backbones", f"{backbones(config, run.token_recipes())}; frozen"),
                ("captions", _captioners(run)),
                ("adapters", ", ".join(used) or "none"),
                ("trained", f"{parameters:,} parameters"),
                ("classes", len(inputs.classes)),
                ("stores", "; ".join(stores)),
                ("best epoch", f"{result['best_epoch']} of {result['epochs']}, chosen on {config.select_on}"),
                ("seed", config.seed),
                ("device", environment.get("device")),
                (
                    "versions",
                    ", ".join(
                        f"{k} {v}"
                        for k, v in environment.get("packages", {}).items()
                        if k in ("caeav", "torch")
                    ),
                ),
                ("command", run.origin()["command"]),
            )
        ),
        text(sentence(config.task, config.protocol, config.select_on).replace("*", "")),
        *(text(line) for line in besides(result)),
    ]


def _captioners(run: Run) -> str:
    """Who wrote the captions, and with which weights, in words."""
    recipe = run.caption_recipe() if run.config().captions else None
    if recipe is None:
        return "none"
    said = []
    for modality in ("visual", "audio"):
        part = recipe.fields.get(modality)
        if isinstance(part, Mapping):
            weights = part.get("weights")
            source = (
                f", weights {weights.get('source', 'of a file')}"
                if isinstance(weights, Mapping)
                else ", which has no weights"
            )
            said.append(f"{modality} by {part.get('name', 'not known')}{source}")
    return "; ".join(said) or recipe.name


def _scores(subject: Subject, home: Home) -> list[Block]:
    run = subject.run
    result, config = run.result() or {}, run.config()
    metric = result["metric"]
    rows = [
        (
            split,
            f"{value:.2f}",
            format_interval(result["intervals"].get(split), metric) or "-",
            f"{result['majority'][split]:.2f}",
            result["clips"][split],
            result["left_out"].get(split, 0),
        )
        for split, value in result["scores"].items()
    ]
    made = next(iter(result["intervals"].values()), None)
    note = (
        f"Interval: {made['level']:g} %, {made['resamples']} resamples of {made['unit']}; it says what other clips "
        "could change, not what another seed would. Majority: always the most frequent answer of train."
        if made
        else ""
    )
    columns = ("split", f"{metric} %", "interval", "majority %", result["rows"], "in quarantine")
    blocks = [table("Scores", columns, rows, note)]
    names = list(next(iter(result["details"].values()), {}))
    if names:
        details = [(name, *(result["details"][split][name] for split in result["scores"])) for name in names]
        blocks.append(table("Also", ("score", *result["scores"]), details))
    blocks += _published(run, home) + _seeds(run, home, metric)
    if not config.captions and config.model.adapters.case.enabled:
        blocks.append(text("CASE is on without captions."))
    return blocks


def _published(run: Run, home: Home) -> list[Block]:
    """Published numbers, where this run may stand beside them: official data set, split and protocol, real weights."""
    group = run.origin()["group"]
    table_ = build_table(home, run.config().task)
    for section in table_.sections:
        own = [line for line in section.lines if line.own and line.source in (run.name, group)]
        if section.apart or not own:
            continue
        lines = [*(line for line in section.lines if not line.own), *own]
        rows = [
            (
                ("this run: " if line.own else "") + line.method,
                *(v.shown() if v else "-" for v in line.values),
                line.protocol,
                line.source,
            )
            for line in lines
        ]
        sources = "; ".join(f"{mark}: {said}" for mark, said in table_.sources.items())
        return [
            table(
                f"Beside published numbers: {section.title}",
                ("method", *section.metrics.values(), "protocol", "source"),
                rows,
                sources,
            )
        ]
    return [
        text(
            "No published numbers stand here: they belong beside the official data set, all of it, by their protocol."
        )
    ]


def _seeds(run: Run, home: Home, metric: str) -> list[Block]:
    """The other seeds of the run's group."""
    results = [held for other in members(home, run.origin()["group"]) if (held := other.result()) is not None]
    if len(results) < 2:
        return []
    spread = summarise_group(run.origin()["group"], results)
    splits = list(spread["scores"])
    rows = [
        (f"seed {held['seed']}", *(f"{held['scores'][split]:.2f}" for split in splits)) for held in results
    ]
    mean = (
        "mean ± deviation",
        *(f"{spread['scores'][s]['mean']:.2f} ± {spread['scores'][s]['std']:.2f}" for s in splits),
    )
    return [table(f"Seeds: {metric} %", ("run", *splits), [*rows, mean])]


def _curves(run: Run) -> list[Block]:
    config, result = run.config(), run.result() or {}
    return figures.curves(read_metrics(run.folder / METRICS), result["metric"], config.select_on)


def _by_class(subject: Subject) -> list[Block]:
    result, split = subject.run.result() or {}, subject.split or "test"
    blocks = figures.class_bars(result["per_class"].get(split, []), split)
    rows = [row for row in subject.rows if row["split"] == split]
    pairs: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if isinstance(row["truth"], str):
            pairs[row["truth"], row["prediction"]] += 1
        elif (
            isinstance(row["truth"], list)
            and row["probabilities"]
            and isinstance(row["probabilities"][0], list)
        ):
            pairs.update(zip(row["truth"], row["prediction"], strict=True))
    known = dict.fromkeys((*subject.run.inputs().classes, "background"))
    names = [name for name in known if any(name in pair for pair in pairs)]
    names += [name for name in dict.fromkeys(n for pair in pairs for n in pair) if name not in known]
    what = "questions" if rows and isinstance(rows[0]["truth"], str) else "seconds"
    return blocks + figures.confusion(pairs, names, what)


def _groups(subject: Subject) -> list[Block]:
    """Scores of clips with each note, of each kind of misalignment, and by length of captions."""
    rows = [row for row in subject.rows if row["split"] == subject.split and row["score"] is not None]
    groups: dict[str, dict[str, list[float]]] = {
        name: defaultdict(list) for name in ("note", "misalignment", "captions")
    }
    for row in rows:
        for note in row["notes"] or ["nothing noted"]:
            groups["note"][note].append(row["score"])
        if row["clip"] in subject.kinds:
            groups["misalignment"][subject.kinds[row["clip"]]].append(row["score"])
        words = sum(len(said.split()) for said in subject.captions(row["clip"]).values())
        if words:
            groups["captions"][_length(words)].append(row["score"])
    result = subject.run.result() or {}
    titles = {
        "note": "By what was noted about the media",
        "misalignment": "By how audio and frames disagree (truth of the generated set)",
        "captions": "By length of both captions",
    }
    return [
        table(
            f"{titles[name]}, {subject.split}",
            ("clips", f"mean {result['metric']} %", result["rows"]),
            [(label, f"{100 * float(np.mean(own)):.2f}", len(own)) for label, own in sorted(held.items())],
        )
        for name, held in groups.items()
        if held and not (name == "note" and list(held) == ["nothing noted"])
    ]


def _length(words: int) -> str:
    for low, high in zip((0, *CAPTION_STEPS), (*CAPTION_STEPS, 0), strict=True):
        if words < high or not high:
            return f"{low:02d} words and more" if not high else f"{low:02d} to {high - 1} words"
    return ""


def _reliability(subject: Subject) -> list[Block]:
    """Predicted probabilities against observed frequencies, of predictions and of the agreement."""
    predicted: list[float] = []
    observed: list[bool] = []
    names = (*subject.run.inputs().classes, "background")
    for row in subject.rows:
        if row["split"] != subject.split:
            continue
        if isinstance(row["truth"], str):
            predicted.append(row["confidence"] or 0.0)
            observed.append(row["truth"] == row["prediction"])
        elif (
            isinstance(row["truth"], list)
            and row["probabilities"]
            and isinstance(row["probabilities"][0], list)
        ):
            predicted += [max(p or 0.0 for p in second) for second in row["probabilities"]]
            tops = [names[int(np.argmax([p or 0.0 for p in second]))] for second in row["probabilities"]]
            observed += [a == b for a, b in zip(row["truth"], tops, strict=True)]
    blocks: list[Block] = []
    if predicted:
        bins = reliability(np.array(predicted), np.array(observed))
        note = "How often the likeliest answer was right, against its probability: on the line, as often as said."
        blocks += figures.reliability("sure", f"Reliability of predictions, {subject.split}", bins, note)
    if (subject.run.folder / AGREEMENT_FILE).exists():
        held = subject.run.read(AGREEMENT_FILE)
        note = f"{str(held['meaning']).capitalize()}, against {held['against']}, on {held['split']}."
        rows = [
            {OLDER_NAMES.get(name, name): value for name, value in row.items()} for row in held["reliability"]
        ]
        blocks += figures.reliability("agree", "Reliability of the agreement", rows, note)
    return blocks


def _stress(run: Run) -> list[Block]:
    found: list[Block] = []
    for path in sorted((run.folder / STRESS).glob("*.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):
            found += figures.stress(json.loads(path.read_text(encoding="utf-8")))
    return found


def _lists(subject: Subject, page: Page, media: Media, mark: str) -> list[dict[str, Any]]:
    """The lists of cards; previews go to the first of each list where not all clips get one."""
    rows = [row for row in subject.rows if row["split"] == subject.split]
    chosen: dict[str, tuple[str, str, list[tuple[Row, str]]]] = {}
    scored = [row for row in rows if row["score"] is not None]
    worst = sorted(scored, key=lambda row: (row["score"], -(row["confidence"] or 0.0)))[:SHOWN]
    chosen["worst"] = (
        "worst",
        "The lowest scores, the most confident first among equals.",
        [(r, "") for r in worst],
    )
    wrong = sorted((row for row in scored if row["score"] < 1), key=lambda row: -_surely_wrong(row))[:SHOWN]
    chosen["confident"] = (
        "most confident errors",
        "Wrong, and sure of it: bad labels are found here.",
        [(r, "") for r in wrong],
    )
    drawn = np.random.default_rng(0).permutation(len(rows))[:SHOWN]
    chosen["random"] = (
        "random",
        "Drawn at random, the same at every time.",
        [(rows[i], "") for i in drawn.tolist()],
    )
    apart = sorted(
        (row for row in rows if _agreement(row) is not None), key=lambda row: _agreement(row) or 0.0
    )[:SHOWN]
    if apart:
        said = "Clips whose audio and frames agree least, by the run's own agreement."
        chosen["apart"] = ("least agreement", said, [(row, "") for row in apart])
    if len(rows) > SHOWN:
        noun = (subject.run.result() or {})["rows"]
        page.notes.append(
            f"{subject.run.name}: {len(rows):,} {noun} of {subject.split} are scored; each list of cards shows {SHOWN}."
        )
    wanted = [row for _, _, entries in chosen.values() for row, _ in entries]
    order = sorted(range(len(wanted)), key=lambda i: i % SHOWN)  # the first of each list come first
    clips = [subject.clips[wanted[i]["clip"]] for i in order if wanted[i]["clip"] in subject.clips]
    media.fetch(list({clip.key: clip for clip in clips}.values()))
    for row in wanted:
        identifier = f"{mark}{row['split']}/{row['key']}"
        if identifier not in page.cards:
            page.cards[identifier] = card_of(subject, row, media)
    return [
        card_list(name, label, note, [([f"{mark}{row['split']}/{row['key']}"], why) for row, why in entries])
        for name, (label, note, entries) in chosen.items()
        if entries
    ]


def card_of(subject: Subject, row: Row, media: Media) -> Card:
    """The card of one prediction."""
    run = subject.run
    inputs, moe = run.inputs(), run.config().model.adapters.avmoe
    clip = subject.clips.get(row["clip"])
    segments = len(row["frames_ok"] or ())
    known = clip or Clip(row["clip"], "", 0.0, segments * inputs.segment_s)
    cross, own = moe.cross_experts, moe.uni_experts
    experts = [f"across {i + 1}" if cross > 1 else "across" for i in range(cross)]
    experts += [f"within {i + 1}" if own > 1 else "within" for i in range(own)]
    card = with_row(
        bare_card(known, segments, inputs.segment_s),
        row,
        inputs.classes,
        experts,
        inputs.spec.visual[-1].tokens,
    )
    card = with_captions(card, subject.captions(row["clip"]))
    if clip is None:
        return {**card, "problem": "no picture and no sound: the stores that know the clip's file are gone"}
    return media.onto(card, clip.key)


def _surely_wrong(row: Row) -> float:
    return float((1 - row["score"]) * (row["confidence"] or 0.0))


def _agreement(row: Row) -> float | None:
    """Mean over the seconds with both media."""
    said = row.get("agreement") or row.get("caste_gate") or ()
    known = [value for value in said if value is not None]
    return sum(known) / len(known) if known else None
