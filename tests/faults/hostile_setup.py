"""What a decoding process does in these tests: the real work, except for the clips whose file name says otherwise."""

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
    """As `worker.setup`; the accident happens before the clip is decoded."""
    answer = decode_job.setup(settings)

    def accident(request: Mapping[str, Any]) -> decode_job.Reply:
        name = Path(request["path"]).stem
        if name == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            time.sleep(1000)
        elif name == "memory":
            hold = np.empty(1 << 36, np.uint8)  # 64 GiB, none of it touched
            raise AssertionError(f"{hold.nbytes} bytes were given")
        return answer(request)

    return accident
