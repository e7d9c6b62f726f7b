"""Features computed without weights, in numpy: what the demo and a machine without checkpoints use."""
