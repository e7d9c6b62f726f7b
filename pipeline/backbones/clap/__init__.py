"""CLAP: audio and text encoders trained together, from their published checkpoints."""
