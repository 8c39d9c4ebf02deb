"""One command from a checkpoint to a deployable, measured model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenllm.artifact import Artifact
    from greenllm.bench import Results, bench
    from greenllm.errors import GreenError
    from greenllm.export import export
    from greenllm.pipeline import compress

__all__ = ["Artifact", "GreenError", "Results", "bench", "compress", "export"]
__version__ = "0.1.0"

_HOME = {
    "Artifact": "greenllm.artifact",
    "GreenError": "greenllm.errors",
    "Results": "greenllm.bench",
    "compress": "greenllm.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a device has no torch, and ``import greenllm`` is quick."""
    import importlib

    if name in ("bench", "export"):
        return importlib.import_module(f"greenllm.{name}")  # callable, see greenllm.callable
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'greenllm' has no attribute {name!r}")
