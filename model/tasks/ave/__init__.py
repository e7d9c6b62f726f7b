"""Audio-visual event localisation, fully and weakly supervised."""
