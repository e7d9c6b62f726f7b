"""What a report names first: wrong labels, copies across splits, audio of another class; norms, dead channels."""

from __future__ import annotations

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.model.report import store as pages
from caeav.model.report.cards import Media
from caeav.model.report.page import Page
from caeav.model.report.summary import summarise_tokens
from caeav.model.report.suspects import held_out_probabilities, near_duplicates
from caeav.pipeline.store import Quarantined, Recipe, Record, StoreReader, open_for_writing

CLIPS, CLASSES, SEGMENTS = 480, 8, 4
TAPS = {"visual.s1": (4, 24), "audio.s1": (4, 24)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoreReader, dict[str, set[str]]]:
    """480 clips; 30 with a wrong label, 30 with audio of another class, 10 copies of train clips in test.

    Tokens stand in for media here, so that the suite stays quick; `benchmarks/report_finds.py` does the same with
    generated videos and the commands.
    """
    rng = np.random.default_rng(3)
    names = [f"class {k}" for k in range(CLASSES)]
    looks, sounds = rng.normal(size=(2, CLASSES, 24))
    order = rng.permutation(CLIPS)
    wrong, apart = ({f"c{i:03d}" for i in part} for part in (order[:30], order[30:60]))
    splits = ["train"] * 340 + ["val"] * 70 + ["test"] * 70
    free = [i for i in order[60:] if splits[i] == "train"][:10]
    copies = {
        int(i): int(j) for i, j in zip([i for i in order[60:] if splits[i] == "test"][:10], free, strict=True)
    }
    clips, records = [], {}
    for i in range(CLIPS):
        key, label = f"c{i:03d}", i % CLASSES
        heard = (label + 1 + int(rng.integers(CLASSES - 1))) % CLASSES if key in apart else label
        arrays = {}
        for name, (tokens, channels) in TAPS.items():
            about = looks[label] if name.startswith("visual") else sounds[heard]
            x = rng.normal(scale=1.5, size=(SEGMENTS, tokens, channels)) + 0.8 * about
            x[..., 5] = 0.25 if name.startswith("audio") else x[..., 5]  # a dead channel
            arrays[name] = x.astype(np.float16)
        if i in copies:
            arrays = {
                name: (x * (1 + rng.normal(scale=0.02, size=(SEGMENTS, 1, 1)))).astype(np.float16)
                for name, x in records[f"c{copies[i]:03d}"].arrays.items()
            }
            arrays["audio.s1"][..., 5] = 0.25
            label = copies[i] % CLASSES
        if i == 0:  # a rounding error somewhere makes no channel alive
            arrays["audio.s1"][0, 0, 5] = np.nextafter(np.float16(0.25), np.float16(1))
        said = (label + 1 + int(rng.integers(CLASSES - 1))) % CLASSES if key in wrong else label
        event = Event(names[said], 0.0, float(SEGMENTS))
        clips.append(Clip(key, f"{key}.mp4", 0.0, float(SEGMENTS), splits[i], (event,), {"id": key}))
        noted = [{"code": "short_audio", "detail": "x"}] if i % 100 == 0 else []
        whole = [True] * SEGMENTS
        records[key] = Record(
            key, arrays, {"frames_ok": whole, "audio_ok": whole, "notes": noted, "facts": {}}
        )
    lost = Clip("lost", "no such film.mp4", 0.0, float(SEGMENTS), "train", (event,), {"id": "lost"})
    manifest = Manifest("planted", SEGMENTS, 1.0, tuple(names), (*clips, lost))
    recipe = Recipe("tokens", "hand", {"made": "by the tests", "shard_clips": 240})
    folder = tmp_path_factory.mktemp("planted")
    with open_for_writing(folder, recipe, manifest) as writer:
        writer.quarantine(Quarantined("lost", "decode", "made to fail by the tests", 1))
        for plan in writer.plan():
            writer.publish(plan, {key: records[key] for key in plan.missing})
        writer.finish()
    [path] = [p for p in folder.iterdir() if p.is_dir()]
    return StoreReader.open(path), {
        "labels": wrong,
        "apart": apart,
        "duplicates": {f"c{i:03d}" for i in copies},
    }


