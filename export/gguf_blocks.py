"""llama.cpp's blocks of 32 weights, and what of ours they hold exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError
from greenllm.quantize.packed import Packed

if TYPE_CHECKING:
    from greenllm.checkpoint import Checkpoint

_Q = gguf.GGMLQuantizationType
SIZE = 32
TYPES = {"f32": _Q.F32, "f16": _Q.F16, "q8_0": _Q.Q8_0, "q4_0": _Q.Q4_0}
FLOATS: dict[gguf.GGMLQuantizationType, Any] = {_Q.F32: np.float32, _Q.F16: np.float16}
_HOLD = {4: _Q.Q4_0, 8: _Q.Q8_0}
# The largest error of a weight, relative to the largest of its 32: half a step, and the scale's own rounding. A step
# of Q4_0 is an eighth of the largest weight, and the opposite one is cut by a whole step.
BOUNDS = {_Q.F32: 0.0, _Q.F16: 2.0**-11, _Q.Q8_0: 0.5 / 127 + 2.0**-10, _Q.Q4_0: 1 / 8 + 2.0**-9}


def error(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """The largest difference, relative to the largest weight of its block, or of its row where rows are no blocks.

    NaN where there is one; weights below float16's smallest normal number are compared with that.
    """
    width = SIZE if want.shape[-1] % SIZE == 0 else want.shape[-1]
    largest = np.maximum(np.abs(want.reshape(-1, width)).max(1, keepdims=True), np.float32(2.0**-14))
    return float((np.abs(got.reshape(-1, width) - want.reshape(-1, width)) / largest).max())


def packed_types(source: Checkpoint) -> dict[str, tuple[gguf.GGMLQuantizationType, str]]:
    """The block type of each packed module, and the module that holds its codes: of a tied embedding the head.

    Raises:
        GreenError: a weight that no block holds.
    """
    found = {}
    for module, weight in source.packed():
        if not isinstance(weight, Packed) or not weight.symmetric or weight.bits not in _HOLD or weight.group % SIZE:
            raise GreenError(
                f"{module} of {source.path} is packed in a way that llama.cpp's blocks do not hold.",
                "They hold 4 and 8 bits, symmetric, in groups of a multiple of 32; or give the dense checkpoint.",
            )
        found[module] = (_HOLD[weight.bits], module)
    if source.tied and source.head in found:
        found[source.embedding] = found[source.head]
    return found


def main_type(source: Checkpoint) -> str:
    """What most modules of a packed checkpoint have."""
    types = [kind for kind, _ in packed_types(source).values()]
    return max(sorted(TYPES), key=lambda name: types.count(TYPES[name]))


def pack(weight: Any, order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Rows of blocks, in an order: each a float16 scale, then 32 codes of 8 bits, or 16 bytes of two codes.

    Args:
        weight: a :class:`Packed` that :func:`packed_types` has let through.
        order: which row comes where, int64 [N].

    Returns:
        uint8 [N, K / 32 * bytes of a block].
    """
    rows = len(order)
    codes = weight.codes.numpy()[order].reshape(rows, -1, SIZE)
    scales = np.repeat(weight.scales.numpy()[order].astype(np.float16), weight.group // SIZE, axis=1)
    nibbles = codes[..., : SIZE // 2] | codes[..., SIZE // 2 :] << 4
    held = nibbles if weight.bits == 4 else codes ^ 0x80  # noqa: PLR2004 - from 128 as zero to two's complement
    return np.concatenate([scales[..., None].view(np.uint8), held], axis=-1).reshape(rows, -1)
