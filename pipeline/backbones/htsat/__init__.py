"""HTS-AT: a Swin transformer on mel spectrograms, from its published checkpoints."""
