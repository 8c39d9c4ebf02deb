"""A cache of keys and values in integers: what of it goes into an export, and where nothing runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greenllm.errors import GreenError
from greenllm.export.targets import Format
from greenllm.progress import Progress

if TYPE_CHECKING:
    from greenllm.checkpoint import Checkpoint

_SAMPLES, _LENGTH = 16, 128


@dataclass(frozen=True)
class Cache:
    """Keys and values in integers.

    Attributes:
        bits: 8 or 4.
        scales: of :func:`greenllm.quantize.kv_cache.measure`.
        calibration: what they come from.
    """

    bits: int
    scales: dict[str, list[list[float]]]
    calibration: dict[str, Any]

    @property
    def words(self) -> dict[str, Any]:
        """For the manifest."""
        return {"kv_cache": {"bits": self.bits, "calibration": self.calibration}}


def check_cache(kind: Format, kv_bits: int | None, *, adapted: bool = False) -> None:
    """Refuse a cache in integers where nothing runs it.

    Raises:
        GreenError: bits that no kernel has, another runtime, or adapters beside it.
    """
    if kv_bits is None:
        return
    if kv_bits not in (4, 8):
        raise GreenError(f"No cache has {kv_bits} bits.", "Give --kv-bits 8 or 4.")
    if kind != "genai":
        raise GreenError(f"Keys and values stay as they are in {kind}.", "Leave out --kv-bits, or give --to genai.")
    if adapted:
        raise GreenError("Adapters change what keys and values are.", "Leave out --kv-bits, or greenllm adapt --merge.")


def make_cache(source: Checkpoint, bits: int, text: str, context: int, progress: Progress) -> Cache:
    """Scales for keys and values, from what the model gives for some samples of a text."""
    from greenllm.calibration import describe, samples
    from greenllm.quantize.kv_cache import measure

    ids = samples(source, text, _SAMPLES, min(_LENGTH, context), 0, progress)
    progress.stage("measuring keys and values", 1)
    return Cache(bits, measure(source, ids, bits, context, progress), describe(text, ids, 0))
