"""Which runs use which stores, as the runs themselves say in `stores.json`.

Imports no torch, so that lists are quick.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from caeav.manifests.core.home import Home
from caeav.pipeline.store.find import Reference

STORES = "stores.json"


def references(stores: Mapping[str, Any]) -> list[Reference]:
    """The stores that one run joined; raises `KeyError` or `TypeError` for a record that does not say."""
    return [
        Reference(PurePosixPath(fact["folder"]).parent.name, fact["fingerprint"]) for fact in stores["stores"]
    ]


def users(home: Home) -> dict[Reference, list[str]]:
    """Store -> the names of the runs that use it, oldest first; a run that cannot be read is left out."""
    found: dict[Reference, list[str]] = defaultdict(list)
    for path in sorted(home.runs.glob(f"*/{STORES}")):
        try:
            for reference in dict.fromkeys(references(json.loads(path.read_text(encoding="utf-8")))):
                found[reference].append(path.parent.name)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `gc` says which, and removes nothing
    return dict(found)
