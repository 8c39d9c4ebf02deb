"""The integer grid of a group of weights: scales and zero points, and rounding onto them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from greenllm.errors import GreenError
from greenllm.quantize.packed import BITS, Packed

_SHRINK = torch.linspace(1.0, 0.6, 21)
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Grid:
    """``bits`` per weight, ``group`` inputs to a scale (-1: the whole row), symmetric or not.

    A symmetric grid of b bits has the levels -2**(b-1) .. 2**(b-1) - 1 times a scale that may be negative,
    so that the longer side lies where the largest weight of the group is.
    """

    bits: int
    group: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise GreenError(f"bits={self.bits}: nobody runs that.", f"Choose one of {', '.join(map(str, BITS))}.")
        if self.group < 1 and self.group != -1:
            raise GreenError(f"group={self.group} is no group size.", "Give a positive number, or -1 for whole rows.")

    @property
    def top(self) -> int:
        """The highest code."""
        return int(2**self.bits - 1)

    def size(self, inputs: int) -> int:
        """Inputs per group for a weight of this many inputs.

        Raises:
            GreenError: the group size does not divide them.
        """
        group = inputs if self.group == -1 else self.group
        if inputs % group:
            fits = [g for g in (16, 32, 64, 128, 256) if inputs % g == 0]
            raise GreenError(
                f"Groups of {group} do not divide a weight with {inputs} inputs.",
                f"Choose --group {' or '.join(map(str, [*fits, -1]))}.",
            )
        return group


def fit(W: Tensor, grid: Grid, importance: Tensor | None = None, *, shrink: Tensor = _SHRINK) -> tuple[Tensor, Tensor]:
    """Scales and zero points with the least weighted squared error, by search over shrunken ranges.

    Args:
        W: float32 [N, K].
        grid: bits, group and symmetry.
        importance: float32 [K], weight of each input's error (the Hessian's diagonal); ones if None.
        shrink: parts of the full range that are tried.

    Returns:
        scales fp16 [N, G] and zero points uint8 [N, G].
    """
    n, k = W.shape
    group = grid.size(k)
    weight = torch.ones(k) if importance is None else importance.float().clamp_min(1e-12)
    rows = max(1, _CHUNK // k)
    parts = [
        _fit_rows(W[i : i + rows].view(-1, k // group, group), grid, weight.view(1, -1, group), shrink)
        for i in range(0, n, rows)
    ]
    return torch.cat([s for s, _ in parts]), torch.cat([z for _, z in parts])


def _fit_rows(w: Tensor, grid: Grid, weight: Tensor, shrink: Tensor) -> tuple[Tensor, Tensor]:
    best = torch.full(w.shape[:2], torch.inf)
    scales = torch.ones(w.shape[:2], dtype=torch.float16)
    zeros = torch.full(w.shape[:2], (grid.top + 1) // 2, dtype=torch.uint8)
    for s, z in _candidates(w, grid, shrink):
        s16 = _to_fp16(s)
        code = (w / s16.float()[..., None]).round_().add_(z[..., None]).clamp_(0, grid.top)
        code.sub_(z[..., None]).mul_(s16.float()[..., None]).sub_(w)
        error = code.square_().mul_(weight).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, s16, scales)
        zeros = torch.where(better, z.to(torch.uint8), zeros)
    return scales, zeros


def _candidates(w: Tensor, grid: Grid, shrink: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ranges worth trying: (scale, zero point), each [n, G]."""
    low, high = w.amin(-1), w.amax(-1)
    half = (grid.top + 1) // 2
    if grid.bits == 8:  # noqa: PLR2004 - a byte has levels to spare
        shrink = shrink[:1]
    if not grid.symmetric:
        low, high = low.clamp_max(0), high.clamp_min(0)
        ends = (
            [(low * p, high * p) for p in shrink]
            + [(low * p, high) for p in shrink]
            + [(low, high * p) for p in shrink]
        )
        return [_asymmetric(a, b, grid.top) for a, b in ends]
    largest = torch.where(high > -low, high, low)
    middle = torch.full_like(largest, half)
    found = [(largest * p / -half, middle) for p in shrink]
    return found + [(largest.abs() * p / (half - 1), middle) for p in shrink]


def _asymmetric(low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor]:
    s = _to_fp16((high - low) / top).float()
    return s, (-low / s).round().clamp(0, top)


def _to_fp16(s: Tensor) -> Tensor:
    """To fp16 without becoming zero (a dead group) or infinite."""
    tiny, huge = 2.0**-24, 65504.0
    s = torch.where(s.abs() < tiny, torch.full_like(s, tiny), s)
    return s.clamp(-huge, huge).half()


def expand(scales: Tensor, zeros: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of each weight, float32 [N, K]."""
    return scales.float().repeat_interleave(group, 1), zeros.float().repeat_interleave(group, 1)


def as_packed(codes: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Packed:
    """Bundle codes [N, K] with their grid."""
    return Packed(codes.to(torch.uint8), scales, zeros, grid.bits, grid.size(codes.shape[1]), grid.symmetric)
