"""Several processes for one run, as ``accelerate launch`` or ``torchrun`` start them: the first leads, others follow.

The leader alone writes; a follower waits until everything lies on disk, then trains beside it.
"""

from __future__ import annotations

import datetime as dt
import os

from greenllm import gpu

_PATIENCE = dt.timedelta(hours=12)  # while the leader samples text or asks a teacher


def rank() -> int:
    """Number of this process; 0 leads."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet() -> None:
    """Wait until every process is here."""
    if world() > 1:
        from accelerate import PartialState

        options = {} if gpu.kind() == "cuda" else {"cpu": True, "backend": "gloo"}
        PartialState(**options, timeout=_PATIENCE).wait_for_everyone()
