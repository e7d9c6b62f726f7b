"""A store as a data set repository: its own files, with a card and lists of clips and labels for those without caeav.

    README.md                             the card; it tells the library `datasets` what lies where
    clips.csv, labels.csv                 every clip with its split, every event
    recipe.json, manifest.jsonl, quarantine.jsonl, complete.json, index/, shards/ (or shards.zarr)     the store

The store's files are its own, so taking it from there gives the same bytes; every file is compared with its digest.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from caeav.manifests.core.atomic import COPY_BYTES, is_taken, publish_bytes, publish_text, publishing_folder
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import OnProgress, ignore
from caeav.manifests.manifest import read_manifest
from caeav.pipeline.store.adopt import Adopted, adopt_shards
from caeav.pipeline.store.backend import DEFAULT_BACKEND, backend_name, backend_of
from caeav.pipeline.store.errors import DamagedStore, StoreError
from caeav.pipeline.store.export import NO_SPLIT, card, write_lists
from caeav.pipeline.store.layout import FOLDER_PATTERN, StoreFolder, parse_recipe, read_capped
from caeav.pipeline.store.reader import StoreReader
from caeav.pipeline.store.remote.faults import ObjectGone, WrongBytes
from caeav.pipeline.store.remote.hub import pull_file
from caeav.pipeline.store.remote.pull import Pulled, take
from caeav.pipeline.store.remote.reading import Source, decode_seal
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import finished

SHARDS = ("shards/*", "shards.zarr/*", "index/*")
"""Files of a repository that go when a store is put there that lacks them."""


def pack_store(store: Path, folder: Path, told: OnProgress = ignore) -> Path:
    """Write the package of a finished store into the new folder `folder`; raises `StoreError`.

    Shards are linked where that is possible, else copied, and compared with their digests; `told`: their bytes.
    """
    state = finished(store)
    if Slice.of_folder(store.resolve().name)[1] != Slice():
        raise StoreError(
            f"{store.name} is a slice of a store", hint="put all of it together first: caeav store merge"
        )
    if is_taken(folder):
        raise StoreError(f"{folder} is not empty", hint="name a new folder, or remove this one")
    assert state.seal is not None  # `finished` has seen it
    with publishing_folder(folder) as work:
        made = StoreFolder(work)
        for number, index in state.indexes.items():
            adopt_shards(made, backend_of(state.recipe), state.folder, [index], Adopted())
            told(state.indexes.facts[number].size)
        shutil.rmtree(work / "spare", ignore_errors=True)  # copies of indexes
        source = FolderFiles(state.folder.path)
        for name, sha256 in state.seal.sha256.items():
            if not name.startswith("index/"):
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                publish_bytes(work / name, source.read_verified(name, sha256))
        publish_bytes(made.recipe, read_capped(state.folder.recipe))
        publish_bytes(made.seal, state.seal.render())
        reader = StoreReader(state)
        write_lists(reader, work)
        publish_text(work / "README.md", _card(reader))
    return folder


def unpack_store(source: Source, stores: Path, told: OnProgress = ignore) -> Pulled:
    """Make the store of a package below `stores`, in the folder of its data set; raises `StoreError`."""
    try:
        sealed, recipe_data = source.read("complete.json"), source.read("recipe.json")
    except ObjectGone as error:
        raise StoreError(
            f"{source.address()} holds no store: {error.problem}", hint="caeav store push makes one"
        ) from error
    name = parse_recipe(recipe_data, Path("recipe.json")).folder_name
    if not FOLDER_PATTERN.fullmatch(name) or Path(name).name != name:
        raise DamagedStore(
            f"{source.address()}: {name!r} is no name of a store", hint="take it from its source again"
        )
    sha256 = decode_seal(source, sealed).sha256
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "manifest.jsonl"
        path.write_bytes(source.read_verified(path.name, sha256.get(path.name, "")))
        dataset = read_manifest(path).dataset
    return take(source, sealed, StoreFolder(stores / dataset / name), told)


class FolderFiles:
    """The files of a store in a folder of any name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def address(self, name: str = "") -> str:
        """Their path."""
        return str(self._folder / name)

    def read(self, name: str) -> bytes:
        """A small file whole; raises `ObjectGone`."""
        try:
            return read_capped(self._folder / name)
        except FileNotFoundError:
            raise ObjectGone(
                f"{self.address(name)} is not there", hint="look whether the place is right"
            ) from None

    def read_verified(self, name: str, sha256: str) -> bytes:
        """A small file of this sha256; raises `WrongBytes`."""
        data = self.read(name)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._wrong(name)
        return data

    def fetch(self, name: str, size: int, sha256: str, write: Callable[[int, bytes], object]) -> None:
        """Give a file to `write(offset, bytes)`; raises `ObjectGone`, and `WrongBytes` for one of another content."""
        digest, at = hashlib.sha256(), 0
        try:
            with (self._folder / name).open("rb") as file:
                while data := file.read(COPY_BYTES):
                    write(at, data)
                    digest.update(data)
                    at += len(data)
        except FileNotFoundError:
            raise ObjectGone(f"{self.address(name)} is not there", hint="make the package again") from None
        if (at, digest.hexdigest()) != (size, sha256):
            raise self._wrong(name)

    def _wrong(self, name: str) -> CaeavError:
        return WrongBytes(
            f"{self.address(name)}: not the bytes that were packed", hint="take it from its source again"
        )


