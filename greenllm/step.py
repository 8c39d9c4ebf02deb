"""A step of a recipe: a dataclass whose fields are its CLI options, its schema and its documentation."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from greenllm.checkpoint import Checkpoint
from greenllm.progress import Progress, Silent, clock

BASE_BYTES = 450e6  # the interpreter with torch and transformers


@dataclass
class Estimate:
    """What a step will take on this machine: seconds and peak bytes of memory."""

    seconds: float
    peak_bytes: float

    @property
    def words(self) -> str:
        """For people, before it starts."""
        return f"About {clock(self.seconds)} and {self.peak_bytes / 1e9:.1f} GB of memory at the peak"


@dataclass
class Context:
    """What a step is given besides its checkpoint.

    Attributes:
        work: a directory of its own for committed work; kept when the run is interrupted.
        samples: makes the calibration samples on first use: int64 [count, length], or a transcriber's batches.
        seed: for whatever is random.
        progress: told how far it is.
        source: the checkpoint that a recipe began with; None where none is known.
        dense: the last of a recipe's checkpoints that is not quantized; None where there is none.
    """

    work: Path
    samples: Callable[[], Any]
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    source: Checkpoint | None = None
    dense: Checkpoint | None = None


@runtime_checkable
class Step(Protocol):
    """One step: validated fields and ``run``."""

    name: ClassVar[str]

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration samples."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse what cannot work, before anything long begins."""

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """What it will take with this many calibration tokens."""

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Read ``checkpoint``, write the new one into ``out``, say what was found out."""


@functools.cache
def flops_per_second() -> float:
    """Speed of a matrix product on this machine now, as its load lets it."""
    a = torch.randn(1024, 1024)
    a @ a
    start = time.perf_counter()
    for _ in range(4):
        a @ a
    return 4 * 2 * 1024**3 / (time.perf_counter() - start)
