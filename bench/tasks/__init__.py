"""Tasks with right answers: how often a model finds them, and what it forgot or learned against the baseline."""

from __future__ import annotations

from greenllm.bench.tasks.choice import run
from greenllm.bench.tasks.items import Task, read

__all__ = ["Task", "read", "run"]
