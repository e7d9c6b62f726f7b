"""Audio-visual video parsing."""
