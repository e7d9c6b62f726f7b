"""What a careful reader would want to know about joined stores and labels before training, in words."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from caeav.manifests.clip import SPLITS, Manifest
from caeav.manifests.findings import video_id
from caeav.manifests.core.home import Home
from caeav.manifests.manifest import holds_rows, manifest_digest, read_manifest
from caeav.manifests.texthash import hash_texts, random_seed
from caeav.manifests.wording import counted
from caeav.model.tasks.sample import ClipSamples, Sample
from caeav.pipeline.store import StoreReader, random_parts
from caeav.pipeline.store.media_record import read_record

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


def split_remarks(
    manifest: Manifest, rows: Sequence[Sample], left_out: Mapping[str, Sequence[str]]
) -> list[str]:
    """What a careful reader would want to know about the splits."""
    said = [f"{split}: {some(keys)} left out, in quarantine" for split, keys in left_out.items() if keys]
    if isinstance(rows, ClipSamples):
        loose: Sequence[str] = rows.clips.keys.take(np.flatnonzero(rows.clips.splits == 0))
    else:
        used = {sample.clip.key for sample in rows}
        loose = [clip.key for clip in manifest.clips if clip.key not in used]
    if loose:
        said.append(f"{some(loose)} in no split, not used")
    said += [
        f"{counted(n, 'source video lies', 'source videos lie')} in both splits of {pair}{DROP_LEAKS}"
        for pair, n in _leaks(rows).items()
    ]
    return said


def _leaks(rows: Sequence[Sample]) -> Counter[str]:
    """How many source videos (official id, else media file) have samples in two splits, by pair of splits.

    Videos are told apart by a hash of 64 bits, nine bytes a sample: among a million two are alike once in 40 million
    data sets.
    """
    if not rows:
        return Counter()
    if isinstance(rows, ClipSamples):
        videos = rows.clips.videos(rows.rows)
        bits = np.uint8(1) << (rows.clips.splits[rows.rows] - 1)  # 0 is no split
    else:
        videos = (video_id(row.clip).encode("utf-8", "surrogatepass") for row in rows)
        bits = np.array([1 << SPLITS.index(row.split) for row in rows], np.uint8)
    blob, ends = bytearray(), array("I")
    for video in videos:
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
