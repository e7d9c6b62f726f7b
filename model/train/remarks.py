"""What users should know about joined stores and labels before they train, one sentence each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from caeav.manifests.clip import SPLITS, Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted, some_of
from caeav.manifests.key_index import hash_texts, random_seed
from caeav.manifests.manifest import holds_rows, manifest_digest, read_manifest
from caeav.model.tasks.sample import Samples
from caeav.pipeline.store import StoreReader, random_parts
from caeav.pipeline.store.media_record import read_record
from caeav.pipeline.store.recipe import COMMANDS

SHOWN_KEYS = 5
DROP_LEAKS = "; --drop-leaks leaves such clips out"
"""Ends the remark about clips that leak from one split to another, until they are left out."""


def some_clips(keys: Sequence[str]) -> str:
    """`7 clips (a, b, c, d, e and 2 more)`: how many, and the first keys."""
    return f"{counted(len(keys), 'clip')} ({some_of(keys, SHOWN_KEYS)})"


def label_remarks(home: Home, dataset: str, used: Manifest) -> list[str]:
    """Whether the manifest built for the data set differs from the one in the store, which is `used`."""
    path = home.manifest(dataset)
    if not path.is_file() or holds_rows(path, used):
        return []
    if manifest_digest(read_manifest(path)) == manifest_digest(used):
        return []
    return [
        f"{path} differs from the labels and splits in the token store, which are used; where the file is newer: "
        f"caeav extract --dataset {dataset} takes it over; where it is older: caeav manifest build renews it"
    ]


def media_remarks(stores: Sequence[StoreReader]) -> list[str]:
    """Which clips were made from different versions of the same media in two stores."""
    remarks = []
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
            remarks.append(
                f"{some_clips(keys)}: {store.path.name} was made from another version of the media than "
                f"{stores[0].path.name}; caeav {COMMANDS[store.recipe.kind]} --dataset {store.path.parent.name} "
                "finds out which is older"
            )
    return remarks


def random_remarks(stores: Iterable[StoreReader]) -> list[str]:
    """The components of the stores that had random weights."""
    return [
        f"{store.path.name}: {name} HAD RANDOM WEIGHTS; scores say nothing of that model"
        for store in stores
        for name in random_parts(store.recipe.fields)
    ]


def split_remarks(rows: Samples, left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Clips left out or in no split, and videos that lie in two splits."""
    remarks = [
        f"{split}: {some_clips(keys)} left out, in quarantine" for split, keys in left_out.items() if keys
    ]
    unused = np.ones(len(rows.manifest.clips), bool)
    unused[rows.rows] = False
    if unused.any():
        remarks.append(f"{some_clips(rows.manifest.keys.take(np.flatnonzero(unused)))} in no split, not used")
    remarks += [
        f"{counted(n, 'source video lies', 'source videos lie')} in both splits of {pair}{DROP_LEAKS}"
        for pair, n in _leaks(rows).items()
    ]
    return remarks


def _leaks(rows: Samples) -> dict[str, int]:
    """Pair of splits -> how many source videos (official id, else media file) have samples in both.

    Videos are compared by 64-bit hashes, nine bytes per sample; among a million, two collide in one of 40 million data
    sets.
    """
    if not rows:
        return {}
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
    return {pair: n for pair, n in found.items() if n}
