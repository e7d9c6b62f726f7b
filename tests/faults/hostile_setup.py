"""A decode process that does the real work but crashes, hangs or takes memory for files of these names."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caeav.pipeline.extract import decode_job


def setup(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], decode_job.Reply]:
    """As `decode_job.setup`; the accident happens before the clip is decoded."""
    reply = decode_job.setup(settings)

    def accident(request: Mapping[str, Any]) -> decode_job.Reply:
        name = Path(request["path"]).stem
        if name == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            time.sleep(1000)
        elif name == "memory":
            array = np.empty(1 << 36, np.uint8)  # 64 GiB, none of it touched
            raise AssertionError(f"{array.nbytes} bytes were allocated")
        return reply(request)

    return accident
