"""How fast and how long a pupil learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Pace:
    """How a run goes: updates, rows an update over all processes, passes that an update adds up, and the rate."""

    steps: int
    rows: int
    accumulate: int = 1
    rate: float = 1e-4
    schedule: Schedule = "cosine"
    dtype: torch.dtype = torch.float32
    seed: int = 0
    report_to: str = ""
