"""Shards of tokens and captions: written once, resumable, verified; read by key, memory-mapped.

Write with `open_for_writing`, read with `StoreReader.open`, find with `find_store`. Nothing here imports torch, a
decoder or a backbone, since training reads stores without them.
"""

from caeav.pipeline.store.backend import DEFAULT_BACKEND, backends
from caeav.pipeline.store.contents import ArrayDifference, Description, Differences, compare, describe
from caeav.pipeline.store.convert import convert
from caeav.pipeline.store.errors import (
    DamagedShard,
    DamagedStore,
    IncompleteStore,
    Problem,
    RecipeChanged,
    StoreBusy,
    StoreError,
)
from caeav.pipeline.store.find import (
    OtherRecipe,
    Reference,
    StoreInfo,
    find_other_recipes,
    find_slices,
    find_store,
    idle_s,
    list_slices,
    list_stores,
    remove_store,
    unreferenced,
)
from caeav.pipeline.store.merge import Merged, merge
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.reader import ArraySpec, StoreReader
from caeav.pipeline.store.recipe import Recipe, StoreKind, random_parts, recipe_differences
from caeav.pipeline.store.record import Quarantined, Record
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.verify import Repair, Verification, repair, verify
from caeav.pipeline.store.writer import ShardPlan, StoreWriter, Summary

__all__ = [
    "DEFAULT_BACKEND",
    "ArrayDifference",
    "ArraySpec",
    "DamagedShard",
    "DamagedStore",
    "Description",
    "Differences",
    "IncompleteStore",
    "Merged",
    "OtherRecipe",
    "Problem",
    "Quarantined",
    "Recipe",
    "RecipeChanged",
    "Record",
    "Reference",
    "Repair",
    "ShardPlan",
    "Slice",
    "StoreBusy",
    "StoreError",
    "StoreInfo",
    "StoreKind",
    "StoreReader",
    "StoreWriter",
    "Summary",
    "Verification",
    "backends",
    "compare",
    "convert",
    "describe",
    "find_other_recipes",
    "find_slices",
    "find_store",
    "idle_s",
    "list_slices",
    "list_stores",
    "merge",
    "open_for_writing",
    "random_parts",
    "recipe_differences",
    "remove_store",
    "repair",
    "unreferenced",
    "verify",
]