class HubFiles:
    """The files of a data set repository on a hub, each downloaded when it is asked for and then removed."""

    def __init__(self, repository: str, scratch: Path) -> None:
        self._repository, self._scratch = repository, scratch
        self._files = FolderFiles(scratch)

    def address(self, name: str = "") -> str:
        """As commands name it."""
        return "/".join(filter(None, (f"hub:{self._repository}", name)))

    def read(self, name: str) -> bytes:
        """A small file whole; raises `HubError`."""
        self._download(name)
        return self._files.read(name)

    def read_verified(self, name: str, sha256: str) -> bytes:
        """A small file of this sha256; raises `WrongBytes`."""
        self._download(name)
        return self._files.read_verified(name, sha256)

    def fetch(self, name: str, size: int, sha256: str, write: Callable[[int, bytes], object]) -> None:
        """Give a file to `write(offset, bytes)`; raises `WrongBytes` for one of another content."""
        path = self._download(name)
        try:
            self._files.fetch(name, size, sha256, write)
        finally:
            path.unlink(missing_ok=True)

    def _download(self, name: str) -> Path:
        return pull_file(self._repository, "dataset", name, self._scratch)


def _card(store: StoreReader) -> str:
    """How to read the store without caeav, and what it is."""
    counts = Counter(clip.split or NO_SPLIT for clip in store.manifest.clips if clip.key in store)
    back = "\nTo train from it, as it was, with caeav: `caeav store pull hub:OWNER/REPO`, or the folder it lies in.\n"
    arrays = list(store.array_specs())
    if backend_name(store.recipe) != DEFAULT_BACKEND:
        reading = f'    import zarr\n    arrays = zarr.open_group("FOLDER/shards.zarr", mode="r")\n{back}'
        return card(store, "", reading, counts, arrays)
    head = (
        "configs:\n  - config_name: default\n    data_files:\n      - split: clips\n        path: shards/*.tar\n"
        "dataset_info:\n  features:\n"  # facts differ from clip to clip, so they have no type
        "    - name: __key__\n      dtype: string\n    - name: safetensors\n      dtype: binary\n"
    )
    reading = (
        "    from datasets import load_dataset\n"
        "    from safetensors.torch import load\n"
        '    rows = load_dataset("csv", data_files="FOLDER/clips.csv", split="train")  # of all splits\n'
        '    clips = {row["key"]: row for row in rows}\n'
        '    for row in load_dataset("FOLDER", split="clips", streaming=True):\n'
        '        arrays, clip = load(row["safetensors"]), clips[row["__key__"]]\n\n'
        'or with webdataset: the shards are plain tars. `clip["split"]` and `clip["labels"]` say what a clip is, '
        "labels.csv also when. On a hub FOLDER is OWNER/REPO, and hf://datasets/OWNER/REPO for the csv.\n"
        + back
    )
    return card(store, head, reading, counts, arrays)
