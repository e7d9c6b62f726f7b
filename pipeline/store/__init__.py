"""Shards of tokens and captions: written once, resumable, verified; read by key, memory-mapped.

Write with `open_for_writing`, read with `StoreReader.open`, find with `find_store`. Imports neither torch nor
any decoder or backbone, since training reads stores without them.
"""

from caeav.pipeline.store.describe import Description, describe
from caeav.pipeline.store.errors import (
    DamagedShard,
    DamagedStore,
    IncompleteStore,
    Problem,
    RecipeChanged,
    StoreBusy,
    StoreError,
)
from caeav.pipeline.store.find import OtherRecipe, StoreInfo, find_other_recipes, find_store, list_stores
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.reader import ArraySpec, StoreReader
from caeav.pipeline.store.recipe import Recipe, StoreKind, recipe_differences
from caeav.pipeline.store.record import Quarantined, Record
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.verification import Report, verify
from caeav.pipeline.store.writer import ShardPlan, StoreWriter, Summary

__all__ = [
    "ArraySpec",
    "DamagedShard",
    "DamagedStore",
    "Description",
    "IncompleteStore",
    "OtherRecipe",
    "Problem",
    "Quarantined",
    "Recipe",
    "RecipeChanged",
    "Record",
    "Report",
    "ShardPlan",
    "Slice",
    "StoreBusy",
    "StoreError",
    "StoreInfo",
    "StoreKind",
    "StoreReader",
    "StoreWriter",
    "Summary",
    "describe",
    "find_other_recipes",
    "find_store",
    "list_stores",
    "open_for_writing",
    "recipe_differences",
    "verify",
]
