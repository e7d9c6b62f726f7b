"""Training from a bucket: the batches of a local reader in the same order, through a cache of a tenth of the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from s3_server import S3

from caeav.cli.app import build
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.train.config_file import resolve_config
from caeav.model.train.data import SplitData, batches, epoch_order
from caeav.model.train.experiment import Experiment, prepare, reopen
from caeav.model.train.join import Joined, JoinError, join_stores
from caeav.model.train.runs import create_run
from caeav.model.train.session import train
from caeav.model.train.windows import fitting_window, window_order
from caeav.pipeline.store import Recipe, StoreReader, list_stores, open_for_writing
from caeav.pipeline.store.remote import reading
from caeav.pipeline.store.remote.push import push

SMALL = [
    "training.epochs=1",
    "training.batch_size=5",
    "training.preload_mb=0",
    "training.device=cpu",
    "model.adapters.avmoe.latents=4",
    "model.adapters.avmoe.num_skip=2",
    "model.head.width=16",
    "model.head.hidden=16",
    "model.head.visual_in=16",
    "model.head.audio_in=16",
]


@pytest.fixture
def far(tiny_home: Home, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`far.local`: a home with the tiny stores cut into 30 and 20 shards; the same at `far.tokens`, `far.captions`."""
    local, urls = Home(tmp_path / "local"), {}
    for info, size in zip(list_stores(tiny_home.stores), (3, 2), strict=True):
        store = StoreReader.open(info.path)
        recipe = Recipe(store.recipe.kind, store.recipe.name, {"shard_clips": size})
        with open_for_writing(local.stores / "tiny", recipe, store.manifest) as writer:
            for entry in store.quarantined:
                writer.quarantine(entry)
            for plan in writer.plan():
                writer.publish(plan, {key: store.read_stored(key) for key in plan.missing})
            writer.finish()
        urls[info.kind] = push(writer.path, "s3://bucket").url

    class Far:
        tokens, captions = urls["tokens"], urls["captions"]
        bytes = sum(info.bytes for info in list_stores(local.stores))
        home = Home(tmp_path / "far")

        def __init__(self) -> None:
            self.local = local
            monkeypatch.setenv("CAEAV_CACHE_BYTES", str(self.bytes // 10))

        def joined(self) -> Joined:
            return join_stores(self.home, "tiny", [self.tokens], self.captions)

    return Far()


def epoch(data: SplitData, number: int, window: int, workers: int = 2) -> list[Any]:
    order = epoch_order(len(data), 7, number, data.clip_of, 1, data.shards, window)
    return list(batches(data, order, 5, workers))


def test_an_epoch_through_a_cache_of_a_tenth_gives_the_local_batches(
    far: Any, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TOUCH_S", 0.0)  # here a window passes in milliseconds
    near = join_stores(far.local, "tiny")
    remote = far.joined()
    limit = far.bytes // 10
    window = fitting_window(remote.stores, limit)
    assert 0 < window <= 2 and fitting_window(near.stores, limit) == 0
    assert fitting_window(remote.stores, far.bytes) == 0, "where all fits, nothing is cut"
    a, b = (SplitData(joined, joined.splits["train"], {}) for joined in (near, remote))
    for number in (1, 2):
        s3.seen.clear()
        wanted, got = epoch(a, number, window), epoch(b, number, window)
        assert [x.keys for x in wanted] == [x.keys for x in got]
        for x, y in zip(wanted, got, strict=True):
            assert x.visual.keys() == y.visual.keys()
            for name in x.visual:
                assert torch.equal(x.visual[name], y.visual[name])
            assert torch.equal(x.audio["audio.stage2"], y.audio["audio.stage2"])
            assert x.visual_caption is not None and y.visual_caption is not None
            assert torch.equal(x.visual_caption, y.visual_caption)
        files = [path for path in (far.home.root / "cache/shards").iterdir() if path.name != ".lock"]
        assert sum(path.stat().st_size for path in files) <= limit
        fetched = [key for method, key in s3.seen if key.endswith(".tar")]
        shards = len(np.unique(b.shards)) + len(np.unique(remote.stores[1].shards_of(b.clips)))
        assert len(set(fetched)) <= shards and len(fetched) <= 2 * shards, "hardly any twice"


def test_the_order_within_windows_is_a_function_of_seed_epoch_and_window() -> None:
    shards = np.repeat(np.arange(8), 6)
    clips = np.arange(48) // 2
    for together in (1, 2):
        orders = [
            epoch_order(48, seed, number, clips.tolist(), together, shards, 3).tolist()
            for seed, number in ((1, 1), (1, 1), (1, 2), (2, 1))
        ]
        assert orders[0] == orders[1] and orders[0] != orders[2] != orders[3] != orders[0]
        for order in orders:
            assert sorted(order) == list(range(48))
            places = [{int(shards[row]) for row in order[at : at + 18]} for at in (0, 18, 36)]
            assert [len(place) for place in places] == [3, 3, 2] and set.union(*places) == set(range(8))
            assert places != [{0, 1, 2}, {3, 4, 5}, {6, 7}], "shards are shuffled too"
            within = [int(shards[row]) for row in order[:18]]
            assert within != sorted(within), "shuffled among each other"
            if together == 2:
                assert all(clips[a] == clips[b] for a, b in zip(order[::2], order[1::2], strict=True))
    assert epoch_order(48, 1, 1, (), 1, shards, 0).tolist() == epoch_order(48, 1, 1).tolist()
    assert sorted(window_order(np.arange(48), shards, 100, np.random.default_rng(0))) == list(range(48))


def ready(home: Home, *assignments: str) -> Experiment:
    config = resolve_config(assignments=[*SMALL, *assignments], options={"dataset": "tiny"})
    return prepare(home, config)


def test_a_run_from_a_bucket_is_the_run_from_a_disk(
    far: Any, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and scores under the same windows; a resumed run keeps them, whatever its cache holds.

    No credential is written anywhere.
    """
    remote = ready(far.home, f"stores.tokens={far.tokens}", f"stores.captions={far.captions}")
    stores = remote.config.stores
    assert (stores.tokens, stores.captions) == ([far.tokens], far.captions) and stores.window_shards
    near = ready(far.local, f"stores.window_shards={stores.window_shards}")
    assert ready(far.local).config.stores.window_shards == 0
    results = []
    for experiment in (remote, near):
        run = create_run(experiment.home, experiment.config)
        results.append((run, train(experiment, run, [])))
    (far_run, a), (_, b) = results
    assert a["scores"] == b["scores"] and a["best_epoch"] == b["best_epoch"]
    states = [json.loads((run.checkpoints / "state.json").read_text()) for run, _ in results]
    assert states[0] == states[1]
    monkeypatch.setenv("CAEAV_CACHE_BYTES", str(far.bytes * 2))
    again = reopen(far.home, far_run)
    assert again.config.stores.window_shards == stores.window_shards
    facts = json.loads((far_run.folder / "stores.json").read_text())["stores"]
    assert [fact["folder"] for fact in facts] == [far.tokens, far.captions]
    secrets = [value.encode() for name, value in s3.environment().items() if "KEY" in name]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(secrets) == 2 and len(written) > 100
    assert not any(secret in data for secret in secrets for data in written)


def test_what_fits_into_memory_is_read_once_and_shuffled_whole(far: Any, s3: S3) -> None:
    experiment = ready(
        far.home, f"stores.tokens={far.tokens}", f"stores.captions={far.captions}", "training.preload_mb=64"
    )
    assert experiment.config.stores.window_shards == 0 and experiment.preloaded
    data = experiment.data["train"]
    s3.seen.clear()
    assert len(epoch(data, 1, 0)) == 7 and not s3.seen


def test_one_modality_of_a_store_at_an_address(far: Any) -> None:
    both = join_stores(far.home, "tiny", [f"{far.tokens}:visual", f"{far.tokens}:audio"], captions=False)
    (whole,) = join_stores(far.local, "tiny", captions=False).tokens
    key = both.splits["val"][0].key
    read = {**both.tokens[0].read(key).arrays, **both.tokens[1].read(key).arrays}
    assert read.keys() == whole.read(key).arrays.keys()
    assert all(np.array_equal(array, whole.read(key).arrays[name]) for name, array in read.items())


def test_an_address_of_something_else_is_refused(far: Any, make_home: Callable[..., Home]) -> None:
    with pytest.raises(JoinError, match="holds captions of tiny; tokens of tiny are needed"):
        join_stores(far.home, "tiny", [far.captions], captions=False)
    with pytest.raises(JoinError, match="holds tokens of tiny; tokens of ave are needed"):
        join_stores(far.home, "ave", [far.tokens], captions=False)
    with pytest.raises(CaeavError, match="is not the address of a store"):
        join_stores(far.home, "tiny", ["s3://bucket/tiny"], captions=False)


def test_a_cache_that_holds_not_one_shard_of_each_store_is_refused(
    far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAEAV_CACHE_BYTES", "1000")
    with pytest.raises(CaeavError, match=r"may hold 1.0 kB, too few for .* needed at once"):
        far.joined()


def run_command(*words: str) -> int:
    from typer.testing import CliRunner

    return CliRunner().invoke(build(), list(words)).exit_code


def test_the_command_takes_an_address_and_a_cache(far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set follows from the address; the cache's size reaches what reads the stores."""
    seen: dict[str, Any] = {}

    def stop(home: Home, config: Any, *_: Any, **__: Any) -> Any:
        from caeav.pipeline.store.remote.cache import cache_limit

        seen.update(dataset=config.dataset, tokens=config.stores.tokens, limit=cache_limit())
        raise CaeavError("seen enough")

    monkeypatch.setattr("caeav.model.train.experiment.prepare", stop)
    monkeypatch.setenv("CAEAV_CACHE_BYTES", "1MB")
    words = ["--set", f"stores.tokens={far.tokens}", "--cache-bytes", "5MB", "--home", str(far.home.root)]
    assert run_command("train", *words) == 1
    assert seen == {"dataset": "tiny", "tokens": [far.tokens], "limit": 5_000_000}
