"""Several token stores in one run: none is changed, and each clip is accounted for in all."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from caeav.manifests.clip import Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.model.train.config_file import resolve_config
from caeav.model.train.data import SplitData
from caeav.model.train.experiment import prepare, reopen
from caeav.model.train.join import JoinError, join_stores, store_facts
from caeav.model.train.runs import create_run, referenced_stores
from caeav.model.train.used_stores import STORES
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import TokenOptions
from caeav.pipeline.extract.single_file import process_file
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.store import Recipe, unreferenced


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Stores of both modalities, of visual and of audio tokens only, the last two in another dtype."""
    home = Home(tmp_path_factory.mktemp("several"))
    synthesise(
        home.data("synthetic"), SyntheticOptions(clips=10, classes=5, seconds=4, size_px=64, fps=5), workers=1
    )
    options = [
        TokenOptions(),
        TokenOptions("classic", "none", dtype="bfloat16"),
        TokenOptions("none", "classic", dtype="int8"),
    ]
    extract_all(RunContext(manifest(home), home, RunOptions(workers=2), lambda progress: None), options)
    return home


def manifest(home: Home) -> Manifest:
    return load_dataset("synthetic", None, home)


def folders(home: Home) -> dict[str, str]:
    """Dtype -> name of the store's folder."""
    found = {}
    for path in home.stores.glob("synthetic/tokens-*"):
        text = (path / "recipe.json").read_text()
        [dtype] = [d for d in ("float16", "bfloat16", "int8") if f'"dtype": "{d}"' in text]
        found[dtype] = path.name
    return found


def batch(home: Home, names: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    joined = join_stores(home, "synthetic", names, captions=False)
    samples = joined.splits["train"]
    read = SplitData(joined, samples, {}).batch(range(len(samples)))
    return dict(read.visual), dict(read.audio)


def test_visual_taps_of_one_store_join_audio_taps_of_another(home: Home) -> None:
    stores = folders(home)
    visual, audio = batch(home, [stores["bfloat16"], stores["int8"]])
    both_visual, both_audio = batch(home, [stores["float16"]])
    assert visual.keys() == both_visual.keys()
    assert audio.keys() == both_audio.keys()
    for mine, wanted in ((visual, both_visual), (audio, both_audio)):
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor.float(), wanted[name].float(), atol=0.3, rtol=0.02)
    assert visual["visual.stage1"].dtype == torch.float32
    assert audio["audio.stage1"].dtype == torch.float16


def test_a_tap_in_two_stores_is_refused_with_the_way_to_choose(home: Home) -> None:
    stores = folders(home)
    with pytest.raises(JoinError, match=r"tap 'visual\.stage1' is in two token stores") as caught:
        join_stores(home, "synthetic", [stores["float16"], stores["bfloat16"]], captions=False)
    chosen = f"[{stores['float16']}:audio,{stores['bfloat16']}:visual]"
    assert f"--set stores.tokens={chosen}" in str(caught.value)
    visual, audio = batch(home, chosen.strip("[]").split(","))
    both_visual, both_audio = batch(home, [stores["float16"]])
    assert visual["visual.stage1"].dtype == torch.float32
    assert visual.keys() == both_visual.keys()
    assert all(torch.equal(audio[name], both_audio[name]) for name in both_audio)


def test_an_unknown_or_missing_modality_is_refused(home: Home) -> None:
    with pytest.raises(JoinError, match="names no modality"):
        join_stores(home, "synthetic", [f"{folders(home)['float16']}:smell"], captions=False)
    with pytest.raises(JoinError, match="no audio taps"):
        join_stores(home, "synthetic", [f"{folders(home)['float16']}:visual"], captions=False)


def test_a_run_on_one_modality_of_each_store_opens_again_and_keeps_both_stores(home: Home) -> None:
    stores = folders(home)
    names = [f"{stores['float16']}:audio", f"{stores['bfloat16']}:visual"]
    first = prepare(
        home, resolve_config("ave", "none", options={"dataset": "synthetic", "stores.tokens": names})
    )
    assert first.config.stores.tokens == names
    run = create_run(home, first.config)
    run.write(STORES, first.stores_json())
    again = reopen(home, run, "cpu")
    assert again.joined.spec == first.joined.spec
    unused = [info.path.name for info in unreferenced(home.stores, referenced_stores(home), "synthetic")]
    assert unused == [stores["int8"]]


def test_a_file_gets_the_taps_that_were_chosen_from_each_store(home: Home) -> None:
    stores = folders(home)
    names = [f"{stores['float16']}:audio", f"{stores['bfloat16']}:visual"]
    joined = join_stores(home, "synthetic", names, captions=False)
    facts = store_facts(joined, home)
    assert [fact["folder"].split("/")[-1] for fact in facts] == [stores["float16"], stores["bfloat16"]]
    recipes = [Recipe(*(fact["recipe"][name] for name in ("kind", "name", "fields"))) for fact in facts]
    clip = joined.splits["train"][0].clip
    done = process_file(Path(manifest(home).media_root) / clip.media, recipes, device="cpu").tokens
    for store in joined.tokens:
        stored = store.read(clip.key).arrays
        for name, array in stored.items():
            np.testing.assert_array_equal(done.arrays[name], array)
    again = pickle.loads(pickle.dumps(joined.tokens[0]))
    assert set(again.read(clip.key).arrays) == set(joined.tokens[0].read(clip.key).arrays)
