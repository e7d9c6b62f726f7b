"""Clips left out of a join are those in the quarantine of any store, whichever comes first or last."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.lazy_clips import LazyClips
from caeav.model.train.join import JoinError, join, join_stores
from caeav.pipeline.store import Quarantined, Recipe, Record, open_for_writing

KEYS = tuple(f"clip{number}" for number in range(6))
ARRAYS = {
    "visual": {"visual.stage1": np.ones((2, 3, 4), np.float16)},
    "audio": {"audio.stage1": np.ones((2, 3, 4), np.float16)},
    "captions": {
        f"{modality}_caption{end}": np.ones(shape, dtype)
        for modality in ("visual", "audio")
        for end, shape, dtype in (("", (5, 4), np.float16), ("_mask", (5,), np.bool_))
    },
}


@pytest.fixture
def home(tmp_path) -> Home:
    """Three stores of six clips, each with another clip in quarantine."""
    home = Home(tmp_path)
    clips = tuple(Clip(key, f"{key}.mp4", 0.0, 2.0, "train", (Event("bell", 0.0, 1.0),)) for key in KEYS)
    manifest = Manifest("three", 2, 1.0, ("bell",), clips)
    for number, (name, arrays) in enumerate(ARRAYS.items()):
        recipe = Recipe("captions" if name == "captions" else "tokens", name, {"shard_clips": 4})
        with open_for_writing(home.stores / "three", recipe, manifest) as writer:
            writer.quarantine(Quarantined(KEYS[number], "decode", "made to fail", 1))
            for plan in writer.plan():
                writer.publish(plan, {key: Record(key, arrays, {"texts": {}}) for key in plan.missing})
            writer.finish()
    return home


@pytest.mark.parametrize("names", [*itertools.permutations(("visual", "audio"))])
@pytest.mark.parametrize("lazy", [False, True])
def test_the_quarantine_of_every_store_counts(
    home: Home, names: Sequence[str], lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lazy:
        monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    joined = join_stores(home, "three", names)
    assert isinstance(joined.manifest.clips, LazyClips) == lazy
    assert [sample.clip.key for sample in joined.splits["train"]] == list(KEYS[3:])
    assert sorted(joined.left_out["train"]) == list(KEYS[:3])
    assert any("3 clips" in text and "in quarantine" in text for text in joined.remarks), joined.remarks


def test_a_clip_that_one_store_neither_has_nor_quarantines_is_refused(
    home: Home,
) -> None:
    """A clip in one store's quarantine must still be accounted for by the others."""
    joined = join_stores(home, "three", ["visual", "audio"])
    stores = {store.recipe.name: store for store in joined.stores}
    stores["audio"].quarantined = ()
    with pytest.raises(JoinError, match=r"clip1.* of 6 have no tokens in .*tokens-audio"):
        join(joined.manifest, [stores["visual"], stores["audio"]], None)
