"""Running torch components on devices: batches across clips, while other clips are decoded and written."""
