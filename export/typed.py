"""Quantized weights in a graph of one float type throughout, as TensorRT reads them.

TensorRT computes in the types that the graph has. Scales have the type of the network, so that ``DequantizeLinear``
gives what the ``MatMul`` takes; codes are symmetric, for it imports no zero points but 0. It takes quantized constants
nowhere but before ``DequantizeLinear``, so that codes cannot be looked up: an embedding stays in the float type, with
the values that its codes stand for, whole in memory but read by rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from greenllm.errors import GreenError
from greenllm.export.forms import blocks, squeeze
from greenllm.export.graph import Writer
from greenllm.export.int8 import int8_rows
from greenllm.quantize.activations import AnyGrid, InputGrid
from greenllm.quantize.bnb import Blockwise
from greenllm.quantize.fp8 import Float8, Float8Grid
from greenllm.quantize.packed import Packed
from greenllm.stored import AnyPacked

_ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}


class Typed:
    """A :class:`greenllm.export.forms.Stored` of 4 or 8 bits; 2- and 3-bit codes are put into 4.

    Args:
        writer: gets the data.
        name: prefix of all names.
        packed: the weight.
        dtype: of the network.

    Raises:
        GreenError: it has zero points.
    """

    def __init__(self, writer: Writer, name: str, packed: Packed, dtype: torch.dtype) -> None:
        if not packed.symmetric:
            raise GreenError(
                f"The weight {name} has zero points, which TensorRT does not read.",
                "Quantize symmetrically: leave out --no-symmetric, and grids with an a behind.",
            )
        self.name = name
        bits = 8 if packed.bits == 8 else 4  # noqa: PLR2004 - the two containers
        codes, scales, _, self.block = blocks(packed, bits)
        if bits == 8:  # noqa: PLR2004
            codes, scales = positive(codes, scales, self.block)
            scales = scales.clip(_least(dtype))
        codes = np.ascontiguousarray((codes ^ (1 << (bits - 1))).T)  # two's complement, [K, N]
        kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4  # noqa: PLR2004
        self.weight = writer.add(f"{name}.qweight", squeeze(codes.reshape(1, -1), bits), kind, list(codes.shape))
        self.scales = _add(writer, f"{name}.scales", scales.T, dtype)

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """Nodes for ``out = x @ W.T``."""
        dense = f"{out}.dense"
        return [
            helper.make_node(
                "DequantizeLinear", [self.weight, self.scales], [dense], dense, axis=0, block_size=self.block
            ),
            helper.make_node("MatMul", [x, dense], [out], out),
        ]

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """See the top of this file."""
        raise NotImplementedError(f"{self.name} stays as it is ({indices}, {out}, {rank})")


class TypedInt8:
    """A weight whose inputs are integers on a calibrated grid without zero point; else as :class:`Typed`.

    Args:
        writer: gets the data.
        name: prefix of all names.
        packed: the weight; it is put onto 8 bits with a scale an output.
        grid: of its inputs.
        dtype: of the network.

    Raises:
        GreenError: the grid is found while the model runs, or has a zero point.
    """

    def __init__(self, writer: Writer, name: str, packed: Packed, grid: InputGrid | None, dtype: torch.dtype) -> None:
        if grid is None or grid.zero != 128:  # noqa: PLR2004 - the middle
            how = "while the model runs" if grid is None else "around a zero point"
            raise GreenError(
                f"The inputs of {name} are rounded {how}, which TensorRT does not read.",
                "Quantize with --activations symmetric.",
            )
        self.name = name
        codes, scales = int8_rows(packed)
        self.weight = writer.add(f"{name}.qweight", np.ascontiguousarray(codes.T))
        self.scales = _add(writer, f"{name}.scales", scales.clip(_least(dtype)), dtype)
        scale = _add(writer, f"{name}.grid", np.array(max(_least(dtype), grid.scale), np.float32), dtype)
        self.grid = [scale, writer.add(f"{name}.zero", np.zeros((), np.int8))]

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """Nodes for ``out = x @ W.T``, both rounded."""
        dense = f"{out}.dense"
        rounded, nodes = _rounded(x, out, self.grid)
        return [
            *nodes,
            helper.make_node("DequantizeLinear", [self.weight, self.scales], [dense], dense, axis=1),
            helper.make_node("MatMul", [rounded, dense], [out], out),
        ]

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """An embedding has no inputs to round."""
        raise NotImplementedError(f"{self.name} has no inputs ({indices}, {out}, {rank})")


class TypedFloat8:
    """A weight of 8-bit floats with a scale an output, and its inputs with one scale, if they are rounded.

    Args:
        writer: gets the data.
        name: prefix of all names.
        packed: the weight.
        dtype: of the network.
        scale: of the inputs; None leaves them in the type of the network.
    """

    def __init__(self, writer: Writer, name: str, packed: Float8, dtype: torch.dtype, scale: float | None) -> None:
        self.name = name
        octets = np.ascontiguousarray(packed.octets.numpy().T)
        self.weight = writer.add(f"{name}.qweight", octets, TensorProto.FLOAT8E4M3FN, list(octets.shape))
        self.scales = _add(writer, f"{name}.scales", packed.scales.numpy().clip(_least(dtype)), dtype)
        self.grid: list[str] = []
        if scale is not None:
            grid = _add(writer, f"{name}.grid", np.array(max(_least(dtype), scale), np.float32), dtype)
            zero = writer.add(f"{name}.zero", np.zeros((), np.uint8), TensorProto.FLOAT8E4M3FN, [])
            self.grid = [grid, zero]

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """Nodes for ``out = x @ W.T``."""
        dense = f"{out}.dense"
        rounded, nodes = _rounded(x, out, self.grid) if self.grid else (x, [])
        return [
            *nodes,
            helper.make_node("DequantizeLinear", [self.weight, self.scales], [dense], dense, axis=1),
            helper.make_node("MatMul", [rounded, dense], [out], out),
        ]

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """No embedding is of 8-bit floats."""
        raise NotImplementedError(f"{self.name} is no embedding ({indices}, {out}, {rank})")


def typed(
    writer: Writer, name: str, packed: AnyPacked, dtype: torch.dtype, *, grid: AnyGrid | None, rounds: bool
) -> Typed | TypedInt8 | TypedFloat8:
    """How one weight is stored.

    Args:
        writer: gets the data.
        name: prefix of all names.
        packed: the weight.
        dtype: of the network.
        grid: of its inputs.
        rounds: whether its inputs are rounded.

    Raises:
        GreenError: TensorRT has no such weights.
    """
    if isinstance(packed, Blockwise):
        raise GreenError(
            f"The weight {name} is {packed.table.upper()}, which TensorRT does not read.",
            "Quantize the source with greenllm quantize --bits 4.",
        )
    if isinstance(packed, Float8):
        return TypedFloat8(writer, name, packed, dtype, _float8_grid(name, grid) if rounds else None)
    if isinstance(grid, Float8Grid):
        raise GreenError(f"The weight {name} holds integers, but its inputs would be floats of 8 bits.")
    return TypedInt8(writer, name, packed, grid, dtype) if rounds else Typed(writer, name, packed, dtype)


def _float8_grid(name: str, grid: AnyGrid | None) -> float:
    """The one scale of all inputs."""
    if isinstance(grid, Float8Grid) and grid.scale is not None:
        return grid.scale
    raise GreenError(
        f"The inputs of {name} find their scales while the model runs, which TensorRT does not read.",
        "Start from the dense checkpoint: greenllm fp8 gives them one from calibration.",
    )


def positive(
    codes: NDArray[np.uint8], scales: NDArray[Any], block: int
) -> tuple[NDArray[np.uint8], NDArray[Any]]:  # fmt: skip
    """The same weights with no negative scale, which TensorRT takes for 4 bits but not for 8.

    Args:
        codes: 8 bits around 128, [N, K].
        scales: of each block of a row, [N, ceil(K / block)].
        block: codes that share a scale.

    Returns:
        Both anew. A code of -128 under a negative scale becomes 127: an error of one step of 128.
    """
    signs = np.where(scales < 0, -1, 1).astype(np.int16).repeat(block, axis=1)[:, : codes.shape[1]]
    turned = ((codes.astype(np.int16) - 128) * signs).clip(-128, 127) + 128
    return turned.astype(np.uint8), np.abs(scales)


def _rounded(x: str, out: str, grid: list[str]) -> tuple[str, list[NodeProto]]:
    """Inputs on their way through 8 bits: what they are called then, and the nodes."""
    code, rounded = f"{out}.code", f"{out}.rounded"
    return rounded, [
        helper.make_node("QuantizeLinear", [x, *grid], [code], code),
        helper.make_node("DequantizeLinear", [code, *grid], [rounded], rounded),
    ]


def _least(dtype: torch.dtype) -> float:
    """The smallest scale of a type that is not zero; subnormal ones count, for float16 has little below 6e-5."""
    about = torch.finfo(dtype)
    return float(about.tiny * about.eps)


def _add(writer: Writer, name: str, values: NDArray[Any], dtype: torch.dtype) -> str:
    """An initializer of the network's type, rounded to it."""
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    raw = rounded.view(torch.int16).numpy().view(np.uint16) if dtype != torch.float32 else rounded.numpy()
    return writer.add(name, raw, _ELEMENTS[dtype], list(values.shape))
