"""Memory of an NVIDIA GPU through ``cuda-bindings``: buffers by their address, and one stream."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError


class Device:
    """The first GPU that CUDA shows; ``CUDA_VISIBLE_DEVICES`` chooses another.

    Raises:
        GreenError: no cuda-bindings, no driver or no GPU; later, CUDA's own name of what failed.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as e:
            raise GreenError(f"cuda-bindings is not installed ({e}).", 'pip install "greenllm[tensorrt]"') from e
        self._cuda: Any = runtime
        about = self._cuda.cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", about.cudaDevAttrComputeCapabilityMajor, 0)
        minor = self._call("cudaDeviceGetAttribute", about.cudaDevAttrComputeCapabilityMinor, 0)
        self.compute_capability = f"{major}.{minor}"
        self.stream = int(self._call("cudaStreamCreate"))
        self._held: list[int] = []

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes, freed by :meth:`close`."""
        self._held.append(int(self._call("cudaMalloc", max(size, 1))))
        return self._held[-1]

    def put(self, address: int, values: NDArray[Any]) -> None:
        """Copy values to the GPU, before what is enqueued next; they may be freed at once."""
        values = np.ascontiguousarray(values)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, values.ctypes.data, values.nbytes, kind, self.stream)

    def get(self, address: int, values: NDArray[Any]) -> None:
        """Fill values from the GPU, after all that was enqueued."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", values.ctypes.data, address, values.nbytes, kind, self.stream)
        self.wait()

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy within the GPU's memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, self.stream)

    def wait(self) -> None:
        """Until all that was enqueued is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def used(self) -> int:
        """Bytes that are not free, of everybody's."""
        free, total = self._call("cudaMemGetInfo")
        return int(total) - int(free)

    def close(self) -> None:
        """Free all buffers and the stream."""
        for address in self._held:
            self._call("cudaFree", address)
        self._held = []
        self._call("cudaStreamDestroy", self.stream)

    def _call(self, name: str, *given: Any) -> Any:
        error, *found = getattr(self._cuda, name)(*given)
        if int(error):
            raise GreenError(f"CUDA: {name} failed: {getattr(error, 'name', error)}.", _ADVICE)
        return found[0] if len(found) == 1 else found


def held() -> int:
    """Bytes of GPUs' memory that this process holds, as the driver counts them.

    Raises:
        GreenError: NVML is not installed, or does not say.
    """
    try:
        import pynvml
    except ImportError as e:
        raise GreenError(f"nvidia-ml-py is not installed ({e}).", 'pip install "greenllm[nvml]"') from e
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        every = [p for h in handles for p in pynvml.nvmlDeviceGetComputeRunningProcesses(h)]
    except pynvml.NVMLError as e:
        raise GreenError(f"NVML does not say who holds a GPU's memory ({e}).") from e
    mine = [int(p.usedGpuMemory) for p in every if p.pid == os.getpid() and p.usedGpuMemory]
    if not mine:
        raise GreenError("NVML does not name this process among those that hold a GPU's memory.")
    return sum(mine)


def copy_bandwidth() -> float:
    """Bytes a second, read and written together, of the first GPU when it copies within its memory: the best of 5.

    Raises:
        GreenError: see :class:`Device`.
    """
    device, best = Device(), 0.0
    try:
        source, target = device.allocate(_COPIED), device.allocate(_COPIED)
        for _ in range(_TRIES):
            begin = time.perf_counter()
            for _ in range(_COPIES):
                device.copy(target, source, _COPIED)
            device.wait()
            best = max(best, 2 * _COPIES * _COPIED / (time.perf_counter() - begin))
    finally:
        device.close()
    return best


_COPIED, _COPIES, _TRIES = 1 << 30, 20, 5
_ADVICE = "An engine runs on an NVIDIA GPU alone: is there one, and its driver (nvidia-smi)?"
