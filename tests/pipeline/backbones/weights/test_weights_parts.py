"""Which of several dictionaries of tensors is taken; the hub's cache; remembered digests of files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights import WeightsError, cache, find, find_weights
from caeav.pipeline.backbones.weights.inspect import convert_command, dangerous_names, unreadable_names
from caeav.pipeline.backbones.weights.parts import Parts, choose_part, part_of

W = {"a.weight": 1}


def tensors(value: Any) -> Mapping[str, Any] | None:
    return (
        value
        if isinstance(value, dict) and value and all(isinstance(x, int) for x in value.values())
        else None
    )


def entries(value: Any) -> Mapping[Any, Any] | None:
    return value if isinstance(value, dict) else None


def choose(root: Any, take: str = "", **how: bool) -> Parts:
    return choose_part(root, tensors, entries, "w.pt", take, **how)


@pytest.mark.parametrize(
    ("root", "taken", "trained"),
    [
        (W, "", ""),
        ({"net": W, "model": W, "state_dict": W}, "state_dict", "state_dict"),
        ({"model": W, "ema": W, "model_ema": W}, "model_ema", "model"),
        ({"model": W, "state_dict": {"ema": W}}, "state_dict.ema", "model"),
        ({"ema": {"model": W}, "model": {"ema": W}}, "ema.model", "ema.model"),
        ({"model": {"state_dict": W}, "net": W}, "model.state_dict", "model.state_dict"),
        ({"model": {"module": {"net": W}}}, "model.module.net", "model.module.net"),
        ({"generator": W, "step": "7"}, "generator", "generator"),
        ({"generator": W, "model": W}, "model", "model"),
        ({"a.b": W, 3: W, "model": W}, "model", "model"),
    ],
)
def test_the_average_is_preferred_then_the_usual_names_then_the_only_one(
    root: Any, taken: str, trained: str
) -> None:
    assert choose(root).taken == taken
    assert choose(root, averages=False).taken == trained


def test_the_other_dictionaries_are_listed_and_can_be_chosen() -> None:
    root = {"model": W, "ema": W, "critic": W}
    assert choose(root) == Parts("ema", ("model", "critic"))
    assert choose(root, "critic") == Parts("critic", ("model", "ema"))
    assert choose(root).in_words() == "ema (a moving average, preferred as in timm); not taken: model, critic"
    assert (choose({"ema": W}).in_words(), choose(W).in_words()) == ("ema", "the file itself")
    assert choose(root, "model").in_words() == "model; not taken: ema, critic"
    assert part_of({"model": {"ema": W}}, "model.ema", entries) is W
    assert part_of(W, "", entries) is W
    assert part_of({"model": 3}, "model.ema", entries) is None


@pytest.mark.parametrize(
    ("root", "take", "message"),
    [
        ({"model": W}, "ema", "holds no tensors called 'ema'\n  next: it has model"),
        ({}, "ema", "holds no tensors called 'ema'\n  next: it has none"),
        ({"one": W, "two": W}, "", "several dictionaries of tensors: one, two\n  next: say which: w.pt#one"),
        ({"epoch": "3", "lr": "1"}, "", "w.pt holds no named tensors, but epoch, lr\n"),
        ({f"k{i:02}": "" for i in range(13)}, "", "k10, k11 and 1 more\n"),
        ({f"k{i:02}": "" for i in range(12)}, "", "k10, k11\n"),
        ({"model": {"module": {"net": {"ema": W}}}}, "", "holds no named tensors, but model"),
        ({}, "", "holds no named tensors\n"),
        ({3: "x"}, "", "holds no named tensors\n"),
    ],
)
def test_ambiguous_and_missing_dictionaries_are_errors(root: Any, take: str, message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        choose(root, take)
    assert message in str(caught.value)


def test_dangerous_unreadable_and_harmless_names_are_distinguished() -> None:
    names = ["os.system", "my.Model", "builtins.eval", "argparse.Namespace", "torch.FloatStorage", "os"]
    assert dangerous_names(names) == ["builtins.eval", "os.system"]
    assert unreadable_names(names) == ["builtins.eval", "my.Model", "os", "os.system"]
    longer = [
        "argparse.Namespace2",
        "my.argparse.Namespace",
        "torch.Sizes",
        "os.path.join.x",
        "posixx.system",
    ]
    assert unreadable_names(longer) == sorted(longer) and dangerous_names(longer) == ["os.path.join.x"]
    assert convert_command(Path("a b/my w.pt")) == "caeav models convert 'a b/my w.pt' 'my w.safetensors'"


def test_the_hubs_cache_is_found_as_its_client_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value, place in (
        ("", "", "/somebody/.cache/huggingface/hub"),
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "~/h", "/somebody/h/hub"),
        ("HF_HUB_CACHE", "/cache", "/cache"),
    ):
        if name:
            monkeypatch.setenv(name, value)
        assert find.hub_cache() == Path(place)


@pytest.mark.parametrize(("value", "off"), [("1", True), ("true", True), ("Yes", True), ("on", True),
                                            ("0", False), ("", False), ("no", False)])  # fmt: skip
def test_offline_mode_accepts_the_hub_clients_values(
    monkeypatch: pytest.MonkeyPatch, value: str, off: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert find.offline() is off


def test_a_repository_counts_as_cached_once_it_has_a_weight_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    assert not find.is_cached("hub:a/b")
    (snapshot / "w.bin").touch()
    assert find.is_cached("hub:a/b") and find.is_cached("hub:a/b@main") and not find.is_cached("hub:a/c")


def test_revisions_are_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = tmp_path / "hub" / "models--a--b"
    (place / "refs").mkdir(parents=True)
    for at, (name, number) in enumerate((("main", "1" * 40), ("v2", "2" * 40))):
        (place / "refs" / name).write_text(number)
        (place / "snapshots" / number).mkdir(parents=True)
        (place / "snapshots" / number / "w.bin").write_bytes(bytes([at]))
    for given, number in (("hub:a/b", "1"), ("hub:a/b@v2", "2")):
        found = find_weights(ModelChoice("m", given), default="", wants=("w.bin",))
        assert (found.source, found.folder) == (given, place / "snapshots" / (number * 40))
    with pytest.raises(WeightsError, match=r"a/b@v3 is not in the cache .*\n.*get w\.bin of a/b elsewhere"):
        find_weights(ModelChoice("m", "hub:a/b@v3"), default="", wants=("w.bin",))


def test_the_first_existing_file_name_is_taken_and_others_are_reported(tmp_path: Path) -> None:
    for name in ("b.pt", "a.safetensors", "z.ckpt", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    choice = ModelChoice("m", str(tmp_path))
    found = find_weights(choice, default="", wants=("a.safetensors", "b.pt"))
    assert found.files == (tmp_path / "a.safetensors",)
    with pytest.raises(WeightsError) as caught:
        find_weights(choice, default="", wants=("c.bin",), origin="its authors")
    assert "holds none of c.bin, but a.safetensors, b.pt, z.ckpt\n" in str(caught.value)
    assert "it comes from its authors" in str(caught.value)
    with pytest.raises(WeightsError, match=r"a\.safetensors has no parts\n  next: leave out #ema"):
        find_weights(ModelChoice("m", f"{tmp_path}/a.safetensors#ema"), default="", wants=())
    (tmp_path / "odd#1.safetensors").write_bytes(b"x")
    odd = find_weights(ModelChoice("m", f"{tmp_path}/odd#1.safetensors"), default="", wants=())
    assert odd.files == (tmp_path / "odd#1.safetensors",)


def test_shards_outside_the_folder_of_their_index_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    (tmp_path / "x.safetensors").touch()
    index = folder / "m.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(WeightsError, match=r"shards missing beside m\.index\.json: \.\./x\.safetensors"):
        find_weights(ModelChoice("m", str(folder)), default="", wants=(index.name,))


def test_digests_are_remembered_by_real_path_size_and_time(tmp_path: Path) -> None:
    path, link = tmp_path / "w.bin", tmp_path / "link.bin"
    path.write_bytes(b"abc")
    link.symlink_to(path)
    first = cache.file_digest(link)
    files = json.loads(cache.memory_file().read_text())["files"]
    assert list(files) == [str(path)] and files[str(path)][2] == first
    when = path.stat().st_mtime_ns
    path.write_bytes(b"abd")
    os.utime(path, ns=(when, when))
    assert cache.file_digest(link) == first  # size and time have not changed
    os.utime(path, ns=(when, when + 1))
    second = cache.file_digest(link)
    path.write_bytes(b"abcd")
    os.utime(path, ns=(when, when + 1))
    assert len({first, second, cache.file_digest(path)}) == 3


def test_the_last_path_of_a_digest_is_remembered(tmp_path: Path) -> None:
    assert cache.recall("sha256:1") is None
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.touch()
        cache.remember("sha256:1", place)
        assert cache.recall("sha256:1") == place
    cache.remember("sha256:2", places[0])
    before = cache.memory_file().stat()
    cache.remember("sha256:1", places[1])
    assert cache.memory_file().stat() == before  # nothing new, nothing written
    places[1].unlink()
    assert cache.recall("sha256:1") is None and cache.recall("sha256:2") == places[0]
