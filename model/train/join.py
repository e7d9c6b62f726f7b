"""Token stores, caption store and labels of one data set, joined by key and checked before any training.

Every clip of a split is accounted for: it is in all joined stores, or in quarantine and counted, or the join is refused
with the next step. Labels and splits are those the first token store saw last; `caeav extract` updates them in seconds.
Shapes: `T` segments, `L`/`M` tokens per segment, `C`/`D` channels, `W` caption tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLITS, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.findings import leaked_keys, warning_lines
from caeav.model.adapters.batch import CaptionSpec, InputSpec
from caeav.model.tasks.sample import Sample, Samples, clip_samples
from caeav.model.train.remarks import (
    DROP_LEAKS,
    label_remarks,
    media_remarks,
    random_remarks,
    some_clips,
    split_remarks,
)
from caeav.model.train.store_choice import OneModality, choose_store, whole_fingerprint
from caeav.pipeline.store import StoreKind, StoreReader
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.recipe import COMMANDS, MODALITIES
from caeav.pipeline.store.record import Tap
from caeav.pipeline.store.remote.reading import open_remote, share_room
from caeav.pipeline.store.remote.url import is_url

Sampler = Callable[[Manifest], Sequence[Sample]]

BY_SETTING = {"tokens": "--set stores.tokens=[FOLDER]", "captions": "--set stores.captions=FOLDER"}


class JoinError(CaeavError):
    """Stores and labels do not fit together."""


@dataclass(frozen=True)
class Joined:
    """What a run trains on. `splits`: usable samples in the task's order; `left_out`: split -> keys of clips in
    quarantine; `remarks`: what to tell the user before training."""

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
        """How many different clips the samples of a split come from."""
        return len(np.unique(self.splits[split].rows))

    def without_leaks(self) -> Joined:
        """The same without clips whose video is in another split too; they leave all splits.

        Where questions are split instead of videos, all questions about a video asked about in several splits go.
        """
        leaked = leaked_keys(self.manifest)
        clean = np.array([key not in leaked for key in self.manifest.keys], bool)
        kept = {split: samples.where(clean) for split, samples in self.splits.items()}
        counts = removed(self.splits, kept)
        listed = ", ".join(
            f"{count} of {len(self.splits[split])} of {split}" for split, count in counts.items()
        )
        remarks = [remark.removesuffix(DROP_LEAKS) for remark in self.remarks]
        remarks.append(f"left out, their video being in another split too: {listed}")
        return replace(self, splits=kept, remarks=tuple(remarks))


def removed(before: Mapping[str, Sequence[Sample]], after: Mapping[str, Sequence[Sample]]) -> dict[str, int]:
    """Split -> how many samples were taken out."""
    return {split: len(samples) - len(after[split]) for split, samples in before.items()}


def join_stores(
    home: Home,
    dataset: str,
    token_names: Sequence[str] = (),
    caption_name: str = "",
    *,
    captions: bool = True,
    taps: Sequence[str] = (),
    samples: Sampler = clip_samples,
    by: Mapping[str, str] = BY_SETTING,
) -> Joined:
    """Find, open and join the stores of `dataset`; raises `JoinError` when a clip is not accounted for.

    A token store named `NAME:visual` or `NAME:audio` contributes that modality only. `taps`: those to read, all when
    empty. `samples`: makes the task's samples from the manifest. `by`: how the caller names each kind of store.
    """
    remarks: list[str] = []
    tokens = tuple(_open_tokens(home, dataset, name, remarks, by) for name in (token_names or ("",)))
    caption_store = _open(home, dataset, "captions", caption_name, remarks, by) if captions else None
    share_room(tokens if caption_store is None else (*tokens, caption_store))
    manifest = tokens[0].manifest
    remarks += [*warning_lines(manifest), *label_remarks(home, dataset, manifest)]
    remarks += media_remarks(tokens if caption_store is None else (*tokens, caption_store))
    return join(manifest, tokens, caption_store, remarks, taps=taps, samples=samples)


def _open(
    home: Home, dataset: str, kind: StoreKind, name: str, remarks: list[str], by: Mapping[str, str]
) -> StoreReader:
    if is_url(name):
        return _open_address(home, dataset, kind, name)
    path, others = choose_store(home.stores, dataset, kind, name, by[kind])
    remarks += others
    return StoreReader.open(path)


def _open_address(home: Home, dataset: str, kind: StoreKind, url: str) -> StoreReader:
    """The store at an address; raises `JoinError` for one of another kind or data set."""
    store = open_remote(url, home)
    held = (store.recipe.kind, store.manifest.dataset)
    if held != (kind, dataset):
        raise JoinError(
            f"{store.url} holds {held[0]} of {held[1]}; {kind} of {dataset} are needed",
            hint=f"name another address, or train on it: --dataset {held[1]}",
        )
    return store


def _open_tokens(
    home: Home, dataset: str, text: str, remarks: list[str], by: Mapping[str, str]
) -> StoreReader:
    """`NAME`, `NAME:visual` or `NAME:audio` -> the store, or its one modality."""
    name, colon, modality = text.rpartition(":") if ":" in text else (text, "", "")
    if is_url(text) and modality not in MODALITIES:
        name, colon, modality = text, "", ""
    if colon and modality not in MODALITIES:
        raise JoinError(
            f"{text!r} names no modality of a store", hint=f"write {name}:visual or {name}:audio, or {name}"
        )
    store = _open(home, dataset, "tokens", name, remarks, by)
    return OneModality(store, modality) if modality else store


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
    stores = list(tokens) if captions is None else [*tokens, captions]
    _require_same_media(stores)
    rows = Samples.of(samples(manifest), manifest)
    held = [_held(store, manifest) for store in stores]
    splits: dict[str, Samples] = {}
    left_out: dict[str, Sequence[str]] = {}
    for split in SPLITS:
        wanted = rows.of_split(split)
        kept = np.ones(len(manifest.clips), bool)
        for store, stored in zip(stores, held, strict=True):
            absent, _ = wanted.where(~stored).clips()
            if absent:
                _require_quarantined(absent, store, split, wanted)
            kept &= stored
        splits[split] = wanted.where(kept)
        left_out[split], _ = wanted.where(~kept).clips()
    remarks = [*random_remarks(stores), *remarks, *split_remarks(rows, left_out)]
    return Joined(manifest, tuple(tokens), captions, spec, splits, left_out, tuple(remarks))


def _held(store: StoreReader, manifest: Manifest) -> NDArray[np.bool_]:
    """Which clips of `manifest` a store holds, in the manifest's order."""
    if store.manifest.keys == manifest.keys:
        return store.held()
    return np.fromiter((key in store for key in manifest.keys), bool, len(manifest.clips))


