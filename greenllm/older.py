"""Versions, compared: what a runtime of Python 3.10 cannot do is told, not tried."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from greenllm.errors import GreenError

LAST_POSITION = (0, 18)  # onnxruntime-genai 0.11 has room for the logits of all positions, and refuses a graph of one


def older(installed: str, *than: int) -> bool:
    """Whether a version such as "1.23.2" comes before ``than``, such as 1, 27."""
    return tuple(int(x) for x in installed.split(".")[: len(than)]) < than


def silence(runtime: ModuleType) -> None:
    """Have onnxruntime-genai send nothing to anyone; its older versions never did."""
    if hasattr(runtime, "disable_telemetry_events"):
        runtime.disable_telemetry_events()


def cannot_run(path: Path, installed: str, error: RuntimeError) -> GreenError:
    """For people: why this onnxruntime-genai does not run the model at ``path``, and the way out."""
    hint = ""
    if older(installed, *LAST_POSITION):
        hint = 'Export it with what is here, or elsewhere for a target file that says genai: "0.11".'
    return GreenError(f"{path} cannot be run by onnxruntime-genai {installed}: {str(error).splitlines()[0]}", hint)
