"""What is in an object store: which stores lie below an address, and whether every byte of one is right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from caeav.manifests.core.util import OnProgress, ignore
from caeav.pipeline.store.errors import DamagedStore, IncompleteStore, Problem
from caeav.pipeline.store.find import StoreInfo
from caeav.pipeline.store.layout import FOLDER_PATTERN, StoreFolder, parse_seal
from caeav.pipeline.store.remote.bucket import Bucket, ObjectFacts
from caeav.pipeline.store.remote.faults import ObjectGone, WrongBytes
from caeav.pipeline.store.remote.reading import mirror
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import inspect
from caeav.pipeline.store.verify import Verification

SHARDS_AT_ONCE = 4


def list_remote(url: str) -> dict[str, StoreInfo]:
    """Every store at or below an address, slices too: its own address -> what is known of it, sorted.

    Clips are known of finished stores alone; a seal that is none makes a store `damaged`.
    """
    bucket = Bucket(url)
    there = bucket.list()
    found = {}
    for name in there:
        place, _, file = name.rpartition("/")
        address = bucket.url / place if place else bucket.url
        match = FOLDER_PATTERN.fullmatch(Slice.of_folder(address.name)[0])
        if file == "recipe.json" and match:
            about = (Path(address.name), address.parent.name, match[1], match[2], match[3])
            found[str(address)] = _info(bucket, f"{place}/" if place else "", about, there)
    return found


def _info(
    bucket: Bucket, inside: str, about: tuple[Path, str, str, str, str], there: dict[str, ObjectFacts]
) -> StoreInfo:
    size = sum(facts.size for name, facts in there.items() if name.startswith(f"{inside}shards"))
    if f"{inside}complete.json" not in there:
        return StoreInfo(*about, "partial", bytes=size)
    try:
        seal = parse_seal(bucket.read(f"{inside}complete.json"), Path("complete.json"))
    except DamagedStore as error:
        return StoreInfo(*about, "damaged", problem=error.problem)
    return StoreInfo(*about, "complete", seal.stored, seal.quarantined, seal.expected, seal.shard_bytes)


def verify_remote(url: str, told: OnProgress = ignore) -> Verification:
    """Read every object of a store and compare it with its digest; nothing is kept. `told` hears of bytes.

    Raises `StoreError` where there is no store, and `RemoteError` where objects cannot be had at all.
    """
    bucket = Bucket(url)
    place = Path(str(bucket.url))
    with TemporaryDirectory() as temp:
        try:
            folder = mirror(bucket, Path(temp))
        except IncompleteStore:
            return _unfinished(bucket, place)
        except WrongBytes as error:
            return Verification(place, (Problem("(store)", error.problem),), finished=True)
        there = bucket.list()
        state = inspect(folder.path, size_of=lambda name: there[name].size if name in there else None)
        problems = list(state.problems)
        known = {"recipe.json", "complete.json"}
        if state.seal is not None:
            known |= {*state.seal.sha256}

        def one(number: int) -> list[Problem]:
            found = []
            for facts in state.indexes[number].files:
                try:
                    bucket.fetch(facts.name, facts.bytes, facts.sha256, lambda _, data: told(len(data)))
                except (ObjectGone, WrongBytes) as error:
                    found.append(Problem(facts.name, error.problem.partition(": ")[2], shard=number))
            return found

        with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="caeav-verify") as threads:
            for found in threads.map(one, state.indexes):
                problems += found
        known |= {facts.name for index in state.indexes.values() for facts in index.files}
        known |= {problem.where for problem in problems}
        strays = [name for name in there if name not in known]
        problems += [Problem(name, "does not belong to the finished store") for name in strays]
    return Verification.of(place, state, problems, state.remarks)


def _unfinished(bucket: Bucket, place: Path) -> Verification:
    """A store that is being published: how many shards have their index."""
    there = bucket.list()
    shards = [name for name in there if name.startswith(f"{Path(StoreFolder.index_name(0)).parent}/")]
    size = sum(facts.size for name, facts in there.items() if name.startswith("shards"))
    remark = f"{len(shards)} shards have their index; it is finished when its seal is there"
    return Verification(place, (), (remark,), shards=len(shards), bytes=size)
