"""CLAP: an audio and a text encoder trained together, from their published checkpoints."""
