"""Weights in bitsandbytes' own format, read from their files without it.

A linear of K inputs and N outputs is stored as

* NF4 or FP4 (QLoRA, Dettmers et al. 2023, section 3): ``weight``, two codes a byte over the flat [N, K], the first in
  the high half; ``weight.absmax``, fp32, the largest of each block of neighbours; ``weight.quant_map``, the 16 values;
  ``weight.quant_state.bitsandbytes__nf4`` (or ``fp4``), the rest as JSON in bytes. Double quantization keeps absmax as
  uint8, with ``weight.nested_absmax`` and ``weight.nested_quant_map``.
* LLM.int8() (Dettmers et al. 2022, section 2): ``weight``, int8 [N, K]; ``SCB``, fp32 [N], the largest of each row.

No module of bitsandbytes is ever made here. On CPUs with AVX512-BF16 its ``Linear4bit`` repacks its bytes and rounds
its absmax at the first forward; what is dequantized from it after that is wrong, silently. From the file it cannot be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from greenllm.errors import GreenError
from greenllm.quantize.packed import Packed, Rowwise

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
PARTS = (
    "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", *_STATES,
    "SCB", "weight_format",
)  # fmt: skip
_FP4 = (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
TABLES = {
    # QLoRA, appendix E: quantiles of the normal distribution
    "nf4": torch.tensor([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]),
    # one bit of sign, two of exponent, one of mantissa; over 12, the largest
    "fp4": torch.tensor([*_FP4, *(-v for v in _FP4)]),
}  # fmt: skip


@dataclass
class Blockwise(Rowwise):
    """A 4-bit weight of N outputs and K inputs: ``w = table[code] * absmax``.

    Attributes:
        octets: uint8 [N, K / 2], the even input's code in the high half.
        absmax: fp32 [N, K / block].
        table: "nf4" or "fp4".
        block: neighbouring inputs that share an absmax.
    """

    octets: Tensor
    absmax: Tensor
    table: Literal["nf4", "fp4"]
    block: int

    bits: ClassVar[int] = 4

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.octets.shape[0], 2 * self.octets.shape[1]

    def dequantize(self) -> Tensor:
        """The weight it stands for: float32 [N, K]."""
        pairs = torch.cartesian_prod(TABLES[self.table], TABLES[self.table])  # [256, 2], by byte
        values = pairs.index_select(0, self.octets.flatten().int()).view(*self.absmax.shape, self.block)
        return (values * self.absmax[:, :, None]).view(self.shape)


class _State(BaseModel):
    """What ``quant_state`` says; other keys are for bitsandbytes alone."""

    quant_type: Literal["nf4", "fp4"]
    blocksize: int
    shape: tuple[int, int]
    nested_blocksize: int = Field(256, gt=0, le=4096)
    nested_offset: float = 0.0


def unpack(parts: dict[str, Tensor]) -> Packed | Blockwise:
    """The weight of one linear from its :data:`PARTS`.

    Raises:
        GreenError: parts that are missing, damaged or do not belong together.
        RuntimeError: torch cannot give them the shape that they state.
    """
    try:
        return _int8(parts) if "SCB" in parts else _blockwise(parts)
    except KeyError as e:
        raise GreenError(f"Its part {e} is missing.") from e


def _int8(parts: dict[str, Tensor]) -> Packed:
    codes, largest = parts["weight"], parts["SCB"].float()
    if codes.dtype != torch.int8 or codes.ndim != 2 or largest.shape != codes.shape[:1]:  # noqa: PLR2004 - [N, K]
        raise GreenError(f"SCB {tuple(largest.shape)} does not fit {codes.dtype} weights {tuple(codes.shape)}.")
    if int(parts.get("weight_format", torch.tensor(0))):
        raise GreenError("Its int8 weights lie in the order of some GPU.", "Save it with bitsandbytes 0.45 or newer.")
    scales = (_finite(largest, "SCB") / 127)[:, None]
    middle = torch.full(scales.shape, 128, dtype=torch.uint8)
    return Packed(codes.view(torch.uint8) ^ 128, scales, middle, 8, codes.shape[1], symmetric=True)


def _blockwise(parts: dict[str, Tensor]) -> Blockwise:
    state = _state(parts)
    n, k = state.shape
    block, table = state.blocksize, TABLES[state.quant_type]
    if not torch.allclose(parts["weight.quant_map"].float(), table, atol=1e-6):
        raise GreenError(f"Its quant_map is not the table of {state.quant_type}; no kernel has another.")
    if block not in BLOCKS or k % block:
        raise GreenError(
            f"Blocks of {block} do not divide its rows of {k} inputs.",
            f"Quantize it again with one of {', '.join(map(str, BLOCKS))} that does.",
        )
    octets = parts["weight"].contiguous().view(torch.uint8)  # QLoRA trainers store them as bf16
    absmax = _absmax(parts, state)
    if octets.numel() * 2 != n * k or absmax.shape != (n * k // block,):
        raise GreenError(
            f"{octets.numel()} bytes and absmax {tuple(absmax.shape)} do not fit [{n}, {k}] in blocks of {block}."
        )
    return Blockwise(octets.view(n, k // 2), _finite(absmax, "absmax").view(n, -1), state.quant_type, block)


def _state(parts: dict[str, Tensor]) -> _State:
    """The JSON of ``quant_state``, checked."""
    found = [key for key in _STATES if key in parts]
    if len(found) != 1:
        raise GreenError(f"It has {len(found)} entries quant_state instead of one of {' and '.join(_STATES)}.")
    try:
        state = _State.model_validate_json(parts[found[0]].view(torch.uint8).numpy().tobytes())
    except ValidationError as e:
        first = e.errors()[0]
        raise GreenError(f"Its {found[0]} is not valid: {'.'.join(map(str, first['loc']))} {first['msg']}.") from e
    if not found[0].endswith(state.quant_type):
        raise GreenError(f"Its {found[0]} says {state.quant_type}.")
    return state


def _absmax(parts: dict[str, Tensor], state: _State) -> Tensor:
    """The largest of each block, fp32; double quantization (QLoRA, section 3) undone."""
    absmax = parts["weight.absmax"]
    if absmax.dtype != torch.uint8:
        return absmax.float()
    outer = parts["weight.nested_absmax"].repeat_interleave(state.nested_blocksize)
    values = parts["weight.nested_quant_map"]
    if len(outer) < len(absmax) or values.shape != (256,):
        raise GreenError(f"nested_absmax and its {len(values)} values serve {len(outer)} of {len(absmax)} blocks.")
    return values[absmax.int()] * outer[: len(absmax)] + state.nested_offset


def _finite(scales: Tensor, name: str) -> Tensor:
    if not torch.isfinite(scales).all():
        raise GreenError(f"Its {name} holds NaN or infinity.")
    return scales
