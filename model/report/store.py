"""What a page says about a store and a data set: what is in it, what is unusual in it, and which clips to look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caeav.manifests.clip import Clip, Manifest, video_of
from caeav.model.report import suspects
from caeav.model.report.cards import Media, bare_card, with_captions
from caeav.model.report.page import Block, Card, Page, Section, card_list, card_lists, facts, table, text
from caeav.model.report.summary import TokenSummary, summarise_tokens
from caeav.pipeline.store import StoreReader

SHOWN = 100
EXAMPLES = 24
NEAR = 0.95
"""Cosine from which two clips are called near-duplicates; clips of one class are seldom above 0.8."""
FILES_NAMED = 12


def store_section(store: StoreReader, mark: str = "") -> Section:
    """A store in words: recipe, counts, quarantine, notes."""
    recipe, manifest = store.recipe, store.manifest
    blocks: list[Block] = [
        facts(
            (
                ("store", store.path.name),
                ("kind", f"{recipe.kind}: {recipe.name}"),
                *(
                    (part, _component(recipe.fields[part]))
                    for part in ("visual", "audio", "text")
                    if part in recipe.fields
                ),
                ("decoder", _component(recipe.fields.get("decoder"))),
                ("numbers", recipe.fields.get("dtype")),
                (
                    "clips",
                    f"{len(store.keys):,} of {len(manifest.clips):,}, {len(store.quarantined):,} in quarantine",
                ),
                ("segments", f"{manifest.segments} of {manifest.segment_s:g} s"),
                ("size", _bytes(store.shard_bytes)),
                ("per clip", _bytes(store.shard_bytes // max(1, len(store.keys)))),
                (
                    "splits",
                    ", ".join(f"{name or 'none'} {n:,}" for name, n in manifest.split_counts().items()),
                ),
            )
        ),
        *(text(remark) for remark in store.remarks),
    ]
    shapes = store.array_specs()
    rows = [(name, "x".join(map(str, spec.shape)), spec.dtype) for name, spec in shapes.items()]
    blocks.append(table("Arrays of a clip", ("name", "shape", "numbers"), rows))
    if store.quarantined:
        by_reason: dict[str, list[str]] = defaultdict(list)
        media = {clip.key: clip.media for clip in manifest.clips}
        for item in store.quarantined:
            by_reason[f"{item.stage}: {item.reason}"].append(media.get(item.key, item.key))
        quarantine = [
            (reason, len(files), ", ".join(files[:FILES_NAMED]) + (" …" if len(files) > FILES_NAMED else ""))
            for reason, files in sorted(by_reason.items(), key=lambda pair: -len(pair[1]))
        ]
        blocks.append(table("Quarantine, by reason", ("reason", "clips", "files"), quarantine))
    return Section(f"store{mark}", f"Store {store.path.name}", blocks)


def clip_section(
    tokens: StoreReader, captions: StoreReader | None, page: Page, media: Media, mark: str = ""
) -> Section:
    """What the tokens of a store say about its clips: norms, notes, and the clips worth a look."""
    found = summarise_tokens(tokens)
    if len(found.keys) < found.of:
        page.notes.append(
            f"{tokens.path.name}: {len(found.keys):,} of {found.of:,} clips were read, evenly spread."
        )
    clips = {clip.key: clip for clip in tokens.manifest.clips}
    notes = {key: _notes(tokens, key) for key in found.keys}
    blocks = [*_norms(found), *_noted(notes, clips)]
    lists = _lists(found, tokens.manifest, clips)
    wanted = [
        key
        for one in _in_turns([[k for e in held["entries"] for k in e["cards"]] for held in lists])
        for key in [one]
    ]
    media.fetch([clips[key] for key in dict.fromkeys(wanted)])
    for key in dict.fromkeys(wanted):
        page.cards[f"{mark}clip/{key}"] = _card(clips[key], tokens.manifest, notes[key], captions, media)
    for held in lists:
        for entry in held["entries"]:
            entry["cards"] = [f"{mark}clip/{key}" for key in entry["cards"]]
    blocks.append(card_lists(f"data{mark}", lists))
    return Section(f"data{mark}", f"Clips of {tokens.manifest.dataset}", blocks)


def label_section(manifest: Manifest) -> Section:
    """The labels of a data set: how many clips of each class in each split, and what is unusual about them."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in manifest.clips:
        for label in clip.labels() or ("no label",):
            counts[label][clip.split or "none"] += 1
    splits = [name or "none" for name in manifest.split_counts()]
    rows = [(label, *(held[split] for split in splits)) for label, held in sorted(counts.items())]
    found = Counter(finding.code for finding in manifest.findings)
    first = {finding.code: finding for finding in reversed(manifest.findings)}
    odd = [(code, n, f"{first[code].where}: {first[code].detail}") for code, n in found.most_common()]
    blocks: list[Block] = [
        facts(
            (
                ("data set", manifest.dataset),
                ("clips", len(manifest.clips)),
                ("classes", len(manifest.classes)),
                ("segments", f"{manifest.segments} of {manifest.segment_s:g} s"),
                ("media", manifest.media_root),
            )
        ),
        table("Clips of each label", ("label", *splits), rows),
    ]
    if odd:
        blocks.append(
            table("Read differently from how it is written", ("finding", "times", "the first"), odd)
        )
    return Section("labels", f"Data set {manifest.dataset}", blocks)


