"""Find weights: from a hub name, a folder or a file to files on this machine and their digest.

A hub name is first looked up in the cache of huggingface_hub. Nothing is downloaded unless a hub name was given
(`hub:` alone means the model's default), and never with HF_HUB_OFFLINE set. The place of what was found is remembered
by digest (`cache.py`), so that a recipe, which holds no path, leads back to it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.util import some_of
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.cache import file_digest, recall, remember, tell
from caeav.pipeline.backbones.weights.inspect import find_parts
from caeav.pipeline.backbones.weights.parts import Parts
from caeav.pipeline.backbones.weights.pickled import WeightsError as WeightsError

HUB, RANDOM, DIGEST, PART = "hub:", "random:", "sha256:", "#"
_USUAL_PARTS = ("", "state_dict", "model", "module")
"""Parts that a recipe does not name, since older recipes did not."""
_INDEX = ".index.json"
_SHOWN = 8
HDF5_SUFFIXES = (".h5", ".hdf5")
PLAIN_SUFFIXES = (".safetensors", *HDF5_SUFFIXES)
"""Files that hold one dictionary of tensors and nothing else."""
_SUFFIXES = {*PLAIN_SUFFIXES, ".bin", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True)
class Weights:
    """`files` hold the tensors (several for a sharded checkpoint); `folder` holds them and what lies beside them.

    `source` and `digest` go into the recipe. With `seed` there are no files: values are drawn at random.
    `parts`: which dictionary of a torch file is taken; its name goes into the recipe where it is unusual.
    """

    source: str
    digest: str
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    seed: int | None = None
    parts: Parts | None = None

    @property
    def part(self) -> str:
        """The dotted name of the dictionary to take."""
        return self.parts.taken if self.parts else ""

    def describe(self) -> dict[str, str]:
        """For a recipe: `{"source": ..., "digest": ...}`, without a path; and the part where it is unusual."""
        described = {"source": self.source, "digest": self.digest}
        return described | ({"part": self.part} if self.part not in _USUAL_PARTS else {})


def find_weights(
    choice: ModelChoice,
    *,
    default: str,
    wants: Sequence[str],
    needs: Sequence[str] = (),
    also: Sequence[str] = (),
    origin: str = "",
    package: str = "",
) -> Weights:
    """The weights of `choice`, or the `default` (`hub:<owner>/<repo>`, or empty for none) where it names none.

    wants: names that the file of tensors may have, the best first; one that ends in `.index.json` stands for the
    shards it lists; a file given by path may have any name. needs: files that must lie beside it (`config.json`, a
    tokenizer's). also: files used where they exist. All of them enter the digest. origin: who publishes the weights,
    where no hub does. package: a folder in a Python package (`<package>/models`) that holds one of `wants`; where it is
    installed, it comes before the default. `PATH#PART` names one of several dictionaries in a torch file; without it, a
    path means the moving average where there is one, and a digest, as in a recipe, the weights as trained (`parts.py`).
    Raises `WeightsError` naming the command to type or the file to get.
    """
    return _Request(choice, default, wants, needs, also, origin, package).find()


def is_cached(source: str) -> bool:
    """Whether the hub's cache holds any weight file of `hub:<owner>/<repo>`."""
    repo = source.removeprefix(HUB).partition("@")[0]
    snapshots = hub_cache() / f"models--{repo.replace('/', '--')}" / "snapshots"
    return any(path.suffix in _SUFFIXES for path in snapshots.glob("*/*"))


def package_folder(package: str) -> Path | None:
    """The folder `<package>/<folder>` of an installed Python package, which is not imported; None without it."""
    name, _, inside = package.partition("/")
    spec = importlib.util.find_spec(name) if name else None
    places = spec.submodule_search_locations if spec is not None else None
    return next((folder for place in places or () if (folder := Path(place, inside)).is_dir()), None)


def hub_cache() -> Path:
    """The cache of huggingface_hub, found as it finds it: HF_HUB_CACHE, else HF_HOME, else below the home folder."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class _Request:
    """The arguments of `find_weights`, which all steps of the search share."""

    choice: ModelChoice
    default: str
    wants: Sequence[str]
    needs: Sequence[str]
    also: Sequence[str]
    origin: str
    package: str

    def find(self) -> Weights:
        """By the form of what the choice names: a seed, a hub name, a digest, a folder or a file."""
        if not self.choice.weights and (main := self._packaged()) is not None:
            return self._collect(main.name, main, main.parent)
        source = self.default if self.choice.weights in ("", HUB) else self.choice.weights
        if not source:
            raise WeightsError(f"{self.choice.name} has no default weights", hint=self._next_step())
        if source.startswith(RANDOM):
            return self._random(source)
        if source.startswith(HUB):
            folder = self._hub_folder(source)
            return self._collect(source, self._pick(folder, source), folder)
        part, averages = "", True
        if source.startswith(DIGEST):
            source, _, part = source.partition(PART)
            averages = False
            place = recall(source)
            if place is None and (main := self._packaged()) is not None and file_digest(main) == source:
                place = main
            if place is None:
                raise WeightsError(
                    f"no file on this machine is known to have the digest {source}",
                    hint=f"show it once: caeav models show {self.choice.name} --weights FILE",
                )
        else:
            place = Path(source).expanduser().absolute()
            if PART in place.name and not place.exists():
                name, _, part = place.name.rpartition(PART)
                place = place.with_name(name)
        if place.is_dir():
            main = self._pick(place, str(place), self.origin)
            return self._collect(place.name, main, place, part, averages=averages)
        if not place.is_file():
            raise WeightsError(f"no weights of {self.choice.name} at {source!r}", hint=self._next_step())
        return self._collect(place.name, place, place.parent, part, averages=averages)

    def _packaged(self) -> Path | None:
        """The file of tensors in the package that may hold it; None where that is not installed."""
        folder = package_folder(self.package)
        return None if folder is None else self._pick(folder, f"the package {self.package.partition('/')[0]}")

    def _random(self, source: str) -> Weights:
        seed = source.removeprefix(RANDOM)
        if not seed.isdecimal():
            raise WeightsError(
                f"{source!r} names no random weights of {self.choice.name}", hint="give random:0"
            )
        return Weights(source=source, digest=source, seed=int(seed))

    def _collect(
        self, source: str, main: Path, folder: Path, part: str = "", *, averages: bool = True
    ) -> Weights:
        """The files of weights and what lies beside them, digested; their place is remembered by the digest."""
        files = self._shards(main) if main.name.endswith(_INDEX) else (main,)
        missing = [name for name in self.needs if not (folder / name).is_file()]
        if missing:
            raise WeightsError(
                f"{self.choice.name}: {source} lacks {', '.join(missing)}",
                hint="give the whole folder, as published",
            )
        beside = [folder / name for name in (*self.needs, *self.also) if (folder / name).is_file()]
        digests = {path.name: file_digest(path) for path in (*files, *beside)}
        [digest, *more] = digests.values()
        if more:
            text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
            digest = f"{DIGEST}{hashlib.sha256(text.encode()).hexdigest()}"
        remember(digest, main)
        parts = _parts(files, part, averages)
        return Weights(source=source, digest=digest, files=files, folder=folder, parts=parts)

    def _pick(self, folder: Path, source: str, origin: str = "") -> Path:
        """The file of tensors in a folder."""
        found = next((folder / name for name in self.wants if (folder / name).is_file()), None)
        if found is None:
            others = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)
            raise WeightsError(
                f"{self.choice.name}: {source} holds none of {', '.join(self.wants)}"
                + (f", but {some_of(others, _SHOWN)}" if others else ""),
                hint=f"give a folder with one, or the file{f'; it comes from {origin}' if origin else ''}",
            )
        return found

    def _shards(self, index: Path) -> tuple[Path, ...]:
        """The files that an index of shards lists, all of which must lie beside it."""
        try:
            names = _listed_shards(index)
            paths = tuple(index.parent / name for name in names)
            outside = [name for name in names if Path(name).name != name]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{self.choice.name}: {index} is no index of shards", hint="get it again"
            ) from error
        missing = [path.name for path in paths if not path.is_file()]
        if outside or missing:
            raise WeightsError(
                f"{self.choice.name}: shards missing beside {index.name}: {', '.join(outside or missing)}",
                hint="get the whole folder again",
            )
        return paths

    def _hub_folder(self, source: str) -> Path:
        """The snapshot in the hub's cache that holds what is wanted; it is downloaded first where that is allowed."""
        repo, _, revision = source.removeprefix(HUB).partition("@")
        if repo.count("/") != 1:
            raise WeightsError(f"{source!r} is no name on the hub", hint="write hub:<owner>/<repo>")
        try:
            from huggingface_hub import try_to_load_from_cache
        except ModuleNotFoundError as error:
            raise WeightsError(
                "hub names need huggingface_hub", hint="pip install 'caeav[learned]'"
            ) from error
        for name in self.wants:
            path = try_to_load_from_cache(repo, name, cache_dir=hub_cache(), revision=revision or None)
            if isinstance(path, str) and self._is_complete(Path(path)):
                return Path(path).parent
        if not self.choice.weights:
            raise WeightsError(
                f"the weights of {self.choice.name} ({source.removeprefix(HUB)}) are not on this machine",
                hint=self._next_step(),
            )
        if offline():
            raise WeightsError(
                f"{source.removeprefix(HUB)} is not in the cache {hub_cache()}, and HF_HUB_OFFLINE is set",
                hint=f"unset it, or get {self.wants[0]} of {repo} elsewhere and give its path as the weights",
            )
        return self._fetch(repo, revision or None)

    def _is_complete(self, main: Path) -> bool:
        """Whether a snapshot holds all that is needed; an interrupted download does not."""
        if any(not (main.parent / name).is_file() for name in self.needs):
            return False
        if main.name.endswith(_INDEX):
            with suppress(WeightsError):
                return bool(self._shards(main))
            return False
        return True

    def _fetch(self, repo: str, revision: str | None) -> Path:
        """Download the first of `wants` that the repository has, its shards, and what lies beside it."""
        from huggingface_hub import HfApi, hf_hub_download

        def get(name: str) -> Path:
            return Path(hf_hub_download(repo, name, revision=revision, cache_dir=hub_cache()))

        try:
            there = set(HfApi().list_repo_files(repo, revision=revision))
            main = next((name for name in self.wants if name in there), None)
            if main is None:
                raise WeightsError(
                    f"{repo} on the hub has none of {', '.join(self.wants)}", hint="choose another"
                )
            path = get(main)
            for name in (*self.needs, *self.also):
                if name in there:
                    get(name)
            for name in _listed_shards(path) if main.endswith(_INDEX) else ():
                get(name)
        except WeightsError:
            raise
        except Exception as error:  # the client lets through whatever its HTTP library raises
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsError(
                f"{repo} could not be fetched from the hub: {first}",
                hint=f"check that huggingface.co is reachable, or get {self.wants[0]} elsewhere and give its path as "
                f"the weights of {self.choice.name}",
            ) from error
        return path.parent

    def _next_step(self) -> str:
        name, file = self.choice.name, self.wants[0]
        own = f"give a folder or file with {file} as its weights"
        if self.origin:
            return f"{own}; it comes from {self.origin}"
        if not self.default.startswith(HUB):
            return own
        pull = f"caeav models pull {name} (fetches {file} of {self.default.removeprefix(HUB)}), or {own}"
        return (
            f"pip install {self.package.partition('/')[0]} (holds them), or {pull}" if self.package else pull
        )


def _listed_shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))


def _parts(files: Sequence[Path], take: str, averages: bool) -> Parts | None:
    """Which dictionary of a torch file to take, announced where there is a choice; None for other files."""
    one = len(files) == 1 and files[0].suffix not in PLAIN_SUFFIXES
    if take and not one:
        raise WeightsError(f"{files[0].name} has no parts", hint=f"leave out {PART}{take}")
    parts = find_parts(files[0], take, averages=averages) if one else None
    if parts is not None and parts.others:
        tell(f"weights of {files[0].name}: {parts.in_words()}")
    return parts
