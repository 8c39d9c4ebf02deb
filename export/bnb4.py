"""ONNX Runtime's operator for bitsandbytes' NF4 and FP4: the same bytes, multiplied in float32."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from greenllm.errors import GreenError
from greenllm.export.graph import Writer
from greenllm.quantize.bnb import Blockwise

_LARGEST = 256  # block sizes of the kernel: 16 to 256; a larger block is cut, its absmax repeated
_TYPES = {"fp4": 0, "nf4": 1}


class Bnb4:
    """A :class:`greenllm.export.forms.Stored` as com.microsoft MatMulBnb4.

    Args:
        writer: gets the data.
        name: prefix of all names.
        weight: codes and absmax as the checkpoint has them.
    """

    def __init__(self, writer: Writer, name: str, weight: Blockwise) -> None:
        self.name = name
        n, k = weight.shape
        block = min(weight.block, _LARGEST)
        self.attributes = {"N": n, "K": k, "block_size": block, "quant_type": _TYPES[weight.table]}
        absmax = weight.absmax.numpy().astype(np.float32).repeat(weight.block // block, axis=1)
        self.data = [
            writer.add(f"{name}.qweight", weight.octets.numpy().reshape(-1)),
            writer.add(f"{name}.absmax", absmax.reshape(-1)),
        ]

    def matmul(self, x: str, out: str) -> list[NodeProto]:
        """Nodes for ``out = x @ W.T``."""
        return [helper.make_node("MatMulBnb4", [x, *self.data], [out], out, domain="com.microsoft", **self.attributes)]

    def gather(self, indices: str, out: str, rank: int) -> list[NodeProto]:
        """No kernel looks rows of it up, and bitsandbytes makes no such embedding."""
        del indices, out, rank
        raise GreenError(f"The embedding {self.name} is NF4 or FP4; no runtime looks rows of it up.")
