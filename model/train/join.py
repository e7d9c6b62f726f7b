"""Token stores, caption store and labels of one data set, joined by key and checked before any training.

Every clip of a split is accounted for: it has tokens (and captions, when the run uses them), or it lies in a
quarantine and is counted, or the join is refused with the next step. Nothing is left out in silence.
Labels and splits are those the (first) token store saw last; `caeav extract` brings them up to date in seconds.
Shapes: `T` segments, `L`/`M` tokens a segment, `C`/`D` channels, `W` caption tokens.

What a careful reader would want to know about joined stores and labels before training, in words.

Leaving out clips whose video is in another split too, and telling what that does to a score.

Such clips leave every split they are in. Where questions are split instead of videos, all questions about a video that
is asked about in several splits go.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLITS, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted
from caeav.manifests.findings import leaked_keys, told
from caeav.manifests.key_index import hash_texts, random_seed
from caeav.manifests.manifest import holds_rows, manifest_digest, read_manifest
from caeav.model.adapters.batch import CaptionSpec, InputSpec
from caeav.model.tasks.sample import Sample, Samples, clip_samples
from caeav.model.train.pick import PickedStore, choose_store, fingerprint_of
from caeav.pipeline.store import StoreKind, StoreReader, random_parts
from caeav.pipeline.store.media_record import read_record
from caeav.pipeline.store.recipe import MODALITIES
from caeav.pipeline.store.record import Tap

SHOWN_KEYS = 5
DROP_LEAKS = "; --drop-leaks leaves such clips out"
"""What is advised where clips leak from one split to another."""


def label_remarks(home: Home, dataset: str, used: Manifest) -> list[str]:
    """A word when the manifest built for the data set says something else than the store's."""
    path = home.manifest(dataset)
    if not path.is_file() or holds_rows(path, used):
        return []
    if manifest_digest(read_manifest(path)) == manifest_digest(used):
        return []
    return [
        f"{path} differs from the labels and splits that the token store saw last, which are used; "
        f"to take over newer ones: caeav extract --dataset {dataset}; where the file is the older one: "
        "caeav manifest build"
    ]


def media_remarks(stores: Sequence[StoreReader]) -> list[str]:
    """A word where joined stores were made of different versions of the same media."""
    said = []
    first = read_record(stores[0].path) or {}
    for store in stores[1:]:
        second = read_record(store.path) or {}
        other = {
            name for name, facts in second.items() if name in first and first[name].digest != facts.digest
        }
        keys = (
            [clip.key for clip in store.manifest.clips if clip.media in other and clip.key in store]
            if other
            else []
        )
        if keys:
            command = "caption" if store.recipe.kind == "captions" else "extract"
            said.append(
                f"{some(keys)}: {store.path.name} was made of another version of the media than {stores[0].path.name}; "
                f"caeav {command} --dataset {store.path.parent.name} notices which is the older one"
            )
    return said


def random_remarks(stores: Iterable[StoreReader]) -> list[str]:
    """A word for each component of the stores that had random weights."""
    return [
        f"{store.path.name}: {name} HAD RANDOM WEIGHTS; scores say nothing of that model"
        for store in stores
        for name in random_parts(store.recipe.fields)
    ]


