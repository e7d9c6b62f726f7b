"""Find weights: from a hub name, a folder or a file to files on this machine and their digest.

A hub name is first looked up in the cache of huggingface_hub. Nothing is downloaded unless a hub name was given
(`hub:` alone means the model's default), and never with HF_HUB_OFFLINE set. The place of what was found is remembered
by digest (`cache.py`), so that a recipe, which holds no path, leads back to it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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
_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}


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
) -> Weights:
    """The weights of `choice`, or the `default` (`hub:<owner>/<repo>`, or empty for none) where it names none.

    wants: names that the file of tensors may have, the best first; one that ends in `.index.json` stands for the
    shards it lists; a file given by path may have any name. needs: files that must lie beside it (`config.json`, a
    tokenizer's). also: files used where they exist. All of them enter the digest. origin: who publishes the weights,
    where no hub does. `PATH#PART` names one of several dictionaries in a torch file; without it, a path means the
    moving average where there is one, and a digest, as in a recipe, the weights as trained (`parts.py`).
    Raises `WeightsError` naming the command to type or the file to get.
    """
    given = default if choice.weights in ("", HUB) else choice.weights
    if given.startswith(RANDOM):
        return _random(choice, given)
    if not given:
        raise WeightsError(
            f"{choice.name} has no default weights",
            hint=_next_step(choice, default, wants, origin),
        )
    if given.startswith(HUB):
        folder = _hub_folder(choice, given, wants, needs, also, may_fetch=bool(choice.weights))
        return _collect(choice, given, _pick(choice, folder, wants, given), folder, needs, also)
    take, averages = "", True
    if given.startswith(DIGEST):
        given, _, take = given.partition(PART)
        averages = False
        place = recall(given)
        if place is None:
            raise WeightsError(
                f"no file on this machine is known to have the digest {given}",
                hint=f"show it once: caeav models show {choice.name} --weights FILE",
            )
    else:
        place = Path(given).expanduser().absolute()
        if PART in place.name and not place.exists():
            name, _, take = place.name.rpartition(PART)
            place = place.with_name(name)
    if place.is_dir():
        main = _pick(choice, place, wants, str(place), origin)
        return _collect(choice, place.name, main, place, needs, also, take, averages=averages)
    if not place.is_file():
        raise WeightsError(
            f"no weights of {choice.name} at {given!r}", hint=_next_step(choice, default, wants, origin)
        )
    return _collect(choice, place.name, place, place.parent, needs, also, take, averages=averages)


def is_cached(source: str) -> bool:
    """Whether the hub's cache holds any weight file of `hub:<owner>/<repo>`."""
    repo = source.removeprefix(HUB).partition("@")[0]
    snapshots = hub_cache() / f"models--{repo.replace('/', '--')}" / "snapshots"
    return any(path.suffix in _SUFFIXES for path in snapshots.glob("*/*"))


def hub_cache() -> Path:
    """The cache of huggingface_hub, found as it finds it: HF_HUB_CACHE, else HF_HOME, else below the home folder."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _random(choice: ModelChoice, given: str) -> Weights:
    seed = given.removeprefix(RANDOM)
    if not seed.isdecimal():
        raise WeightsError(f"{given!r} names no random weights of {choice.name}", hint="give random:0")
    return Weights(source=given, digest=given, seed=int(seed))


def _collect(
    choice: ModelChoice,
    source: str,
    main: Path,
    folder: Path,
    needs: Sequence[str],
    also: Sequence[str],
    take: str = "",
    *,
    averages: bool = True,
) -> Weights:
    files = _shards(choice, main) if main.name.endswith(_INDEX) else (main,)
    missing = [name for name in needs if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{choice.name}: {source} lacks {', '.join(missing)}", hint="give the whole folder, as published"
        )
    beside = [folder / name for name in (*needs, *also) if (folder / name).is_file()]
    every = {path.name: path for path in (*files, *beside)}
    digests = {name: file_digest(path) for name, path in every.items()}
    [digest, *more] = digests.values()
    if more:
        text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
        digest = f"{DIGEST}{hashlib.sha256(text.encode()).hexdigest()}"
    remember(digest, main)
    return Weights(
        source=source, digest=digest, files=files, folder=folder, parts=_parts(files, take, averages)
    )


def _parts(files: Sequence[Path], take: str, averages: bool) -> Parts | None:
    """Which dictionary of a torch file to take, announced where there is a choice; None for other files."""
    one = len(files) == 1 and files[0].suffix != ".safetensors"
    if take and not one:
        raise WeightsError(f"{files[0].name} has no parts", hint=f"leave {PART}{take} away")
    parts = find_parts(files[0], take, averages=averages) if one else None
    if parts is not None and parts.others:
        tell(f"weights of {files[0].name}: {parts.in_words()}")
    return parts


def _pick(choice: ModelChoice, folder: Path, wants: Sequence[str], source: str, origin: str = "") -> Path:
    found = next((folder / name for name in wants if (folder / name).is_file()), None)
    if found is None:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)[:_SHOWN]
        raise WeightsError(
            f"{choice.name}: {source} holds none of {', '.join(wants)}"
            + (f", but {', '.join(others)}" if others else ""),
            hint=f"give a folder with one, or the file{f'; it comes from {origin}' if origin else ''}",
        )
    return found


def _shards(choice: ModelChoice, index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        paths = tuple(index.parent / name for name in names)
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{choice.name}: {index} is no index of shards", hint="get it again") from error
    missing = [path.name for path in paths if not path.is_file()]
    if outside or missing:
        raise WeightsError(
            f"{choice.name}: shards missing beside {index.name}: {', '.join(outside or missing)}",
            hint="get the whole folder again",
        )
    return paths


def _hub_folder(
    choice: ModelChoice,
    given: str,
    wants: Sequence[str],
    needs: Sequence[str],
    also: Sequence[str],
    *,
    may_fetch: bool,
) -> Path:
    """The snapshot in the hub's cache that holds what is wanted; it is downloaded first where that is allowed."""
    repo, _, revision = given.removeprefix(HUB).partition("@")
    if repo.count("/") != 1:
        raise WeightsError(f"{given!r} is no name on the hub", hint="write hub:<owner>/<repo>")
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError as error:
        raise WeightsError("hub names need huggingface_hub", hint="pip install 'caeav[learned]'") from error
    for name in wants:
        path = try_to_load_from_cache(repo, name, cache_dir=hub_cache(), revision=revision or None)
        if isinstance(path, str) and _whole(choice, Path(path), needs):
            return Path(path).parent
    if not may_fetch:
        raise WeightsError(
            f"the weights of {choice.name} ({given.removeprefix(HUB)}) are not on this machine",
            hint=_next_step(choice, given, wants),
        )
    if offline():
        raise WeightsError(
            f"{given.removeprefix(HUB)} is not in the cache {hub_cache()}, and HF_HUB_OFFLINE is set",
            hint=f"unset it, or get {wants[0]} of {repo} elsewhere and give its path as the weights",
        )
    return _fetch(choice, repo, revision or None, wants, [*needs, *also])


def _whole(choice: ModelChoice, main: Path, needs: Sequence[str]) -> bool:
    """Whether a snapshot holds all that is needed; an interrupted download does not."""
    if any(not (main.parent / name).is_file() for name in needs):
        return False
    if main.name.endswith(_INDEX):
        with suppress(WeightsError):
            return bool(_shards(choice, main))
        return False
    return True


def _fetch(
    choice: ModelChoice, repo: str, revision: str | None, wants: Sequence[str], others: Sequence[str]
) -> Path:
    """Download the first of `wants` that the repository has, its shards, and those of `others` that it has."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        there = set(HfApi().list_repo_files(repo, revision=revision))
        main = next((name for name in wants if name in there), None)
        if main is None:
            raise WeightsError(f"{repo} on the hub has none of {', '.join(wants)}", hint="choose another")

        def get(name: str) -> Path:
            return Path(hf_hub_download(repo, name, revision=revision, cache_dir=hub_cache()))

        path = get(main)
        for name in others:
            if name in there:
                get(name)
        if main.endswith(_INDEX):
            for name in sorted(set(json.loads(path.read_bytes())["weight_map"].values())):
                get(name)
    except WeightsError:
        raise
    except Exception as error:  # the client lets through whatever its HTTP library raises
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{repo} could not be fetched from the hub: {first}",
            hint=f"check that huggingface.co is reachable, or get {wants[0]} elsewhere and give its path as the "
            f"weights of {choice.name}",
        ) from error
    return path.parent


def _next_step(choice: ModelChoice, default: str, wants: Sequence[str], origin: str = "") -> str:
    own = f"give a folder or file with {wants[0]} as its weights"
    if origin:
        return f"{own}; it comes from {origin}"
    if not default.startswith(HUB):
        return own
    return f"caeav models pull {choice.name} (fetches {wants[0]} of {default.removeprefix(HUB)}), or {own}"
