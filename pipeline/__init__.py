"""Stage one: media files in, verified shards of frozen tokens and captions out."""
