"""Shard formats: plain tars that any WebDataset reader streams, and Zarr v3 arrays that any Zarr reader opens."""
