"""The home folder: everything lies in its `data/`, `stores/` and `runs/`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = "caeav_home"


@dataclass(frozen=True)
class Home:
    """The folder `--home`, else `CAEAV_HOME`, else `./caeav_home`. Folders in it are made when first written to."""

    root: Path

    @classmethod
    def find(cls, given: str | os.PathLike[str] | None = None) -> Home:
        """Find the home folder; nothing is created."""
        return cls(Path(given or os.environ.get("CAEAV_HOME") or DEFAULT_HOME).expanduser().absolute())

    def data(self, dataset: str) -> Path:
        """The default place of a data set's official files, and of the manifest built from them."""
        return self.root / "data" / dataset

    def manifest(self, dataset: str) -> Path:
        """The manifest built for `dataset`."""
        return self.data(dataset) / "manifest.jsonl"

    @property
    def remembered(self) -> Path:
        """The file with what is known of this home's data sets, see `remembered.py`."""
        return self.root / "datasets.json"

    @property
    def stores(self) -> Path:
        """`stores/<dataset>/<kind>-<name>-<fingerprint12>/`."""
        return self.root / "stores"

    @property
    def runs(self) -> Path:
        """One folder per training run."""
        return self.root / "runs"
