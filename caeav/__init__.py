"""The Python interface of caeav: the stores, data sets and runs that its commands made.

    caeav.open_store("ave")                 tokens of each clip as numpy arrays, with what was noticed about its media
    caeav.dataset("ave", split="train")     a torch `Dataset` of tokens, captions and labels, for a plain `DataLoader`
    caeav.load_run("last").predict(FILE)    what a trained run finds in a media file

These three, and what they return, are public and stable; docs/PYTHON.md has examples. Everything else below
`caeav.` is the program itself and may change. Importing this loads neither torch nor a decoder. Whatever a user can put
right raises `caeav.CaeavError`, which says what was seen, what is allowed and what to do next.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from caeav.manifests.core.errors import CaeavError

if TYPE_CHECKING:
    from caeav.datasets import TokenDataset
    from caeav.runs import LoadedRun
    from caeav.stores import Store

__all__ = ["CaeavError", "dataset", "load_run", "open_store"]

Folder = str | os.PathLike[str]


def open_store(
    dataset: Folder, name: str | None = None, *, kind: str = "tokens", home: Folder | None = None
) -> Store:
    """Open a finished store for reading.

    `dataset`: the name of a data set, or the folder of a store. `name`: which of its stores, where there are several:
    its name, its folder's name, or the first four or more digits of its fingerprint. `kind`: `tokens` or `captions`.
    `home`: as `--home`, else `CAEAV_HOME`, else `./caeav_home`.
    """
    from caeav.stores import Store

    return Store.open(dataset, name, kind=kind, home=home)


def dataset(
    dataset: str,
    *,
    split: str = "train",
    tokens: str | Sequence[str] = (),
    captions: bool | str = False,
    taps: Sequence[str] = (),
    task: str | None = None,
    home: Folder | None = None,
) -> TokenDataset:
    """One split of a data set as a `torch.utils.data.Dataset`.

    `split`: `train`, `val` or `test`. `tokens`: names of token stores; none for the only one there is. `captions`:
    also give captions: True for the only caption store, or its name. `taps`: those to read, such as `visual.stage4`;
    none for all. `task`: whose labels to give (`ave`, `ave-weak`, `avvp`, `avs-s4`, `avs-ms3`, `avqa`); None for the
    task that the data set was made for, empty for no labels. `home`: as `open_store`.
    """
    from caeav.datasets import TokenDataset

    names = (tokens,) if isinstance(tokens, str) else tuple(tokens)
    return TokenDataset.open(dataset, split, names, captions, taps, task, home)


def load_run(run: Folder = "last", *, device: str = "auto", home: Folder | None = None) -> LoadedRun:
    """Load a finished run's best weights, ready to predict.

    `run`: its folder, its name or a part of it that only one run has; `last` for the newest. `device`: `auto`, `cpu` or
    `cuda`. `home`: as `open_store`.
    """
    from caeav.runs import LoadedRun

    return LoadedRun.load(run, device=device, home=home)