def _component(part: Any) -> str | None:
    """A component of a recipe in words."""
    if not isinstance(part, Mapping):
        return None
    weights = part.get("weights")
    said = f", weights {weights.get('source', 'of a file')}" if isinstance(weights, Mapping) else ""
    version = f" {part['version']}" if isinstance(part.get("version"), str) else ""
    return f"{part.get('name', 'not known')}{version}{said}"


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _norms(found: TokenSummary) -> list[Block]:
    rows = [
        (
            tap.name,
            f"{tap.tokens} x {tap.channels}",
            tap.mean_norm,
            tap.least_norm,
            tap.largest_norm,
            f"{len(tap.dead)}: {', '.join(map(str, tap.dead[:FILES_NAMED]))}" if tap.dead else "none",
            tap.empty_clips,
        )
        for tap in found.taps
    ]
    columns = ("tap", "tokens", "mean norm", "least", "largest", "dead channels", "clips of zeros")
    note = "A channel is dead whose value never changes, in no token of any clip: the adapters learn nothing from it."
    return [table("Norms of tokens, and dead channels", columns, rows, note)]


def _notes(store: StoreReader, key: str) -> list[str]:
    return list(dict.fromkeys(str(note["code"]) for note in store.info(key).get("notes", ())))


def _noted(notes: Mapping[str, Sequence[str]], clips: Mapping[str, Clip]) -> list[Block]:
    by_code: dict[str, list[str]] = defaultdict(list)
    for key, codes in notes.items():
        for code in codes:
            by_code[code].append(clips[key].media)
    rows = [
        (code, len(files), ", ".join(files[:FILES_NAMED]) + (" …" if len(files) > FILES_NAMED else ""))
        for code, files in sorted(by_code.items(), key=lambda pair: -len(pair[1]))
    ]
    return [table("Noted about the media", ("note", "clips", "files"), rows)] if rows else []


def _lists(found: TokenSummary, manifest: Manifest, clips: Mapping[str, Clip]) -> list[dict[str, Any]]:
    """Lists whose entries name clips by key."""
    keys = found.keys
    lists = []
    classes = list(manifest.classes) or sorted({label for key in keys for label in clips[key].labels()})
    labels = np.array([[name in clips[key].labels() for name in classes] for key in keys], float)
    videos = [video_of(clips[key].media, clips[key].extra) for key in keys]
    vectors = suspects.joined(found.pooled) if found.pooled else np.zeros((len(keys), 0))
    if len(classes) > 1 and vectors.size and labels.any(axis=0).sum() > 1:
        said = suspects.held_out_probabilities(vectors, labels, videos)
        doubted = suspects.doubtful_labels(keys, said, labels, classes)[:SHOWN]
        right = float((labels[np.arange(len(keys)), said.argmax(axis=1)] > 0)[labels.any(axis=1)].mean())
        note = (
            "A linear classifier on pooled tokens that never saw the clip, nor another of its video, says otherwise. "
            f"It is right on {100 * right:.0f} % of all clips: look at the first; many later ones are its own errors."
        )
        lists.append(card_list("labels", "labels to check", note, [((s.key,), s.why) for s in doubted]))
    if vectors.size:
        pairs = suspects.near_duplicates(keys, vectors, [clips[key].split for key in keys], SHOWN)
        near = sum(pair.similarity >= NEAR for pair in pairs)
        note = (
            "The most similar pairs of clips in different splits, by the cosine of their standardised pooled tokens: "
            f"{near} reach {NEAR:g} and are likely the same recording, which makes a score too good."
        )
        entries = [((pair.a, pair.b), _likeness(pair, clips)) for pair in pairs]
        if entries:
            lists.append(card_list("duplicates", "near-duplicates across splits", note, entries))
    if len(found.pooled) > 1 and len(classes) > 1 and labels.any(axis=0).sum() > 1:
        seen, heard = (
            suspects.held_out_probabilities(suspects.standardised(found.pooled[name]), labels, videos)
            for name in ("visual", "audio")
        )
        named = suspects.apart(keys, seen, heard, classes)[:SHOWN]
        note = "What picture alone and sound alone are taken for, each by a classifier that never saw the clip, differ."
        lists.append(card_list("apart", "audio and frames apart", note, [((s.key,), s.why) for s in named]))
    drawn = np.random.default_rng(0).permutation(len(keys))[:EXAMPLES]
    examples = [((keys[i],), "") for i in sorted(drawn.tolist())]
    lists.append(card_list("examples", "examples", "Drawn at random, the same at every time.", examples))
    return lists


def _likeness(pair: suspects.Pair, clips: Mapping[str, Clip]) -> str:
    a, b = clips[pair.a], clips[pair.b]
    same = ", of one video" if video_of(a.media, a.extra) == video_of(b.media, b.extra) else ""
    return f"cosine {pair.similarity:.3f}; {a.split or 'no split'} and {b.split or 'no split'}{same}"


def _in_turns(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first of every list, then the second of every list, and so on."""
    longest = max(map(len, lists), default=0)
    return [held[i] for i in range(longest) for held in lists if i < len(held)]


def _card(
    clip: Clip, manifest: Manifest, notes: Sequence[str], captions: StoreReader | None, media: Media
) -> Card:
    card = {**bare_card(clip, manifest.segments, manifest.segment_s), "notes": list(notes)}
    if captions is not None and clip.key in captions:
        card = with_captions(card, captions.info(clip.key).get("texts", {}))
    return media.onto(card, clip.key)
