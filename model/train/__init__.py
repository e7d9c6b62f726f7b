"""Stores joined to batches, the training loop, run folders, evaluation and prediction."""
