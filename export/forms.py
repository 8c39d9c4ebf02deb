"""The ways a quantized matrix is written into a graph.

``nbits``: com.microsoft MatMulNBits and GatherBlockQuantized, the kernels of ONNX Runtime.
``qdq``: DequantizeLinear of opset 21 with blocks along the inputs, then MatMul: plain ONNX, which
ONNX Runtime fuses to MatMulNBits when it loads.
``typed``: the same as TensorRT reads it: symmetric, in a graph of half precision, see :mod:`greenllm.export.typed`.

In the first two, scales lie on disk as they were made, fp16 (fp32 from LLM.int8()); a Cast widens them, which the
runtime does once, when it loads.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from greenllm.errors import GreenError
from greenllm.export.graph import Writer
from greenllm.older import older
from greenllm.quantize.packed import Packed

Form = Literal["nbits", "qdq", "typed"]
_TWO_BITS = (1, 27)  # the first ONNX Runtime with both kernels for them; MatMulNBits alone came with 1.24
_SMALLEST, _LARGEST = 16, 256  # block sizes of ONNX Runtime's kernels, powers of two


class Stored(Protocol):
    """A quantized matrix [N, K] of which the data are in the writer."""

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """Nodes for ``out = x @ W.T``."""

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """Nodes for ``out = W[indices]``; ``rank`` is that of the indices."""


class NBits:
    """See the top of this file.

    Args:
        writer: gets the data.
        name: prefix of all names.
        packed: the weight; 3-bit codes are put into 4 bits, for which there are kernels.
        accuracy_level: 4 for int8 activations, 0 for float32.

    Raises:
        GreenError: the installed runtime has no kernel for 2 bits.
    """

    def __init__(self, writer: Writer, name: str, packed: Packed, accuracy_level: int) -> None:
        self.name, self.writer = name, writer
        self.n, self.k = packed.shape
        bits = {3: 4}.get(packed.bits, packed.bits)
        if bits == 2:  # noqa: PLR2004 - the only width that came late
            _refuse_two_bits(onnxruntime.__version__)
        codes, scales, zeros, self.block = blocks(packed, bits)
        self.attributes = {"bits": bits, "block_size": self.block}
        self.accuracy_level = accuracy_level
        self.bytes = self.k * bits // 8
        self.weight = writer.add(
            f"{name}.qweight", squeeze(codes, bits).reshape(self.n, self.k // self.block, self.block * bits // 8)
        )
        self.scales = writer.add(f"{name}.scales", scales)
        self.zeros = [] if packed.symmetric else [writer.add(f"{name}.zeros", squeeze(zeros, bits))]
        self._nodes = [_widen(name, self.scales)]

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """See :class:`Stored`."""
        node = helper.make_node(
            "MatMulNBits", [x, self.weight, f"{self.name}.scales32", *self.zeros], [out], out, domain="com.microsoft",
            K=self.k, N=self.n, accuracy_level=self.accuracy_level, **self.attributes,
        )  # fmt: skip
        return [*self._once(), node]

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """See :class:`Stored`."""
        del rank
        flat = f"{self.name}.flat"
        shape = self.writer.add(f"{flat}.shape", np.array([self.n, self.bytes]))
        node = helper.make_node(
            "GatherBlockQuantized", [flat, indices, f"{self.name}.scales32", *self.zeros], [out], out,
            domain="com.microsoft", gather_axis=0, quantize_axis=1, **self.attributes,
        )  # fmt: skip
        return [*self._once(), helper.make_node("Reshape", [self.weight, shape], [flat], flat), node]

    def _once(self) -> list[NodeProto]:
        nodes, self._nodes = self._nodes, []
        return nodes


class Qdq:
    """See the top of this file. 2- and 3-bit codes are put into 4 bits: ONNX has no smaller type that runs.

    Args:
        writer: gets the data.
        name: prefix of all names.
        packed: the weight.
        columns: keep it as [K, N] for a MatMul; else as [N, K], for a Gather alone.
    """

    def __init__(self, writer: Writer, name: str, packed: Packed, *, columns: bool) -> None:
        self.name, self.columns, self.writer = name, columns, writer
        self.bits = 8 if packed.bits == 8 else 4  # noqa: PLR2004 - the two containers
        codes, scales, zeros, self.block = blocks(packed, self.bits)
        if packed.symmetric:
            codes ^= 1 << (self.bits - 1)  # to two's complement around the middle
        kind = _TYPES[self.bits, packed.symmetric]
        self.weight = self._add(writer, f"{name}.qweight", codes, kind)
        self.scales = writer.add(f"{name}.scales", self._turn(scales))
        self.zeros = [] if packed.symmetric else [self._add(writer, f"{name}.zeros", zeros, kind)]
        self._wide = TensorProto.INT8 if packed.symmetric else TensorProto.UINT8
        self._nodes = [_widen(name, self.scales)]
        self._sources: list[str] = []

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """See :class:`Stored`."""
        dense = f"{self.name}.dense"
        inputs = [self.weight, f"{self.name}.scales32", *self.zeros]
        return [
            *self._once(),
            helper.make_node("DequantizeLinear", inputs, [dense], dense, axis=0, block_size=self.block),
            helper.make_node("MatMul", [x, dense], [out], out),
        ]

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """See :class:`Stored`: take codes, scales and zero points first, dequantize what was taken.

        A matrix that is a MatMul's too is read under names of its own: ONNX Runtime fuses a MatMul with its
        DequantizeLinear only where nothing else reads them, and else unpacks all of it at each token.
        """
        nodes, taken = self._unpacked(), []
        for i, source in enumerate(self._sources):
            taken.append(f"{out}.{i}")
            nodes.append(helper.make_node("Gather", [source, indices], [taken[-1]], taken[-1], axis=int(self.columns)))
        axis = 0 if self.columns else rank
        target = f"{out}.columns" if self.columns else out
        nodes.append(helper.make_node("DequantizeLinear", taken, [target], target, axis=axis, block_size=self.block))
        if self.columns:
            nodes.append(helper.make_node("Transpose", [target], [out], out, perm=[*range(1, rank + 1), 0]))
        return nodes

    def _unpacked(self) -> list[NodeProto]:
        """What makes codes and scales such as a Gather takes; once. The runtime does it when it loads."""
        if self._sources:
            return []
        nodes = []
        for i, source in enumerate([self.weight, self.scales, *self.zeros]):
            self._sources.append(self.writer.again(source) if self.columns else source)
            if self.bits == 4 or i == 1:  # noqa: PLR2004 - no runtime gathers 4-bit codes
                own, kind = self._sources[-1], TensorProto.FLOAT if i == 1 else self._wide
                self._sources[-1] = f"{own}.wide"
                nodes.append(helper.make_node("Cast", [own], [f"{own}.wide"], f"{own}.wide", to=kind))
        return nodes

    def _add(self, writer: Writer, name: str, values: NDArray[np.uint8], kind: int) -> str:
        values = self._turn(values)
        packed = squeeze(values.reshape(1, -1), self.bits)
        return writer.add(name, packed, kind, list(values.shape))

    def _turn(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(values.T) if self.columns else values

    def _once(self) -> list[NodeProto]:
        nodes, self._nodes = self._nodes, []
        return nodes


_TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}


def blocks(packed: Packed, bits: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.uint8], int]:
    """Codes [N, K], scales and zero points [N, K / block] in a container of ``bits``, and the block size.

    A group that no kernel has (a whole row, say) is cut into blocks that repeat its scale. A symmetric
    code is moved so that the middle of its grid is the middle of the container.

    Raises:
        GreenError: the group has no block size in it.
    """
    block = math.gcd(packed.group, _LARGEST)
    if block < _SMALLEST:
        raise GreenError(
            f"Groups of {packed.group} inputs are not a multiple of {_SMALLEST}; no kernel runs them.",
            "Quantize with --group 32.",
        )
    repeat = packed.group // block
    shift = 2 ** (bits - 1) - 2 ** (packed.bits - 1) if packed.symmetric else 0
    codes = packed.codes.numpy() + np.uint8(shift)
    scales = packed.scales if packed.scales.dtype == torch.float32 else packed.scales.half()
    zeros = packed.zeros.numpy().repeat(repeat, axis=1) + np.uint8(shift)
    return codes, scales.numpy().repeat(repeat, axis=1), zeros, block


def squeeze(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes [R, C] of 2, 4 or 8 bits into bytes [R, ceil(C * bits / 8)], lowest bits first."""
    per = 8 // bits
    if per == 1:
        return codes
    if codes.shape[1] % per:
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per)))
    out = codes[:, ::per].copy()
    for i in range(1, per):
        out |= codes[:, i::per] << np.uint8(i * bits)
    return out


def _refuse_two_bits(installed: str) -> None:
    if older(installed, *_TWO_BITS):
        raise GreenError(
            f"ONNX Runtime {installed} has no kernels for 2-bit weights; 1.27 has, and needs Python 3.11.",
            "Quantize with --bits 3 or more, or export with Python 3.11.",
        )


def _widen(name: str, scales: str) -> NodeProto:
    return helper.make_node("Cast", [scales], [f"{name}.scales32"], f"{name}.scales32", to=TensorProto.FLOAT)
