"""Audio-visual question answering."""