def split_remarks(rows: Samples, left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """What a careful reader would want to know about the splits."""
    said = [f"{split}: {some(keys)} left out, in quarantine" for split, keys in left_out.items() if keys]
    unused = np.ones(len(rows.manifest.clips), bool)
    unused[rows.rows] = False
    if unused.any():
        said.append(f"{some(rows.manifest.keys.take(np.flatnonzero(unused)))} in no split, not used")
    said += [
        f"{counted(n, 'source video lies', 'source videos lie')} in both splits of {pair}{DROP_LEAKS}"
        for pair, n in _leaks(rows).items()
    ]
    return said


def _leaks(rows: Samples) -> Counter[str]:
    """How many source videos (official id, else media file) have samples in two splits, by pair of splits.

    Videos are told apart by a hash of 64 bits, nine bytes a sample: among a million two are alike once in 40 million
    data sets.
    """
    if not rows:
        return Counter()
    bits = np.uint8(1) << (rows.splits - 1)  # 0 is no split
    blob, ends = bytearray(), array("I")
    for video in rows.manifest.table.videos(rows.rows):
        blob += video
        ends.append(len(blob))
    hashes = hash_texts(bytes(blob), np.array(ends, np.uint32), random_seed())
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
    of_video = np.bitwise_or.reduceat(bits[order], first)
    found = {
        f"{a}/{b}": int(np.count_nonzero((of_video >> i) & (of_video >> j) & 1))
        for i, a in enumerate(SPLITS)
        for j, b in enumerate(SPLITS[i + 1 :], i + 1)
    }
    return Counter({pair: n for pair, n in found.items() if n})


def some(keys: Sequence[str]) -> str:
    """`3 clips (a, b, c)`, cut after a few keys."""
    return f"{counted(len(keys), 'clip')} ({', '.join(keys[:SHOWN_KEYS])}{', ...' if len(keys) > SHOWN_KEYS else ''})"


Sampler = Callable[[Manifest], Sequence[Sample]]

SEAL = "complete.json"
BY_SETTING = {"tokens": "--set stores.tokens=[FOLDER]", "captions": "--set stores.captions=FOLDER"}


class JoinError(CaeavError):
    """Stores and labels do not fit together."""


@dataclass(frozen=True)
class Joined:
    """What a run trains on. `splits`: samples that can be used, in the task's order; `left_out`: split -> keys of
    clips in a quarantine; `remarks`: facts to tell the user before training."""

    manifest: Manifest
    tokens: tuple[StoreReader, ...]
    captions: StoreReader | None
    spec: InputSpec
    splits: Mapping[str, Samples]
    left_out: Mapping[str, Sequence[str]]
    remarks: tuple[str, ...]

    @property
    def stores(self) -> tuple[StoreReader, ...]:
        """All joined stores, tokens first."""
        return self.tokens if self.captions is None else (*self.tokens, self.captions)

    def clips(self, split: str) -> int:
        """How many different clips the samples of a split lie in."""
        return len(np.unique(self.splits[split].rows))


def join_stores(
    home: Home,
    dataset: str,
    token_names: Sequence[str] = (),
    caption_name: str = "",
    *,
    captions: bool = True,
    taps: Sequence[str] = (),
    samples: Sampler = clip_samples,
) -> Joined:
    """Find, open and join the stores of `dataset`; raises `JoinError` when a clip is not accounted for.

    A token store may be named with the one modality to take from it, as `NAME:visual`. `taps`: the only ones to read,
    all when empty. `samples`: the task's rows of the manifest.
    """
    remarks: list[str] = []
    tokens = tuple(_open_tokens(home, dataset, name, remarks) for name in (token_names or ("",)))
    caption_store = _open(home, dataset, "captions", caption_name, remarks) if captions else None
    manifest = tokens[0].manifest
    remarks += [*told(manifest), *label_remarks(home, dataset, manifest)]
    remarks += media_remarks([*tokens, *([caption_store] if caption_store is not None else [])])
    return join(manifest, tokens, caption_store, remarks, taps=taps, samples=samples)


def _open(home: Home, dataset: str, kind: StoreKind, name: str, remarks: list[str]) -> StoreReader:
    path, said = choose_store(home.stores, dataset, kind, name, BY_SETTING[kind])
    remarks += said
    return StoreReader.open(path)


def _open_tokens(home: Home, dataset: str, text: str, remarks: list[str]) -> StoreReader:
    """`NAME`, `NAME:visual` or `NAME:audio` -> the store, or its one modality."""
    name, colon, modality = text.partition(":")
    if colon and modality not in MODALITIES:
        raise JoinError(
            f"{text!r} names no modality of a store", hint=f"write {name}:visual or {name}:audio, or {name}"
        )
    store = _open(home, dataset, "tokens", name, remarks)
    return PickedStore(store, modality) if modality else store


def join(
    manifest: Manifest,
    tokens: Sequence[StoreReader],
    captions: StoreReader | None,
    remarks: Sequence[str] = (),
    *,
    taps: Sequence[str] = (),
    samples: Sampler = clip_samples,
) -> Joined:
    """Join opened stores with the labels of `manifest`."""
    spec = _input_spec(manifest, tokens, captions, taps)
    _same_media([*tokens, *([captions] if captions is not None else [])])
    stores = [(store, "tokens") for store in tokens] + (
        [(captions, "captions")] if captions is not None else []
    )
    rows = Samples.of(samples(manifest), manifest)
    held = [_held(store, manifest) for store, _ in stores]
    splits: dict[str, Samples] = {}
    left_out: dict[str, Sequence[str]] = {}
    for split in SPLITS:
        wanted = rows.of_split(split)
        kept = np.ones(len(manifest.clips), bool)
        for (store, kind), stored in zip(stores, held, strict=True):
            absent, _ = wanted.where(~stored).clips()
            if absent:
                _check_accounted(absent, store, kind, manifest.dataset, split, wanted)
            kept &= stored
        splits[split] = wanted.where(kept)
        left_out[split], _ = wanted.where(~kept).clips()
    said = [*random_remarks(store for store, _ in stores), *remarks, *split_remarks(rows, left_out)]
    return Joined(manifest, tuple(tokens), captions, spec, splits, left_out, tuple(said))


def _held(store: StoreReader, manifest: Manifest) -> NDArray[np.bool_]:
    """Which clips of `manifest` a store holds, in the manifest's order."""
    if store.manifest.keys == manifest.keys:
        return store.held()
    return np.fromiter((key in store for key in manifest.keys), bool, len(manifest.clips))


def _same_media(stores: Sequence[StoreReader]) -> None:
    """The same key must mean the same part of the same file in all stores."""
    others = [store for store in stores[1:] if store.manifest.clips != stores[0].manifest.clips]
    if not others:
        return
    first = {clip.key: clip.source() for clip in stores[0].manifest.clips}
    for store in others:
        other = [c.key for c in store.manifest.clips if c.key in first and first[c.key] != c.source()]
        if other:
            raise JoinError(
                f"{some(other)} mean other media or times in {store.path} than in {stores[0].path}",
                hint="make the one that is not as the data set is now anew: caeav "
                f"{'caption' if store.recipe.kind == 'captions' else 'extract'} --dataset {store.path.parent.name}; "
                "where several fit then, stores.tokens and stores.captions choose",
            )


def _check_accounted(
    absent: Sequence[str], store: StoreReader, kind: str, dataset: str, split: str, wanted: Samples
) -> None:
    """Raise `JoinError` unless the clips that a store lacks, of those wanted of a split, are in its quarantine."""
    quarantined = {item.key for item in store.quarantined}
    missing = [key for key in absent if key not in quarantined]
    if missing:
        verb = "extract" if kind == "tokens" else "caption"
        raise JoinError(
            f"split {split!r}: {some(missing)} of {len(np.unique(wanted.rows))} have no {kind} in {store.path}",
            hint=f"caeav {verb} --dataset {dataset}"
            + (", or train without captions: --recipe caste" if kind == "captions" else ""),
        )


def _input_spec(
    manifest: Manifest, tokens: Sequence[StoreReader], captions: StoreReader | None, wanted: Sequence[str]
) -> InputSpec:
    """Shapes of what the stores offer and the run wants; raises `JoinError` where they contradict each other."""
    taps: dict[str, Tap] = {}
    owner: dict[str, StoreReader] = {}
    for store in tokens:
        for name, shape in _shapes(store).items():
            if name in taps:
                raise JoinError(
                    f"tap {name!r} is in two token stores: {owner[name].path} and {store.path}",
                    hint=f"say which to take from each: --set stores.tokens=["
                    f"{owner[name].path.name}:{_other(name)},{store.path.name}:{name.partition('.')[0]}]",
                )
            if len(shape) != 3 or shape[0] != manifest.segments:
                raise JoinError(
                    f"tap {name!r} of {store.path} has shape {list(shape)} a clip; "
                    f"allowed: [{manifest.segments}, L, C], the manifest cuts clips into {manifest.segments} segments",
                    hint=f"extract again: caeav extract --dataset {manifest.dataset}",
                )
            taps[name] = Tap(name, shape[1], shape[2])
            owner[name] = store
    unknown = sorted(set(wanted) - set(taps))
    if unknown:
        raise JoinError(
            f"stores.taps names {', '.join(unknown)}; the joined stores hold {', '.join(taps)}",
            hint="choose among these, or leave stores.taps empty for all of them",
        )
    kept = [tap for tap in taps.values() if not wanted or tap.name in wanted]
    by_modality = {
        modality: tuple(tap for tap in kept if tap.name.startswith(f"{modality}.")) for modality in MODALITIES
    }
    for modality, found in by_modality.items():
        if not found:
            raise JoinError(
                f"no {modality} taps in {', '.join(str(store.path) for store in tokens)}; "
                f"there are {', '.join(tap.name for tap in kept)}",
                hint=f"join a store with {modality} tokens too: --set stores.tokens=[...]",
            )
    shapes = {} if captions is None else _shapes(captions)
    return InputSpec(
        segments=manifest.segments,
        visual=by_modality["visual"],
        audio=by_modality["audio"],
        visual_caption=_caption_spec(shapes, "visual_caption"),
        audio_caption=_caption_spec(shapes, "audio_caption"),
        other=tuple(tap for tap in kept if tap not in by_modality["visual"] + by_modality["audio"]),
    )


def _other(tap: str) -> str:
    """The modality a tap is not of."""
    return MODALITIES[tap.startswith(MODALITIES[0])]


def _shapes(store: StoreReader) -> dict[str, tuple[int, ...]]:
    """Array name -> shape of one clip; taps in the recipe's order, which is from shallow to deep."""
    specs = store.array_specs()
    declared = [
        tap["name"]
        for modality in MODALITIES
        for tap in store.recipe.fields.get(modality, {}).get("taps", ())
    ]
    order = [*(name for name in declared if name in specs), *(name for name in specs if name not in declared)]
    return {name: tuple(specs[name].shape) for name in order}


def _caption_spec(shapes: Mapping[str, tuple[int, ...]], name: str) -> CaptionSpec | None:
    return CaptionSpec(*shapes[name]) if name in shapes else None


def store_facts(joined: Joined, home: Home) -> list[dict[str, Any]]:
    """What is written about each joined store into a run: place, fingerprint, counts, recipe of what is taken of it."""
    return [
        {
            "kind": store.recipe.kind,
            "name": store.recipe.name,
            "folder": _relative(store, home),
            "fingerprint": fingerprint_of(store),
            "digest": hashlib.sha256((store.path / SEAL).read_bytes()).hexdigest(),
            "clips": len(store.keys),
            "quarantined": len(store.quarantined),
            "recipe": store.recipe.as_json(),
        }
        for store in joined.stores
    ]


def _relative(store: StoreReader, home: Home) -> str:
    folder = store.path.absolute()
    return folder.relative_to(home.root).as_posix() if folder.is_relative_to(home.root) else folder.name


def without_leaks(joined: Joined) -> Joined:
    """The same with those samples gone from all splits, and a remark that says how many."""
    leaked = leaked_keys(joined.manifest)
    sound = np.array([key not in leaked for key in joined.manifest.keys], bool)
    kept = {split: samples.where(sound) for split, samples in joined.splits.items()}
    counts = dropped(joined.splits, kept)
    said = ", ".join(f"{count} of {len(joined.splits[split])} of {split}" for split, count in counts.items())
    remarks = [remark.removesuffix(DROP_LEAKS) for remark in joined.remarks]
    remarks.append(f"left out, their video being in another split too: {said}")
    return replace(joined, splits=kept, remarks=tuple(remarks))


def dropped(whole: Mapping[str, Sequence[Sample]], kept: Mapping[str, Sequence[Sample]]) -> dict[str, int]:
    """Split -> how many samples are gone."""
    return {split: len(samples) - len(kept[split]) for split, samples in whole.items()}
