"""Which clips there are, and their labels: official annotation files in, `Clip` rows out.

Reads text only; it never opens a media file and imports no heavy library.
"""
