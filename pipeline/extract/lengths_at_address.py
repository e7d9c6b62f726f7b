"""How long media in an object store are: each file comes into the spool, is measured, and goes again.

A length is remembered for the stand-in, whose size and time are the object's, so that a file is fetched for it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from caeav.manifests.core.home import Home
from caeav.manifests.core.util import usable_cores
from caeav.manifests.readers import Lengths
from caeav.pipeline.extract.places import Address
from caeav.pipeline.extract.spool import Lost, Spool, spool_folder
from caeav.pipeline.media.lengths import lengths_in, measuring, seconds_of
from caeav.pipeline.media.workers.pool import Request


def lengths_at(place: Address, home: Home) -> Lengths:
    """A function that gives the seconds of the media with these stand-ins, None where they cannot be told.

    Raises `RemoteError` for an object store that does not give what it should.
    """

    def measure(paths: Sequence[str]) -> list[float | None]:
        root = place.root.absolute()
        inside = [path for path in paths if Path(path).is_relative_to(root)]
        media = {Path(path).relative_to(root).as_posix(): path for path in inside}
        found: dict[str, float | None] = dict.fromkeys(paths)
        with ExitStack() as stack:
            pool = stack.enter_context(measuring(max(1, min(usable_cores(), len(paths)))))
            spool = stack.enter_context(
                Spool(place, spool_folder(home), [*media], lambda key: key, pool.nudge)
            )
            for outcome in pool.map(_requests(spool, [*media])):
                (found[media[outcome.id]],) = seconds_of(outcome, 1) or [None]
                spool.done(outcome.id)
        return [found[path] for path in paths]

    return lengths_in(home, measure)


def _requests(spool: Spool, names: Sequence[str]) -> Iterator[Request | None]:
    """One for each file once it is there, None while the next one is not."""
    for name in names:
        try:
            while (path := spool.path(name)) is None:
                yield None
        except Lost:
            spool.done(name)
            continue
        yield {"id": name, "paths": [path]}
