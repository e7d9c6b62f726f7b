"""Where weights are found, and the errors where they are not."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights import cache, find_weights, remember_at
from caeav.pipeline.backbones.weights.cache import file_digest, memory_file, recall

REPO = "somebody/tiny"
WANTS = ("model.safetensors", "pytorch_model.bin")


pytestmark = pytest.mark.usefixtures("offline_hub")


def in_hub_cache(tmp_path: Path, files: dict[str, bytes], repo: str = REPO) -> Path:
    """Write files in huggingface_hub's layout: snapshots of links to blobs, and a ref."""
    place = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / ("a" * 40)
    for folder in (snapshot, place / "refs", place / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text("a" * 40)
    for name, content in files.items():
        blob = place / "blobs" / name
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_default_is_found_in_the_hubs_cache(tmp_path: Path) -> None:
    snapshot = in_hub_cache(tmp_path, {"pytorch_model.bin": b"abc"})
    found = find_weights(ModelChoice("m"), default=f"hub:{REPO}", wants=WANTS)
    assert found.source == f"hub:{REPO}"
    assert found.files == (snapshot / "pytorch_model.bin",)
    assert found.digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert str(tmp_path) not in json.dumps(found.describe())


def test_folder_and_file_give_the_same_digest_as_the_hub(tmp_path: Path) -> None:
    snapshot = in_hub_cache(tmp_path, {"model.safetensors": b"abc"})
    other = tmp_path / "renamed.safetensors"
    other.write_bytes(b"abc")
    sources = {"", f"hub:{REPO}", str(snapshot), str(other)}
    found = [find_weights(ModelChoice("m", s), default=f"hub:{REPO}", wants=WANTS) for s in sources]
    assert len({weights.digest for weights in found}) == 1
    assert {weights.source for weights in found} == {f"hub:{REPO}", "a" * 40, "renamed.safetensors"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "",
            "the weights of m (somebody/tiny) are not on this machine\n"
            "  next: caeav models pull m (fetches model.safetensors of somebody/tiny), or give a folder or file with "
            "model.safetensors as its weights",
        ),
        (
            f"hub:{REPO}",
            "and HF_HUB_OFFLINE is set\n  next: unset it, or get model.safetensors of somebody/tiny",
        ),
        ("hub:tiny", "'hub:tiny' is no name on the hub\n  next: write hub:<owner>/<repo>"),
        ("elsewhere/w.pt", "no weights of m at 'elsewhere/w.pt'\n  next: caeav models pull m"),
        ("random:x", "'random:x' names no random weights of m\n  next: give random:0"),
        (f"sha256:{'0' * 64}", "show it once: caeav models show m --weights FILE"),
    ],
)
def test_missing_weights_name_the_way_to_get_them(given: str, message: str) -> None:
    with pytest.raises(CaeavError) as caught:
        find_weights(ModelChoice("m", given), default=f"hub:{REPO}", wants=WANTS)
    assert message in str(caught.value)


def test_a_model_without_default_says_so() -> None:
    with pytest.raises(CaeavError, match="m has no default weights"):
        find_weights(ModelChoice("m"), default="", wants=WANTS)


def test_companion_files_are_required_and_part_of_the_digest(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"abc")
    choice = ModelChoice("m", str(folder))
    with pytest.raises(CaeavError, match=r"w lacks config\.json"):
        find_weights(choice, default="", wants=WANTS, needs=["config.json"])
    (folder / "config.json").write_text("{}")
    first = find_weights(choice, default="", wants=WANTS, needs=["config.json"], also=["vocab.txt"])
    (folder / "vocab.txt").write_text("a b")
    second = find_weights(choice, default="", wants=WANTS, needs=["config.json"], also=["vocab.txt"])
    assert len({first.digest, second.digest, file_digest(folder / "model.safetensors")}) == 3
    again = find_weights(
        ModelChoice("m", second.digest), default="", wants=WANTS, needs=["config.json"], also=["vocab.txt"]
    )
    assert again.digest == second.digest and again.folder == folder


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    index = {
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    }
    snapshot = in_hub_cache(
        tmp_path,
        {"model.safetensors.index.json": json.dumps(index).encode(), "model-1.safetensors": b"1"},
    )
    wants = ("model.safetensors", "model.safetensors.index.json")
    with pytest.raises(CaeavError, match="not on this machine"):
        find_weights(ModelChoice("m"), default=f"hub:{REPO}", wants=wants)
    with pytest.raises(CaeavError, match=r"shards missing .*: model-2\.safetensors"):
        find_weights(ModelChoice("m", str(snapshot)), default="", wants=wants)
    (snapshot / "model-2.safetensors").write_bytes(b"2")
    found = find_weights(ModelChoice("m"), default=f"hub:{REPO}", wants=wants)
    assert [path.name for path in found.files] == ["model-1.safetensors", "model-2.safetensors"]
    back = find_weights(ModelChoice("m", found.digest), default="", wants=wants)
    assert back.files == found.files


