"""Memory of an NVIDIA GPU through ``cuda-bindings``: buffers by their address, and one stream."""

from __future__ import annotations

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


_ADVICE = "An engine runs on an NVIDIA GPU alone: is there one, and its driver (nvidia-smi)?"
