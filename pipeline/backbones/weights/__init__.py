"""Weights of learned models: found by hub name, folder or file, digested, and loaded without a key left over."""

from __future__ import annotations

from caeav.pipeline.backbones.weights.cache import remember_at
from caeav.pipeline.backbones.weights.find import Weights, WeightsError, find_weights

__all__ = ["Weights", "WeightsError", "find_weights", "remember_at"]
