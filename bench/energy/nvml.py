"""NVML: the total-energy counter of each NVIDIA GPU (Volta and later), in millijoules since its driver was loaded.

A GPU without that counter is refused: integrating its sampled power would be another method with another error.
"""

from __future__ import annotations

from typing import Any

from greenllm.errors import GreenError


def devices() -> list[Any]:
    """Handles of all GPUs; NVML stays initialized.

    Raises:
        GreenError: no library, no driver, no GPU, or one without a counter.
    """
    try:
        import pynvml
    except ModuleNotFoundError as e:
        raise GreenError("NVML: the package nvidia-ml-py is not installed.", 'pip install "greenllm[nvml]"') from e
    try:
        pynvml.nvmlInit()
        found = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as e:
        raise GreenError(f"NVML: no NVIDIA GPU can be asked here ({e}).") from e
    if not found:
        raise GreenError("NVML: the driver is here, but no GPU.")
    for i, handle in enumerate(found):
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError as e:
            raise GreenError(
                f"NVML: GPU {i} has no total-energy counter ({e}); it takes Volta or later.",
                "Choose another --meter.",
            ) from e
    return found


def look() -> str:
    """What is there, in words; see :func:`devices` for what it raises."""
    return f"{', '.join(map(_name, devices()))}, measured"


class Nvml:
    """See :class:`greenllm.bench.energy.Meter`.

    Raises:
        GreenError: see :func:`devices`.
    """

    method = "measured:nvml"
    leaves_out = "processor, memory, disks, fans of the case, and the loss of the power supply"
    resolution = "1 mJ, new about every 0.1 s (NVIDIA does not say)"
    period = lag = 0.1

    def __init__(self) -> None:
        self._devices = devices()
        self.covers = "whole card of " + ", ".join(map(_name, self._devices))
        self._first = self._read()

    def _read(self) -> list[int]:
        import pynvml

        try:
            return [int(pynvml.nvmlDeviceGetTotalEnergyConsumption(d)) for d in self._devices]
        except pynvml.NVMLError as e:
            raise GreenError(f"NVML: the energy counter cannot be read any more ({e}).") from e

    def joules(self) -> float:
        """See :class:`greenllm.bench.energy.Meter`.

        Raises:
            GreenError: a counter went backwards: its driver was loaded anew. 64 bits of mJ do not wrap.
        """
        now = self._read()
        if any(b < a for a, b in zip(self._first, now, strict=True)):
            raise GreenError("NVML: an energy counter went backwards; was the driver loaded anew?")
        return sum(b - a for a, b in zip(self._first, now, strict=True)) / 1e3

    def close(self) -> None:
        """See :class:`greenllm.bench.energy.Meter`; the process may hold other handles, so NVML stays up."""


def _name(handle: Any) -> str:
    import pynvml

    name = pynvml.nvmlDeviceGetName(handle)
    return name.decode() if isinstance(name, bytes) else str(name)
