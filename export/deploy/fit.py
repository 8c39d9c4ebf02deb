"""Whether a bundle fits a device, by arithmetic, before anything is copied."""

from __future__ import annotations

from typing import Any

from greenllm.errors import GreenError
from greenllm.export.bundle import Needs
from greenllm.export.fits import CONTEXT, LAYOUT, RUNTIME

ENVIRONMENT = 300e6  # bytes on disk, packages unpacked and as they come
_SPARE = 20e6  # bytes that stay free
_NAMES = {"arm64": "aarch64", "AMD64": "x86_64"}


def check(needs: Needs, facts: dict[str, Any]) -> str:
    """Refuse a device that does not fit; describe one that does.

    Args:
        needs: of the bundle.
        facts: of the device, see :func:`greenllm.export.device.facts.facts`.

    Raises:
        GreenError: another processor, a Python that is too old, or too little memory.
    """
    machine = _NAMES.get(facts["machine"], facts["machine"])
    if machine != needs.isa:
        raise GreenError(
            f"The device is {facts['machine']}; this bundle is for {needs.isa} ({needs.target}).",
            "Make one for it: greenllm bundle OUT --target TARGET; greenllm targets lists them.",
        )
    if _numbers(facts["python"]) < _numbers(needs.python):
        raise GreenError(
            f"The device's Python is {facts['python']}; this bundle needs {needs.python} or newer.",
            "Install one there and name it: --python PATH."
            + (' Or export for a target that says genai: "0.11".' if needs.python != "3.10" else ""),
        )
    tokens = min(needs.context, CONTEXT)
    weights = LAYOUT["genai"] * needs.weight_bytes
    parts = {"weights as its kernels lay them out": weights, "Python and runtime": RUNTIME["genai"]}
    parts |= {f"a KV cache of {tokens:,} tokens": needs.cache_bytes * tokens} if needs.cache_bytes else {}
    _room("memory", parts, facts["memory_free"], f" of {facts['memory'] / 1e6:,.0f} MB", "End what else runs there.")
    board = facts["board"] or facts["system"]
    return (
        f"{board}: {machine}, Python {facts['python']}, {facts['memory_free'] / 1e6:,.0f} MB of memory and "
        f"{facts['disk_free'] / 1e6:,.0f} MB of disk free"
    )


def check_disk(facts: dict[str, Any], *, copy: int, environment: bool) -> None:
    """Refuse a device without room for ``copy`` bytes and, if one must be made, an environment.

    Raises:
        GreenError: too little disk.
    """
    parts = {"copy": copy, "to spare": _SPARE} | ({"environment": ENVIRONMENT} if environment else {})
    _room("disk", parts, facts["disk_free"], "", "Make room there, or choose another --dir.")


def _room(what: str, parts: dict[str, float], free: int, of: str, fix: str) -> None:
    need = sum(parts.values())
    if need > free:
        terms = " + ".join(f"{name} {size / 1e6:,.0f}" for name, size in parts.items())
        raise GreenError(
            f"The device has {free / 1e6:,.0f} MB{of} of {what} free; needed are {need / 1e6:,.0f} MB ({terms}).", fix
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(x) for x in version.split(".")[:2])
