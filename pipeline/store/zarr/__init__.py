"""Shards as chunks of Zarr v3 arrays that any Zarr reader opens."""