def _require_same_media(stores: Sequence[StoreReader]) -> None:
    """Raise `JoinError` where a key means another file, or another part of it, in two stores."""
    others = [store for store in stores[1:] if store.manifest.clips != stores[0].manifest.clips]
    if not others:
        return
    first = {clip.key: clip.source() for clip in stores[0].manifest.clips}
    for store in others:
        other = [c.key for c in store.manifest.clips if c.key in first and first[c.key] != c.source()]
        if other:
            raise JoinError(
                f"{some_clips(other)} mean other media or times in {store.path} than in {stores[0].path}",
                hint=f"remake the store that is out of date: caeav {COMMANDS[store.recipe.kind]} --dataset "
                f"{store.path.parent.name}; if several stores fit then, choose with stores.tokens and stores.captions",
            )


def _require_quarantined(absent: Sequence[str], store: StoreReader, split: str, wanted: Samples) -> None:
    """Raise `JoinError` unless all clips of `wanted` that the store lacks are in its quarantine."""
    quarantined = {item.key for item in store.quarantined}
    missing = [key for key in absent if key not in quarantined]
    if missing:
        kind = store.recipe.kind
        raise JoinError(
            f"split {split!r}: {some_clips(missing)} of {len(np.unique(wanted.rows))} have no {kind} in {store.path}",
            hint=f"caeav {COMMANDS[kind]} --dataset {store.manifest.dataset}"
            + (", or train without captions: --recipe caste" if kind == "captions" else ""),
        )


def _input_spec(
    manifest: Manifest, tokens: Sequence[StoreReader], captions: StoreReader | None, wanted: Sequence[str]
) -> InputSpec:
    """Shapes of the taps and captions to read; raises `JoinError` where stores contradict each other."""
    taps: dict[str, Tap] = {}
    owner: dict[str, StoreReader] = {}
    for store in tokens:
        for name, shape in _shapes(store).items():
            if name in taps:
                raise JoinError(
                    f"tap {name!r} is in two token stores: {owner[name].path} and {store.path}",
                    hint=f"take one modality from each: --set stores.tokens=["
                    f"{owner[name].path.name}:{_other(name)},{store.path.name}:{name.partition('.')[0]}]",
                )
            if len(shape) != 3 or shape[0] != manifest.segments:
                raise JoinError(
                    f"tap {name!r} of {store.path} has shape {list(shape)} per clip; "
                    f"allowed: [{manifest.segments}, L, C], as the manifest has {manifest.segments} segments",
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
    """The modality that a tap does not belong to."""
    return MODALITIES[tap.startswith(MODALITIES[0])]


def _shapes(store: StoreReader) -> dict[str, tuple[int, ...]]:
    """Array name -> shape per clip; taps in the recipe's order, from shallow to deep."""
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
    """What a run records of each joined store: folder, fingerprints, counts, and the recipe of what is read."""
    return [
        {
            "kind": store.recipe.kind,
            "name": store.recipe.name,
            "folder": _relative(store, home),
            "fingerprint": whole_fingerprint(store),
            "digest": hashlib.sha256(StoreFolder(store.path).seal.read_bytes()).hexdigest(),
            "clips": len(store.keys),
            "quarantined": len(store.quarantined),
            "recipe": store.recipe.as_json(),
        }
        for store in joined.stores
    ]


def _relative(store: StoreReader, home: Home) -> str:
    if store.url:
        return store.url
    folder = store.path.absolute()
    return folder.relative_to(home.root).as_posix() if folder.is_relative_to(home.root) else folder.name
