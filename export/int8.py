"""A weight whose inputs are 8-bit integers too (W8A8), in plain ONNX: 8-bit codes and one scale for each output.

A grid that is found while the model runs becomes DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime
fuses to DynamicQuantizeMatMul, or to one quantization and MatMulIntegerToFloat where several matrices share
an input. A calibrated one becomes QuantizeLinear and DequantizeLinear around a MatMul, which ONNX Runtime fuses
to MatMulIntegerToFloat.

Codes of weights are unsigned around 128. On an x86 processor without VNNI, ONNX Runtime multiplies unsigned inputs
with signed weights by vpmaddubsw, whose sum of two products saturates at 16 bits: results were wrong by 8 to 20 %.
Unsigned with unsigned is exact on each processor, and the same kernel where there is VNNI.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from greenllm.errors import GreenError
from greenllm.export.forms import Qdq
from greenllm.export.graph import Writer
from greenllm.quantize.activations import InputGrid
from greenllm.quantize.packed import Packed

_MOST, _ZERO = 127, 128


class Int8:
    """A :class:`greenllm.export.forms.Stored`; see the top of this file.

    4 bits and fewer stay so in the file where the grid is dynamic: the runtime rounds them onto 8 bits, a scale an
    output, when it loads. That loses at most half of 1/127 of an output's largest weight.

    Args:
        writer: gets the data.
        name: prefix of all names.
        packed: the weight.
        grid: of its inputs; None for one that is found while the model runs.
    """

    def __init__(self, writer: Writer, name: str, packed: Packed, grid: InputGrid | None) -> None:
        self.name, self.writer, self.grid = name, writer, grid
        codes, scales = int8_rows(packed)
        self.scales = writer.add(f"{name}.scales", scales)
        self._nodes: list[NodeProto] = []
        if packed.bits <= 4 and grid is None:  # noqa: PLR2004 - two to a byte
            self.weight = self._narrow(packed)
        else:
            unsigned = (codes.T.astype(np.int16) + _ZERO).astype(np.uint8)
            self.weight = writer.add(f"{name}.qweight", np.ascontiguousarray(unsigned))
        # DequantizeLinear wants as many zero points as scales, MatMulInteger is faster with one
        zero = np.full(len(scales), _ZERO, np.uint8) if grid else np.array(_ZERO, np.uint8)
        self.zero = writer.add(f"{name}.qzero", zero)

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """Nodes for ``out = x @ W.T``."""
        nodes, self._nodes = self._nodes, []
        return nodes + (self._dynamic(x, out) if self.grid is None else self._static(x, out, self.grid))

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """An embedding has no inputs to round."""
        del indices, out, rank
        raise GreenError(f"The embedding {self.name} has no inputs that could be integers.")

    def _dynamic(self, x: str, out: str) -> list[NodeProto]:
        code, scale, zero = (f"{out}.{part}" for part in ("code", "scale", "zero"))
        sums, wide, both = (f"{out}.{part}" for part in ("sums", "wide", "scales"))
        return [
            helper.make_node("DynamicQuantizeLinear", [x], [code, scale, zero], code),
            helper.make_node("MatMulInteger", [code, self.weight, zero, self.zero], [sums], sums),
            helper.make_node("Cast", [sums], [wide], wide, to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, self.scales], [both], both),
            helper.make_node("Mul", [wide, both], [out], out),
        ]

    def _static(self, x: str, out: str, grid: InputGrid) -> list[NodeProto]:
        scale = self.writer.add(f"{out}.scale", np.array(grid.scale, np.float32))
        zero = self.writer.add(f"{out}.zero", np.array(grid.zero, np.uint8))
        code, rounded, dense = f"{out}.code", f"{out}.rounded", f"{out}.dense"
        return [
            helper.make_node("QuantizeLinear", [x, scale, zero], [code], code),
            helper.make_node("DequantizeLinear", [code, scale, zero], [rounded], rounded),
            helper.make_node("DequantizeLinear", [self.weight, self.scales, self.zero], [dense], dense, axis=1),
            helper.make_node("MatMul", [rounded, dense], [out], out),
        ]

    def _narrow(self, packed: Packed) -> str:
        """Keep the codes in 4 bits; nodes that ONNX Runtime runs once, when it loads, make them 8.

        Not DequantizeLinear and QuantizeLinear, which it would run every time.
        """
        kept = Qdq(self.writer, f"{self.name}.narrow", packed, columns=True)
        n, k = packed.shape
        grouped = self.writer.add(f"{self.name}.grouped", np.array([k // kept.block, kept.block, n]))
        each = self.writer.add(f"{self.name}.each", np.array([k // kept.block, 1, n]))
        whole = self.writer.add(f"{self.name}.whole", np.array([k, n]))
        code = self._step("Reshape", self._step("Cast", kept.weight, to=TensorProto.FLOAT), grouped)
        for zeros in kept.zeros:
            code = self._step("Sub", code, self._step("Reshape", self._step("Cast", zeros, to=TensorProto.FLOAT), each))
        scale = self._step("Reshape", self._step("Cast", kept.scales, to=TensorProto.FLOAT), each)
        dense = self._step("Reshape", self._step("Mul", code, scale), whole)
        zero = self.writer.add(f"{self.name}.middle", np.array(_ZERO, np.float32))
        code = self._step("Add", self._step("Round", self._step("Div", dense, self.scales)), zero)
        return self._step("Cast", code, to=TensorProto.UINT8)

    def _step(self, kind: str, *inputs: str, **attributes: int) -> str:
        """Add a node of :meth:`_narrow` and name its output."""
        out = f"{self.name}.step{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [out], out, **attributes))
        return out


def int8_rows(packed: Packed) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [N, K] within +-127 and a positive scale for each row [N], float32.

    The codes of a symmetric 8-bit weight with one group a row are kept (a row's -128 becomes -127, and the signs
    turn where its scale is negative); any other weight is rounded anew.
    """
    if packed.bits == 8 and packed.symmetric and packed.scales.shape[1] == 1:  # noqa: PLR2004 - a byte
        scales = packed.scales.float()
        signed = (packed.codes.to(torch.int16) - 128) * scales.sign().to(torch.int16)
        return signed.clamp(-_MOST, _MOST).to(torch.int8).numpy(), scales.abs()[:, 0].numpy()
    W = packed.dequantize()
    scales = W.abs().amax(1, keepdim=True).clamp_min(1e-12) / _MOST
    return (W / scales).round().to(torch.int8).numpy(), scales[:, 0].numpy()
