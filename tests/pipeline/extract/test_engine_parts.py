"""The parts between a decoded clip and a published shard, each alone: records, collecting, embedding, metering."""

from __future__ import annotations
