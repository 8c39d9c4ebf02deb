"""Packed integer weights, and the GPTQ tensor layout in which they are stored.

Layout (AutoGPTQ, ``checkpoint_format: gptq``), for a linear of K inputs and N outputs:

* ``qweight`` int32 [K * bits / 32, N]: codes along the input dimension, lowest bits first
* ``qzeros``  int32 [K / group, N * bits / 32]: zero points minus one (N rounded up to 32)
* ``scales``  fp16  [K / group, N]
* ``g_idx``   int32 [K]: the group of each input

It is read by transformers, vLLM, the ORT-GenAI builder and TensorRT Edge-LLM.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from greenllm.errors import GreenError

BITS = (2, 3, 4, 8)


@dataclass
class Rowwise(ABC):
    """A quantized weight of N outputs and K inputs; each tensor among its fields has one row an output."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(N, K)."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """The weight it stands for: float32 [N, K]."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """What weights have in common whose rows can be put together."""
        rest = (getattr(self, f.name) for f in fields(self))
        return (type(self).__name__, self.shape[1], *(v for v in rest if not isinstance(v, Tensor)))


@dataclass
class Packed(Rowwise):
    """A quantized weight of N outputs and K inputs: ``w = (code - zero) * scale``.

    Attributes:
        codes: uint8 [N, K], each below 2**bits.
        scales: fp16 (fp32 from LLM.int8()) [N, G]; G groups of ``group`` neighbouring inputs.
        zeros: uint8 [N, G], each below 2**bits; 2**(bits-1) throughout when ``symmetric``.
        bits: 2, 3, 4 or 8.
        group: inputs that share a scale; K when one scale serves a whole row.
        symmetric: whether all zero points are the middle of the grid.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group: int
    symmetric: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self) -> Tensor:
        """The weight it stands for: float32 [N, K]."""
        n, k = self.shape
        grouped = self.codes.view(n, -1, self.group).float()  # in place from here: of a head each copy is 0.1 GB
        return grouped.sub_(self.zeros.float()[:, :, None]).mul_(self.scales.float()[:, :, None]).view(n, k)

    def bits_per_weight(self) -> float:
        """Stored bits over weights, scales and (asymmetric only) zero points included."""
        overhead = 16 + (0 if self.symmetric else self.bits)
        return self.bits + overhead / self.group


R = TypeVar("R", bound=Rowwise)


def concatenate(parts: list[R]) -> R:
    """One weight of the rows of several of one :attr:`Rowwise.kind`."""
    columns = {f.name: [getattr(p, f.name) for p in parts] for f in fields(parts[0])}
    return type(parts[0])(**{n: torch.cat(v) if isinstance(v[0], Tensor) else v[0] for n, v in columns.items()})


def select(weight: R, rows: Tensor) -> R:
    """The weight of some rows, int64 [M], of another."""
    values = {f.name: getattr(weight, f.name) for f in fields(weight)}
    return type(weight)(**{n: v[rows] if isinstance(v, Tensor) else v for n, v in values.items()})


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 [R, C] along dim 0 into int32 [R * bits / 32, C], lowest bits first.

    3-bit codes cross the borders of words, as AutoGPTQ's do.

    Raises:
        GreenError: R codes do not fill whole words.
    """
    rows, columns = codes.shape
    if rows * bits % 32:
        raise GreenError(f"{rows} codes of {bits} bits do not fill whole 32-bit words.")
    period = 32 // math.gcd(32, bits)  # so many codes fill whole words
    grouped = codes.view(-1, period, columns)
    words = torch.zeros(len(grouped), period * bits // 32 + 1, columns, dtype=torch.int64)
    for i in range(period):
        word, shift = divmod(i * bits, 32)
        value = grouped[:, i].to(torch.int64) << shift
        words[:, word] |= value & 0xFFFFFFFF
        words[:, word + 1] |= value >> 32
    return words[:, :-1].reshape(-1, columns).to(torch.int32)  # wraps: bit 31 is the sign


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """Undo :func:`pack_bits`: int32 [W, C] to uint8 [W * 32 / bits, C]."""
    if 8 % bits == 0:  # no code crosses a byte
        words = words.clone(memory_format=torch.contiguous_format)  # also where a single column hides its stride
        octets = words.view(torch.uint8).view(len(words), words.shape[1], 4).transpose(1, 2)
        out = torch.empty(len(words), 4, 8 // bits, words.shape[1], dtype=torch.uint8)
        for i in range(8 // bits):
            out[:, :, i] = (octets >> (i * bits)) & (2**bits - 1)
        return out.view(-1, words.shape[1])
    period = 32 // math.gcd(32, bits)
    grouped = words.view(-1, period * bits // 32, words.shape[1]).to(torch.int64) & 0xFFFFFFFF
    codes = torch.empty(len(grouped), period, words.shape[1], dtype=torch.uint8)
    for i in range(period):
        word, shift = divmod(i * bits, 32)
        value = grouped[:, word] >> shift
        if shift + bits > 32:  # noqa: PLR2004 - the rest of this code is in the next word
            value |= grouped[:, word + 1] << (32 - shift)
        codes[:, i] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.view(-1, words.shape[1])


def to_gptq(packed: Packed) -> dict[str, Tensor]:
    """The four tensors of the GPTQ layout (see the top of this file)."""
    _, k = packed.shape
    return {
        "qweight": pack_bits(packed.codes.T.contiguous(), packed.bits),
        "qzeros": pack_bits(_whole_words((packed.zeros - 1) & (2**packed.bits - 1)), packed.bits).T.contiguous(),
        "scales": packed.scales.T.contiguous().half(),
        "g_idx": (torch.arange(k) // packed.group).to(torch.int32),
    }


def _whole_words(zeros: Tensor) -> Tensor:
    """Pad the outputs [N, G] to a multiple of 32, so that any number of bits fills whole words."""
    n = zeros.shape[0]
    return zeros if n % 32 == 0 else torch.nn.functional.pad(zeros, (0, 0, 0, -n % 32))


def from_gptq(tensors: dict[str, Tensor], bits: int, group: int, *, symmetric: bool) -> Packed:
    """Undo :func:`to_gptq`. ``group`` -1 means one group a row.

    Raises:
        GreenError: shapes that do not belong together, or inputs whose groups are not neighbours
            (``desc_act`` without static groups), which no kernel here runs.
    """
    codes = unpack_bits(tensors["qweight"], bits).T.contiguous()
    k = codes.shape[1]
    group = k if group == -1 else group
    if "g_idx" in tensors and not torch.equal(tensors["g_idx"].long(), torch.arange(k) // group):
        raise GreenError("Its groups are not contiguous (desc_act without static groups).", "Quantize it again.")
    zeros = (unpack_bits(tensors["qzeros"].T.contiguous(), bits)[: len(codes)] + 1) & (2**bits - 1)
    scales = tensors["scales"].T.contiguous()
    if scales.shape != (codes.shape[0], k // group) or zeros.shape != scales.shape:
        raise GreenError(f"Scales {tuple(scales.shape)} do not fit weights {tuple(codes.shape)} in groups of {group}.")
    return Packed(codes, scales, zeros, bits, group, symmetric)
