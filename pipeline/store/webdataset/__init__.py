"""Shards as plain tars that any tar or WebDataset reader streams."""