def test_nine_of_ten_planted_faults_are_among_the_first_hundred(
    planted: tuple[StoreReader, dict[str, set[str]]],
) -> None:
    store, faults = planted
    page = Page("t", "s")
    section = pages.clip_section(store, None, page, Media(lambda clips: ()))
    [block] = [block for block in section.blocks if block["kind"] == "cards"]
    lists = {one["name"]: one["entries"] for one in block["lists"]}
    for name, keys in faults.items():
        first = {key.removeprefix("clip/") for entry in lists[name][:100] for key in entry["cards"]}
        assert len(lists[name]) == 100
        assert len(first & keys) >= 0.9 * len(keys), name
    for entry in lists["duplicates"][:10]:
        splits = {page.cards[key]["split"] for key in entry["cards"]}
        assert len(splits) == 2 and float(entry["why"].split()[1].rstrip(";")) > pages.NEAR
    assert "labelled class" in lists["labels"][0]["why"]
    assert all(key in page.cards for held in lists.values() for entry in held for key in entry["cards"])


def test_norms_dead_channels_quarantine_and_notes_are_reported(
    planted: tuple[StoreReader, dict[str, set[str]]],
) -> None:
    store, _ = planted
    found = {tap.name: tap for tap in summarise_tokens(store).taps}
    assert found["audio.s1"].dead == (5,) and found["visual.s1"].dead == ()
    x = np.concatenate([record.arrays["visual.s1"].reshape(-1, 24) for record in store]).astype(np.float64)
    lengths = np.linalg.norm(x, axis=1)
    assert found["visual.s1"].mean_norm == pytest.approx(lengths.mean(), rel=1e-4)
    assert found["visual.s1"].largest_norm == pytest.approx(lengths.max(), rel=1e-4)
    said = str(pages.store_section(store).blocks)
    assert "made to fail by the tests" in said and "no such film.mp4" in said
    page = Page("t", "s")
    noted = str(pages.clip_section(store, None, page, Media(lambda clips: ())).blocks)
    assert "short_audio" in noted and page.notes == []


def test_a_large_store_is_sampled_evenly(planted: tuple[StoreReader, dict[str, set[str]]]) -> None:
    found = summarise_tokens(planted[0], most=100)
    assert len(found.keys) == 96 and found.of == CLIPS
    assert found.keys[:3] == ["c000", "c005", "c010"] and found.pooled["visual"].shape == (96, 72)


def test_a_clip_is_judged_by_a_classifier_that_saw_no_clip_of_its_video() -> None:
    """Copies of one video with a label of their own would vouch for each other."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(60, 30)), 4, axis=0)
    labels = np.eye(2)[np.repeat(rng.integers(2, size=60), 4)]
    own = held_out_probabilities(vectors, labels, [str(i // 4) for i in range(240)])
    leaked = held_out_probabilities(vectors, labels, [str(i) for i in range(240)])
    assert ((own * labels).sum(axis=1) > 0.5).mean() < 0.75 < ((leaked * labels).sum(axis=1) > 0.5).mean()


def test_pairs_are_of_different_splits_and_named_once() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [1.0, 0.0]])
    pairs = near_duplicates(["a", "b", "c", "d"], vectors, ["train", "test", "test", "train"], 10)
    assert {pair[:2] for pair in pairs} == {("a", "b"), ("b", "d"), ("a", "c")} and len(pairs) == 3
    assert pairs[-1][:2] == ("a", "c") and pairs[0].similarity == pytest.approx(1, abs=1e-3)
    assert near_duplicates(["a", "d"], vectors[[0, 3]], ["train", "train"]) == []