@pytest.mark.parametrize("content", ["[]", '{"weight_map": {"a": 3}}', "{", '{"weight_map": {"a": "../x"}}'])
def test_an_invalid_index_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    (tmp_path.parent / "x").touch()
    with pytest.raises(CaeavError, match=r"is no index of shards|shards missing"):
        find_weights(ModelChoice("m", str(tmp_path)), default="", wants=["model.safetensors.index.json"])


def test_a_digest_finds_its_file_again(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"abc")
    digest = find_weights(ModelChoice("m", str(file)), default="", wants=WANTS).digest
    assert find_weights(ModelChoice("m", digest), default="", wants=WANTS).files == (file,)
    file.unlink()
    assert recall(digest) is None


def test_a_changed_file_has_another_digest(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"abc")
    before = file_digest(file)
    file.write_bytes(b"abd")
    assert file_digest(file) != before


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"abc")
    held = json.loads(memory_file().read_text()) if memory_file().exists() else {"places": {}, "files": {}}
    stamp = file.stat()
    held["files"][str(file)] = [stamp.st_size, stamp.st_mtime_ns, "sha256:known"]
    memory_file().parent.mkdir(parents=True, exist_ok=True)
    memory_file().write_text(json.dumps(held))
    assert file_digest(file) == "sha256:known"


def test_a_large_file_is_announced_before_it_is_read_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LARGE_BYTES", 3)
    remarks: list[str] = []
    remember_at(Home(tmp_path / "memory"), remarks.append)
    for name, content in (("small.pt", b"ab"), ("large.pt", b"abc")):
        (tmp_path / name).write_bytes(content)
        assert [file_digest(tmp_path / name) for _ in range(2)] == [
            f"sha256:{sha256(content).hexdigest()}"
        ] * 2
    assert remarks == ["reading large.pt (3 B) for its digest, once unless it changes"]


@pytest.mark.parametrize("content", ["", "[]", '{"places": 3}', '{"places": {"d": 3}, "files": {"f": [1]}}'])
def test_a_damaged_memory_is_ignored(tmp_path: Path, content: str) -> None:
    memory_file().parent.mkdir(parents=True, exist_ok=True)
    memory_file().write_text(content)
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"abc")
    assert recall("d") is None
    assert file_digest(file).startswith("sha256:ba7816bf")


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    memory_file().parent.parent.mkdir(parents=True, exist_ok=True)
    memory_file().parent.write_text("a file in the way")
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"abc")
    assert find_weights(ModelChoice("m", str(file)), default="", wants=WANTS).files == (file,)


class Hub:
    """Stands in for the two calls of the hub's client: the files it holds, and those that were fetched."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
        import huggingface_hub

        self.got: list[str] = []
        self.error: Exception | None = None

        def listed(_: object, repo: str, **more: object) -> list[str]:
            if self.error:
                raise self.error
            return ["README.md", *files]

        def get(repo: str, name: str, **more: object) -> str:
            self.got.append(name)
            return str(in_hub_cache(tmp_path, {name: files[name]}, repo) / name)

        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", get)


def test_a_hub_name_is_fetched_once_and_a_default_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()
    files = {"m.index.json": index, "m-1.safetensors": b"1", "m-2.safetensors": b"2", "config.json": b"{}"}
    hub = Hub(tmp_path, monkeypatch, files)
    how = {"default": f"hub:{REPO}", "wants": ["m.safetensors", "m.index.json"], "needs": ["config.json"]}
    with pytest.raises(CaeavError, match="caeav models pull m"):
        find_weights(ModelChoice("m"), **how)
    assert hub.got == []
    found = find_weights(ModelChoice("m", "hub:"), **how)
    assert sorted(hub.got) == sorted(files) and found.source == f"hub:{REPO}"
    assert [path.name for path in found.files] == ["m-1.safetensors", "m-2.safetensors"]
    hub.got.clear()
    assert (
        find_weights(ModelChoice("m"), **how) == find_weights(ModelChoice("m", f"hub:{REPO}"), **how) == found
    )
    assert hub.got == []


def test_a_failing_hub_is_an_error_with_an_alternative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HttpError(Exception):
        """HTTP libraries' errors have no common base class."""

    hub = Hub(tmp_path, monkeypatch, {"other.txt": b""})
    choice = ModelChoice("m", f"hub:{REPO}")
    with pytest.raises(CaeavError, match=r"somebody/tiny on the hub has none of model\.safetensors"):
        find_weights(choice, default="", wants=WANTS)
    hub.error = HttpError("connection refused\nat length")
    with pytest.raises(CaeavError) as caught:
        find_weights(choice, default="", wants=WANTS)
    assert "somebody/tiny could not be fetched from the hub: connection refused\n  next: " in str(
        caught.value
    )
    assert "get model.safetensors elsewhere and give its path" in str(caught.value)
