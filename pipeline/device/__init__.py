"""Running torch components on devices: batches across clips, overlapping with decoding and writing."""
